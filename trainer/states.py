"""States of a run on the disk: written beside and renamed, the last few kept, the newest found again."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from marigold_ros.config import Unusable, one_line
from marigold_ros.files import flush, written_beside
from trainer.recipe import Recipe
from trainer.recipe_files import plain, recipe_from

_PLACE_FILE = "place.json"
_RECIPE_FILE = "recipe.json"
_LOCK_FILE = ".lock"
# What a state is called while another of the same step takes its place.
_ASIDE = ".before"
# `Place.mirrored` follows about so many of the logged steps.
_MIRRORED_LOGS = 5
# These may change between two sittings: they do not decide how the weights change.
_FREE = (
    *("threads", "workers", "latent_cache", "save_steps", "keep", "log_steps", "picture_steps", "bad_steps", "size"),
    *("validate_steps", "result", "patience"),
)


@dataclass
class Place:
    """Where in its recipe a run is: number of the stage, steps taken in it; steps without a finite loss and seconds of
    training in all, samples that were skipped; bad_in_a_row: how many of the last steps were without a finite loss.

    Of its validations: the last step that had one; the measure that decides, its best so far and the step of that
    (None and 0: there was none); how many there were since. left: which weights the stage before left, as
    `results.left_by` says it. mirrored: share of the pictures that the last steps drew with near as far; None: no
    loss has told.
    """

    stage: int = 0
    step: int = 0
    bad: int = 0
    seconds: float = 0.0
    skipped: int = 0
    validated: int = 0
    measure: str = ""
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    left: str = ""
    bad_in_a_row: int = 0
    mirrored: float | None = None

    def note(self, measure: str, value: float, better: bool) -> None:
        """A validation of this step found `value` of the `measure` that decides, `better` than the best or not."""
        self.validated, self.measure = self.step, measure
        self.since_best += 1
        if better:
            self.best, self.best_step, self.since_best = value, self.step, 0

    def note_mirrored(self, share: float | None) -> None:
        """The step that was just logged drew this share of its pictures with near as far; None: its loss minds."""
        if share is not None:
            before = share if self.mirrored is None else self.mirrored
            self.mirrored = before + (share - before) / _MIRRORED_LOGS


class States:
    """The states in the folder `run`/states: the newest `keep` of them, and the one that validated best."""

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.keep = Path(run), keep
        self._folder = self.run / "states"
        self._best: Path | None = None

    def newest(self) -> tuple[Path, Place] | None:
        """Folder and place of the newest state that is whole."""
        for aside in self._folder.glob(f"[0-9]*{_ASIDE}"):
            folder = aside.with_name(aside.name.removesuffix(_ASIDE))
            if not folder.exists():
                with suppress(FileNotFoundError):  # another process was faster
                    aside.replace(folder)
        found = self._all()
        if not found:
            return None
        path = found[-1] / _PLACE_FILE
        try:
            place = Place(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise Unusable(f"state {path}: cannot be read ({one_line(error)}); delete {found[-1]}") from error
        self._note_best(place)
        return found[-1], place

    def _note_best(self, place: Place) -> None:
        """The best state is that of a stage until the next one has a best of its own."""
        if place.best_step:
            self._best = self.at(place.stage, place.best_step)

    def at(self, stage: int, step: int) -> Path:
        """The folder of the state after `step` steps of a stage."""
        return self._folder / f"{stage + 1:02d}-{step:08d}"

    def save(self, accelerator: Accelerator, place: Place) -> None:
        """Save what `accelerator` has prepared; all processes of a run call this together.

        Raises `Unusable` where the disk is full; the states before stay.
        """
        folder = self.at(place.stage, place.step)
        self._note_best(place)
        beside = folder.with_name(f".{folder.name}.part")
        if accelerator.is_main_process:
            for left in (*self._folder.glob(".*.part"), *self._folder.glob(f"[0-9]*{_ASIDE}")):
                shutil.rmtree(left, ignore_errors=True)
        accelerator.wait_for_everyone()
        with _explained(folder):
            beside.mkdir(parents=True, exist_ok=True)
            accelerator.save_state(str(beside))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with _explained(folder):
                (beside / _PLACE_FILE).write_text(json.dumps(asdict(place)) + "\n", encoding="utf-8")
                for path in beside.rglob("*"):
                    flush(path)
                # One of the same step (the run was stopped in its validation) goes when the new one is there.
                aside = folder.with_name(f"{folder.name}{_ASIDE}")
                if folder.exists():
                    folder.replace(aside)
                beside.replace(folder)
                shutil.rmtree(aside, ignore_errors=True)
            for old in set(self._all()[: -self.keep]) - {self._best}:
                shutil.rmtree(old, ignore_errors=True)
        accelerator.wait_for_everyone()

    def load(self, accelerator: Accelerator, folder: Path) -> None:
        """Load a state into what `accelerator` has prepared; raises `Unusable` where it is damaged or gone."""
        if not folder.is_dir():
            raise Unusable(f"state {folder}: is gone, and it was the best; set result: last to do without it")
        try:
            accelerator.load_state(str(folder))
        except Exception as error:  # safetensors, torch and pickle raise many kinds for one damaged file
            raise Unusable(
                f"state {folder}: cannot be read ({one_line(error)}); delete it to go on from the one before"
            ) from error

    def _all(self) -> list[Path]:
        # Numbered so that names are in the order of time.
        found = (path.parent for path in self._folder.glob(f"[0-9]*/{_PLACE_FILE}"))
        return sorted(path for path in found if path.suffix != _ASIDE)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # OSError, or what safetensors and torch make of a full disk
        shutil.rmtree(folder.with_name(f".{folder.name}.part"), ignore_errors=True)
        raise Unusable(
            f"state {folder}: cannot be written ({one_line(error)}); make room and give the same command again: the "
            "run goes on from its last state"
        ) from error


@contextmanager
def reserved(run: Path) -> Iterator[None]:
    """Raises `Unusable` where another process trains in folder `run`: each would delete the other's states.

    The lock goes with the process, however that ends; processes that it has started do not inherit it.
    """
    with (run / _LOCK_FILE).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise Unusable(
                f"run {run}: another process is training in it; wait until it has ended, or give another --run"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def check_recipe(run: Path, recipe: Recipe, place: Place | None) -> None:
    """Note the recipe in a new run; of an old one, raise `Unusable` where this one would train something else.

    Stages that are still to come may change.
    """
    path = run / _RECIPE_FILE
    now = plain(recipe)
    if place is not None:
        before = _read(path)
        begun = place.stage + (place.step > 0)
        old_values, values = (_flat(_decisive(recipe_, begun)) for recipe_ in (before, now))
        for name in sorted({*old_values, *values}):
            value, old = values.get(name), old_values.get(name)
            if value != old:
                raise Unusable(
                    f"run {run}: was begun with {name}={old!r}, not {value!r}; go on with the same recipe, or give "
                    "another --run"
                )
    with written_beside(path) as beside:
        # Infinity, which JSON does not know, is written as Python reads it.
        beside.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


def read_recipe(run: Path) -> Recipe:
    """The recipe of the run in folder `run`; raises `Unusable` where there is none."""
    return recipe_from(_read(run / _RECIPE_FILE), str(run / _RECIPE_FILE))


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"run file {path}: cannot be read ({one_line(error)}); give another --run") from error


def _decisive(recipe: dict[str, Any], stages: int) -> dict[str, Any]:
    kept = {name: value for name, value in recipe.items() if name not in _FREE}
    return kept | {"stages": kept["stages"][:stages]}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = enumerate(value)
    else:
        return {name: value}
    return {key: item for inner, part in items for key, item in _flat(part, f"{name}.{inner}".lstrip(".")).items()}
