"""The borders of design.md §3, enforced: who may import what, and nothing happens at import."""

import ast
import subprocess
import sys
from collections.abc import Container
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "marigold_ros"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TRAINER = sorted((PROJECT / "trainer").rglob("*.py"))
ROS = {
    "ament_index_python",
    "builtin_interfaces",
    "cv_bridge",
    "diagnostic_msgs",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "lifecycle_msgs",
    "rcl_interfaces",
    "rclpy",
    "sensor_msgs",
    "sensor_msgs_py",
    "std_msgs",
    "tf2_msgs",
    "tf2_ros",
}
HEAVY = {"torch", "diffusers", "openvino", "tensorrt", "onnx", "onnxruntime", "transformers"}
# What may know ROS: the node's own modules, and the programs that play, record and show.
NODE_RIM = {
    "messages",
    "parameters",
    "transforms",
    "scans",
    "sources",
    "outputs",
    "diagnostics",
    "frames",
    "depth_node",
}
PROGRAMS = {"player", "recorder", "demo", "driver", "kitti", "benchmark"}
# The functions a constant may be made with; classes come on top.
CONSTANT_CALLS = {"np.array", "np.repeat", "range", "re.compile", "logging.getLogger"}
# The modules that know neither ROS nor the rim, and what each may import beside Python's own and ours.
CORE = {
    "config": set(),
    "roofline": set(),
    "timing": {"numpy"},
    "family": set(),
    "noise": {"torch"},
    "normals_frame": set(),
    "files": set(),
    "parts": set(),
    "selfcheck": {"numpy", "cv2"},
    "complaints": set(),
    "worker": set(),
    "decoding": {"numpy", "cv2", "simplejpeg"},
    "geometry": {"numpy", "cv2"},
    "compiled": {"numpy", "numba"},
    "anchors": {"numpy", "cv2"},
    "sweep": {"numpy", "cv2"},
    "calibration": {"numpy"},
    "calibration_evidence": {"numpy"},
    "calibration_fit": {"numpy"},
    "calibration_ground": {"numpy", "cv2"},
    "metric": {"numpy"},
    "acceptance": {"numpy"},
    "vote": {"numpy", "cv2"},
    "robust_fit": {"numpy"},
    "metric_map": {"numpy"},
    "tracker": {"numpy"},
    "field": {"numpy", "cv2"},
    "edges": {"numpy", "cv2"},
    "uncertainty": {"numpy", "cv2"},
    "unknown": {"numpy"},
    "sky": {"numpy", "cv2"},
    "metric_frames": {"numpy", "cv2"},
    "metric_cases": {"numpy"},
    "metric_baselines": {"numpy", "cv2"},
    "metric_report": {"numpy"},
    "metric_sequences": {"numpy"},
    "metric_sequence_cases": {"numpy"},
    "metric_chain": {"numpy"},
    "metric_over_time": {"numpy"},
    "metric_sequence_report": set(),
    "metric_sequence_plots": {"matplotlib"},
    "sparse_depth": {"numpy", "cv2"},
    "degraded_truth": {"numpy", "cv2"},
    "canonical": {"numpy"},
    "disagreement": {"numpy"},
    "pipeline": {"numpy"},
    "visual": {"numpy", "cv2"},
    "anchor_memory": {"numpy"},
    "beams": {"numpy", "matplotlib"},
    "calibration_picture": {"numpy", "matplotlib"},
    "calibration_recording": {"numpy"},
    "check_calibration": set(),
    "checkpoints": {"diffusers", "safetensors", "torch", "transformers"},
    "comparison": {"numpy", "PIL", "diffusers", "torch"},
    "correction": {"numpy"},
    "counting": {"diffusers", "safetensors", "torch"},
    "doctor": {"numpy", "torch"},
    "ensemble": {"numpy", "diffusers", "torch"},
    "estimate": {"numpy", "cv2", "torch", "tqdm"},
    "estimator": {"numpy", "torch"},
    "evaluate_metric": {"numpy"},
    "export": {"tqdm"},
    "folds": {"diffusers", "torch"},
    "guidance": {"numpy", "torch"},
    "guided": {"numpy", "torch"},
    "half_range": {"diffusers", "torch"},
    "hub": {"huggingface_hub"},
    "kitti_files": {"numpy", "cv2"},
    "real_data": set(),
    "nvidia_driver": set(),
    "metric_guided": {"numpy", "torch"},
    "motion": {"numpy"},
    "multistep": {"numpy", "diffusers", "torch"},
    "network": {"diffusers", "torch"},
    "onnx_export": {"numpy", "cv2", "onnx", "onnxruntime", "onnxscript", "torch"},
    "onnx_rules": {"onnx"},
    "pairing": {"numpy"},
    "picture_motion": {"numpy", "cv2"},
    "pictures": {"numpy", "matplotlib"},
    "places": set(),
    "processes": set(),
    "quantise": {"numpy", "onnx", "onnxruntime"},
    "recordings": {"numpy", "cv2", "rosbags"},
    "rig": {"numpy"},
    "rig_arguments": set(),
    "scores": {"numpy"},
    "sd2": {"diffusers", "safetensors", "torch"},
    "seen_motion": {"numpy", "cv2"},
    "shots": {"numpy", "cv2"},
    "topics": set(),
    "transform_tree": {"numpy"},
    "visual_odometry": {"numpy", "cv2"},
}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """First and, of our own packages, second part of every imported name."""
    tree = ast.parse(path.read_text())
    nodes = list(module_level(tree)) if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_level(tree: ast.Module):
    """The nodes that run when the module is imported; function bodies and what only type checkers see are left out."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def modules_of(paths, names: Container[str]):
    """The package's own modules of these names; engines are no part of the rim, whatever they are called."""
    return [path for path in paths if path.stem in names and path.parent == PACKAGE]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_rim_imports_ros(path):
    if path not in modules_of(SOURCES, NODE_RIM | PROGRAMS):
        assert not packages(imports(path)) & ROS


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_are_absolute(path):
    """So that the other tests here see what they name."""
    nodes = ast.walk(ast.parse(path.read_text()))
    assert not [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_package_does_not_know_the_trainer(path):
    assert "trainer" not in packages(imports(path))


def test_each_module_has_its_place():
    """A new one must be given one, or nothing here looks at it."""
    places = [*CORE, *NODE_RIM, *PROGRAMS]
    assert sorted(places) == sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", modules_of(SOURCES, NODE_RIM), ids=lambda p: p.stem)
def test_the_node_loads_no_network_library_at_import(path):
    assert not packages(imports(path)) & HEAVY
    assert not imports(path, top_level_only=True) & {
        f"marigold_ros.{module}" for module in ("estimator", "network", "export", "checkpoints", "engines")
    }


def test_importing_the_node_loads_no_network_library():
    """However far down the import is."""
    pytest.importorskip("rclpy")
    program = f"import sys, marigold_ros.depth_node; print(*(set({sorted(HEAVY)}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", sorted(CORE))
def test_modules_import_no_more_than_they_may(name):
    found = packages(imports(PACKAGE / f"{name}.py")) - set(sys.stdlib_module_names)
    assert found <= CORE[name] | {"marigold_ros"}


def test_config_stands_on_the_standard_library_alone():
    assert packages(imports(PACKAGE / "config.py")) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", modules_of(SOURCES, CORE), ids=lambda p: p.stem)
def test_the_core_does_not_know_the_rim(path):
    assert not imports(path) & {f"marigold_ros.{module}" for module in NODE_RIM | PROGRAMS}


@pytest.mark.parametrize("path", TRAINER, ids=lambda p: p.name)
def test_the_trainer_does_not_know_ros(path):
    assert not packages(imports(path)) & ROS


def test_messages_meet_arrays_in_one_place():
    """Of the node's modules, only `messages` and `diagnostics` (percentiles) touch both numpy and message classes."""
    for path in modules_of(SOURCES, NODE_RIM - {"messages", "diagnostics"}):
        names = packages(imports(path))
        assert not ({"sensor_msgs", "geometry_msgs"} & names and "numpy" in names), path.name


def test_there_is_no_drawer_for_odds_and_ends():
    assert not [p for p in SOURCES + TRAINER if p.stem in {"utils", "util", "helpers", "misc", "common"}]


@pytest.mark.parametrize("path", SOURCES + TRAINER, ids=lambda p: str(p.relative_to(PROJECT)))
def test_nothing_happens_at_import(path):
    """At module level there are only definitions, constants, imports, and the call of `main` for programs."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.If):
            assert "__name__" in ast.dump(statement.test) or "TYPE_CHECKING" in ast.dump(statement.test), path.name
            continue
        if isinstance(statement, ast.Expr):
            assert isinstance(statement.value, ast.Constant), f"{path.name}:{statement.lineno} runs at import"
        assert not isinstance(statement, (ast.For, ast.While, ast.With)), f"{path.name}:{statement.lineno}"
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            value = ast.Module([ast.Expr(statement.value)], [])
            calls = {ast.unparse(node.func) for node in module_level(value) if isinstance(node, ast.Call)}
            calls = {name for name in calls - CONSTANT_CALLS if not name[0].isupper()}
            assert not calls, f"{path.name}:{statement.lineno} calls {calls} at import"


@pytest.mark.parametrize("path", SOURCES + TRAINER, ids=lambda p: str(p.relative_to(PROJECT)))
def test_nobody_reads_the_environment_at_import(path):
    for node in module_level(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}), f"line {node.lineno}"
