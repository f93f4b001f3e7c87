"""Read files and hub data sets row by row; a row that cannot be read says why and where, never what it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mitigate.documents.rows.opening import (
    BOM,
    DAMAGED,
    check_file,
    find_files,
    kind_of,
    lines,
    open_bytes,
    stem_of,
    suffix_of,
    whole_text,
)
from mitigate.documents.rows.tables import (
    Numbered,
    data_set_rows,
    is_saved_data_set,
    read_arrow,
    read_csv,
    read_parquet,
    read_saved_data_set,
)
from mitigate.documents.sources import DocumentSource
from mitigate.errors import MitigateError, first_line

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        where: `file:line`, for messages.
        stem: name of the file, or of the data set, for default ids.
        number: its line, or its place among the rows, from 1; 0 for a whole text file.
        values: field -> value; NaN is None.
        problem: why there are no values.
    """

    where: str
    stem: str
    number: int
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_rows(source: DocumentSource, *, root: Path | None = None) -> Iterator[Row]:
    """Every row of a source's files or hub data set, in order, the bad ones with their problem.

    Args:
        source: its `path`, `format`, `name` and `split` are used.
        root (*optional*): folder that relative paths start from; default: the current one.

    Raises:
        MitigateError: a file is missing, empty or broken as a whole, or the hub does not have the data set.
    """
    for name in source.paths:
        for path in find_files(name, root, suffixes=_SUFFIXES):
            form = _format(name, path) if source.format == "auto" else source.format
            if form == "hub":
                yield from _hub(name, source)
            else:
                yield from _file(path, form, source)


def _file(path: Path, form: str, source: DocumentSource) -> Iterator[Row]:
    is_saved = form == "arrow" and kind_of(path) == "folder" and is_saved_data_set(path)
    if not is_saved:
        check_file(path, suffixes=_SUFFIXES)
    empty = True
    try:
        rows = _numbered(path, read_saved_data_set(path, split=source.split)) if is_saved else _READERS[form](path)
        for row in rows:
            empty = False
            yield row
    except DAMAGED as error:
        raise MitigateError(f"{path}: damaged or cut short ({first_line(error)}); copy or make it again") from None
    except OSError as error:
        raise MitigateError(f"{path}: cannot be read ({error.strerror or error}); correct or make it again") from None
    except MemoryError:
        raise MitigateError(f"{path}: does not fit into memory; cut it up, or write it as JSON lines") from None
    if empty:
        raise MitigateError(f"{path}: the file is empty, there is no row in it; check the path, or leave the file out")


def _format(name: str, path: Path) -> str:
    suffix = suffix_of(path)
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    kind = kind_of(path)
    if kind == "nothing" and _HUB_ID.fullmatch(name):
        return "hub"
    if kind == "folder" and is_saved_data_set(path):
        return "arrow"
    check_file(path, suffixes=_SUFFIXES)
    raise MitigateError(
        f"{path}: the suffix {suffix!r} does not tell its format; set format to jsonl, json, csv, parquet, arrow or "
        "text"
    )


def _json_lines(path: Path) -> Iterator[Row]:
    position = 0
    for number, line in enumerate(lines(path), start=1):
        row = Row(f"{path.name}:{number}", stem_of(path), number)
        if line.removeprefix(BOM).strip():
            yield _parse(row, line, position)
        position += len(line)


def _parse(row: Row, line: bytes, position: int) -> Row:
    try:
        values = _load(line.decode().removeprefix("\ufeff").rstrip())
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {position + error.start}; save the file as UTF-8"
    except json.JSONDecodeError as error:
        problem = f"malformed JSON: {error.msg} at column {error.colno}"
    except _TwiceError as error:
        problem = str(error)
    except (ValueError, RecursionError):
        problem = "malformed JSON: a number too long or brackets too deep"
    else:
        if isinstance(values, dict):
            return Row(row.where, row.stem, row.number, values)
        problem = f"{_kind(values)}, not an object with fields"
    return Row(row.where, row.stem, row.number, problem=problem)


class _TwiceError(Exception):
    """A JSON object that has a field twice; which of them a reader takes is chance."""


def _load(text: str) -> Any:
    """JSON in which NaN, which Python writes for a missing value, is null."""
    return json.loads(
        text,
        parse_constant=lambda name: None if name == "NaN" else float(name),
        object_pairs_hook=_object,
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"field {twice!r} is in an object more than once; leave one")
    return values


def _json_file(path: Path) -> Iterator[Row]:
    with open_bytes(path) as stream:
        start = stream.read(4096).removeprefix(BOM).lstrip()
    if not start.startswith(b"["):
        yield from _json_lines(path)
        return
    try:
        items = _load(whole_text(path))
    except json.JSONDecodeError as error:
        raise MitigateError(
            f"{path}:{error.lineno}: malformed JSON: {error.msg} at column {error.colno}; "
            "the file must be one array of objects, or one object per line"
        ) from None
    except _TwiceError as error:
        raise MitigateError(f"{path}: {error}") from None
    except (ValueError, RecursionError):
        raise MitigateError(
            f"{path}: malformed JSON: a number too long or brackets too deep; correct it, or write one object per line"
        ) from None
    for number, item in enumerate(items, start=1):
        row = Row(f"{path.name}: item {number}", stem_of(path), number)
        if isinstance(item, dict):
            yield Row(row.where, row.stem, number, item)
        else:
            yield Row(row.where, row.stem, number, problem=f"{_kind(item)}, not an object with fields")


def _csv(path: Path) -> Iterator[Row]:
    for line, values in read_csv(path):
        row = Row(f"{path.name}:{line}", stem_of(path), line)
        if isinstance(values, str):
            yield Row(row.where, row.stem, line, problem=values)
        else:
            yield Row(row.where, row.stem, line, values)


def _text_file(path: Path) -> Iterator[Row]:
    if (text := whole_text(path)).strip():
        yield Row(path.name, stem_of(path), 0, {"text": text})


def _hub(name: str, source: DocumentSource) -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(name, source.name, split=source.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MitigateError(
            f"{name}: neither a file here nor, with split {source.split!r} and name {source.name!r}, a data set of the "
            f"hub ({first_line(error)}); correct path, name or split"
        ) from None
    for number, values in data_set_rows(name, rows):
        yield Row(f"{name}[{source.split}]: row {number}", name.rsplit("/", 1)[-1], number, values)


def _numbered(path: Path, rows: Numbered) -> Iterator[Row]:
    for number, values in rows:
        yield Row(f"{path.name}: row {number}", stem_of(path), number, values)


def _kind(value: object) -> str:
    """What a value is, without saying it."""
    return {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )


_READERS = {
    "jsonl": _json_lines,
    "json": _json_file,
    "csv": _csv,
    "parquet": lambda path: _numbered(path, read_parquet(path)),
    "arrow": lambda path: _numbered(path, read_arrow(path)),
    "text": _text_file,
}
