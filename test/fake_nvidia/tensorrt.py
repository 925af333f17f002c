"""Stands in for TensorRT's library, which needs an NVIDIA GPU. Not real: building, plans, and what runs them.

Real: every class, method, number of arguments and enum of the chosen version, read from the bindings of seven versions
(`tensorrt_signatures.json`); calls that the version does not have raise, as there. The networks really run, in ONNX
Runtime, on the memory that the caller hands over by address, when the stream gets to them.

    FAKE_TENSORRT_VERSION   one of the file's versions
    FAKE_TENSORRT_STEPS     steps of a build's main phase
    FAKE_TENSORRT_STEP_S    seconds that each takes
"""

from __future__ import annotations

import enum
import json
import os
import time
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from cuda.bindings import runtime as cudart

from tensorrt_signatures import NEWEST, arities, members

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", NEWEST)


class Trouble:
    """What is to go wrong; tests set it."""

    no_gpu = False
    strong_build = ""  # the error that a strongly typed build ends with
    strong_parse = ""  # the error that reading ONNX with strong types ends with
    warning = ""  # what a build warns of
    any_build = ""
    load = ""  # the error that loading a plan ends with
    execute = False
    context = False
    wrong_answers = False
    wrong_strong_answers = False
    builds = 0  # how often something was built, counted
    most_builders = 0  # that were alive during one build


trouble = Trouble()
_builders: weakref.WeakSet = weakref.WeakSet()


def _members(name: str) -> dict:
    return members(__version__, name)


class _Bound:
    """A class of the bindings: nothing can be read, set or called that the version does not have."""

    _name = ""

    def __getattribute__(self, name: str) -> object:
        value = object.__getattribute__(self, name)
        known = object.__getattribute__(self, "_name")
        if name.startswith("_") or not known:
            return value
        signature = _members(known).get(name)
        if signature is None:
            raise AttributeError(f"'{known}' object has no attribute '{name}' in TensorRT {__version__}")
        if not callable(value):
            return value

        def call(*arguments: object) -> object:
            if not any(fewest <= len(arguments) <= most for fewest, most in arities(signature)):
                raise TypeError(f"{name}(): incompatible function arguments: {signature}")
            return value(*arguments)

        return call

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):
            kind = _members(self._name).get(name, "")
            if not str(kind).startswith("property ->"):
                raise AttributeError(
                    f"'{self._name}' object attribute '{name}' cannot be set in TensorRT {__version__}"
                )
        object.__setattr__(self, name, value)


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """Not `_Bound`: users derive from it."""

    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self._constructed = True


class IProgressMonitor:
    def __init__(self) -> None:
        self._constructed = True


def _constructed(thing: object) -> None:
    if not getattr(thing, "_constructed", False):
        raise TypeError(f"{type(thing).__name__}.__init__() must be called when overriding __init__")


def _enum(name: str) -> type[enum.Enum]:
    made = enum.Enum(name, {key: value for key, value in _members(name).items() if type(value) is int})
    made.__int__ = lambda self: self.value
    return made


BuilderFlag = _enum("BuilderFlag")
NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag")
MemoryPoolType = _enum("MemoryPoolType")
DataType = _enum("DataType")
ExecutionContextAllocationStrategy = _enum("ExecutionContextAllocationStrategy")

_TYPES = {"tensor(uint8)": "UINT8", "tensor(float16)": "HALF", "tensor(float)": "FLOAT"}


def _host_memory(content: bytes) -> memoryview:
    """A buffer, and nothing more: the bindings' IHostMemory has no methods either."""
    return memoryview(content)


class Builder(_Bound):
    _name = "Builder"

    def __init__(self, logger: ILogger) -> None:
        _constructed(logger)
        if trouble.no_gpu:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger
        _builders.add(self)

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> memoryview | None:
        if network._onnx is None or not _progress(config.progress_monitor):
            self._logger.log(Severity.ERROR, "nothing to build, or cancelled")
            return None
        weak_ok = int(__version__.split(".")[0]) < 11
        strong = bool(network._flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        if not strong and not weak_ok:
            raise AssertionError("weak types are gone in 11")
        trouble.most_builders = max(trouble.most_builders, len(_builders))
        if trouble.warning:
            self._logger.log(Severity.WARNING, trouble.warning)
        error = trouble.any_build or (trouble.strong_build if strong else "")
        if error:
            self._logger.log(Severity.ERROR, error)
            return None
        trouble.builds += 1
        config._timings._entries.add(Path(network._onnx).name)
        flags = sorted(flag.name for flag in config._flags)
        plan = {"version": __version__, "onnx": network._onnx, "strong": strong, "flags": flags}
        return _host_memory(json.dumps(plan).encode())


def _progress(monitor: IProgressMonitor | None) -> bool:
    """Two nested phases, as TensorRT reports them; False where the monitor wants to stop."""
    if monitor is None:
        return True
    _constructed(monitor)
    steps = int(os.environ.get("FAKE_TENSORRT_STEPS", "4"))
    monitor.phase_start("Building Engine", None, steps)
    for step in range(steps):
        monitor.phase_start("Timing Graph Nodes", "Building Engine", 2)
        for inner in range(2):
            time.sleep(float(os.environ.get("FAKE_TENSORRT_STEP_S", "0")) / 2)
            if not monitor.step_complete("Timing Graph Nodes", inner):
                return False
        monitor.phase_finish("Timing Graph Nodes")
        if not monitor.step_complete("Building Engine", step):
            return False
    monitor.phase_finish("Building Engine")
    return True


class INetworkDefinition(_Bound):
    _name = "INetworkDefinition"

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._onnx: str | None = None


class ITimingCache(_Bound):
    _name = "ITimingCache"

    def __init__(self, entries: set[str]) -> None:
        self._entries = entries

    def serialize(self) -> memoryview:
        return _host_memory(json.dumps(sorted(self._entries)).encode())

    def combine(self, other: ITimingCache, ignore_mismatch: bool) -> bool:
        if "of another GPU" in other._entries:
            return False
        self._entries |= other._entries
        return True


class IBuilderConfig(_Bound):
    _name = "IBuilderConfig"

    def __init__(self) -> None:
        self._flags: list = []
        self._timings = ITimingCache(set())
        self.progress_monitor = None
        self.builder_optimization_level = 3

    def set_flag(self, flag: enum.Enum) -> None:
        self._flags.append(flag)

    def set_memory_pool_limit(self, pool: enum.Enum, size: int) -> None:
        self._workspace = size

    def create_timing_cache(self, content: bytes) -> ITimingCache | None:
        try:
            return ITimingCache(set(json.loads(content)) if content else set())
        except ValueError:
            return None

    def set_timing_cache(self, timings: ITimingCache, ignore_mismatch: bool) -> bool:
        if "of another GPU" in timings._entries:
            return False
        self._timings = timings
        return True


class _ParserError(_Bound):
    _name = "ParserError"

    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return "node_1"

    def node_operator(self) -> str:
        return "Conv"


class OnnxParser(_Bound):
    _name = "OnnxParser"

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        _constructed(logger)
        self._network = network
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def parse_from_file(self, path: str) -> bool:
        strong = self._network._flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        if strong and trouble.strong_parse:
            self._errors.append(trouble.strong_parse)
            return False
        try:
            onnx.checker.check_model(path)
        except Exception as error:
            self._errors.append(str(error))
            return False
        self._network._onnx = path
        return True

    def get_error(self, index: int) -> _ParserError:
        return _ParserError(self._errors[index])


class Runtime(_Bound):
    _name = "Runtime"

    def __init__(self, logger: ILogger) -> None:
        _constructed(logger)
        if trouble.no_gpu:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def deserialize_cuda_engine(self, buffer: object) -> ICudaEngine | None:
        if trouble.load:
            self._logger.log(Severity.ERROR, trouble.load)
            return None
        try:
            plan = json.loads(bytes(memoryview(buffer)))
        except ValueError:
            self._logger.log(Severity.ERROR, "Serialization assertion stdVersionRead == serializationVersion failed")
            return None
        if plan["version"] != __version__:
            self._logger.log(Severity.ERROR, f"the engine plan file is of version {plan['version']}")
            return None
        return ICudaEngine(plan)


class ICudaEngine(_Bound):
    _name = "ICudaEngine"

    def __init__(self, plan: dict) -> None:
        self._plan = plan
        self._session = onnxruntime.InferenceSession(plan["onnx"], providers=["CPUExecutionProvider"])
        self._tensors = {end.name: end for end in (*self._session.get_inputs(), *self._session.get_outputs())}

    device_memory_size_v2 = 1 << 16

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get_tensor_dtype(self, name: str) -> enum.Enum:
        return getattr(DataType, _TYPES[self._tensors[name].type])

    def create_execution_context(self, strategy: enum.Enum) -> IExecutionContext | None:
        return None if trouble.context else IExecutionContext(self, strategy)


class IExecutionContext(_Bound):
    _name = "IExecutionContext"

    def __init__(self, engine: ICudaEngine, strategy: enum.Enum) -> None:
        self._engine = engine
        self._scratch = strategy is not ExecutionContextAllocationStrategy.USER_MANAGED
        self._addresses: dict[str, int] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        assert cudart.on_device(memory, size)
        self._scratch = True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine._tensors and memory % 256 == 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        if trouble.execute or not self._scratch or set(self._addresses) != set(self._engine._tensors):
            return False
        return cudart.queue(stream_handle, self._run)

    def _run(self) -> None:
        session = self._engine._session
        (given,), (gives,) = session.get_inputs(), session.get_outputs()
        wrong = trouble.wrong_answers or (trouble.wrong_strong_answers and self._engine._plan["strong"])
        answer = session.run(None, {given.name: self._array(given.name)})[0]
        self._array(gives.name)[:] = np.nan if wrong else answer

    def _array(self, name: str) -> np.ndarray:
        shape = self._engine.get_tensor_shape(name)
        dtype = {"UINT8": np.uint8, "HALF": np.float16, "FLOAT": np.float32}[self._engine.get_tensor_dtype(name).name]
        return cudart.memory(self._addresses[name], shape, dtype)
