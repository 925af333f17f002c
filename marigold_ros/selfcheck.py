"""Does an engine answer like torch? An engine that builds and answers wrongly looks just like one that works.

When a network is exported, torch answers a few stored frames; frames and answers lie beside the exported file. An
engine is accepted once it has answered them alike, and the verdict is kept for as long as library, processor and file
stay.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from marigold_ros.config import Unusable
from marigold_ros.files import sha256_of, written_beside
from marigold_ros.geometry import resize
from marigold_ros.places import shared

_FRAMES = ("room", "street", "warehouse")
# The largest mean and worst error. Depth is in [0, 1]; normals err by an angle, here in parts of pi.
_DEPTH_LIMITS, _NORMALS_LIMITS = (0.01, 0.1), (0.03, 0.3)

# Part of the kept verdicts' names: raise it when what is compared, or the limits, change.
_CHECK_VERSION = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """How far an engine's answers are from torch's, and what is allowed.

    mean: over all pixels. worst: exceeded by one pixel in a thousand; single ones on an edge may fall to either side.
    Depth in [0, 1], or angles of normals in parts of pi; NaN where an answer is not finite.
    """

    mean: float
    worst: float
    mean_limit: float
    worst_limit: float

    @property
    def passed(self) -> bool:
        """Whether the engine may be used; never with NaN."""
        return self.mean <= self.mean_limit and self.worst <= self.worst_limit

    def __str__(self) -> str:
        return f"differs from torch by {self.mean:.4f} on average, {self.worst:.3f} at the worst 0.1 %"


def reference_of(network: Path) -> Path:
    """Where the frames and torch's answers for the exported file `network` are."""
    return network.with_suffix(".check.npz")


def frames(width: int, height: int) -> np.ndarray:
    """(N, height, width, 3) uint8 RGB: the stored frames, which are of generated scenes."""
    images = []
    for name in _FRAMES:
        path = shared(f"checkpoints/self_check/{name}.jpg")
        image = cv2.imread(str(path))
        if image is None:
            raise Unusable(f"image {path}: belongs to marigold_ros but cannot be read; install the package again")
        images.append(resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), width, height))
    return np.stack(images)


def write_reference(network: Path, rgb: np.ndarray, answers: np.ndarray, x_left: bool = False) -> None:
    """Keep the frames (N, h, w, 3) and torch's answers (N, h, w) or (N, h, w, 3) beside the exported file.

    x_left: the normals were turned from a frame with x to the left, see `turned_from_x_left`.
    """
    with written_beside(reference_of(network)) as beside:
        np.savez_compressed(beside, rgb=rgb, answers=answers.astype(np.float16), x_left=np.bool_(x_left))


def turned_from_x_left(network: Path) -> bool:
    """Whether the exported file takes what its network draws for normals with x to the left.

    Files from before that was told apart do not say it, and never did. Raises `Unusable` as `verdict` does.
    """
    return bool(_stored(network).get("x_left", False))


def verdict(engine: Callable[[np.ndarray], np.ndarray], network: Path) -> Verdict:
    """Let `engine` answer the frames of the exported file; raises `Unusable` where they cannot be read."""
    stored = _stored(network)
    rgb, answers = stored["rgb"], stored["answers"].astype(np.float32)
    pairs = zip(rgb, answers, strict=True)
    errors = np.concatenate([_errors(np.array(engine(frame)), answer).ravel() for frame, answer in pairs])
    limits = _NORMALS_LIMITS if answers.ndim == 4 else _DEPTH_LIMITS
    return Verdict(float(errors.mean()), float(np.quantile(errors, 0.999)), *limits)


def _stored(network: Path) -> dict[str, np.ndarray]:
    path = reference_of(network)
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in {"rgb", "answers", *stored.files}}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Unusable(f"self-check file {path}: cannot be read ({error}); export the checkpoint again") from error


def _errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    if found.shape != expected.shape:
        return np.full(1, np.nan)
    if found.ndim == 2:
        return np.abs(found - expected)
    lengths = np.linalg.norm(found, axis=2) * np.linalg.norm(expected, axis=2)
    cosine = np.sum(found * expected, axis=2) / np.maximum(lengths, 1e-6)
    return np.arccos(np.clip(cosine, -1.0, 1.0)) / np.pi


def kept_verdict(
    engine: Callable[[np.ndarray], np.ndarray], identity: str, network: Path, cache: Path, anew: bool = False
) -> Verdict:
    """The verdict on the engine called `identity`, found in `cache` or made now and kept there where that can be.

    anew: it is made now in any case.
    """
    path = reference_of(network)
    if not path.is_file():
        raise Unusable(f"self-check file {path}: is missing; export the checkpoint again")
    facts = f"{_CHECK_VERSION}\n{identity}\n{sha256_of(network)}\n{sha256_of(path)}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    record = cache / "self_check" / f"{network.stem}-{key}.json"
    try:
        if anew:
            raise KeyError
        return Verdict(**json.loads(record.read_text(encoding="utf-8"))["verdict"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or a damaged one
    found = verdict(engine, network)
    kept = {"engine": identity, "network": str(network), "verdict": asdict(found)}
    try:
        with written_beside(record) as beside:
            beside.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    except Unusable as problem:
        log.info("the self-check will be made at every start: %s", problem)
    return found
