"""A training step in a process of its own, taken when asked: for measurements of two kinds of step in turns.

In one process the one would find the memory that the other has left.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from marigold_ros.config import Unusable, one_line
from trainer.data import Batch
from trainer.loop import optimiser_of
from trainer.model import Model
from trainer.objectives import build_objective
from trainer.plain_step import PlainStep
from trainer.recipe import Recipe, Stage
from trainer.stand_ins import random_batch, stand_in

OURS, PLAIN = "ours", "plain"
# The first one allocates, the second finds its memory.
_WARM_UP = 2
PRECISIONS: Mapping[str, torch.dtype] = {"no": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One kind of step, `OURS` or `PLAIN`, of the last stage of a recipe; size: (width, height); batch: pictures."""

    kind: str
    recipe: Recipe
    network: str
    size: tuple[int, int]
    batch: int


class OurStep:
    """One step of the optimiser after one pass, as `loop.StageRun` takes it."""

    def __init__(self, model: Model, recipe: Recipe, stage: Stage, device: torch.device) -> None:
        self.objective = build_objective(model, recipe, stage)
        self.objective.place(device)
        self.adam = optimiser_of(self.objective, stage.optimiser)
        self._clip_norm, self._steps = stage.optimiser.clip_norm, 0

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of a batch."""
        return self.objective(batch, generator)["loss"]

    def learn(self, loss: Tensor) -> None:
        """What follows from the loss."""
        loss.backward()
        float(nn.utils.clip_grad_norm_(self.objective.parameters(), self._clip_norm or math.inf))
        self.adam.step()
        self.objective.update_average(self._steps)
        self.adam.zero_grad(set_to_none=True)
        self._steps += 1


class StepProcess:
    """A process that takes the steps of `case`; ready when made. Raises `Unusable` where it cannot."""

    def __init__(self, case: Case) -> None:
        self.case = case
        # A server's processes find these modules imported; but CUDA, which diffusers looks for, cannot be forked.
        context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
        if not torch.cuda.is_available():
            context.set_forkserver_preload([__name__])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, case), daemon=True)
        self._process.start()
        theirs.close()

    def step_s(self) -> float:
        """Seconds of one step."""
        return self._ask("step")

    def peak_mb(self) -> float:
        """The most memory that was in use: the GPU's, or the process's."""
        return self._ask("peak")

    def wait(self) -> None:
        """Until it is ready."""
        self._answer()

    def _ask(self, what: str) -> float:
        self._pipe.send(what)
        return self._answer()

    def _answer(self) -> float:
        try:
            answer = self._pipe.recv()
        except EOFError:
            answer = "its process was killed, for want of memory most likely"
        if isinstance(answer, str):
            width, height = self.case.size
            raise Unusable(f"{self.case.kind} step at {width}x{height}, batch {self.case.batch}: {answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def step_processes(cases: list[Case]) -> Iterator[list[StepProcess]]:
    """Processes for all cases at once, ready."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(contextlib.closing(StepProcess(case))) for case in cases]
        for process in processes:
            process.wait()
        yield processes


def _serve(pipe: Connection, case: Case) -> None:
    try:
        step = _Stepper(case)
        for _ in range(_WARM_UP):
            step.seconds()
        pipe.send(0.0)
        while True:
            pipe.send(step.seconds() if pipe.recv() == "step" else step.peak_mb())
    except (EOFError, BrokenPipeError):
        pass
    except Exception as problem:  # whatever it was, the table says so in this cell and goes on
        pipe.send(one_line(problem))


class _Stepper:
    """The step of a case on the GPU where there is one, its batch always the same."""

    def __init__(self, case: Case) -> None:
        recipe = case.recipe
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        self._cuda = torch.cuda.is_available()
        self._device = torch.device("cuda" if self._cuda else "cpu")
        self._type = PRECISIONS[recipe.precision]
        model, kind = stand_in(recipe, case.network), OurStep if case.kind == OURS else PlainStep
        self._step = kind(model, recipe, recipe.stages[-1], self._device)
        self._batch = random_batch(recipe, case.size, case.batch)
        self._generator = torch.Generator().manual_seed(0)

    def seconds(self) -> float:
        """Of one step, the batch's way to the device included."""
        self._wait()
        start = time.perf_counter()
        with torch.autocast(self._device.type, self._type, enabled=self._type != torch.float32):
            loss = self._step.loss(self._batch.to(self._device), self._generator)
        self._step.learn(loss)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def peak_mb(self) -> float:
        """Since the start."""
        if self._cuda:
            return torch.cuda.max_memory_allocated() / 1e6
        # Not resource.getrusage: that begins with the memory of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3
