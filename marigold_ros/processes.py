"""ROS programs as processes of their own, in a DDS world of their own: for the demo, measurements and tests."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from marigold_ros.config import Unusable
from marigold_ros.places import shared

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
# DDS maps domains to UDP ports; above 101 these collide with the ports that Linux hands out to anybody.
_DOMAINS = range(1, 102)


def free_domain() -> int:
    """A ROS domain id that nothing on this machine uses at the moment."""
    for domain in random.sample(_DOMAINS, len(_DOMAINS)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain))  # where every participant of the domain listens (RTPS 9.6.1)
            except OSError:
                continue
            return domain
    raise Unusable(f"ROS_DOMAIN_ID: all of {_DOMAINS.start} to {_DOMAINS.stop - 1} are in use on this machine")


def private_environment(domain: int) -> dict[str, str]:
    """This process' environment with the shipped DDS profile and the ROS domain `domain`."""
    environment = dict(os.environ, ROS_DOMAIN_ID=str(domain), PYTHONUNBUFFERED="1")
    environment.update(dict.fromkeys(PROFILE_VARIABLES, str(shared("config/fastdds.xml"))))
    # Programs are started with `python -m`; in a checkout they must be found from any folder.
    code = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [code, environment.get("PYTHONPATH", "")]))
    return environment


def adopt(environment: Mapping[str, str]) -> None:
    """Use the DDS profile of `environment` in this process too; before its first ROS node, or it has no effect."""
    os.environ.update({name: environment[name] for name in PROFILE_VARIABLES})


def ros_arguments(parameters: Mapping[str, Any], remappings: Mapping[str, str]) -> list[str]:
    """The command line that gives a node its parameters and topics."""
    arguments = ["--ros-args"]
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={_yaml(value)}"]
    for name, topic in remappings.items():
        arguments += ["-r", f"{name}:={topic}"]
    return arguments


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, float):
        text = repr(float(value))
        # YAML 1.1 takes 1e-05 for a string.
        return text if "." in text else text.replace("e", ".0e")
    return str(value)


def start(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: IO | None) -> subprocess.Popen:
    """Start `python -m module arguments`; what it prints goes to `log`, or to this process' own output."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, env=dict(environment), stdout=log, stderr=subprocess.STDOUT if log else None)


def stop(process: subprocess.Popen, patience_s: float = 10.0) -> int:
    """Interrupt `process` as Ctrl-C does and wait for it; one that does not end is killed. Returns its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
