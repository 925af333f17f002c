"""The signatures of TensorRT's Python bindings, read from NVIDIA's wheels of seven versions, 10.3 to 11.4."""

import json
import re
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "fake_nvidia"
_SIGNATURES = json.loads((_FOLDER / "tensorrt_signatures.json").read_text(encoding="utf-8"))

VERSIONS = tuple(_SIGNATURES["versions"])
OLDEST, NEWEST = VERSIONS[0], VERSIONS[-1]
# Version -> class -> the names of its members: of more classes than the signatures.
MEMBERS = json.loads((_FOLDER / "tensorrt_members.json").read_text(encoding="utf-8"))


def members(version: str, owner: str) -> dict:
    """The members of a class in a version: a method's signature (overloads joined by ' || '), an enum's value, ..."""
    return {**_SIGNATURES["all"].get(owner, {}), **_SIGNATURES["versions"][version].get(owner, {})}


def arities(signature: str) -> list[tuple[int, int]]:
    """(fewest, most) arguments, without self, of every overload of a signature."""
    found = []
    for overload in signature.split(" || "):
        inside = re.search(r"\((.*)\)(?: ->|$)", overload).group(1)
        # Commas inside brackets do not separate parameters.
        while (plain := re.sub(r"[\[<][^\[\]<>]*[\]>]", "", inside)) != inside:
            inside = plain
        parameters = [text for text in inside.split(",") if text.strip()][1:]
        found.append((sum("=" not in text for text in parameters), len(parameters)))
    return found
