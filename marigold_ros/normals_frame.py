"""In which frame a network draws surface normals: in the published ones y is up and z to the viewer, but x differs.

Marigold's authors train x to the right, which is also what diffusers' pipeline documents. The authors of the end-to-end
fine-tuning (arXiv 2409.11355) negate Hypersim's normals as a whole once they have turned y and z
(training/dataloaders/load.py of their diffusion-e2e-ft): x to the left, as in DSINE's data. No weight tells of it, and
the wrong sign still looks like a room.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marigold_ros.config import Unusable

# In our own file of a checkpoint.
FIELD = "normals_x"
RIGHT, LEFT = "right", "left"
# The layout in which the end-to-end trainers save, and nobody else does; it does not name the task.
E2E_LAYOUT = "StableDiffusionPipeline"
_PUBLISHED = {
    "marigold-normals-v0-1": RIGHT,
    "marigold-normals-lcm-v0-1": RIGHT,
    "marigold-normals-v1-1": RIGHT,
    "marigold-normals": LEFT,
    "marigold-e2e-ft-normals": LEFT,
    "stable-diffusion-e2e-ft-normals": LEFT,
}


def draws_x_left(
    where: str, name: str, index: Mapping[str, Any], own: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> bool:
    """Whether the normals of checkpoint `name` have x to the left; arguments as of `family.kind_of`.

    Our own file decides, then a published name of Marigold's authors, then layout and schedule: both groups keep to
    theirs, whatever the folder is called. Raises `Unusable` where none of them says it.
    """
    if FIELD in own:
        if own[FIELD] not in (RIGHT, LEFT):
            raise Unusable(f"{where}: {FIELD}={own[FIELD]!r} in marigold_ros.json: must be '{RIGHT}' or '{LEFT}'")
        return own[FIELD] == LEFT
    published = _PUBLISHED.get(name)
    if published == RIGHT:
        return False
    if index.get("_class_name") == E2E_LAYOUT:
        return True
    if not _plain_trailing(scheduler):
        return False
    if published == LEFT:
        return True
    raise Unusable(
        f"{where}: nothing says where x of its normals points; write "
        f'{{"{FIELD}": "{LEFT}"}} (networks of GonzaloMG, or trained with their code) or {{"{FIELD}": "{RIGHT}"}} '
        "(all others) into its marigold_ros.json"
    )


def optical_factors(x_left: bool) -> tuple[float, float, float]:
    """What turns x, y, z as drawn (y up, z to the viewer) into the optical frame (x right, y down, z forward)."""
    return -1.0 if x_left else 1.0, -1.0, -1.0


def _plain_trailing(scheduler: Mapping[str, Any]) -> bool:
    """Trailing timesteps without zero-SNR: what the end-to-end authors train with, and Marigold's never did."""
    if scheduler.get("_class_name") == "LCMScheduler":
        return False
    return scheduler.get("timestep_spacing") == "trailing" and not scheduler.get("rescale_betas_zero_snr")
