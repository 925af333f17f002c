"""Published accuracies, to stand beside ours.

All from arXiv 2409.11355 (tables 1 to 6, A-3, A-4), which evaluated or quotes the methods. Depth: AbsRel and delta1 in
per cent after least squares in depth, means over images (Depth Anything's and DepthFM's own papers aligned
differently, and their DIODE is another protocol). Normals: mean angle in degrees and per cent below 11.25 by the DSINE
protocol. Marigold's own later checkpoints (v1-1) and intrinsic images: no table of theirs could be read, so there is
none here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from marigold_ros.family import DEPTH, NORMALS

_DEPTH_SETS = ("nyuv2", "kitti", "eth3d", "scannet", "diode")
_NORMALS_SETS = ("nyuv2", "scannet", "ibims", "sintel")


@dataclass(frozen=True)
class Row:
    """A method; steps and ensemble: of diffusion networks, '' for others; values: the two measures by dataset."""

    method: str
    steps: str
    ensemble: str
    values: Mapping[str, tuple[float, float]]


def published(task: str) -> tuple[Row, ...]:
    """The published rows of a task, best known methods first as in the paper; () where there are none."""
    lines, sets = {DEPTH: (_DEPTH, _DEPTH_SETS), NORMALS: (_NORMALS, _NORMALS_SETS)}.get(task, ("", ()))
    return tuple(_row(line, sets) for line in lines.strip().splitlines())


def _row(line: str, sets: tuple[str, ...]) -> Row:
    method, steps, ensemble, *cells = (cell.strip() for cell in line.split("|"))
    values = {}
    for name, cell in zip(sets, cells, strict=True):
        if cell != "-":
            error, share = cell.split("/")
            values[name] = float(error), float(share)
    return Row(method, steps, ensemble, values)


_DEPTH = """
Marigold v1-0 | 50 | 10 | 5.5/96.4 | 9.9/91.6 | 6.5/96.0 | 6.4/95.1 | 30.8/77.3
Marigold v1-0 | 50 | 1 | 6.0/95.9 | 10.5/90.4 | 7.1/95.1 | 6.9/94.5 | 31.0/77.2
Marigold LCM | 4 | 5 | 6.2/95.6 | 9.9/91.7 | 6.9/95.5 | 7.0/94.5 | 30.9/77.6
Marigold LCM | 1 | 1 | 6.5/95.4 | 10.7/89.9 | 7.5/94.5 | 7.6/93.8 | 31.5/76.3
Marigold v1-0, trailing timesteps | 1 | 1 | 5.7/96.2 | 10.8/89.6 | 6.9/95.5 | 6.6/95.2 | 31.1/76.8
Marigold + E2E | 1 | 1 | 5.2/96.6 | 9.6/91.9 | 6.2/95.9 | 5.8/96.2 | 30.2/77.9
Marigold + E2E, decoder trained too | 1 | 1 | 5.3/96.5 | 9.6/91.9 | 6.2/96.0 | 5.8/96.1 | 30.2/77.7
Marigold + E2E, from Gaussian noise | 1 | 1 | 5.3/96.4 | 9.9/91.4 | 6.3/95.9 | 5.9/96.0 | 30.5/77.3
Marigold + E2E, from pyramid noise | 1 | 1 | 5.4/96.5 | 9.9/91.0 | 6.3/96.0 | 6.0/95.9 | 30.1/77.7
SD2 + E2E | 1 | 1 | 5.4/96.5 | 9.6/92.1 | 6.4/95.9 | 5.8/96.5 | 30.3/77.6
SD2 + E2E, from Gaussian noise | 1 | 1 | 5.8/96.1 | 9.8/91.5 | 6.6/95.5 | 6.0/96.1 | 30.7/77.2
GeoWizard | 50 | 10 | 5.2/96.6 | 9.7/92.1 | 6.4/96.1 | 6.1/95.3 | 29.7/79.2
GeoWizard, reproduced | 50 | 10 | 5.7/96.2 | 14.4/82.0 | 7.5/94.3 | 6.1/95.8 | 31.4/77.1
GeoWizard, trailing timesteps | 1 | 1 | 5.8/96.1 | 13.3/84.7 | 7.8/94.3 | 6.2/95.7 | 32.0/76.0
GeoWizard + E2E | 1 | 1 | 5.6/96.1 | 9.8/91.4 | 6.3/95.7 | 5.9/96.2 | 30.6/77.9
DepthFM | 4 | 6 | 6.5/95.6 | 8.3/93.4 | - | - | 22.5/80.0
DepthFM, reproduced | 4 | 6 | 6.9/95.4 | 11.4/88.1 | 6.5/96.2 | 8.1/92.5 | 25.0/78.3
DepthFM, reproduced | 1 | 1 | 7.5/95.0 | 11.6/87.5 | 6.7/96.0 | 8.3/92.3 | 25.3/77.9
MiDaS | | | 11.1/88.5 | 23.6/63.0 | 18.4/75.2 | 12.1/84.6 | 33.2/71.5
LeReS | | | 9.0/91.6 | 14.9/78.4 | 17.1/77.7 | 9.1/91.7 | 27.1/76.6
Omnidata v1 | | | 7.4/94.5 | 14.9/83.5 | 16.6/77.8 | 7.5/93.6 | 33.9/74.2
HDN | | | 6.9/94.8 | 11.5/86.7 | 12.1/83.3 | 8.0/93.9 | 24.6/78.0
DPT | | | 9.8/90.3 | 10.0/90.1 | 7.8/94.6 | 8.2/93.4 | 18.2/75.8
Depth Anything | | | 4.3/98.1 | 7.6/94.7 | 12.7/88.2 | - | 6.6/95.2
Depth Anything v2 | | | 4.4/97.9 | 7.5/94.8 | 13.2/86.2 | - | 6.5/95.4
Metric3D | | | 5.0/96.6 | 5.8/97.0 | 6.4/96.5 | 7.4/94.1 | 22.4/80.5
Metric3D v2 | | | 4.3/98.1 | 4.4/98.2 | 4.2/98.3 | - | 13.6/89.5
"""

_NORMALS = """
Marigold | 50 | 10 | 18.8/55.9 | 17.7/58.8 | 18.4/64.3 | 39.1/14.9
Marigold, trailing timesteps | 1 | 1 | 17.4/56.5 | 16.8/57.6 | 18.1/62.9 | 37.1/15.7
Marigold + E2E | 1 | 1 | 16.2/61.4 | 14.7/66.0 | 15.8/69.9 | 33.5/21.5
SD2 + E2E | 1 | 1 | 16.5/60.4 | 14.7/66.1 | 16.1/69.7 | 33.5/22.3
GeoWizard | 50 | 10 | 17.0/56.5 | 15.4/61.6 | 13.0/65.3 | -
GeoWizard, reproduced | 50 | 10 | 19.1/49.5 | 17.3/53.7 | 19.5/61.6 | 40.4/13.2
GeoWizard, trailing timesteps | 1 | 1 | 17.0/54.1 | 15.5/59.3 | 18.3/62.5 | 35.9/15.6
GeoWizard + E2E | 1 | 1 | 16.1/60.7 | 15.3/63.6 | 16.2/69.4 | 33.4/22.4
Omnidata v1 | | | 23.1/45.8 | 22.9/47.4 | 19.0/62.1 | 41.5/11.4
Omnidata v2 | | | 17.2/55.5 | 16.2/60.2 | 18.2/63.9 | 40.5/14.7
DSINE | | | 16.4/59.6 | 16.2/61.0 | 17.1/67.4 | 34.9/21.5
Metric3D v2 | | | 13.3/66.4 | - | 19.6/69.7 | -
"""
