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
from marigold_ros.engines.tensorrt_build import BuildSettings, CannotBuild, Progress, build_plan, typings
from marigold_ros.engines.tensorrt_engine import CannotLoad, TensorRtEngine
from marigold_ros.engines.tensorrt_plans import PlanFolder, read_sidecar
from marigold_ros.files import locked
from marigold_ros.parts import PARTS, Parts
from marigold_ros.selfcheck import Verdict, kept_verdict

log = logging.getLogger(__name__)


class Refused(Unusable):
    """An engine that answers wrongly."""


def open_built(parts: Parts, cache: Path, check_anew: bool = False) -> tuple[TensorRtEngine, Verdict] | None:
    """The engine of `parts` and its verdict, which is good; None where it is not built for this machine.

    The verdict is the one kept in `cache`, unless it is to be made anew. Raises `Unusable` where there is no GPU, or
    every engine that is built cannot be loaded or fails its self-check.
    """
    device = gpu()
    folder = _plan_folder(cache, device)
    failed: Unusable | None = None
    # The typing that was exported last: it was asked for, or the other one did not serve.
    for typing in sorted(typings(), key=lambda typing: folder.last_export(parts, typing), reverse=True):
        plans = {part: folder.find(parts, part, typing) for part in PARTS}
        if not all(plans.values()):
            continue
        try:
            return _accepted(parts, plans, device, typing, cache, check_anew)
        except Unusable as problem:
            failed = problem.with_traceback(None)  # which would keep the engine's memory
    if failed is not None:
        raise failed
    return None


def build_and_open(
    parts: Parts,
    cache: Path,
    settings: BuildSettings,
    progress: Callable[[str], Progress],
    rebuild: bool = False,
    wanted: str = "auto",
) -> tuple[TensorRtEngine, Verdict]:
    """The accepted engine of `parts` on this machine; plans that are there are not built again, unless `rebuild`.

    progress: called with each part's name as its build begins. wanted: one of `typings`; 'auto': the first that works.
    Raises `Unusable` where it cannot be built so, or answers wrongly.
    """
    if wanted not in ("auto", *typings()):
        raise Unusable(f"--typing {wanted}: TensorRT {trt.__version__} has {' and '.join(typings())} types only")
    device = gpu()
    folder = _plan_folder(cache, device)
    failed: Unusable | None = None
    for typing in typings() if wanted == "auto" else (wanted,):
        if failed is not None:
            log.warning("%s; trying %s types", failed, typing)

        def make(anew: bool, typing: str = typing) -> tuple[TensorRtEngine, Verdict]:
            plans = {part: _plan(folder, parts, part, typing, settings, progress, anew) for part in PARTS}
            return _accepted(parts, plans, device, typing, cache)

        try:
            try:
                return make(rebuild)
            except CannotLoad as problem:
                if problem.for_want_of_memory:
                    raise
                # Once more: its checksum is right, but what it depends on may have changed under it.
                with locked(problem.path):
                    folder.quarantine(problem.path)
                return make(False)
        except (CannotBuild, Refused) as problem:
            failed = problem.with_traceback(None)  # which would keep network and builder, as large as the weights
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
        folder.clean(path)
        found = None if rebuild else folder.find(parts, part, typing, repair=True)
        if found is not None:
            folder.mark_exported(found)
            built = (read_sidecar(found) or {}).get("built")
            if built != asdict(settings):
                log.warning("%s is built already, with %s; --rebuild builds it anew", part, built)
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
    # The plans have been compared with these checksums, or written with them.
    checksums = "".join(str((read_sidecar(plan) or {}).get("sha256")) for plan in plans.values())
    content = hashlib.sha256(checksums.encode()).hexdigest()
    identity = f"tensorrt {trt.__version__}, {typing} types, {device.name}, plans {content[:12]}"
    opened = TensorRtEngine(parts, plans, device, typing, identity)
    try:
        found = kept_verdict(opened, identity, parts.network, cache, check_anew)
        if not found.passed:
            raise Refused(
                f"{identity}: {found}; at most {found.mean_limit} and {found.worst_limit} are allowed; "
                "run 'ros2 run marigold_ros doctor', or set model.engine to 'torch'"
            )
    except BaseException:
        opened.close()
        raise
    return opened, found
