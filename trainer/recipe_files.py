"""Recipes as YAML files: found, read into the dataclasses of recipe.py, and turned into plain values again."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from marigold_ros.config import Unusable
from marigold_ros.places import shared
from trainer.recipe import OBJECTIVES, Objective, Recipe

FOLDER = "config/train"


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = shipped_recipes()
    if name in known:
        return known[name]
    raise Unusable(f"recipe {name!r}: no such file; give one, or one of {', '.join(known)}")


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {file.stem: file for file in sorted(shared(f"{FOLDER}/nano.yaml").parent.glob("*.yaml"))}


def load_recipe(name: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of this name or path with {'section.name': value} applied; items of lists are counted from 0."""
    path = find_recipe(name)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Unusable(f"recipe {path}: cannot be read ({error})") from error
    for key, value in (changes or {}).items():
        _change(tree, key, value)
    return recipe_from(tree, str(path))


def _change(tree: Any, name: str, value: Any) -> None:
    *sections, key = name.split(".")
    try:
        for section in sections:
            tree = tree[int(section)] if isinstance(tree, list) else tree.setdefault(section, {})
        tree[int(key) if isinstance(tree, list) else key] = value
    except (ValueError, IndexError, AttributeError, TypeError):
        raise Unusable(f"setting {name!r}: the recipe has no such place; e.g. stages.0.steps") from None


def recipe_from(tree: Any, source: str) -> Recipe:
    """A recipe from nested plain values; unknown names and wrong types are refused with the name of `source`."""
    return _value(Recipe, tree, f"recipe {source}")


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` from YAML as the annotated type `kind`."""
    if kind is Objective:
        return _objective(value, where)
    if dataclasses.is_dataclass(kind):
        return _section(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _value(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise Unusable(f"{where}: {value!r}: must be a list")
        endless = len(arguments) == 2 and arguments[1] is Ellipsis
        if not endless and len(value) != len(arguments):
            raise Unusable(f"{where}: {value!r}: must have {len(arguments)} items")
        kinds = [arguments[0]] * len(value) if endless else arguments
        return tuple(
            _value(part, item, f"{where}, item {n}") for n, (part, item) in enumerate(zip(kinds, value, strict=True))
        )
    if kind is float:
        return _number(value, where)
    if type(value) is not kind:
        raise Unusable(f"{where}: {value!r}: must be of type {kind.__name__}")
    return value


def _objective(value: Any, where: str) -> Any:
    rest = dict(value) if isinstance(value, Mapping) else {}
    name = rest.pop("kind", None)
    if name not in OBJECTIVES:
        raise Unusable(f"{where}: kind={name!r}: must be one of {', '.join(OBJECTIVES)}")
    return _section(OBJECTIVES[name], rest, where)


def _section(kind: type, tree: Any, where: str) -> Any:
    if not isinstance(tree, Mapping):
        raise Unusable(f"{where}: {tree!r}: must be a mapping of names to values")
    types_of = typing.get_type_hints(kind)
    known = {item.name for item in dataclasses.fields(kind)}
    values = {}
    for name, value in tree.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise Unusable(f"{where}: {name!r}: no such setting; {hint}")
        values[name] = _value(types_of[name], value, f"{where}: {name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise Unusable(f"{where}: {str(error).replace('__init__()', '').split('.')[-1].strip()}") from error
    except Unusable as problem:
        raise Unusable(f"{where}: {problem}") from None


def _number(value: Any, where: str) -> float:
    # YAML 1.1 reads 1e-5 (no dot) as a string.
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise Unusable(f"{where}: {value!r}: must be a number") from None


def plain(value: Any) -> Any:
    """A recipe, or a part of one, as plain values for YAML, JSON and comparison; `recipe_from` reads them."""
    if dataclasses.is_dataclass(value):
        values = {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {"kind": value.KIND, **values} if type(value) in OBJECTIVES.values() else values
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
