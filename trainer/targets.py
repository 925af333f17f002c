"""What the networks of the family are trained to draw: maps of a sample as the published models want them.

All on batches in float32. Depth is in metres along the optical axis, NaN where unknown and +inf in the sky. Pictures
are (N, 3, H, W) in [-1, 1], ready for the VAE. Sources: arXiv 2312.02145, 2505.09358, 2409.11355 and, for metric depth,
2411.10886.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from marigold_ros.config import Unusable

# The images that the target latents stand for, in their order.
TARGET_NAMES: Mapping[str, tuple[str, ...]] = {
    "depth": ("depth",),
    "normals": ("normals",),
    "iid-appearance": ("albedo", "material"),
    "iid-lighting": ("albedo", "shading", "residual"),
}
# From linear intensity to what screens show, as the family's trainer does.
_GAMMA = 2.2
_TINY = 1e-6


def quantiles(values: Tensor, valid: Tensor, shares: tuple[float, ...]) -> Tensor:
    """(N, len(shares)) quantiles of each image's valid pixels, NaN for an image without any; values, valid (N, ...).

    Interpolated linearly, like torch.quantile, which takes at most 16 million elements; this takes any number.
    """
    known = values.float().flatten(1).masked_fill(~valid.flatten(1), math.inf).sort(dim=1).values
    last = valid.flatten(1).sum(dim=1) - 1
    found = []
    for share in shares:
        # float32 cannot count to the number of pixels of a large image.
        rank = last.clamp(min=0).double() * share
        below = rank.floor()
        low, high = (known.gather(1, side.long()[:, None])[:, 0] for side in (below, rank.ceil()))
        found.append(torch.lerp(low, high, (rank - below).float()).masked_fill(last < 0, math.nan))
    return torch.stack(found, dim=1)


def quantile_normalised(depth_m: Tensor, valid: Tensor, low: float = 0.02, high: float = 0.98) -> Tensor:
    """Affine-invariant target (N, H, W) in [-1, 1]: the `low` quantile of an image's valid depth is -1, the `high` 1.

    Invalid pixels are mapped by the same rule, as published, where unknown depth is 0: they become -1, the sky 1. An
    image of one depth only is -1; one without a valid pixel is 0 everywhere.
    """
    near, far = (edge[:, None, None] for edge in quantiles(depth_m, valid, (low, high)).unbind(dim=1))
    depth_m = depth_m.float().nan_to_num(nan=0.0, posinf=torch.finfo(torch.float32).max)
    share = (depth_m - near) / (far - near).clamp(min=_TINY)
    # Of all that was computed from them, the quantiles of an image without a valid pixel alone are NaN.
    return (share * 2.0 - 1.0).clamp(-1.0, 1.0).nan_to_num(nan=0.0)


def clamped_to_quantiles(depth_m: Tensor, valid: Tensor, low: float = 0.02, high: float = 0.98) -> Tensor:
    """Ground truth (N, H, W) of end-to-end fine-tuning, metres: depth clamped to each image's quantiles.

    Invalid pixels get the largest of what remains, the `high` quantile; an image without a valid pixel is 0.
    """
    near, far = (edge[:, None, None] for edge in quantiles(depth_m, valid, (low, high)).unbind(dim=1))
    clamped = torch.where(valid, depth_m.float().maximum(near).minimum(far), far)
    return clamped.nan_to_num(nan=0.0)


def log_metric(depth_m: Tensor, d_min_m: float, d_max_m: float) -> Tensor:
    """Metric target in [-1, 1]: the logarithm of depth between `d_min_m` and `d_max_m`, which bound it.

    2 ln(d / d_min) / ln(d_max / d_min) - 1. The sky is 1; NaN stays NaN.
    """
    _check_range(d_min_m, d_max_m)
    share = (depth_m.float().clamp(d_min_m, d_max_m) / d_min_m).log() / math.log(d_max_m / d_min_m)
    return (share * 2.0 - 1.0).clamp(-1.0, 1.0)


def _check_range(d_min_m: float, d_max_m: float) -> None:
    if not 0.0 < d_min_m < d_max_m < math.inf:
        raise Unusable(f"metric range {d_min_m} m to {d_max_m} m: must grow and start above 0; published is 0.1 to 80")


def latent_mask(valid: Tensor, factor: int = 8) -> Tensor:
    """(N, H, W) bool -> (N, 1, h, w) bool: a latent cell counts only if all its factor x factor pixels do.

    A rest of rows or columns that fills no cell is dropped, as the VAE's encoder drops it.
    """
    return functional.max_pool2d((~valid)[:, None].float(), factor) == 0.0


def picture_of(kind: str, values: Tensor) -> Tensor:
    """The map of one kind as the picture (N, 3, H, W) in [-1, 1] that the published models draw.

    depth: (N, H, W) in [-1, 1], in all three channels; unknown is -1.
    normals: (N, 3, H, W) in the optical frame (x right, y down, z forward), turned into Marigold's (x right, y up, z to
        the viewer; not the end-to-end authors', see `marigold_ros.normals_frame`); unknown looks at the viewer.
    albedo, shading, residual: (N, 3, H, W) linear in [0, 1], as they are; albedo-srgb: linear albedo, encoded.
    material: (N, 2, H, W) roughness and metallicity in [0, 1] in red and green, encoded as albedo-srgb is, because the
        published networks were trained so; blue is empty.
    Of what lies in [0, 1], unknown is 0. Raises `Unusable` for another kind or shape.
    """
    channels = {"depth": (), "material": (2,)}.get(kind, (3,))
    if values.ndim != 3 + len(channels) or values.shape[1:-2] != channels:
        raise Unusable(f"map {kind!r} of shape {tuple(values.shape)}: must be (N, {'C, ' * len(channels)}H, W)")
    values = values.float()
    if kind == "depth":
        return values.nan_to_num(nan=-1.0).clamp(-1.0, 1.0)[:, None].expand(-1, 3, -1, -1).contiguous()
    if kind == "normals":
        turned = values * values.new_tensor((1.0, -1.0, -1.0)).view(3, 1, 1)
        viewer = values.new_tensor((0.0, 0.0, 1.0)).view(3, 1, 1)
        return torch.where(values.isnan().any(dim=1, keepdim=True), viewer, turned).clamp(-1.0, 1.0)
    if kind not in ("albedo", "albedo-srgb", "shading", "residual", "material"):
        raise Unusable(f"map {kind!r}: no published model draws it; known are depth, normals and intrinsic images")
    shares = values.nan_to_num(nan=0.0).clamp(0.0, 1.0)
    if kind in ("albedo-srgb", "material"):
        shares = shares ** (1.0 / _GAMMA)
    if kind == "material":
        shares = torch.cat([shares, torch.zeros_like(shares[:, :1])], dim=1)
    return shares * 2.0 - 1.0


def lighting_cutoff(shading: Tensor, residual: Tensor) -> Tensor:
    """(N, 1, 1, 1) the larger 98 % quantile of both (N, 3, H, W), over all channels: what becomes 1 in both.

    One number for both keeps image = albedo * shading + residual true up to scale.
    """
    edges = [quantiles(values, values.isfinite(), (0.98,))[:, 0] for values in (shading, residual)]
    # fmax passes over the NaN of a map in which nothing is known.
    return torch.fmax(*edges).nan_to_num(nan=1.0).clamp(min=_TINY).view(-1, 1, 1, 1)


def pictures_of(task: str, maps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The pictures of all targets of an intrinsic-image `task` in the order of `TARGET_NAMES`, from linear maps.

    Appearance wants albedo as screens show it, lighting wants it linear, shading and residual divided by their cut-off.
    """
    if task == "iid-appearance":
        return picture_of("albedo-srgb", maps["albedo"]), picture_of("material", maps["material"])
    if task == "iid-lighting":
        cutoff = lighting_cutoff(maps["shading"], maps["residual"])
        lights = (picture_of(kind, maps[kind] / cutoff) for kind in ("shading", "residual"))
        return picture_of("albedo", maps["albedo"]), *lights
    raise Unusable(f"task {task!r}: is none of intrinsic images; known are 'iid-appearance' and 'iid-lighting'")
