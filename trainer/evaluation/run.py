"""Goes through the images of each dataset, alone or as one of several processes; tables follow when all are scored."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from marigold_ros.checkpoints import CheckpointInfo
from marigold_ros.config import Unusable
from marigold_ros.family import DEPTH, INTRINSICS, NORMALS
from marigold_ros.files import locked
from trainer.evaluation.dataset import Dataset, Item, missing_files, open_dataset
from trainer.evaluation.intrinsics import load_perceptual
from trainer.evaluation.pictures import write_picture
from trainer.evaluation.predictors import How, Prediction, Predictor
from trainer.evaluation.protocols import DSINE, NormalsProtocol, protocol_of
from trainer.evaluation.report import RESULT_FILE, write_report
from trainer.evaluation.scores import (
    DAMAGED,
    ScoreWriter,
    images_of,
    keep_settings,
    read_json,
    read_scores,
    write_json,
)
from trainer.evaluation.tasks import OWN, Frame, Task, alignment_of, checked, task_of

REFUSE, SKIP = "refuse", "skip"
_PICTURES = ("best", "median", "worst")


@dataclass(frozen=True)
class Options:
    """What is evaluated and how.

    on: names of datasets. data, out: folders. how: how the checkpoint runs. seed: instead of the protocols'.
    align: 'own' or one of `alignment.ALIGNMENTS`. mean: 'image', 'pooled', or '' for the published one.
    normals: 'marigold' or 'dsine'. limit: only so many images of each. split_file: instead of the dataset's own list.
    damaged: 'refuse' or 'skip' images whose files are missing, damaged, or have no pixel that counts.
    focal_px: of all cameras, instead of what the protocols say.
    """

    on: tuple[str, ...]
    data: Path
    out: Path
    how: How = field(default_factory=How)
    seed: int | None = None
    align: str = OWN
    mean: str = ""
    normals: str = DSINE
    limit: int | None = None
    split_file: Path | None = None
    damaged: str = REFUSE
    focal_px: float | None = None


@dataclass(frozen=True)
class Place:
    """This process among those that share the work: number from 0, and how many there are."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def of_this_process() -> Place:
        """As torchrun and accelerate say it in the environment; alone where they do not."""
        rank, count = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
        return Place(rank, count)


class _Lazy:
    """The predictor, loaded when first asked for: a finished evaluation needs none."""

    def __init__(self, load: Callable[[], Predictor]) -> None:
        self._load, self._predictor = load, None

    def __call__(self) -> Predictor:
        if self._predictor is None:
            self._predictor = self._load()
        return self._predictor

    def close(self) -> None:
        if self._predictor is not None:
            self._predictor.close()


def evaluate(info: CheckpointInfo, options: Options, load: Callable[[], Predictor], place: Place = Place()) -> str:
    """Score this process's share of the images; returns the tables, or how far the others are.

    load: gives the predictor of the checkpoint. Raises `Unusable` for everything that is missing, before the network is
    loaded where that can be known.
    """
    alignment = alignment_of(info, options.align) if info.kind.task == DEPTH else ""
    work = [(dataset, task_of(info, dataset, alignment)) for dataset in _open_datasets(info, options)]
    keep_settings(options.out, _settings(info, options, alignment))
    predictor = _Lazy(load)
    finished = []
    with contextlib.closing(predictor):
        for dataset, task in work:
            _score_share(options, dataset, task, predictor, place)
            finished.append(_finish(options, dataset, task, predictor))
    if all(finished):
        with locked(options.out / RESULT_FILE):
            return write_report(options.out)
    return "not all images are scored yet: the process that scores the last one writes the tables, or run this again"


def _open_datasets(info: CheckpointInfo, options: Options) -> list[Dataset]:
    if options.split_file is not None and len(options.on) > 1:
        raise Unusable(f"--split-file {options.split_file}: is of one dataset; give one after --on")
    datasets = []
    for name in dict.fromkeys(options.on):
        protocol = protocol_of(info.kind.task, name, options.normals)
        if options.seed is not None:
            protocol = replace(protocol, seed=options.seed)
        dataset = open_dataset(protocol, options.data, options.split_file, options.limit)
        if options.focal_px is not None:
            items = tuple(replace(item, focal_px=options.focal_px) for item in dataset.items)
            dataset = replace(dataset, items=items)
        missing = missing_files(dataset)
        if missing and options.damaged == REFUSE:
            raise Unusable(
                f"dataset {protocol.title} in {dataset.source.place}: {len(missing)} of the files that its list names "
                f"are missing, the first is {missing[0]}; get the complete dataset, or give --damaged {SKIP}"
            )
        datasets.append(dataset)
    return datasets


def _settings(info: CheckpointInfo, options: Options, alignment: str) -> dict[str, Any]:
    """What the scores depend on, and what the report says of the run."""
    how = asdict(options.how)
    # They change how long it takes, not what comes out.
    del how["threads"], how["batch"]
    settings = {"checkpoint": info.name, "digest": info.digest, "task": info.kind.task, **how}
    settings["steps"] = options.how.steps or info.kind.steps
    if options.seed is not None:
        settings["seed"] = options.seed
    if info.kind.task == DEPTH:
        settings["alignment"] = alignment
    if alignment == "none":
        # The digest is of the network alone.
        settings |= {"metric": str(info.metric), "focal_px": options.focal_px}
    if info.kind.task == NORMALS:
        settings["protocol"] = options.normals
    if info.kind.task == INTRINSICS:
        settings["lpips"] = not isinstance(load_perceptual(), str)
    return settings


def _score_share(options: Options, dataset: Dataset, task: Task, predictor: _Lazy, place: Place) -> None:
    folder = options.out / dataset.protocol.name
    keep_settings(folder, {"list": dataset.digest})
    writer, done = ScoreWriter(folder, place.rank), read_scores(folder)
    share = [dataset.items[index] for index in images_of(place.rank, place.count, len(dataset.items))]
    todo = [item for item in share if DAMAGED in done.get(item.index, {DAMAGED: ""})]
    bar = tqdm(todo, desc=dataset.protocol.title, unit="image", mininterval=5, disable=place.rank > 0 or None)
    for item in bar:
        writer.write(_entry(options, dataset, task, predictor, item))


def _entry(options: Options, dataset: Dataset, task: Task, predictor: _Lazy, item: Item) -> dict[str, Any]:
    """The scores of one image, or why it has none."""
    entry: dict[str, Any] = {"index": item.index, "image": item.name}
    try:
        frame = task.read(item)
    except Unusable as problem:
        if options.damaged == REFUSE:
            raise Unusable(f"{problem}; or give --damaged {SKIP} to count such images and leave them out") from problem
        return {**entry, DAMAGED: str(problem)}
    found = _predicted(dataset, task, predictor, item, frame)
    values = checked(found.values, frame, predictor(), item.name)
    size = [frame.rgb.shape[1], frame.rgb.shape[0]]
    ran = {"size": size, "working_size": list(found.working_size), "engine": predictor().description}
    return {**entry, **ran, "scores": task.measure(frame, values)}


def _predicted(dataset: Dataset, task: Task, predictor: _Lazy, item: Item, frame: Frame) -> Prediction:
    protocol = dataset.protocol
    return predictor()(frame.rgb, protocol.resolution, protocol.seed, task.focal_px(item))


def _finish(options: Options, dataset: Dataset, task: Task, predictor: _Lazy) -> bool:
    """Write the dataset's results and pictures, if all of its images are scored; returns whether they are."""
    folder = options.out / dataset.protocol.name
    with locked(folder / RESULT_FILE):
        kept = read_scores(folder)
        entries = [kept[item.index] for item in dataset.items if item.index in kept]
        damaged = [entry for entry in entries if DAMAGED in entry]
        if len(entries) < len(dataset.items) or (damaged and options.damaged == REFUSE):
            return False
        scored = [entry for entry in entries if DAMAGED not in entry]
        if not scored:
            raise Unusable(f"dataset {dataset.protocol.title}: all of its {len(entries)} images are damaged")
        result = _result(options, dataset, task, scored)
        result["damaged"] = {entry["image"]: entry[DAMAGED] for entry in damaged}
        drawn = read_json(folder / RESULT_FILE)["pictures"] if (folder / RESULT_FILE).is_file() else {}
        for name, entry in result["pictures"].items():
            path = folder / f"{name}.png"
            if drawn.get(name) != entry or not path.is_file():
                _draw(path, entry, dataset, task, predictor)
        write_json(folder / RESULT_FILE, result)
    return True


def _result(options: Options, dataset: Dataset, task: Task, scored: list[dict[str, Any]]) -> dict[str, Any]:
    protocol = dataset.protocol
    published = isinstance(protocol, NormalsProtocol) and protocol.pooled
    pooled = options.mean == "pooled" if options.mean else published
    return {
        "name": protocol.name,
        "title": protocol.title,
        "images": len(scored),
        "of": dataset.of,
        "published_images": protocol.images,
        "mean": "pooled" if pooled else "image",
        "published_mean": "pooled" if published else "image",
        "seed": protocol.seed,
        "resolution": protocol.resolution,
        "working_sizes": _working_sizes(scored),
        "engines": sorted({entry["engine"] for entry in scored}),
        **task.facts,
        "measures": task.averaged([entry["scores"] for entry in scored], pooled),
        "pictures": dict(_chosen(scored, task)),
    }


def _working_sizes(scored: list[dict[str, Any]]) -> dict[str, str]:
    """By the images' size that at which the network saw them, or those: in metres it depends on the camera too."""
    found: dict[str, list[str]] = {}
    for (w, h), (a, b) in sorted({(tuple(entry["size"]), tuple(entry["working_size"])) for entry in scored}):
        found.setdefault(f"{w}x{h}", []).append(f"{a}x{b}")
    return {size: " or ".join(working) for size, working in found.items()}


def _chosen(scored: list[dict[str, Any]], task: Task) -> Iterator[tuple[str, dict[str, Any]]]:
    """The best, the median and the worst image."""
    sign = 1.0 if task.better == "low" else -1.0
    ranked = sorted(scored, key=lambda entry: (sign * entry["scores"][task.headline], entry["index"]))
    for name, entry in zip(_PICTURES, (ranked[0], ranked[(len(ranked) - 1) // 2], ranked[-1]), strict=True):
        yield name, {"index": entry["index"], "image": entry["image"], task.headline: entry["scores"][task.headline]}


def _draw(path: Path, entry: Mapping[str, Any], dataset: Dataset, task: Task, predictor: _Lazy) -> None:
    """The picture of one image; the network is asked once more, for predictions are not kept."""
    item = dataset.items[entry["index"]]
    frame = task.read(item)
    found = _predicted(dataset, task, predictor, item, frame)
    title = f"{path.stem} of {dataset.protocol.title}: {entry['image']}, {task.headline} {entry[task.headline]:.4f}"
    write_picture(path, task.tiles(frame, found.values), title)
