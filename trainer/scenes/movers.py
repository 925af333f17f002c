"""Things that cross the view of a recording: people and loads that pass before the camera, on straight lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import rot_z
from .stage import Stage, dress

# Who passes, in turn: a moving load is wide and hides much of the view, a person is narrow.
_KINDS = ("person", "pallet", "person")
_NEAREST_M, _FARTHEST_M = 1.6, 3.2
_SLOWEST, _FASTEST = 0.7, 1.4  # m/s


@dataclass(frozen=True)
class Mover:
    """A part of the merged mesh that moves: its `vertices`, and its `velocity` (3,) in metres per second.

    The mesh is built where the mover is in the middle of the view, at `crosses_s`.
    """

    vertices: slice
    velocity: np.ndarray
    crosses_s: float

    def offset_m(self, time_s: float) -> np.ndarray:
        """(3,) metres from where the mesh was built."""
        return self.velocity * (time_s - self.crosses_s)


def add_movers(
    stage: Stage, count: int, stamps: np.ndarray, where: np.ndarray, heading: np.ndarray, rng: np.random.Generator
) -> list[Mover]:
    """Add `count` movers to the stage, spread over the drive: stamps (n,) seconds, where (n, 2), heading (n,).

    Each is at some distance straight ahead of the camera at its own time, and walks across.
    """
    movers = []
    first = sum(len(mesh.v) for mesh in stage.builder.meshes)
    length_s = float(stamps[-1]) + 1e-9
    for i in range(count):
        crosses_s = (i + rng.uniform(0.3, 0.7)) / count * length_s
        at = int(np.searchsorted(stamps, crosses_s))
        ahead = np.array([np.cos(heading[at]), np.sin(heading[at])])
        across = np.array([-ahead[1], ahead[0]]) * (1 if i % 2 else -1)
        place = where[at] + ahead * rng.uniform(_NEAREST_M, _FARTHEST_M)
        velocity = across * rng.uniform(_SLOWEST, _FASTEST)
        kind = _KINDS[i % len(_KINDS)]
        mesh = stage.objects.pick(rng, kind)
        yaw = float(np.arctan2(velocity[1], velocity[0]))
        stage.builder.add(mesh, dress(stage, kind), rot_z(yaw), (*place, 0.0))
        vertices = slice(first, first + len(mesh.v))
        movers.append(Mover(vertices, np.array([*velocity, 0.0]), crosses_s))
        first = vertices.stop
    return movers
