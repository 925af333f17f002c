"""Several predictions of one image into one, with uncertainty: affine-invariant depth is aligned in closed form.

Marigold (arXiv 2312.02145) aligns the members by minimising the sum over pairs of the root mean squared difference,
found by BFGS on the pixels. That cost depends on the pixels only through the members' means and products, so here these
are summed once and the rest is an eigenvalue problem of the ensemble's size. Compare both, in cost and time, with

    python -m marigold_ros.ensemble
"""

from __future__ import annotations

import argparse
import sys
import time
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from marigold_ros.config import Unusable

# Each round weighs pairs by the inverse of their distance in the one before; it changes nothing after a few.
_ROUNDS = 10
_TINY = 1e-6


def ensemble_depth(
    depth: Tensor,
    scale_invariant: bool = True,
    shift_invariant: bool = True,
    output_uncertainty: bool = False,
    reduction: str = "median",
) -> tuple[Tensor, Tensor | None]:
    """Align (E, 1, H, W) members and reduce them to one (1, 1, H, W) in [0, 1], with uncertainty where asked for.

    Takes the place of diffusers' `MarigoldDepthPipeline.ensemble_depth`. reduction: 'median', with the median absolute
    deviation as uncertainty, or 'mean', with the standard deviation; both in units of the answer's range.
    """
    if depth.dim() != 4 or depth.shape[1] != 1:
        raise ValueError(f"ensemble of shape {tuple(depth.shape)}: must be (E, 1, H, W)")
    if reduction not in ("median", "mean"):
        raise ValueError(f"reduction={reduction!r}: must be 'median' or 'mean'")
    if shift_invariant and not scale_invariant:
        raise ValueError("an ensemble that is invariant to shift alone is not supported")
    if scale_invariant:
        scale, shift = align(depth, shift_invariant)
        depth = depth * scale.to(depth).view(-1, 1, 1, 1) + shift.to(depth).view(-1, 1, 1, 1)
    answer, uncertainty = _reduced(depth, reduction)
    if scale_invariant:
        low = answer.min() if shift_invariant else 0.0
        span = (answer.max() - low).clamp(min=_TINY)
        answer, uncertainty = (answer - low) / span, uncertainty / span
    return answer, uncertainty if output_uncertainty else None


def align(depth: Tensor, shift_invariant: bool = True) -> tuple[Tensor, Tensor]:
    """Scale and shift (E,) float64, common factor and offset left open, that bring the members (E, ...) together.

    With scales s, and shifts that give all members one mean, the squared distance of two members is
    s_i^2 C_ii + s_j^2 C_jj - 2 s_i s_j C_ij, C their covariance. Under a fixed total variance the weighted sum over
    pairs is least for the eigenvector of the smallest eigenvalue; weights 1 / distance turn the sum of squares into the
    sum of distances. Without shifts, C holds the uncentred products.
    """
    members = depth.reshape(depth.shape[0], -1).double()
    if not torch.isfinite(members).all():
        raise Unusable("the ensemble's depth has NaN or infinite pixels; compute in float32")
    mean = members.mean(1) if shift_invariant else torch.zeros_like(members[:, 0])
    members = members - mean[:, None]
    products = (members @ members.T / members.shape[1]).cpu().numpy()
    spread = np.sqrt(np.maximum(np.diag(products), _TINY**2))
    correlation = np.clip(products / np.outer(spread, spread), -1.0, 1.0)
    weights = 1.0 - np.eye(len(spread))
    unit = np.ones(len(spread))
    for _ in range(_ROUNDS):
        _, vectors = np.linalg.eigh(np.diag(weights.sum(1)) - weights * correlation)
        unit = vectors[:, 0] * np.sign(vectors[:, 0].sum())
        # A member that contradicts the others would be turned over; it is flattened instead.
        unit = np.maximum(unit, 0.0)
        if np.count_nonzero(unit) < 2:
            unit = np.ones(len(spread))  # nobody agrees with anybody: each counts as it is
            break
        distance = np.sqrt(np.maximum(np.add.outer(unit**2, unit**2) - 2 * np.outer(unit, unit) * correlation, 0.0))
        weights = (1.0 - np.eye(len(unit))) / np.maximum(distance, 1e-3 * max(distance.max(), _TINY))
    scale = torch.from_numpy(unit / spread)
    return scale, -scale * mean.cpu()


def _reduced(depth: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Reduce aligned members (E, 1, H, W) to one, with their deviation from it."""
    if reduction == "mean":
        return depth.mean(0, keepdim=True), depth.std(0, keepdim=True, correction=min(1, len(depth) - 1))
    median = depth.median(0, keepdim=True).values
    return median, (depth - median).abs().median(0, keepdim=True).values


def disagreement(depth: Tensor) -> float:
    """Marigold's cost of aligned members (E, 1, H, W): the sum over pairs of the root mean squared difference.

    In units of the range of their median, so that it does not depend on the common scale, which the answer loses.
    """
    members = depth.reshape(len(depth), -1).double()
    median = members.median(0).values
    pairs = torch.combinations(torch.arange(len(members)))
    distances = sum(float((members[i] - members[j]).square().mean().sqrt()) for i, j in pairs)
    return distances / float(median.max() - median.min())


def synthetic_members(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(count, 1, H, W) in [0, 1]: one scene, each time with another scale and shift, smooth errors and noise."""
    random = torch.Generator().manual_seed(seed)
    height, width = size
    v, u = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    scene = 1 / (1.2 + 3 * v) + 0.3 * ((u - 0.6).abs() < 0.15) * (v > 0.3)
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    coarse = torch.randn(count, 1, 6, 8, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[:, 0]
    members = scene + 0.04 * smooth + 0.01 * torch.randn(count, height, width, generator=random)
    scale = 0.5 + 0.5 * torch.rand(count, 1, 1, generator=random)
    shift = (1 - scale) * torch.rand(count, 1, 1, generator=random)
    return (members * scale + shift).clamp(0, 1)[:, None]


def main(argv: list[str] | None = None) -> int:
    """Print cost and time of the closed form and of diffusers' optimiser on the same members."""
    from diffusers import MarigoldDepthPipeline

    parser = argparse.ArgumentParser(prog="ensemble", description=main.__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(576, 768), metavar=("H", "W"), help="pixels (576 768)")
    parser.add_argument("--members", type=int, nargs="+", default=(3, 5, 10), metavar="E", help="(3 5 10)")
    arguments = parser.parse_args(argv)
    print(f"{arguments.size[1]}x{arguments.size[0]} pixels, {torch.get_num_threads()} threads")
    print("| members | cost, closed form | cost, diffusers | s, closed form | s, diffusers | times as fast |")
    print("|---|---|---|---|---|---|")
    for count in arguments.members:
        members = synthetic_members(count, tuple(arguments.size))
        scale, shift = align(members)
        cost = disagreement(members * scale.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1))
        start = time.perf_counter()
        ensemble_depth(members)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        # Its last median is of the members as its optimiser left them.
        with mock.patch.object(torch, "median", wraps=torch.median) as median:
            MarigoldDepthPipeline.ensemble_depth(members)
        theirs = time.perf_counter() - start
        their_cost = disagreement(median.call_args.args[0])
        print(
            f"| {count} | {cost:.4f} | {their_cost:.4f} | {ours:.3f} | {theirs:.2f} | {theirs / ours:.0f} |", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
