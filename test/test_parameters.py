"""Settings <-> ROS parameters, without a node process: what is declared, and what `ros2 param set` would answer."""

import pytest

pytest.importorskip("rclpy")
from rclpy.node import Node
from rclpy.parameter import Parameter

from marigold_ros import parameters
from marigold_ros.config import Config, Unusable, settings


@pytest.fixture
def make_node(ros_domain):
    nodes = []

    def make(**overrides):
        given = [Parameter(name.replace("__", "."), value=value) for name, value in overrides.items()]
        name = f"parameters_{len(nodes)}"
        nodes.append(Node(name, parameter_overrides=given, automatically_declare_parameters_from_overrides=True))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def test_every_setting_is_a_described_parameter(make_node):
    node = make_node()
    assert parameters.declare(node) == Config()
    for name, field, value in settings(Config()):
        found, described = node.get_parameter(name).value, node.describe_parameter(name)
        assert (tuple(found) if isinstance(value, tuple) else found) == value
        assert described.description == field.metadata["doc"]
        assert described.read_only == field.metadata["read_only"]


def test_numbers_carry_their_range(make_node):
    node = make_node()
    parameters.declare(node)
    (span,) = node.describe_parameter("range.max_age_s").floating_point_range
    assert (span.from_value, span.to_value) == (0.0, 10.0)
    (span,) = node.describe_parameter("output.points_stride").integer_range
    assert (span.from_value, span.to_value, span.step) == (1, 64, 1)


def test_start_values_arrive_in_the_config(make_node):
    config = parameters.declare(make_node(range__max_age_s=1, range__translation_m=[1.0, 2.0, 3.0]))
    assert config.range.max_age_s == 1.0
    assert config.range.translation_m == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"range__max_age_s": 11.0}, "range.max_age_s=11.0: must lie between 0.0 and 10.0"),
        ({"model__engine": "abacus"}, "model.engine='abacus': must be one of"),
        ({"range__rotation_xyzw": [1.0, 2.0]}, "must be 4 finite numbers"),
        ({"range__min_depth_m": 50.0, "range__max_depth_m": 20.0}, "must be less than range.max_depth_m=20.0"),
    ],
)
def test_a_bad_start_value_is_refused_by_its_name(make_node, overrides, text):
    with pytest.raises(Unusable, match=text):
        parameters.declare(make_node(**overrides))


def test_setting_is_judged_by_the_same_check(make_node):
    node = make_node()
    accepted = [parameters.declare(node)]
    node.add_on_set_parameters_callback(parameters.on_set(lambda: accepted[-1], accepted.append))
    (refused,) = node.set_parameters([Parameter("range.min_depth_m", value=500.0)])
    assert not refused.successful
    (refused,) = node.set_parameters([Parameter("range.min_depth_m", value=100.0)])
    assert "must be less than range.max_depth_m=100.0" in refused.reason
    assert len(accepted) == 1
    both = [Parameter("range.min_depth_m", value=60.0), Parameter("range.max_depth_m", value=70.0)]
    assert node.set_parameters_atomically(both).successful
    assert (accepted[-1].range.min_depth_m, accepted[-1].range.max_depth_m) == (60.0, 70.0)


def test_foreign_parameters_are_none_of_our_business(make_node):
    node = make_node(use_sim_time=False)
    config = parameters.declare(node)
    node.add_on_set_parameters_callback(parameters.on_set(lambda: config, lambda _: None))
    (result,) = node.set_parameters([Parameter("use_sim_time", value=True)])
    assert result.successful


def test_read_only_stays(make_node):
    node = make_node()
    config = parameters.declare(node)
    node.add_on_set_parameters_callback(parameters.on_set(lambda: config, lambda _: None))
    (result,) = node.set_parameters([Parameter("model.checkpoint", value="other")])
    assert not result.successful
    assert "read-only" in result.reason
