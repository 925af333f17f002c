"""Marigold-DC among the methods of `evaluate_metric`: a multi-step checkpoint that the anchors guide, in a few cases.

It takes seconds with a network as small as the bundled one, and minutes or hours with a published one. Beside it stands
the same checkpoint without guidance, with the node's fit and correction.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from marigold_ros.anchors import Anchors
from marigold_ros.checkpoints import CheckpointInfo, describe, find_checkpoint
from marigold_ros.config import FitConfig
from marigold_ros.family import DEPTH, LCM
from marigold_ros.field import corrected
from marigold_ros.guided import STEPS, Guided
from marigold_ros.metric import Refusal, apply_fit, fit_metric
from marigold_ros.metric_cases import CLEAN, WRONG, Case, cases, patterns
from marigold_ros.metric_frames import Frame
from marigold_ros.multistep import MultiStep, Settings, quiet
from marigold_ros.robust_fit import USUAL_SIGMA

GUIDED = "Marigold-DC, guarded"
GUIDED_CORRECTED = "Marigold-DC, guarded, corrected"
PUBLISHED = "Marigold-DC as published"
UNGUIDED = "its checkpoint, our fit and correction"
PATTERNS = ("16 of 64 beams", "200 points", "16 lines", "500 points")
FAULTS = (CLEAN, WRONG[1])


@dataclass(frozen=True)
class GuidedAnswer:
    """(H, W) float32 metres, NaN unknown, that `method` gave in a case."""

    case: Case
    method: str
    depth_m: np.ndarray


class GuidedMethods:
    """The checkpoint in all the ways that are compared, 50 steps and one member each; unguided, a distilled (LCM) one
    takes the steps that it asks for.

    Raises `Unusable` for a checkpoint that anchors cannot guide.
    """

    def __init__(self, checkpoint: str) -> None:
        quiet()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.info: CheckpointInfo = describe(find_checkpoint(checkpoint))
        settings = Settings(steps=STEPS, spacing="trailing")
        self._guarded = Guided(self.info, settings, device)
        self._published = Guided(self.info, settings, device, guard=False)
        self._plain = MultiStep(self.info, Settings() if self.info.kind.protocol == LCM else settings, device)

    def answers(self, frame: Frame) -> Iterator[GuidedAnswer]:
        """Every method in every one of the few cases of the frame."""
        relative = self._plain(frame.rgb)[DEPTH].values
        for pattern in patterns(frame):
            if pattern.name not in PATTERNS:
                continue
            for case in cases(pattern, FAULTS):
                print(f"{frame.dataset} {frame.name}, {pattern.name}, {case.fault.name}: guided ...", file=sys.stderr)
                anchors = case.anchors
                depth_m = _limited(self._guarded(frame.rgb, anchors).values)
                yield GuidedAnswer(case, GUIDED, depth_m)
                yield GuidedAnswer(case, GUIDED_CORRECTED, _corrected(depth_m, anchors, USUAL_SIGMA))
                yield GuidedAnswer(case, PUBLISHED, _limited(self._published(frame.rgb, anchors).values))
                yield GuidedAnswer(case, UNGUIDED, _fitted(relative, anchors, self.info.space))


def _limited(depth_m: np.ndarray) -> np.ndarray:
    """Unknown beyond the node's farthest depth, as all the other methods."""
    return np.where(depth_m <= FitConfig().max_depth_m, depth_m, np.float32(np.nan))


def _corrected(depth_m: np.ndarray, anchors: Anchors, sigma: float) -> np.ndarray:
    """By the node's correction. sigma: the fit's; of a guided map, which has none, what fits take for usual."""
    config = FitConfig()
    return corrected(depth_m.copy(), anchors, sigma, config.correction_limit, config.max_depth_m)


def _fitted(relative: np.ndarray, anchors: Anchors, space: str) -> np.ndarray:
    """What the node would publish of it; NaN where it refuses."""
    fit = fit_metric(relative, anchors, space, FitConfig())
    if isinstance(fit, Refusal):
        return np.full(relative.shape, np.nan, np.float32)
    return _corrected(apply_fit(fit, relative, FitConfig().max_depth_m), anchors, fit.evidence.sigma)
