"""A training run that can be killed at any time and goes on where its last saved state was.

The state holds the network, its averaged copy, the optimiser and the place in the recipe. Batches are a function of
the seed and the step, so a resumed run on the same scenes, with phases given in steps, ends with the same weights as
one that was never stopped. (Phases given in minutes are as long as the machine is slow.)

Started by `torchrun --nproc-per-node N -m trainer ...`, N processes share every batch and average their gradients, so
their networks stay equal; the first of them writes the files. On a CPU a process per core beats a thread per core.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from marigold_ros.config import Unusable
from trainer.data import Scenes, make_batch
from trainer.ranks import Ranks
from trainer.recipe import Phase, Recipe

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"

# Loss of one batch: rgb (N, H, W, 3) uint8, depth_m (N, H, W) float32, both on the device, and the phase -> total,
# parts for the log.
LossFunction = Callable[[Tensor, Tensor, Phase], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Progress:
    """Place in the recipe: steps taken in all, phase number, steps and seconds of training within the phase."""

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    phase_seconds: float = 0.0
    seconds: float = 0.0


def pick_device() -> torch.device:
    """The accelerator where there is one; torchrun's processes take one each."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for the heavy arithmetic, on any device."""
    return torch.autocast(device.type, torch.bfloat16)


class Training:
    """One stage of training: `network`'s parameters that require a gradient, over `phases`, into `folder`."""

    def __init__(
        self, folder: Path, recipe: Recipe, phases: tuple[Phase, ...], network: nn.Module, loss: LossFunction
    ) -> None:
        self.folder, self.recipe, self.phases = Path(folder), recipe, phases
        self.loss = loss
        self.device = pick_device()
        self.ranks = Ranks.join()
        for phase in phases:
            if phase.batch % self.ranks.count:
                raise Unusable(
                    f"phase {phase.name!r}: batch={phase.batch}: {self.ranks.count} processes cannot share it"
                )
        # Not channels_last: on CPU, group norm's backward pass is ten times slower in that layout.
        self.network = network.to(self.device).train()
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=phases[0].lr[0],
            betas=recipe.optimiser.betas,
            weight_decay=recipe.optimiser.weight_decay,
            fused=True,
        )
        self.at = Progress()
        self._told_to_stop = self._stop = False
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / STATE_FILE).is_file():
            self._resume()
        if self.ranks.rank == 0:
            self._write_facts()

    def run(self, scenes: Scenes, stop_after: int | None = None) -> bool:
        """Train to the end of the recipe; returns whether it was reached.

        Ctrl-C and SIGTERM finish the step, save and return False, as does `stop_after` steps in all.
        """
        self._last_share = last_saved = time.monotonic()
        with self._interruptible(), self._bar() as bar:
            while self.at.phase < len(self.phases):
                parts = self._step(scenes)
                if self.at.step % self.recipe.log_steps == 0 and self.ranks.rank == 0:
                    self._report(parts, bar, len(scenes))
                if self._phase_share() >= 1.0:
                    self.at.phase, self.at.phase_step, self.at.phase_seconds = self.at.phase + 1, 0, 0.0
                    self.save()
                elif time.monotonic() - last_saved > 60 * self.recipe.save_minutes:
                    self.save()
                    last_saved = time.monotonic()
                if self._stop or self.at.step == stop_after:
                    self.save()
                    return False
        return True

    def _step(self, scenes: Scenes) -> dict[str, Tensor]:
        if self.at.step % self.recipe.rescan_steps == 0:
            scenes.rescan()
        phase = self.phases[self.at.phase]
        rgb, depth_m = make_batch(scenes, phase, self.recipe.augment, self.recipe.seed, self.at.step, self.ranks)
        # Whatever a loss draws is then a function of seed and step too, and need not be saved.
        torch.manual_seed((self.recipe.seed << 32) + (self.at.step << 8) + self.ranks.rank)
        batch = (torch.from_numpy(array).to(self.device) for array in (rgb, depth_m))
        total, parts = self.loss(*batch, phase)
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate(phase)
        total.backward()
        seconds = self._share()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.optimiser.clip_norm)
        # A batch gone wrong (overflow in bfloat16) must not end a run of hours.
        if torch.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._update_average()
        self.at.step += 1
        self.at.phase_step += 1
        self.at.phase_seconds += seconds
        self.at.seconds += seconds
        return {"loss": total.detach(), **parts, "norm": norm}

    def _share(self) -> float:
        """Average the gradients over the ranks, and agree on what must not differ: the seconds since the last time,
        which are returned, and whether anybody was told to stop."""
        now = time.monotonic()
        facts = torch.tensor([now - self._last_share, float(self._told_to_stop)], dtype=torch.float64)
        self._last_share = now
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        seconds, stop = self.ranks.average_(gradients, facts).tolist()
        self._stop = stop > 0
        return seconds

    def _learning_rate(self, phase: Phase) -> float:
        start, end = phase.lr
        warm = min(1.0, (self.at.step + 1) / max(1, self.recipe.optimiser.warmup_steps))
        return warm * start * (end / start) ** min(1.0, self._phase_share())

    def _phase_share(self) -> float:
        phase = self.phases[self.at.phase]
        if phase.steps is not None:
            return self.at.phase_step / phase.steps
        return self.at.phase_seconds / (60 * phase.minutes)

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on a long average would hold mostly the random start.
        decay = min(self.recipe.optimiser.ema, (1 + self.at.step) / (10 + self.at.step))
        mine, theirs = list(self.average.parameters()), list(self.network.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    def save(self) -> None:
        """Write the state beside the old one, then replace that; the first rank's business."""
        if self.ranks.rank > 0:
            return
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": vars(self.at),
            "recipe": self.recipe.as_dict(),
            "phases": _phases(self.phases),
            "network_config": {"scaling_factor": _latent_scaling(self.network)},
        }
        beside = self.folder / f"{STATE_FILE}.part"
        torch.save(state, beside)
        beside.replace(self.folder / STATE_FILE)

    def _resume(self) -> None:
        state = read_state(self.folder, self.device)
        self._check_recipe(state)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.at = Progress(**state["progress"])
        if self.ranks.rank > 0:
            return
        # What was logged after the saved state is about to happen again.
        log = self.folder / LOG_FILE
        if log.is_file():
            lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= self.at.step]
            log.write_text("".join(f"{line}\n" for line in lines))
        print(f"resuming {self.folder} at step {self.at.step}")

    def _check_recipe(self, state: dict[str, Any]) -> None:
        """Phases that are still to come may change between sittings, and how often things are said and saved."""
        begun = state["phases"][: state["progress"]["phase"] + 1]
        before = _decisive(state["recipe"]) | _by_number(begun)
        now = _decisive(self.recipe.as_dict()) | _by_number(_phases(self.phases)[: len(begun)])
        for name, value in now.items():
            if value != before.get(name):
                raise Unusable(
                    f"training run {self.folder}: was begun with {name}={before.get(name)!r}, not {value!r}; "
                    "go on with the same recipe, or give another --run"
                )

    def _write_facts(self) -> None:
        facts = {
            "recipe": self.recipe.as_dict(),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
            | {"opencv": cv2.__version__},
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else _cpu_name(),
            "processes": self.ranks.count,
            "threads": torch.get_num_threads(),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "trained_parameters": sum(p.numel() for p in self.parameters),
        }
        (self.folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def _report(self, parts: dict[str, Tensor], bar: tqdm, samples: int) -> None:
        values = {name: round(float(value), 5) for name, value in parts.items()}
        line = {"step": self.at.step, "phase": self.phases[self.at.phase].name, "seconds": round(self.at.seconds, 1)}
        line |= {"samples": samples, "lr": self.optimiser.param_groups[0]["lr"], **values}
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        done, left = self._shares()
        rate = self.at.phase_step * self.phases[self.at.phase].batch / max(1e-9, self.at.phase_seconds)
        bar.set_postfix_str(
            f"phase {line['phase']}, step {self.at.step}, loss {values['loss']:.3f}, {rate:.0f} images/s, "
            f"{int(left // 60)}:{int(left % 60):02d} left",
            refresh=False,
        )
        bar.update(max(0.0, done - bar.n))

    def _shares(self) -> tuple[float, float]:
        """(share of the work done, seconds left), phases counted in steps by the speed seen so far."""
        now = self.phases[self.at.phase]
        per_pixel = self.at.phase_seconds / max(1, self.at.phase_step) / (now.batch * now.pixels)
        left = 0.0
        for number, phase in enumerate(self.phases[self.at.phase :]):
            length = 60 * phase.minutes if phase.steps is None else phase.steps * phase.batch * phase.pixels * per_pixel
            left += length * (1 - min(1.0, self._phase_share())) if number == 0 else length
        return self.at.seconds / max(1e-9, self.at.seconds + left), left

    def _bar(self) -> tqdm:
        # To a file, a line every half minute; to a terminal, a living bar.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        look = {"bar_format": "{percentage:3.0f}%|{bar:20}|{postfix}", "mininterval": interval, "miniters": 0}
        return tqdm(total=1.0, disable=self.ranks.rank > 0, **look)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        def stop(number: int, frame: Any) -> None:
            self._told_to_stop = True

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: whoever runs it there stops it by other means
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def read_state(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The saved state of the run in `folder`."""
    path = Path(folder) / STATE_FILE
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise Unusable(f"training run {folder}: has no {STATE_FILE}; train first, or give another folder") from None
    except Exception as error:  # torch.load raises many kinds for one damaged file
        raise Unusable(
            f"training run {folder}: {STATE_FILE} cannot be read ({error}); delete it to begin anew"
        ) from error


def _decisive(recipe: dict[str, Any]) -> dict[str, Any]:
    """What in a recipe decides the weights, by dotted name, without the phases."""
    flat = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in value.items() if key != "phases"}
        elif name not in ("threads", "rescan_steps", "save_minutes", "log_steps"):
            flat[name] = value
    return flat


def _phases(phases: tuple[Phase, ...]) -> list[dict[str, Any]]:
    return json.loads(json.dumps([asdict(phase) for phase in phases]))


def _by_number(phases: list[dict[str, Any]]) -> dict[str, Any]:
    return {f"phase {number}": phase for number, phase in enumerate(phases, 1)}


def _latent_scaling(network: nn.Module) -> float:
    vae = getattr(network, "vae", network)
    return float(vae.config.scaling_factor)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'}, {len(names) or 1} cores"
