"""What a collection of recordings rests on: the settings, what became of each recording, and the file that says so."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from marigold_ros.config import RangeConfig, Unusable
from marigold_ros.files import written_beside
from marigold_ros.topics import Topics

# Reasons for which frames are dropped, in the order in which they are looked for.
BETWEEN = "between train and held_out"
NO_SCAN = "without a scan at their time"
NO_TRUTH = "without true depth"
BAD_IMAGE = "with an image that cannot be used"
BAD_INFO = "that the camera info does not fit"
NO_ANCHORS = "with a scan that cannot be used or placed"
FEW_ANCHORS = "with too few LiDAR points in view"
BLURRED = "blurred"
STILL = "like the last one kept"


@dataclass(frozen=True)
class Settings:
    """How recordings become samples; two runs with the same settings write the same files.

    motion: least difference from the last kept frame, a share of the picture's contrast. sharpness: least variance of
    the Laplacian, a share of the median of the frames before. held_out, block_s, gap_s: see `TimeSplit`. size_px:
    longest side of the stored images, 0 for the camera's. prior: checkpoint that predicts the map `prior`, '' for none.
    """

    topics: Topics = field(default_factory=lambda: Topics("", "", ""))
    range: RangeConfig = field(default_factory=lambda: RangeConfig(max_age_s=0.05, max_points=1_000_000))
    join_s: float = 0.0
    rectified: bool = False
    min_anchors: int = 20
    motion: float = 0.15
    sharpness: float = 0.4
    held_out: float = 0.2
    block_s: float = 10.0
    gap_s: float = 2.0
    size_px: int = 768
    prior: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out <= 1:
            raise Unusable(f"--held-out {self.held_out:g}: must lie between 0 and 1")
        for name in ("join_s", "min_anchors", "motion", "sharpness", "gap_s", "size_px"):
            if not getattr(self, name) >= 0:
                raise Unusable(f"{name} {getattr(self, name)}: must not be negative")
        if not self.block_s > 0:
            raise Unusable(f"--block {self.block_s:g}: must be more than 0 seconds")
        if self.join_s and not self.range.fixed_frame:
            raise Unusable(
                f"--join {self.join_s:g}: several scans can be joined only where the robot's motion is known; give "
                "--fixed-frame, e.g. odom"
            )


class Stopped(Exception):
    """Told to stop; what is there is whole, and the same command goes on."""


@dataclass
class Summary:
    """What became of the images of one recording; `why` is the first complaint for each reason."""

    seen: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    why: dict[str, str] = field(default_factory=dict)

    def drop(self, reason: str, why: str = "") -> None:
        """Count a frame that is not kept."""
        self.dropped[reason] += 1
        if why:
            self.why.setdefault(reason, why)

    def __str__(self) -> str:
        kept = f"{self.seen} frames, {self.kept['train']} kept to train on, {self.kept['held_out']} held out"
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        first = "; ".join(f"{reason}: {why}" for reason, why in self.why.items())
        return kept + (f"; dropped: {dropped}" if dropped else "") + (f" (the first {first})" if first else "")


class State:
    """The file that says with which settings a recording was begun, and what became of it."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._settings = settings
        self._found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if self._found is not None:
            _require_equal(path, _complete(self._found["settings"]), settings)

    def summary(self) -> Summary | None:
        """That of a recording which is done."""
        done = None if self._found is None else self._found.get("summary")
        if done is None:
            return None
        return Summary(done["seen"], Counter(done["kept"]), Counter(done["dropped"]), done["why"])

    def begin(self) -> None:
        """Note the settings, before the first sample."""
        self._write({"settings": self._settings})

    def finish(self, summary: Summary) -> None:
        """Note that all is there."""
        self._write({"settings": self._settings, "summary": vars(summary)})

    def forget(self) -> None:
        """No sample was written: the next run may have other settings."""
        self._path.unlink(missing_ok=True)

    def _write(self, facts: dict[str, Any]) -> None:
        with written_beside(self._path) as beside:
            beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _complete(before: dict[str, Any]) -> dict[str, Any]:
    """The settings with which a recording was begun; what there was no setting for then was as it is by default."""
    usual = json.loads(json.dumps(asdict(Settings())))
    return usual | before | {"range": usual["range"] | before.get("range", {})}


def _require_equal(path: Path, before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> None:
    for name, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(name), dict):
            _require_equal(path, before[name], value, f"{prefix}{name}.")
        elif before.get(name) != value:
            raise Unusable(
                f"{path}: the recording was begun with {prefix}{name}={before.get(name)!r}, not {value!r}; go on "
                "with the same options, or give another --out"
            )
