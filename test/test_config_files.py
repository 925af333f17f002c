"""The files that ship beside the code: parameters, DDS profile, RViz, launch files."""

import importlib.util
import os
import py_compile
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from marigold_ros.config import Config, settings, with_settings
from marigold_ros.processes import PROFILE_VARIABLES

PROJECT = Path(__file__).resolve().parent.parent
LAUNCH_FILES = sorted((PROJECT / "launch").glob("*.launch.py"))


def flat(tree: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_parameter_file_holds_every_setting_with_its_default_and_nothing_else():
    shipped = flat(yaml.safe_load((PROJECT / "config" / "depth.yaml").read_text())["/**"]["ros__parameters"])
    assert set(shipped) == {name for name, _, _ in settings(Config())}
    assert with_settings(Config(), shipped) == Config()


def test_the_parameter_file_is_what_the_code_writes():
    pytest.importorskip("rclpy")
    from marigold_ros.parameters import as_yaml

    assert (PROJECT / "config" / "depth.yaml").read_text() == as_yaml(Config()), (
        "python -m marigold_ros.parameters > config/depth.yaml"
    )


def test_the_dds_profile_gives_shared_memory_room_for_images_and_keeps_udp():
    space = {"dds": "http://www.eprosima.com"}
    root = ElementTree.parse(PROJECT / "config" / "fastdds.xml").getroot()
    transports = {t.findtext("dds:type", None, space): t for t in root.iter(f"{{{space['dds']}}}transport_descriptor")}
    assert int(transports["SHM"].findtext("dds:segment_size", None, space)) >= 64 * 2**20
    assert "UDPv4" in transports
    participant = root.find(".//dds:participant", space)
    assert participant.get("is_default_profile") == "true"
    assert len(participant.findall(".//dds:userTransports/dds:transport_id", space)) == 2


def test_rviz_shows_topics_that_the_node_has():
    rviz = yaml.safe_load((PROJECT / "config" / "depth.rviz").read_text())
    shown = {d["Topic"]["Value"] for d in rviz["Visualization Manager"]["Displays"] if "Topic" in d}
    assert shown == {"points", "range", "range2", "image", "depth/visual"}


# launch and launch_ros are not on PyPI. What follows runs the launch files against stand-ins that only remember what
# they were told: it sees wrong names and values, not whether the real launch would take them.


class Remembered:
    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs


class Substitution(Remembered):
    def perform(self, context):
        return context[self.args[0]]


@pytest.fixture
def launch_stub(monkeypatch):
    names = {
        "launch": ("LaunchContext", "LaunchDescription"),
        "launch.actions": (
            "DeclareLaunchArgument",
            "IncludeLaunchDescription",
            "OpaqueFunction",
            "SetEnvironmentVariable",
        ),
        "launch.launch_description_sources": ("PythonLaunchDescriptionSource",),
        "launch.substitutions": ("LaunchConfiguration",),
        "launch_ros": (),
        "launch_ros.actions": ("Node",),
    }
    for module, members in names.items():
        stub = types.ModuleType(module)
        for member in members:
            base = Substitution if member == "LaunchConfiguration" else Remembered
            setattr(stub, member, type(member, (base,), {}))
        monkeypatch.setitem(sys.modules, module, stub)
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def described(path: Path) -> list:
    """The actions of a launch file."""
    spec = importlib.util.spec_from_file_location("launch_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description().args[0]


def started(actions: list, **given) -> list:
    """The nodes that the launch file's function makes of its arguments."""
    defaults = {a.args[0]: a.kwargs["default_value"] for a in actions if type(a).__name__ == "DeclareLaunchArgument"}
    functions = [a.kwargs["function"] for a in actions if type(a).__name__ == "OpaqueFunction"]
    return [node for function in functions for node in function({**defaults, **given})]


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda p: p.name)
def test_launch_files_compile(path, tmp_path):
    py_compile.compile(str(path), cfile=str(tmp_path / "compiled"), doraise=True)


def test_depth_launch_starts_the_node_with_the_shipped_parameters(launch_stub):
    actions = described(PROJECT / "launch" / "depth.launch.py")
    (node,) = started(actions)
    assert (node.kwargs["package"], node.kwargs["executable"]) == ("marigold_ros", "depth_node")
    params_file, overrides = node.kwargs["parameters"]
    assert Path(params_file) == PROJECT / "config" / "depth.yaml"
    assert overrides == {}  # what the file and launch files around this one say of the clock stays
    assert node.kwargs["remappings"] == []


def remapped(topic):
    return lambda *nodes: [dict(node.kwargs["remappings"])[topic] for node in nodes]


def overridden(name):
    return lambda node, rviz: [node.kwargs["parameters"][1][name]]


# Every argument of depth.launch.py with a value, and where that is to be found in the node and in RViz.
FORWARDED = {
    "namespace": ("front", lambda *nodes: [node.kwargs["namespace"] for node in nodes]),
    "params_file": ("mine.yaml", lambda node, rviz: node.kwargs["parameters"][:1]),
    **{
        name: (f"/rig/{name}", remapped(name))
        for name in ("image", "camera_info", "range", "range2", "range3", "depth", "points")
    },
    **{name: (name, remapped(f"/{name}")) for name in ("tf", "tf_static")},
    "checkpoint": ("here", overridden("model.checkpoint")),
    "engine": ("torch", overridden("model.engine")),
    "use_sim_time": ("true", lambda *nodes: [str(node.kwargs["parameters"][-1]["use_sim_time"]) for node in nodes]),
    "log_level": ("debug", lambda node, rviz: [node.kwargs["arguments"][-1]]),
    "rviz": ("true", lambda node, rviz: [str(rviz.kwargs["executable"] == "rviz2")]),
    "fixed_frame": ("map", lambda node, rviz: [rviz.kwargs["arguments"][-1]]),
}


@pytest.mark.parametrize("name", FORWARDED)
def test_each_argument_of_depth_launch_reaches_what_is_started(launch_stub, name):
    value, found_in = FORWARDED[name]
    nodes = started(described(PROJECT / "launch" / "depth.launch.py"), **{"rviz": "true", name: value})
    found = found_in(*nodes)
    assert found
    assert {str(each).lower() for each in found} == {value}


def test_depth_launch_has_no_other_arguments(launch_stub):
    actions = described(PROJECT / "launch" / "depth.launch.py")
    assert {a.args[0] for a in actions if type(a).__name__ == "DeclareLaunchArgument"} == FORWARDED.keys()
    assert len(started(actions, rviz="false")) == 1
    rviz = started(actions, rviz="true")[1]
    assert Path(rviz.kwargs["arguments"][1]).is_file()


def test_the_clock_and_the_transforms_are_those_that_are_asked_for(launch_stub):
    actions = described(PROJECT / "launch" / "depth.launch.py")
    for text, value in (("true", True), ("false", False)):
        nodes = started(actions, use_sim_time=text, tf="tf", tf_static="tf_static", rviz="true")
        assert [node.kwargs["parameters"][-1] for node in nodes] == [{"use_sim_time": value}] * 2
        assert all(node.kwargs["remappings"] == [("/tf", "tf"), ("/tf_static", "tf_static")] for node in nodes)


def test_overrides_are_settings(launch_stub):
    (node,) = started(described(PROJECT / "launch" / "depth.launch.py"), engine="torch", checkpoint="here")
    overrides = dict(node.kwargs["parameters"][1])
    assert with_settings(Config(), overrides).model.checkpoint == "here"


def test_the_profile_is_set_unless_the_user_has_one(launch_stub, monkeypatch):
    path = PROJECT / "launch" / "depth.launch.py"
    set_by = {a.args for a in described(path) if type(a).__name__ == "SetEnvironmentVariable"}
    assert set_by == {(name, str(PROJECT / "config" / "fastdds.xml")) for name in PROFILE_VARIABLES}
    monkeypatch.setitem(os.environ, PROFILE_VARIABLES[0], "mine.xml")
    assert not [a for a in described(path) if type(a).__name__ == "SetEnvironmentVariable"]


def test_the_node_has_huge_pages_unless_the_user_says_otherwise(launch_stub, monkeypatch):
    def tunables():
        (node,) = started(described(PROJECT / "launch" / "depth.launch.py"))
        return node.kwargs["additional_env"]["GLIBC_TUNABLES"]

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert tunables() == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert tunables() == "glibc.malloc.hugetlb=0"


def test_demo_launch_plays_the_bundled_recording_into_the_node(launch_stub):
    actions = described(PROJECT / "launch" / "demo.launch.py")
    (player,) = started(actions)
    recording, *options = player.kwargs["arguments"]
    assert Path(recording).is_dir()
    assert options == ["--raw", "--loop"]
    (player,) = started(actions, recording="mine.mcap", loop="false")
    assert player.kwargs["arguments"] == ["mine.mcap", "--raw"]
    (include,) = [a for a in actions if type(a).__name__ == "IncludeLaunchDescription"]
    assert Path(include.args[0].args[0]).is_file()
    passed_on = dict(include.kwargs["launch_arguments"])
    declared = {a.args[0] for a in described(PROJECT / "launch" / "depth.launch.py") if "default_value" in a.kwargs}
    assert set(passed_on) <= declared
    forwarded = {name: value.args[0] for name, value in passed_on.items() if not isinstance(value, str)}
    own = {a.args[0] for a in actions if type(a).__name__ == "DeclareLaunchArgument"}
    assert forwarded == {name: name for name in own - {"recording", "loop"}}
