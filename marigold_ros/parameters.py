"""Settings of `config.py` <-> ROS parameters; the names, descriptions, ranges and checks are all its own."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from marigold_ros.config import Config, Unusable, settings, with_settings

# Parameters that rclpy itself declares or reads.
_OF_RCLPY = ("use_sim_time", "qos_overrides.", "start_type_description_service")


def declare(node: Node) -> Config:
    """Declare every setting on `node` and return what the user asked for; raises `Unusable` for a bad start value.

    `node` must have been made with `automatically_declare_parameters_from_overrides=True`: the user's values are then
    seen before rclpy judges them, so that the refusal is our own sentence, and a misspelt name is noticed.
    """
    defaults = {name: field for name, field, _ in settings(Config())}
    given = {name: node.get_parameter(name).value for name in defaults if node.has_parameter(name)}
    config = with_settings(Config(), given)
    _warn_of_unknown(node, defaults)
    for name, field, value in settings(config):
        if node.has_parameter(name):
            node.undeclare_parameter(name)
        node.declare_parameter(name, _ros_value(value), descriptor(field), ignore_override=True)
    return config


def on_set(current: Callable[[], Config], accept: Callable[[Config], None]) -> Callable[..., SetParametersResult]:
    """The callback for `ros2 param set`: the would-be settings are built, and their complaint is the refusal.

    `accept` gets the new settings. It is called here because Humble has no callback for after the fact; nothing
    refuses after us.
    """

    def callback(parameters: Iterable[Parameter]) -> SetParametersResult:
        config = current()
        known = {name for name, _, _ in settings(config)}
        try:
            changed = with_settings(config, {p.name: p.value for p in parameters if p.name in known})
        except Unusable as problem:
            return SetParametersResult(successful=False, reason=str(problem))
        accept(changed)
        return SetParametersResult(successful=True)

    return callback


def descriptor(field: dataclasses.Field) -> ParameterDescriptor:
    """What `ros2 param describe` shows of a setting."""
    facts = field.metadata
    # Dynamic, so that the setting's own check judges types too: 1 is as good as 1.0, and a refusal names the setting.
    result = ParameterDescriptor(description=facts["doc"], read_only=facts["read_only"], dynamic_typing=True)
    if facts["choices"]:
        result.additional_constraints = f"one of {', '.join(map(repr, facts['choices']))}"
    if facts["length"]:
        result.additional_constraints = f"{facts['length']} numbers"
    if facts["low"] is not None and isinstance(field.default, float):
        low, high = float(facts["low"]), float(facts["high"])
        result.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
    elif facts["low"] is not None:
        result.integer_range = [IntegerRange(from_value=int(facts["low"]), to_value=int(facts["high"]), step=1)]
    return result


def as_yaml(config: Config) -> str:
    """`config/depth.yaml`: every parameter with its description, `python -m marigold_ros.parameters` prints it."""
    lines = ["# Every parameter of depth_node with its default. Written by `python -m marigold_ros.parameters`."]
    lines += ["# What is read-only is fixed when the node's process starts.", "/**:", "  ros__parameters:"]
    section = ""
    for name, field, value in settings(config):
        head, key = name.split(".", 1)
        if head != section:
            lines += [""] if section else []
            lines.append(f"    {head}:")
            section = head
        like = getattr(getattr(config, head), "LIKE", head)
        known = like != head and field.metadata == _field(config, like, key).metadata
        text = f"As {like}.{key}." if known else field.metadata["doc"]
        lines.append(f"      # {text}{_limits(field)}")
        lines.append(f"      {key}: {_yaml_value(value)}")
    return "\n".join(lines) + "\n"


def _field(config: Config, section: str, key: str) -> dataclasses.Field:
    return next(field for field in dataclasses.fields(getattr(config, section)) if field.name == key)


def _limits(field: dataclasses.Field) -> str:
    facts = field.metadata
    between = "" if facts["low"] is None else f" [{facts['low']} to {facts['high']}]"
    return between + (" (read-only)" if facts["read_only"] else "")


def _yaml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _ros_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _warn_of_unknown(node: Node, known: Iterable[str]) -> None:
    """Say so when a parameter file or command line names a parameter that nobody reads."""
    for name in node.get_parameters_by_prefix(""):
        if name in known or name.startswith(_OF_RCLPY):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "config/depth.yaml lists them all"
        node.get_logger().warning(f"parameter {name}: no such setting; {hint}")


def main() -> None:
    """Print `config/depth.yaml`."""
    print(as_yaml(Config()), end="")


if __name__ == "__main__":
    main()
