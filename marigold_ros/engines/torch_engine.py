"""The network in torch: the reference that every other engine is tested against."""

from __future__ import annotations

import numpy as np
import torch

from marigold_ros.checkpoints import CheckpointInfo, load_network
from marigold_ros.folds import folded


class TorchEngine:
    """Runs the checkpoint `info` with torch: float32 on the CPU, half precision on a CUDA GPU when there is one."""

    any_size = True

    def __init__(self, info: CheckpointInfo, threads: int = 0) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if threads:
            torch.set_num_threads(threads)
        dtype = torch.float16 if self._device == "cuda" else torch.float32
        self._network = folded(load_network(info, self._device, dtype))
        name = torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        self.description = f"torch {torch.__version__}, {str(dtype).removeprefix('torch.')}, {name}"

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 at a working size -> (h, w) float32."""
        with torch.inference_mode():
            return self._network(torch.from_numpy(rgb)[None].to(self._device))[0].cpu().numpy()

    def close(self) -> None:
        """Free the network."""
        del self._network
