"""What a run tells while it trains: a progress bar, log.jsonl, and TensorBoard's scalars and pictures."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from marigold_ros.config import Unusable
from marigold_ros.files import written_beside
from trainer.recipe import Recipe, Stage
from trainer.states import Place
from trainer.validation.validation import Numbers

LOG_FILE = "log.jsonl"


class Report:
    """Tells of one stage; only the first process of a run has a voice. Use it in a `with` statement."""

    def __init__(self, run: Path, recipe: Recipe, place: Place, speaks: bool) -> None:
        self.recipe, self.place, self.speaks = recipe, place, speaks
        self.stage: Stage = recipe.stages[place.stage]
        self._log = run / LOG_FILE
        self._first_step, self._began_s = place.step, time.monotonic()
        # Steps of the stages before, so that curves go on.
        self._before = sum(stage.steps for stage in recipe.stages[: place.stage])
        self._validating_s, self._loss, self._held_out = 0.0, "", ""
        self._board: Any = None
        if speaks:
            self._forget_what_comes_again()
            self._board = _tensorboard(run, self.step)
        # To a file, a line every half minute; to a terminal, a living bar.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=self.stage.steps,
            initial=place.step,
            disable=not speaks,
            mininterval=interval,
            miniters=0,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {n}/{total} steps, {remaining} left, {rate_fmt}{postfix}",
            desc=f"stage {place.stage + 1}/{len(recipe.stages)} {self.stage.name}",
        )

    @property
    def step(self) -> int:
        """Steps of the whole run."""
        return self._before + self.place.step

    @property
    def is_due(self) -> bool:
        """Whether numbers are wanted of the step that was just taken."""
        return self.place.step % self.recipe.log_steps == 0 or self.place.step == self.stage.steps

    def advance(self) -> None:
        """Move the bar by one step."""
        self._bar.update(1)

    def numbers(self, losses: Mapping[str, float], rate: float, norm: float) -> None:
        """Write the losses of a step, its learning rate and its gradient's norm."""
        if not self.speaks:
            return
        values = {**losses, "norm": norm, "lr": rate}
        images = (self.place.step - self._first_step) * self.stage.batch
        values["images_per_s"] = images / max(1e-9, time.monotonic() - self._began_s - self._validating_s)
        facts = {"skipped_samples": self.place.skipped, "bad_steps": self.place.bad}
        self._write(facts | {name: _short(value) for name, value in values.items()})
        self._loss = f"loss {values['loss']:.4f}"
        self._show("train", values)

    def validated(self, numbers: Numbers, measure: str) -> None:
        """Write what a validation found of the step that was just taken; measure: the one that decides."""
        self._validating_s += numbers.seconds
        if not self.speaks:
            return
        place = self.place
        means = {name: _short(value) for name, value in numbers.means.items()}
        about = {"samples": numbers.samples, "took_s": round(numbers.seconds, 2)}
        best = {"best_step": self._before + place.best_step, "best": place.best}
        self._write({"validation": means, **about, **best})
        is_best = place.best_step == place.step
        self._held_out = f", held-out {measure} {numbers.value:.4g}"
        if place.best is not None and not is_best:
            self._held_out += f" (best {place.best:.4g} at step {best['best_step']})"
        found = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.say(f"step {self.step}: held-out {found}{' (the best so far)' if is_best else ''}")
        self._show("validation", numbers.means)

    def _write(self, values: Mapping[str, Any]) -> None:
        facts = {"step": self.step, "stage": self.stage.name, "seconds": round(self.place.seconds, 1)}
        try:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts | values) + "\n")
        except OSError as error:
            raise Unusable(
                f"file {self._log}: cannot be written ({error.strerror}); make room and give the same command again"
            ) from error

    def _show(self, group: str, values: Mapping[str, float]) -> None:
        self._bar.set_postfix_str(self._loss + self._held_out, refresh=False)
        for name, value in values.items():
            self._on_board("add_scalar", f"{group}/{name}", value, self.step)

    def pictures(self, shown: Mapping[str, Tensor]) -> None:
        """Pictures (N, 3, H, W) in [-1, 1] for TensorBoard."""
        for name, pictures in shown.items():
            shares = pictures.detach().float().cpu().clamp(-1, 1) * 0.5 + 0.5
            self._on_board("add_images", name, shares, self.step)

    def _on_board(self, method: str, *what: Any) -> None:
        """Curves and pictures are no reason to end a training: without room for them it goes on without."""
        if self._board is None:
            return
        try:
            getattr(self._board, method)(*what)
        except OSError as error:
            self._board = None
            self.say(f"TensorBoard's files cannot be written ({error.strerror}); curves end here, {LOG_FILE} has them")

    def say(self, text: str) -> None:
        """A line of its own above the bar."""
        if self.speaks:
            tqdm.write(text, file=sys.stderr)

    def _forget_what_comes_again(self) -> None:
        """What was logged after the saved state is about to happen again."""
        if not self._log.is_file():
            return
        lines = self._log.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= self.step]
        with written_beside(self._log) as beside:
            beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.close()
        self._on_board("close")


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
        return sys.maxsize


def _tensorboard(run: Path, step: int) -> Any:
    """A writer for TensorBoard's files, where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(run / "tensorboard", purge_step=step + 1)
