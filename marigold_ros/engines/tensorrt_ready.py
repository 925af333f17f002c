"""From exported parts to an accepted TensorRT engine: open what is built, build what is missing, check both."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import tensorrt as trt

from marigold_ros.config import Unusable
from marigold_ros.engines.cuda import Gpu, gpu
from marigold_ros.engines.tensorrt_build import BuildSettings, Progress, build_plan, typings
from marigold_ros.engines.tensorrt_engine import DamagedPlan, TensorRtEngine
from marigold_ros.engines.tensorrt_plans import PlanFolder
from marigold_ros.files import locked, sha256_of
from marigold_ros.parts import PARTS, Parts
from marigold_ros.selfcheck import Verdict, kept_verdict, verdict

log = logging.getLogger(__name__)


def open_built(parts: Parts, cache: Path, check_anew: bool = False) -> tuple[TensorRtEngine, Verdict] | None:
    """The engine of `parts` and its verdict, which is good; None where it is not built for this machine.

    The verdict is the one kept in `cache`, unless it is to be made anew. Raises `Unusable` where there is no GPU, or
    every engine that is built fails its self-check.
    """
    device = gpu()
    folder = _plan_folder(cache, device)
    failed: Unusable | None = None
    for typing in typings():
        plans = {part: folder.find(parts, part, typing) for part in PARTS}
        if not all(plans.values()):
            continue
        try:
            return _accepted(parts, plans, device, typing, cache, check_anew)
        except DamagedPlan as damaged:
            folder.quarantine(damaged.path)
            log.warning("%s", damaged)
        except Unusable as problem:
            failed = problem
    if failed is not None:
        raise failed
    return None


def build_and_open(
    parts: Parts,
    cache: Path,
    settings: BuildSettings,
    progress: Callable[[str], Progress],
    rebuild: bool = False,
) -> tuple[TensorRtEngine, Verdict]:
    """The accepted engine of `parts` on this machine; plans that are there are not built again, unless `rebuild`.

    progress: called with each part's name as its build begins. Raises `Unusable` where it cannot be built, or answers
    wrongly, with strong types and, in TensorRT 10, with weak ones.
    """
    device = gpu()
    folder = _plan_folder(cache, device)
    failed: Unusable | None = None
    for typing in typings():
        if failed is not None:
            log.warning("%s; trying %s types", failed, typing)
        try:
            # Twice: a plan that cannot be loaded is put aside and built once more.
            for last in (False, True):
                plans = {part: _plan(folder, parts, part, typing, settings, progress, rebuild) for part in PARTS}
                try:
                    return _accepted(parts, plans, device, typing, cache)
                except DamagedPlan as damaged:
                    if last:
                        raise
                    folder.quarantine(damaged.path)
                    rebuild = False
        except Unusable as problem:
            failed = problem
    raise failed


def _plan_folder(cache: Path, device: Gpu) -> PlanFolder:
    return PlanFolder(cache / "tensorrt", trt.__version__, device)


def _plan(
    folder: PlanFolder,
    parts: Parts,
    part: str,
    typing: str,
    settings: BuildSettings,
    progress: Callable[[str], Progress],
    rebuild: bool,
) -> Path:
    path = folder.path(parts, part, typing)
    with locked(path):
        # Another process may have built it while this one waited.
        found = None if rebuild else folder.find(parts, part, typing)
        if found is not None:
            return found
        folder.require_space(parts, part)
        plan = build_plan(
            parts.onnx(part), parts.facts(part)["precision"], typing, settings, folder.timing_cache, progress(part)
        )
        return folder.keep(parts, part, typing, plan, asdict(settings))


def _accepted(
    parts: Parts, plans: dict[str, Path], device: Gpu, typing: str, cache: Path, check_anew: bool = False
) -> tuple[TensorRtEngine, Verdict]:
    """Open the engine and let it answer; raises `Unusable` with the numbers where it answers wrongly."""
    content = hashlib.sha256("".join(sha256_of(plan) for plan in plans.values()).encode()).hexdigest()
    identity = f"tensorrt {trt.__version__}, {typing} types, {device.name}, plans {content[:12]}"
    opened = TensorRtEngine(parts, plans, device, typing, identity)
    try:
        network = parts.network
        found = verdict(opened, network) if check_anew else kept_verdict(opened, identity, network, cache)
        if not found.passed:
            raise Unusable(f"{identity}: {found}; at most {found.mean_limit} and {found.worst_limit} are allowed")
    except BaseException:
        opened.close()
        raise
    return opened, found
