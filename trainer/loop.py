"""The training loop: one for every recipe, on one process or many.

Hugging Face accelerate runs it: on one CPU, one GPU or, started by `torchrun` or `accelerate launch`, on many, with
its FSDP or DeepSpeed plug-in where its launcher asks for one. A step has the same pictures and the same random numbers
on any number of processes, so they all train the same network, up to rounding.

A run can be stopped or killed at any time and goes on from its last state as if nothing had been.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from marigold_ros.config import Unusable
from trainer.assembly import first_model, model_in
from trainer.data import Batch, Passes, passes_of
from trainer.facts import write_facts
from trainer.model import Model
from trainer.objectives import Objective, build_objective
from trainer.objectives.base import image_of, is_sharded, whole
from trainer.recipe import Consistency, Optimiser, Recipe, Stage
from trainer.report import Report
from trainer.results import left_by, write_result
from trainer.sample_lists import check_samples
from trainer.states import Place, States, check_recipe, reserved
from trainer.validation.validation import validation_of

CHECKPOINT = "checkpoint"
_PICTURES = 4
# What leaves no process with all the weights.
_SHARDING = ("FSDP", "DEEPSPEED")
_MIRRORED = (
    "warning: this network draws near as far, which the published loss does not mind and no node can use; start from "
    "one that knows it (prs-eth/marigold-depth-v1-1), train with another seed, or with objective.loss: relative"
)


def train(recipe: Recipe, run: Path, data: Path, stop_after: int | None = None) -> bool:
    """Train, or go on training, into folder `run`; returns whether the recipe's end was reached.

    data: the folder that the sources' folders are in. The result is the checkpoint folder `run`/checkpoint. Ctrl-C and
    SIGTERM finish the step, save the state and return False, as does `stop_after` steps of a stage. Raises
    `Unusable` for a recipe, samples or a run that cannot be used.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    if recipe.precision == "fp16" and not torch.cuda.is_available():
        raise Unusable("precision='fp16': needs a GPU, whose loss scaling it rests on; set it to 'bf16' or 'no'")
    accelerator = _accelerator(recipe)
    _check_processes(recipe, accelerator.num_processes)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"run {run}: cannot be made ({error.strerror}); give another --run") from error
    # The first process holds the run for all of them.
    with reserved(run) if accelerator.is_main_process else contextlib.nullcontext():
        return _train(recipe, run, data, accelerator, stop_after)


def _train(recipe: Recipe, run: Path, data: Path, accelerator: Accelerator, stop_after: int | None) -> bool:
    states = States(run, recipe.keep)
    newest = states.newest()
    place = Place() if newest is None else newest[1]
    if accelerator.is_main_process:
        check_recipe(run, recipe, None if newest is None else place)
        check_samples(run, recipe, data, begun=newest is not None, ended=place.stage >= len(recipe.stages))
        write_facts(run, accelerator)
        _make_room(run, recipe, place)
    accelerator.wait_for_everyone()
    with Stop() as stop:
        while place.stage < len(recipe.stages):
            stage = StageRun(recipe, place, run, data, accelerator, states)
            if newest is not None and newest[1].step > 0:
                states.load(accelerator, newest[0])
            newest = None
            if not stage.train(stop, stop_after):
                return False
            left = stage.finish()
            place = Place(place.stage + 1, 0, place.bad, place.seconds, place.skipped, left=left)
            # A new one: the old one would go on saving what it had prepared for the stage.
            accelerator.free_memory()
            accelerator = _accelerator(recipe)
            states.save(accelerator, place)
    return True


class StageRun:
    """One stage of a run."""

    def __init__(
        self, recipe: Recipe, place: Place, run: Path, data: Path, accelerator: Accelerator, states: States
    ) -> None:
        self.recipe, self.place, self.run = recipe, place, run
        self.accelerator, self.states = accelerator, states
        self.stage: Stage = recipe.stages[place.stage]
        self.passes = Passes(recipe, self.stage, place.stage, data)
        set_seed(recipe.seed)
        model = _first(recipe, run, place)
        self.objective: Objective = build_objective(model, recipe, self.stage)
        self.objective.place(accelerator.device)
        self.parameters = list(self.objective.trained.parameters())
        adam = optimiser_of(self.objective, self.stage.optimiser)
        accelerator.gradient_accumulation_steps = self.stage.passes // accelerator.num_processes
        self._sharded = accelerator.distributed_type in _SHARDING
        self._save_is_owed = False
        if accelerator.distributed_type == "DEEPSPEED":
            config = accelerator.state.deepspeed_plugin.deepspeed_config
            config["train_micro_batch_size_per_gpu"] = self.stage.micro_batch
            config["gradient_accumulation_steps"] = accelerator.gradient_accumulation_steps
        self.prepared, self.adam = accelerator.prepare(self.objective, adam)
        self._register_average()
        self.validation = validation_of(self.objective, recipe, self.stage, data, accelerator)

    def _register_average(self) -> None:
        if self.objective.average is None:
            return
        if self._sharded:
            # A distillation is nothing without it.
            needed = isinstance(self.stage.objective, Consistency)
            setting = "objective.ema_target" if needed else "optimiser.ema"
            raise Unusable(
                f"stage {self.stage.name!r}: a moving average ({setting}) needs whole weights, which "
                f"{self.accelerator.distributed_type.value} shards; {'' if needed else 'set it to 0, or '}do without "
                "sharding"
            )
        self.accelerator.register_for_checkpointing(self.objective.average)

    def train(self, stop: Stop, stop_after: int | None) -> bool:
        """Train to the stage's end; returns whether it was reached."""
        place, accelerator = self.place, self.accelerator
        last = None if stop_after is None else place.step + stop_after
        with Report(self.run, self.recipe, place, accelerator.is_main_process) as report, self._batches() as batches:
            if self._validate(report, stop):
                self.states.save(accelerator, place)
            if self._is_to_be_validated:
                return False
            while place.step < self.stage.steps and not self._is_tired:
                began_s = time.monotonic()
                losses, norm = self._step(batches, report)
                place.seconds += time.monotonic() - began_s
                report.advance()
                if report.is_due:
                    means = self._mean(losses)
                    place.note_mirrored(means.get("mirrored"))
                    report.numbers(means, self.adam.param_groups[0]["lr"], norm)
                stopped = self._stopped(stop) or place.step == last
                best = not stopped and self._validate(report, stop)
                # It was told to stop while it validated.
                stopped = stopped or self._is_to_be_validated
                # Steps that cannot be taken may mean that the weights are ruined: the states of before stay.
                self._save_is_owed |= place.step % self.recipe.save_steps == 0
                if stopped or best or (self._save_is_owed and not place.bad_in_a_row):
                    self.states.save(accelerator, place)
                    self._save_is_owed = False
                if place.step % self.recipe.picture_steps == 0:
                    self._show(report)
                if stopped and (place.step < self.stage.steps or self._is_to_be_validated):
                    return False
        return True

    def _stopped(self, stop: Stop) -> bool:
        """Asked of one process, all stop at the same step."""
        return self._summed(stop.asked) > 0

    @property
    def _is_to_be_validated(self) -> bool:
        """Whether a validation of the step that was just taken is due and was not made yet."""
        place = self.place
        due = place.step % max(1, self.recipe.validate_steps) == 0 or place.step == self.stage.steps
        return self.validation is not None and place.validated < place.step and due

    @property
    def _is_tired(self) -> bool:
        """Whether the validations have not found anything better for so long that the stage is to end."""
        return self.recipe.patience > 0 and self.place.since_best >= self.recipe.patience

    def _validate(self, report: Report, stop: Stop) -> bool:
        """Validate where that is due; returns whether these weights are the best so far."""
        if not self._is_to_be_validated:
            return False
        numbers = self.validation(lambda: stop.asked)
        if numbers is None:  # told to stop; it is begun anew when the run goes on
            return False
        better = self.validation.better(numbers.value, self.place.best)
        self.place.note(self.validation.measure, numbers.value, better)
        report.validated(numbers, self.validation.measure)
        return better

    @contextlib.contextmanager
    def _batches(self) -> Iterator[Iterator[Batch]]:
        accelerator = self.accelerator
        workers = self.recipe.workers
        if workers < 0:
            # On a CPU the cores train; a GPU must not wait.
            cores = (os.cpu_count() or 1) // max(1, accelerator.num_processes)
            workers = min(8, max(1, cores - 1)) if accelerator.device.type == "cuda" else 0
        batches = passes_of(self.passes, self.place.step, accelerator.process_index, accelerator.num_processes, workers)
        yield batches
        batches.close()

    def _step(self, batches: Iterator[Batch], report: Report) -> tuple[dict[str, Tensor], float]:
        """One step of the optimiser; returns the mean losses of this process and the gradient's norm."""
        accelerator, stage, place = self.accelerator, self.stage, self.place
        rate = learning_rate(stage.optimiser, place.step, stage.steps)
        for group in self.adam.param_groups:
            group["lr"] = rate
        count = accelerator.gradient_accumulation_steps
        accelerator.step = 0  # counts the passes since the last step, but a change of their number would upset it
        sums: dict[str, Tensor] = {}
        norm, skipped = math.nan, 0
        for number in range(count):
            batch = next(batches)
            for name in batch.skipped:
                tqdm.write(f"skipped: sample {name} cannot be used", file=sys.stderr)
            skipped += len(batch.skipped)
            with accelerator.accumulate(self.prepared):
                losses = self.prepared(batch.to(accelerator.device), self._generator(number))
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() / count
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    norm = self._norm(sums["loss"])
                    self._apply(norm)
        place.step += 1
        place.skipped += int(self._summed(skipped))
        self._count_bad(norm, report)
        return sums, norm

    def _generator(self, number: int) -> torch.Generator:
        """What a pass draws is a function of its place in the run, on any process."""
        place, accelerator = self.place, self.accelerator
        which = place.step * self.stage.passes + number * accelerator.num_processes + accelerator.process_index
        return torch.Generator().manual_seed((self.recipe.seed << 40) + (place.stage << 36) + which)

    def _norm(self, loss: Tensor) -> float:
        """The gradient's norm before it is clipped; NaN where a process's loss is not finite, whatever its gradient."""
        limit = self.stage.optimiser.clip_norm or math.inf
        finite = math.isfinite(self._summed(float(loss)))
        if not finite:
            # float16's loss scaling decides for itself which steps are taken, by the gradient.
            gradients = (parameter.grad for parameter in self.prepared.parameters())
            first = next((gradient for gradient in gradients if gradient is not None), None)
            if first is not None:  # DeepSpeed keeps them to itself
                first.fill_(math.inf)
        norm = self.accelerator.clip_grad_norm_(self.prepared.parameters(), limit)
        if not finite:
            return math.nan
        return 0.0 if norm is None else float(norm)  # DeepSpeed keeps it to itself

    def _apply(self, norm: float) -> None:
        # float16's loss scaling finds its scale by overflowing now and then; accelerate skips such steps itself.
        if math.isfinite(norm) or self.recipe.precision == "fp16":
            self.adam.step()
            self.objective.update_average(self.place.step)
        self.adam.zero_grad(set_to_none=True)

    def _count_bad(self, norm: float, report: Report) -> None:
        """A batch gone wrong must not end a run of hours; a run gone wrong must end."""
        place = self.place
        if math.isfinite(norm):
            place.bad_in_a_row = 0
            return
        place.bad += 1
        place.bad_in_a_row += 1
        report.say(f"step {report.step}: loss or gradient is not finite; the step is skipped")
        if place.bad_in_a_row >= self.recipe.bad_steps:
            raise Unusable(
                f"run {self.run}: {place.bad_in_a_row} steps in a row, to step {report.step}, had no finite loss and "
                "gradient; the last state from before them is intact: lower stages.N.optimiser.lr, or set precision: "
                "no, in a new run"
            )

    def _mean(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """The losses of all processes together."""
        vector = torch.stack([value.float() for value in losses.values()])
        if self.accelerator.num_processes > 1:
            vector = self.accelerator.reduce(vector, "mean")
        return dict(zip(losses, vector.tolist(), strict=True))

    def _summed(self, value: float) -> float:
        """The sum over all processes, which they all get."""
        if self.accelerator.num_processes == 1:
            return value
        return float(self.accelerator.reduce(torch.tensor([float(value)], device=self.accelerator.device), "sum"))

    def _show(self, report: Report) -> None:
        """Pictures of the stage's first batch; for sharded weights all processes must come together."""
        shards = is_sharded(self.objective)
        if not (self.accelerator.is_main_process or shards) or (self._sharded and not shards):
            return
        batch = self.passes[0]
        if isinstance(batch, Unusable):
            return
        batch = batch.to(self.accelerator.device)
        with whole(self.objective), self.accelerator.autocast():
            shown = self.objective.preview(batch)
        if shown is not None:
            report.pictures({"image": image_of(batch)[:_PICTURES], "answer": shown[:_PICTURES]})

    def finish(self) -> str:
        """Write the stage's result: what the next one starts from, or the checkpoint; returns which weights it has."""
        accelerator, objective = self.accelerator, self.objective
        step, which = left_by(self.place, self.stage, self.recipe.result)
        if step != self.place.step:
            self.states.load(accelerator, self.states.at(self.place.stage, step))
        whole = accelerator.get_state_dict(self.prepared) if self._sharded else None
        if accelerator.is_main_process:
            if whole is not None:
                objective = build_objective(_first(self.recipe, self.run, self.place), self.recipe, self.stage)
                objective.load_state_dict(whole)
                objective.place(accelerator.device)
            objective.finish(self._first_passes())
            folder = result_folder(self.run, self.recipe, self.place.stage)
            write_result(folder, objective.model, self.recipe, self.stage, which)
            tqdm.write(f"stage {self.stage.name!r}: {which}", file=sys.stderr)
            if (self.place.mirrored or 0.0) > 0.5:
                tqdm.write(_MIRRORED, file=sys.stderr)
        accelerator.wait_for_everyone()
        return which

    def _first_passes(self) -> Iterator[Batch]:
        for batch in passes_of(self.passes, 0, 0, 1, 0):
            yield batch.to(self.accelerator.device)


def _check_processes(recipe: Recipe, count: int) -> None:
    for stage in recipe.stages:
        if stage.passes % count:
            raise Unusable(
                f"stage {stage.name!r}: batch={stage.batch} with micro_batch={stage.micro_batch} makes {stage.passes} "
                f"passes, which {count} processes cannot share; change micro_batch"
            )


def optimiser_of(objective: Objective, knobs: Optimiser) -> torch.optim.AdamW:
    """The optimiser of what learns."""
    return torch.optim.AdamW(
        objective.parameters(), lr=knobs.lr, betas=knobs.betas, weight_decay=knobs.weight_decay, fused=True
    )


def _accelerator(recipe: Recipe) -> Accelerator:
    # It remembers the precision of the run before this one in the same process.
    AcceleratorState._reset_state()
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=recipe.precision)


def _make_room(run: Path, recipe: Recipe, place: Place) -> None:
    """Of a run whose recipe has grown since it ended, the result is that of a stage now."""
    former = run / f"stage-{place.stage}"
    grown = 0 < place.stage < len(recipe.stages)
    if grown and (run / CHECKPOINT).is_dir() and not former.is_dir():
        (run / CHECKPOINT).rename(former)


def _first(recipe: Recipe, run: Path, place: Place) -> Model:
    if place.stage == 0:
        return first_model(recipe)
    return model_in(result_folder(run, recipe, place.stage - 1), recipe, recipe.stages[place.stage])


def result_folder(run: Path, recipe: Recipe, stage: int) -> Path:
    """Where stage number `stage`, from 0, leaves its weights: the last one in `run`/checkpoint."""
    return run / (CHECKPOINT if stage + 1 == len(recipe.stages) else f"stage-{stage + 1}")


def learning_rate(knobs: Optimiser, step: int, steps: int) -> float:
    """Of step number `step`, from 0: linear warm-up, then exponential down to `final_lr`, which stays."""
    if step < knobs.warmup_steps:
        return knobs.lr * (step + 1) / knobs.warmup_steps
    length = max(1, (knobs.decay_steps or steps) - knobs.warmup_steps)
    share = min(1.0, (step - knobs.warmup_steps) / length)
    return knobs.lr * (knobs.final_lr / knobs.lr) ** share


class Stop:
    """Turns Ctrl-C and SIGTERM into a wish, so that a step is finished and saved. Use it in a `with` statement."""

    def __init__(self) -> None:
        self.asked = False
        self._times = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        with contextlib.suppress(ValueError):  # not in the main thread: whoever runs it there stops it by other means
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        # Launchers pass a Ctrl-C on that the processes have heard already; who asks a third time means it.
        self._times += 1
        self.asked = True
        if self._times > 2:
            self.__exit__()

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
