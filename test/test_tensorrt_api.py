"""Every TensorRT name that we use exists, and takes these arguments, in all versions from 10.3 to 11.4.

Real: the names and signatures, read from NVIDIA's own bindings of seven versions. CUDA's are compared with cuda-python
itself, which can be imported without a GPU.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nvidia import FAKES
from tensorrt_signatures import MEMBERS, VERSIONS, arities, members

ENGINES = Path(__file__).resolve().parent.parent / "marigold_ros" / "engines"
SOURCES = sorted(ENGINES.glob("tensorrt_*.py"))
# What our variables hold, wherever they stand, with or without "self._".
VARIABLES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "timings": "ITimingCache",
    "error": "ParserError",
}
# Not in every version, and used only where hasattr finds it.
GUARDED = {"BuilderFlag.FP16", "BuilderFlag.INT8"}
# Python's own, of an exception that is called `error`.
NOT_TENSORRT = {"error.strerror"}


def chain(node: ast.AST) -> list[str]:
    """['trt', 'DataType', 'HALF'] for trt.DataType.HALF; [] for what is no plain chain of names."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def uses() -> dict[str, set[str]]:
    """Class.member -> where it stands, for every use of the bindings in our sources."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = chain(node)
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if names[:1] == ["trt"] and len(names) == 3:
                found.setdefault(".".join(names[1:]), set()).add(where)
            elif names[:1] == ["trt"] and len(names) == 2:
                found.setdefault(names[1], set()).add(where)
            elif len(names) == 2 and names[0] in VARIABLES and ".".join(names) not in NOT_TENSORRT:
                found.setdefault(f"{VARIABLES[names[0]]}.{names[1]}", set()).add(where)
            elif len(names) == 3 and names[0] == "self" and names[1].lstrip("_") in VARIABLES:
                found.setdefault(f"{VARIABLES[names[1].lstrip('_')]}.{names[2]}", set()).add(where)
    return found


def calls() -> list[tuple[str, int, str]]:
    """(Class.member, number of arguments, where) for every call of a method, and of a class to make one of it."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = chain(node.func) if isinstance(node, ast.Call) else []
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if len(names) == 2 and names[0] in VARIABLES:
                assert not node.keywords, f"{where}: keyword names differ between versions"
                found.append((f"{VARIABLES[names[0]]}.{names[1]}", len(node.args), where))
            elif len(names) == 2 and names[0] == "trt":
                found.append((f"{names[1]}.__init__", len(node.args), where))
    return found


def test_the_search_sees_what_the_sources_use():
    """Or the tests below would pass over an empty list."""
    found = uses()
    for name in ("Builder.build_serialized_network", "IExecutionContext.execute_async_v3", "DataType.HALF", "ILogger"):
        assert name in found
    assert {name.split(".")[0] for name in found} >= set(VARIABLES.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists(version):
    known = MEMBERS[version]
    for name, where in uses().items():
        owner, _, member = name.partition(".")
        if name in GUARDED or owner == "__version__":
            continue
        assert owner in known, (name, where)
        # The list of members leaves constructors out.
        assert not member or member in [*known[owner], "__init__"], (name, where)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_has_as_many_arguments_as_the_signature_takes(version):
    assert len(calls()) > 15
    for name, arguments, where in calls():
        owner, member = name.split(".")
        signature = members(version, owner)[member]
        fits = [fewest <= arguments <= most for fewest, most in arities(signature)]
        assert any(fits), (name, arguments, signature, where)


def test_guarded_names_are_really_guarded():
    text = "".join(path.read_text() for path in SOURCES)
    assert 'hasattr(trt.BuilderFlag, "FP16")' in text
    # INT8 is used together with FP16 only, and is there wherever that is.
    for version in VERSIONS:
        flags = MEMBERS[version]["BuilderFlag"]
        assert "FP16" not in flags or "INT8" in flags


def test_cuda_names_and_arguments_are_those_of_nvidias_package():
    """In a process of its own, because other tests put a stand-in in its place."""
    names = sorted(set(re.findall(r"cudart\.(cuda\w+)", (ENGINES / "cuda.py").read_text())))
    assert len(names) > 15
    script = (
        "import json; from cuda.bindings import runtime;"
        f"print(json.dumps({{name: getattr(runtime, name).__doc__ for name in {names!r}}}))"
    )
    real = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    stand_in = ast.parse((FAKES / "cuda" / "bindings" / "runtime.py").read_text())
    parameters = {node.name: len(node.args.args) for node in stand_in.body if isinstance(node, ast.FunctionDef)}
    functions = [name for name in names if name in parameters]
    assert len(functions) > 12
    for name in functions:
        inside = re.match(rf"{name}\((.*?)\)", real[name]).group(1)
        assert len([text for text in inside.split(",") if text.strip()]) == parameters[name], (name, inside)
