"""Where the package's own files are: beside the code in a checkout, under share/marigold_ros where installed."""

from __future__ import annotations

from pathlib import Path

from marigold_ros.config import Unusable


def shared(relative: str) -> Path:
    """The file or folder that is `relative` in a checkout (e.g. 'config/fastdds.xml')."""
    package = Path(__file__).resolve().parent
    tried = [package.parent / relative]
    tried += [up / "share" / "marigold_ros" / relative for up in package.parents]
    for path in tried:
        if path.exists():
            return path
    raise Unusable(
        f"{relative}: belongs to marigold_ros but was found neither at {tried[0]} nor in share/marigold_ros of any "
        "folder above; install the package again"
    )
