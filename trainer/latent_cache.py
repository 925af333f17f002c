"""Latents on disk, so that a frozen encoder sees each view of a sample once and not in every epoch.

They are found by the bytes of the picture that was encoded and by the encoder's weights: no dataset that changed, no
target that is drawn in another way and no other encoder is ever answered with what it did not encode.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from marigold_ros.config import Unusable
from marigold_ros.files import written_beside

_DIGEST_BYTES = 16


class LatentCache:
    """Latents of `encoder`, (N, 3, H, W) to (N, C, h, w), in files below `folder`; processes and runs may share it."""

    def __init__(self, folder: Path, encoder: nn.Module) -> None:
        weights = [values.detach().float().cpu().numpy() for values in encoder.state_dict().values()]
        self._encoder, self._dtype = encoder, next(encoder.parameters()).dtype
        self.folder = Path(folder) / f"{_digest(*weights)}-{str(self._dtype).removeprefix('torch.')}"

    def __call__(self, picture: Tensor) -> Tensor:
        """What the encoder gives for `picture`; it is asked only if one of the pictures is new.

        Raises `Unusable` where the folder cannot be written.
        """
        names = [_digest(values) for values in picture.detach().float().cpu().numpy()]
        paths = [self.folder / name[:2] / f"{name[2:]}.npy" for name in names]
        found = [_read(path) for path in paths]
        if any(latent is None for latent in found):
            encoded = self._encoder(picture).float().cpu().numpy()
            for number, path in enumerate(paths):
                # What was there is taken all the same: a run that is killed and resumed must see what it saw before.
                if found[number] is None:
                    _write(path, encoded[number])
                    found[number] = encoded[number]
        return torch.from_numpy(np.stack(found)).to(picture.device, self._dtype)


def _digest(*arrays: np.ndarray) -> str:
    hashed = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for array in arrays:
        hashed.update(repr((array.shape, array.dtype.str)).encode())
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


def _read(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there; or cut short, then it is written again
        return None


def _write(path: Path, latent: np.ndarray) -> None:
    try:
        with written_beside(path) as beside, beside.open("wb") as file:
            np.save(file, latent)
    except Unusable as problem:
        raise Unusable(f"latent_cache: {problem}; or leave it out of the recipe") from problem
