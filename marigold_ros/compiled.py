"""Loops over points and pixels as machine code, where numba is installed; numpy does the same where it is not.

Nothing needs numba: Ubuntu 24.04 has no package of it, and one that is older than numpy does not load. So every loop
has a function of numpy beside it, the `instead`, which it is also tested against, or is made of loops that have one.
Numba's vectors need comparisons that are spelled out, since `min` and `max` look for NaN, and slices of the same
length, whose places need no check.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Annotated, Any, get_args, get_type_hints

import numpy as np

# Arguments of loops, as numba spells them: (N,) or (H, W), in the order of C.
Ints = Annotated[np.ndarray, "int64[::1]"]
IntRows = Annotated[np.ndarray, "int64[:,::1]"]
Floats = Annotated[np.ndarray, "float32[::1]"]
Doubles = Annotated[np.ndarray, "float64[::1]"]
FloatRows = Annotated[np.ndarray, "float32[:,::1]"]
DoubleRows = Annotated[np.ndarray, "float64[:,::1]"]
Pixels = Annotated[np.ndarray, "float32[:,::1]"]
WrittenPixels = Annotated[np.ndarray, "float32[:,::1]", "written"]
Colours = Annotated[np.ndarray, "uint8[:,:,::1]"]
Mask = Annotated[np.ndarray, "boolean[:,::1]"]
Grid = Annotated[np.ndarray, "float32[:,:,::1]"]
Grids = Annotated[np.ndarray, "float32[:,:,:,::1]"]
WrittenGrid = Annotated[np.ndarray, "float32[:,:,::1]", "written"]
Float = Annotated[float, "float32"]
Double = Annotated[float, "float64"]
Int = Annotated[int, "int64"]
Bool = Annotated[bool, "boolean"]

# Sums may be put together in another order; NaN stays NaN.
_FASTMATH = ("reassoc", "contract", "nsz")
_log = logging.getLogger(__name__)
# All loops of the modules that were imported.
LOOPS: list[Loop] = []


class Loop:
    """A function of arrays and numbers; numba's machine code once that is there.

    It is compiled when it is first called, which takes about a second and is kept on disk for the next time, or by
    `prepare`; as long as that is at work, and where there is no numba, `instead` answers.
    """

    # Whether `prepare` is at work, and its last thread.
    preparing = False
    preparation: threading.Thread | None = None

    def __init__(self, loop: Callable[..., Any], instead: Callable[..., Any], inner: bool = False) -> None:
        self.loop, self.instead, self.inner = loop, instead, inner
        self._answer: Callable[..., Any] | None = None
        self._complained = False
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """What `instead` says of the same arguments."""
        answer = self._answer
        if answer is None:
            answer = self.instead if Loop.preparing else self.compile()
        try:
            return answer(*arguments)
        except TypeError as problem:  # arrays of another kind than it was compiled for
            if answer is self.instead:
                raise
            self._complain(problem)
            return self.instead(*arguments)

    def compile(self) -> Callable[..., Any]:
        """The machine code, or `instead` where there is none."""
        with self._lock:
            if self._answer is None:
                self._answer = self.instead if why_not() else self._machine_code()
            return self._answer

    def _machine_code(self) -> Callable[..., Any]:
        try:
            return _compiled(self.loop)
        except Exception as problem:  # of whatever kind: a version of numba that does not know what the loop needs
            self._complain(problem)
            return self.instead

    def _complain(self, problem: Exception) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("%s is slower than it could be, numba fails: %s", self.loop.__name__, problem)


def compiled(instead: Callable[..., Any] | None = None, inner: bool = False) -> Callable[[Callable[..., Any]], Loop]:
    """Decorates a loop whose arguments have the types above, with a function of numpy that says the same.

    It may call other loops, and functions of Python that numba knows how to compile. Where all work is in those, it
    needs no `instead`: without numba it runs as it is. inner: only other loops call it, and are compiled with it.
    """

    def decorate(loop: Callable[..., Any]) -> Loop:
        made = Loop(loop, instead or loop, inner)
        LOOPS.append(made)
        return made

    return decorate


def prepare() -> threading.Thread:
    """Compile all loops in a thread of its own, for programs that may not wait; `instead` answers meanwhile.

    The compiler would not let other threads go on, so what is not on disk yet is compiled by another process first.
    Asked again while that goes on, it is the same thread.
    """
    if Loop.preparing and Loop.preparation is not None:
        return Loop.preparation

    def work() -> None:
        try:
            loops = [loop for loop in LOOPS if not loop.inner]
            shortest = min(loops, key=lambda loop: len(loop.loop.__code__.co_code))
            code = shortest.compile()
            if code is not shortest.instead and sum(code.stats.cache_misses.values()):
                _compile_elsewhere({loop.loop.__module__ for loop in loops})
            for loop in loops:
                loop.compile()
        finally:
            Loop.preparing = False

    Loop.preparing = True
    Loop.preparation = threading.Thread(target=work, name="compile loops", daemon=True)
    Loop.preparation.start()
    return Loop.preparation


def compile_all(modules: Iterable[str]) -> None:
    """Compile the loops of these modules."""
    for module in modules:
        importlib.import_module(module)
    for loop in LOOPS:
        if not loop.inner:
            loop.compile()


def _compile_elsewhere(modules: Iterable[str]) -> None:
    program = f"import os; os.nice(10); from marigold_ros.compiled import compile_all; compile_all({sorted(modules)})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=quiet, stderr=quiet) as process:
        atexit.register(process.kill)
        process.wait()
        atexit.unregister(process.kill)


def why_not() -> str | None:
    """Why loops are not compiled; None where they are."""
    try:
        import numba
    except Exception as problem:  # one that is older than numpy says so in many ways
        missing = isinstance(problem, ModuleNotFoundError) and problem.name == "numba"
        return "numba is not installed" if missing else f"numba cannot be loaded: {problem}"
    return "NUMBA_DISABLE_JIT is set" if numba.config.DISABLE_JIT else None


def description() -> str:
    """What runs the loops, in words."""
    problem = why_not()
    if problem is not None:
        return f"numpy ({problem})"
    import numba

    return f"numba {numba.__version__}"


def _with_helpers(function: FunctionType, options: dict[str, Any]) -> tuple[FunctionType, list]:
    """A copy of the function that calls the machine code of what it calls of this package; and all it is made of."""
    import numba

    code = function.__code__
    plain = int, float, tuple
    named = {name: function.__globals__.get(name) for name in code.co_names}
    made_of = [code.co_code.hex(), code.co_names, [value for value in code.co_consts if isinstance(value, plain)]]
    made_of += sorted((name, value) for name, value in named.items() if isinstance(value, plain))
    helpers = {}
    for name, value in named.items():
        value = value.loop if isinstance(value, Loop) else value
        if isinstance(value, FunctionType) and value.__module__.startswith(f"{__package__}."):
            helper, of_helper = _with_helpers(value, options)
            helpers[name] = numba.njit(**options)(helper)
            made_of.append((name, of_helper))
    return FunctionType(code, function.__globals__ | helpers, function.__name__), made_of


def _compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    import numba
    from numba.core.sigutils import normalize_signature

    hints = get_type_hints(loop, include_extras=True)
    hints.pop("return", None)
    spelled = [get_args(hint)[1:] for hint in hints.values()]
    types, _ = normalize_signature(f"({', '.join(name for name, *_ in spelled)},)")
    # What may be written to is taken for what is only read, but not the other way round.
    types = tuple(
        of.copy(readonly=True) if isinstance(of, numba.types.Array) and not written else of
        for of, (_, *written) in zip(types, spelled, strict=True)
    )
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(_FASTMATH)}
    loop, made_of = _with_helpers(loop, options)
    # Numba keeps code on disk by the loop's name and its file's date. What else it is made of goes into the name.
    parts = repr((sorted(_FASTMATH), sorted(options), made_of))
    loop.__qualname__ = f"{loop.__name__}_{zlib.crc32(parts.encode()):08x}"
    try:
        return numba.njit(types, cache=True, **options)(loop)
    except Exception:  # what was kept is damaged, nothing can be written, or the loop's own mistake, raised again
        return numba.njit(types, **options)(loop)
