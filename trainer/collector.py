"""Recordings -> samples: goes through one recording after the other and writes the frames that are worth it."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.geometry import Camera
from marigold_ros.pairing import Contents, Nearest, Wanted, contents_of, read_wanted
from marigold_ros.recordings import Recorded, Recording
from marigold_ros.rig import Rig
from marigold_ros.topics import Topics
from trainer import collection
from trainer.collection import Settings, State, Stopped, Summary
from trainer.lidar_truth import depth_map, shrunk, true_depth
from trainer.samples import Sample, is_sample, write_sample
from trainer.selection import Look, Selection, TimeSplit


class Collector:
    """Writes the samples of recordings into a folder, until `told_to_stop`."""

    def __init__(self, out: Path, settings: Settings, told_to_stop: threading.Event) -> None:
        self._out = Path(out)
        self._settings = settings
        self._told_to_stop = told_to_stop
        self._prior = _Prior(settings.prior) if settings.prior else None

    def collect(self, recording: Recording, topics: Topics) -> Summary:
        """Collect one recording, what is left of it.

        Raises `Stopped`, and `Unusable` where nothing of it can be kept, or it was begun with other settings.
        """
        name = name_of(recording)
        state = State(self._out / "recordings" / f"{name}.json", self._facts(topics))
        if (done := state.summary()) is not None:
            return done
        contents = contents_of(recording, topics, self._watched)
        self._require_transforms(contents)
        state.begin()
        summary = self._keep(recording, topics, contents)
        if not summary.kept:
            state.forget()
            raise Unusable(f"recording {recording.path}: nothing to keep in it: {summary}")
        state.finish(summary)
        return summary

    def _keep(self, recording: Recording, topics: Topics, contents: Contents) -> Summary:
        """Write the samples of a recording that has been read once."""
        name, summary = name_of(recording), Summary(seen=len(contents.images))
        selection = Selection(self._settings.sharpness)
        with _bar(name, summary.seen, "frame") as bar:
            for frame in self._frames(recording, topics, contents, summary):
                self._go_on()
                self._take(frame, selection, summary, topics, name)
                kept = sum(summary.kept.values())
                bar.set_postfix_str(f"{kept} kept", refresh=False)
                bar.update(kept + sum(summary.dropped.values()) - bar.n)
            bar.update(summary.seen - bar.n)
        return summary

    def _watched(self, messages: Iterator[Recorded], count: int) -> Iterator[Recorded]:
        with _bar("looking through", count, "message") as bar:
            for message in messages:
                self._go_on()
                bar.update()
                yield message

    def _go_on(self) -> None:
        if self._told_to_stop.is_set():
            raise Stopped

    def _facts(self, topics: Topics) -> dict[str, Any]:
        """What decides the samples of a recording."""
        facts = asdict(self._settings) | {"topics": asdict(topics)}
        if self._prior is not None:
            facts["prior"] = self._prior.facts
        return json.loads(json.dumps(facts))

    def _require_transforms(self, contents: Contents) -> None:
        if self._settings.range.extrinsic == "static":
            return
        cameras = {stamp.frame for stamp in contents.images if not stamp.problem}
        lidars = {stamp.frame for stamp in contents.scans if not stamp.problem}
        for sensor, frames in (("image", cameras), ("range", lidars)):
            if "" in frames:
                raise Unusable(
                    f"{sensor} header.frame_id='': /tf needs the name of the frame; set it in the driver, or give "
                    "--translation and --rotation"
                )
        fixed = self._settings.range.fixed_frame
        for camera in sorted(cameras):
            for lidar in sorted(lidars):
                contents.transforms.require(camera, lidar)
                if fixed:
                    contents.transforms.require(fixed, camera)

    def _frames(self, recording: Recording, topics: Topics, contents: Contents, summary: Summary) -> Iterator[_Frame]:
        """The images that have a scan and a split, rectified, with their anchors; the others are counted."""
        settings = self._settings
        planned, splits, ages = self._plan(contents, topics, summary)
        types = recording.topics
        rig = Rig(types[topics.image], types[topics.range], settings.range, settings.rectified, contents.transforms)
        truth_type = "" if topics.truth is None else types[topics.truth]
        for wanted, image, scans, truth in read_wanted(recording, topics, planned):
            info = contents.info_at(contents.images[wanted.image].recorded_ns)
            reason = collection.BAD_IMAGE
            try:
                raw = rig.image(image)
                reason = collection.BAD_INFO
                rgb, camera = rig.rectify(raw, info)
                reason = collection.NO_ANCHORS
                pixels, depth_m = rig.anchors(image.header, camera, [scans[number] for number in wanted.scans])
                reason = collection.NO_TRUTH
                true = None if truth is None else _true_depth(truth, truth_type, camera, rig)
            except Unusable as problem:
                summary.drop(reason, str(problem))
                continue
            stamp = contents.images[wanted.image].measured_ns
            yield _Frame(stamp, splits[wanted.image], rgb, camera, pixels, depth_m, true, ages[wanted.image])

    def _plan(
        self, contents: Contents, topics: Topics, summary: Summary
    ) -> tuple[list[Wanted], dict[int, str], dict[int, float]]:
        """The images to look at, their splits and the ages of their scans, both by the image's number."""
        settings = self._settings
        times = [stamp.measured_ns for stamp in contents.images if not stamp.problem]
        begin_ns, end_ns = min(times, default=0), max(times, default=0)
        split_of = TimeSplit((end_ns - begin_ns) * 1e-9, settings.held_out, settings.block_s, settings.gap_s)
        truth_at = {t.measured_ns: number for number, t in enumerate(contents.truths) if not t.problem}
        nearest = Nearest(contents.scans)
        planned, splits, ages, taken = [], {}, {}, set()
        for number, stamp in enumerate(contents.images):
            if stamp.problem:
                summary.drop(collection.BAD_IMAGE, stamp.problem)
                continue
            split = split_of((stamp.measured_ns - begin_ns) * 1e-9)
            if split is None:
                summary.drop(collection.BETWEEN)
                continue
            at_ns = stamp.measured_ns - round(settings.range.time_offset_s * 1e9)
            scans, age_s = nearest(at_ns, settings.range.max_age_s, settings.join_s)
            if not scans:
                summary.drop(collection.NO_SCAN, _age(age_s, settings.range.max_age_s))
                continue
            truth = truth_at.get(stamp.measured_ns) if split == "held_out" else None
            if topics.truth is not None and split == "held_out" and truth is None:
                summary.drop(collection.NO_TRUTH, f"no message of {topics.truth} has the image's stamp")
                continue
            if stamp.measured_ns in taken:
                summary.drop(collection.STILL, "two images have one stamp")
                continue
            taken.add(stamp.measured_ns)
            planned.append(Wanted(number, tuple(scans), truth))
            splits[number], ages[number] = split, age_s
        return planned, splits, ages

    def _take(self, frame: _Frame, selection: Selection, summary: Summary, topics: Topics, recording: str) -> None:
        """Write the frame as a sample, or count why not."""
        look = selection.look(frame.rgb)
        if len(frame.depth_m) < self._settings.min_anchors:
            summary.drop(collection.FEW_ANCHORS, f"{len(frame.depth_m)} of at least {self._settings.min_anchors}")
        elif look.blurred:
            summary.drop(collection.BLURRED)
        elif look.motion < self._settings.motion:
            summary.drop(collection.STILL)
        else:
            selection.keep(look)
            summary.kept[frame.split] += 1
            name = f"{recording}_{frame.stamp_ns}"
            if not is_sample(self._out / frame.split, name):
                self._write(frame, look, name, recording, topics)

    def _write(self, frame: _Frame, look: Look, name: str, recording: str, topics: Topics) -> None:
        rgb, camera = shrunk(frame.rgb, frame.camera, self._settings.size_px)
        pixels, depth_m = (frame.pixels, frame.depth_m) if frame.true is None else frame.true
        maps = {"depth_m": depth_map(pixels, depth_m, frame.camera, camera)}
        about: dict[str, Any] = {
            "recording": recording,
            "stamp_ns": frame.stamp_ns,
            "topics": {kind: topic for kind, topic in asdict(topics).items() if topic is not None},
            "anchors": len(frame.depth_m),
            "scan_age_s": round(frame.scan_age_s, 4),
            "sharpness": round(look.sharpness, 2),
            "motion": round(look.motion, 4) if np.isfinite(look.motion) else None,
            "depth": "anchors" if frame.true is None else "dense",
        }
        if self._prior is not None:
            maps["prior"] = self._prior(rgb)
            about["prior"] = self._prior.facts
        write_sample(self._out / frame.split, Sample(name, rgb, maps, camera.matrix), about)


@dataclass(frozen=True)
class _Frame:
    """A rectified image with its anchors, and the true depth where it is to be measured with."""

    stamp_ns: int
    split: str
    rgb: np.ndarray
    camera: Camera
    pixels: np.ndarray
    depth_m: np.ndarray
    true: tuple[np.ndarray, np.ndarray] | None
    scan_age_s: float


class _Prior:
    """The pretrained network, asked what it sees in each frame."""

    def __init__(self, checkpoint: str) -> None:
        from marigold_ros.checkpoints import describe, find_checkpoint
        from marigold_ros.estimator import load_estimator

        info = describe(find_checkpoint(checkpoint))
        self._estimator = load_estimator(ModelConfig(checkpoint=checkpoint))
        self.facts = {"checkpoint": info.name, "digest": info.digest, "space": info.space}

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W) relative depth in [0, 1]."""
        return self._estimator(rgb).copy()


def _true_depth(message: Any, type: str, camera: Camera, rig: Rig) -> tuple[np.ndarray, np.ndarray]:
    if rig.is_distorted:
        raise Unusable("true depth lies pixel on pixel with the raw image; it cannot be used where that is distorted")
    return true_depth(message, type, camera)


def _age(age_s: float, max_age_s: float) -> str:
    if not np.isfinite(age_s):
        return "no scan of the recording can be read"
    when = "older" if age_s > 0 else "newer"
    return f"the nearest scan is {abs(age_s):.3f} s {when}, --max-age {max_age_s:g}; do both clocks agree?"


def _bar(name: str, total: int, unit: str) -> tqdm:
    # To a file, a line every half minute; to a terminal, a living bar.
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=name, unit=unit, mininterval=interval, miniters=0, leave=False)


def name_of(recording: Recording) -> str:
    """What samples of a recording are named after: its folder or file, as far as file names allow."""
    path = recording.path.resolve()
    return re.sub(r"[^\w.-]", "_", path.name if path.is_dir() else path.stem)
