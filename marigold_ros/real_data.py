"""Where the real frames are on which programs measure: they are not part of the package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from marigold_ros.config import Unusable

DATA_VARIABLE = "MARIGOLD_ROS_DATA"
KITTI, INDOOR = "kitti", "indoor"
DATASETS = (KITTI, INDOOR)


def real_data(given: Path | None, wanted: Sequence[str] = DATASETS) -> Path | None:
    """The folder that holds at least one of the `wanted` folders: as given, by the environment, or beside the checkout.

    None where nothing was named and there is none; raises `Unusable` where what was named holds none.
    """
    named = given or os.environ.get(DATA_VARIABLE)
    folder = Path(named or Path(__file__).resolve().parents[2] / "shared" / "data")
    if any((folder / name).is_dir() for name in wanted):
        return folder
    if named:
        folders = " nor ".join(f"{name}/" for name in wanted)
        raise Unusable(
            f"real frames {folder}: there is no {folders} in it; name the folder that holds them by --data or "
            f"{DATA_VARIABLE}"
        )
    return None
