"""The forward process and its inverse by the schedule of the diffusers library, and how strong training noise is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from marigold_ros.config import Unusable
from marigold_ros.noise import PYRAMID_STRENGTH


class Schedule:
    """v-prediction on the noise schedule of a scheduler's configuration (keys of `marigold_ros.sd2.SCHEDULER`).

    alphas_cumprod: (T,) float64, diffusers' own numbers; `rescale_betas_zero_snr` makes the last one 0. The methods
    take tensors (N, ...) and timesteps (N,) of integers from 0 to T - 1; their coefficients are float32, so tensors of
    half precision come back as float32. Raises `Unusable`, naming `where`, for a network that predicts something else
    than the velocity.
    """

    def __init__(self, config: Mapping[str, Any], device: torch.device | str = "cpu", where: str = "scheduler") -> None:
        if config.get("prediction_type") != "v_prediction":
            raise Unusable(
                f"{where}: prediction_type={config.get('prediction_type')!r}: the trainer knows 'v_prediction' only; "
                "start from stabilityai/stable-diffusion-2 (not its base) or a checkpoint of the Marigold family"
            )
        known = inspect.signature(DDIMScheduler.__init__).parameters
        # A DDPMScheduler's configuration, as end-to-end trainers save it, does not say what follows the last step.
        settings = {"set_alpha_to_one": False, **{key: value for key, value in config.items() if key in known}}
        scheduler = DDIMScheduler(**settings)
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.double()
        self.final_alpha_cumprod = float(scheduler.final_alpha_cumprod)
        self._place(torch.device(device))

    def _place(self, device: torch.device) -> None:
        # The first entry is what lies before timestep 0; so timestep T is out of range, as it should be.
        abar = torch.cat([self.alphas_cumprod.new_tensor([self.final_alpha_cumprod]), self.alphas_cumprod])
        self._signal = abar.sqrt().float().to(device)
        self._noise = (1.0 - abar).sqrt().float().to(device)

    def __len__(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas_cumprod)

    @property
    def device(self) -> torch.device:
        """Where timesteps and tensors are expected."""
        return self._signal.device

    def to(self, device: torch.device | str) -> Schedule:
        """This schedule with its tables on `device`."""
        self._place(torch.device(device))
        return self

    def _at(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar), (N, 1, ...) for `like` (N, ...)."""
        entry = timestep.to(self.device).clamp(min=-1) + 1
        shape = (-1, *(1,) * (like.ndim - 1))
        return self._signal[entry].view(shape), self._noise[entry].view(shape)

    def noisy(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z = sqrt(abar) x0 + sqrt(1 - abar) noise."""
        signal, deviation = self._at(t, x0)
        return signal * x0 + deviation * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v = sqrt(abar) noise - sqrt(1 - abar) x0, what the network predicts."""
        signal, deviation = self._at(t, x0)
        return signal * noise - deviation * x0

    def denoised(self, z: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """x0 = sqrt(abar) z - sqrt(1 - abar) v."""
        signal, deviation = self._at(t, z)
        return signal * z - deviation * v

    def noise_of(self, z: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """noise = sqrt(abar) v + sqrt(1 - abar) z."""
        signal, deviation = self._at(t, z)
        return signal * v + deviation * z

    def ddim_step(self, z: Tensor, v: Tensor, t: Tensor, previous_t: Tensor) -> Tensor:
        """z at timesteps `previous_t` (N,), by DDIM without added noise.

        Below timestep 0 lies abar_0, not 1, because the family's schedulers have set_alpha_to_one false: what comes out
        of the last step still holds sqrt(1 - abar_0) = 2.9 % of the noise.
        """
        signal, deviation = self._at(previous_t, z)
        return signal * self.denoised(z, v, t) + deviation * self.noise_of(z, v, t)


def annealed_strength(t: Tensor, train_steps: int = 1000, strength: float = PYRAMID_STRENGTH) -> Tensor:
    """(N,) strength of multi-resolution noise at timesteps `t` (N,), as published: the less noise, the finer."""
    return strength * t.cpu().float() / train_steps
