"""Recipes read and checked: YAML with `key=value` overrides, every mistake reported at once.

    recipe = load_recipe("recipes/quickstart.yaml", ["out=runs/mine", "unlearn.objective=npo"])

`${data.root}` in a value stands for another key's value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mitigate.errors import MitigateError, one_line
from mitigate.mistakes import Settings, checked, keys_of
from mitigate.recipe.schema import Recipe
from mitigate.recipe.yaml12 import load_yaml

_LONGEST_SHOWN = 100  # characters of an override in a message
_LONGEST_VALUE = 1 << 16  # characters of a value with all that its ${keys} stand for


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe, apply `key=value` overrides and check everything.

    Args:
        path: the file; None starts from the defaults.
        overrides (*optional*): dotted keys, values in YAML: `detect.spans.threshold=1.5`, `lab=null`. The number
            after a list's last adds to it: `data.documents.1={path: unseen.jsonl, assign: holdout}`.

    Raises:
        MitigateError: with every mistake, each naming its key, the nearest known key and the remedy.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MitigateError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        try:
            values = load_yaml(text) or {}
        except yaml.YAMLError as error:
            raise MitigateError(f"{path}: not YAML ({one_line(error)})") from None
        if not isinstance(values, dict):
            raise MitigateError(f"{path}: a recipe is a mapping of keys; got a {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return check_recipe(_interpolate(values, values), name=str(path or "recipe"))


def check_recipe(values: Mapping[str, Any], *, name: str = "recipe") -> Recipe:
    """Validate recipe values.

    Raises:
        MitigateError: with every mistake at once.
    """
    return checked(Recipe, values, name=name)


def check_settings(kind: type[Settings], assignments: Sequence[str]) -> Settings:
    """One section's settings from `key=value` assignments, checked as in a recipe.

    Raises:
        MitigateError: with every mistake at once.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        _apply(values, assignment)
    return checked(kind, values, name="--set")


def known_keys() -> list[str]:
    """Every key that a recipe may hold, dotted."""
    return sorted(keys_of(Recipe))


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    shown = repr(override if len(override) <= _LONGEST_SHOWN else f"{override[:_LONGEST_SHOWN]}...")
    if not equals or not key:
        raise MitigateError(f"{shown}: overrides are written key=value, for instance unlearn.objective=npo")
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise MitigateError(f"{shown}: the value is not YAML ({one_line(error)})") from None
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        if isinstance(place, list) and parent.isdigit() and int(parent) <= len(place):
            if int(parent) == len(place):
                place.append({})
            place = place[int(parent)]
            continue
        if not isinstance(place, dict):
            raise MitigateError(f"{shown}: {parent!r} is not a section of the recipe")
        if not isinstance(place.get(parent), (dict, list)):
            place[parent] = {}
        place = place[parent]
    if isinstance(place, list) and last.isdigit() and int(last) <= len(place):
        place[int(last) : int(last) + 1] = [value]  # one after the last is a new one
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise MitigateError(f"{shown}: {last!r} is not a place in that list")


def _interpolate(value: Any, root: Mapping[str, Any], within: tuple[str, ...] = ()) -> Any:
    if isinstance(value, dict):
        return {key: _interpolate(item, root, within) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, root, within) for item in value]
    if isinstance(value, str):
        written = re.sub(r"\$\{([\w.]+)\}", lambda match: _lookup(match.group(1), root, within), value)
        if len(written) > _LONGEST_VALUE:
            raise MitigateError(f"a value grows beyond {_LONGEST_VALUE:,} characters by what its ${{keys}} stand for")
        return written
    return value


def _lookup(key: str, root: Mapping[str, Any], within: tuple[str, ...]) -> str:
    value: Any = root
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if not isinstance(value, (str, int, float)):
        raise MitigateError(f"${{{key}}}: no such key, or not a plain value; give {key}=... on the command line")
    if key in within:
        raise MitigateError(f"${{{key}}}: stands for itself; give {key}=... on the command line")
    return str(_interpolate(value, root, (*within, key)))
