"""Check settings against their class and say everything that is wrong with them, in our words, in one message."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from mitigate.errors import MitigateError

Settings = TypeVar("Settings", bound=BaseModel)
_MOST = 2**31  # no number of things is larger, and no library's seed need be


class Section(BaseModel):
    """Settings: no unknown keys, and no number that is infinite, NaN or beyond what the libraries take.

    Where a key's default is a section with values of its own, a mapping changes what it names and leaves the others.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_use(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, int) and not -_MOST < value < _MOST:
            raise ValueError(f"is not between -{_MOST:,} and {_MOST:,}")
        if isinstance(value, Mapping) and info.field_name is not None:
            return _over(cls.model_fields[info.field_name].get_default(call_default_factory=True), value)
        return value


def _over(default: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A section's values over what its default says itself."""
    if not isinstance(default, Section):
        return given
    own = {name: getattr(default, name) for name in default.model_fields_set}
    inner = {name: _over(own.get(name), value) for name, value in given.items() if isinstance(value, Mapping)}
    return {**own, **given, **inner}


def checked(kind: type[Settings], values: Mapping[str, Any], *, name: str) -> Settings:
    """Validate, and say all that is wrong at once.

    Pydantic checks what fits together only when each key by itself is right. So the wrong ones are taken out and the
    rest is checked again, unless what fits together hangs on just those.

    Args:
        kind: the settings' class.
        values: what the user gave.
        name: of the recipe or option, for the message.

    Raises:
        MitigateError: with every mistake: its key, what was got, the nearest known key or what is allowed.
    """
    known = sorted(keys_of(kind))
    rest = copy.deepcopy(dict(values))
    problems: dict[str, None] = {}
    removed: set[str] = set()
    while True:
        try:
            result = kind.model_validate(rest)
            break
        except ValidationError as error:
            found = [(_place(problem, rest), problem) for problem in error.errors()]
            lines = _explain_all(found, known)
            problems |= dict.fromkeys(line for line in lines if removed.isdisjoint(line.partition(":")[0].split(", ")))
            wrong = [place for place, problem in found if problem["type"] != "missing" and place]
            if len(wrong) < len(found) or any(_decides(place) for place in wrong):
                break
            for place in wrong:
                removed.add(".".join(map(str, place)))
                _remove(rest, place)
    if not problems:
        return result
    counted = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    raise MitigateError(f"{name}: {counted}\n" + "\n".join(f"  - {problem}" for problem in problems))


def not_one_of(choices: Any, value: str) -> str:
    """What is wrong with a plain text that should be one of a `Literal`'s; empty where nothing is."""
    allowed: tuple[str, ...] = get_args(choices)
    return "" if value in allowed else f"{value!r} is not one of {', '.join(allowed)}"


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every key that the settings may hold, dotted."""
    for field, info in model.model_fields.items():
        name = info.alias or field
        yield prefix + name
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from keys_of(kind, f"{prefix}{name}.")


def _place(problem: Mapping[str, Any], values: Any) -> tuple[str | int, ...]:
    """Where a mistake is: pydantic's location without its names for the members of a union."""
    place: list[str | int] = []
    for part in problem["loc"]:
        there = part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        if there:
            place.append(part)
            values = values[part]
        elif problem["type"] == "missing" and part == problem["loc"][-1]:
            place.append(part)
    return tuple(place)


def _decides(place: Sequence[str | int]) -> bool:
    """Whether other keys are right or wrong by the section at this place."""
    sections = ("data", "data.documents", "lab", "lab.base", "lab.people", "models", "references")
    return isinstance(place[-1], int) or ".".join(map(str, place)) in sections


def _remove(values: Any, place: Sequence[str | int]) -> None:
    for part in place[:-1]:
        values = values.get(part, {}) if isinstance(values, dict) else values[part]
    values.pop(place[-1], None)


def _explain_all(found: Sequence[tuple[tuple[str | int, ...], Any]], known: Sequence[str]) -> list[str]:
    """A line for each mistake; where a value fits no member of a union, one line for all of them."""
    lines: dict[tuple[str | int, ...], list[str]] = {}
    for place, problem in found:
        deeper = any(other[: len(place)] == place and len(other) > len(place) for other, _ in found)
        if len(problem["loc"]) > len(place) and deeper:
            continue  # the member of the union that was meant says it better
        lines.setdefault(place, []).extend(_explain(place, problem, known))
    joined = []
    for place, own in lines.items():
        key, got = f"{'.'.join(map(str, place))}: ", own[0].rpartition("; got ")[1:]
        if len(own) > 1 and place and "".join(got) and all(line.endswith("".join(got)) for line in own):
            expected = dict.fromkeys(line.removeprefix(key).removesuffix("".join(got)) for line in own)
            joined.append(key + ", or ".join(expected) + "".join(got))
        else:
            joined += own
    return joined


def _explain(place: Sequence[str | int], problem: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """One pydantic error in our words: key, what was got, remedy."""
    key = ".".join(map(str, place))
    if problem["type"] == "extra_forbidden":
        plain = ".".join(part for part in place if isinstance(part, str))
        same_name = [other for other in known if other.rsplit(".", 1)[-1] == place[-1]]
        section = [other for other in known if other.rpartition(".")[0] == plain.rpartition(".")[0]]
        near = (
            difflib.get_close_matches(plain, section, n=1, cutoff=0.6)
            or same_name[:1]
            or difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
        )
        return [f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "; see `mitigate run --keys`")]
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return [f"{key}: {line}" if key else line for line in message.split("\n")]
    if problem["type"] == "missing":
        return [f"{key}: missing; it has no default"]
    got = problem.get("input")
    shown = repr(got) if not isinstance(got, (dict, list)) else f"a {type(got).__name__}"
    if problem["type"] == "literal_error" and problem["loc"] == tuple(place):  # not of a union, nor of a dict's key
        choices = ", ".join(re.findall(r"'([^']+)'", problem["ctx"]["expected"]))
        return [f"{key}: is not one of {choices}; got {shown}"]
    message = re.sub(r"^(Input|Value|String|Keys?) should ", "should ", problem["msg"])
    message = re.sub(r"valid dictionary( or instance of \w+)?", "section with keys", message)
    return [f"{key}: {message}; got {shown}"]
