"""Read files and hub data sets row by row; a row that cannot be read says why and where, never what it holds."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mitigate.documents.sources import DocumentSource
from mitigate.errors import MitigateError, summarize

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
_BOM = b"\xef\xbb\xbf"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        where: `file:line`, for messages.
        stem: name of the file, or of the data set, for default ids.
        number: its line, or its place among the rows, from 1; 0 for a whole text file.
        values: field -> value.
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
        path = (root or Path()) / Path(name).expanduser()
        form = _format(name, path) if source.format == "auto" else source.format
        if form == "hub":
            yield from _hub(name, source)
            continue
        _check_file(path)
        empty = True
        try:
            for row in _READERS[form](path):
                empty = False
                yield row
        except OSError as error:
            raise MitigateError(f"{path}: cannot be read ({error.strerror or error})") from None
        if empty:
            raise MitigateError(
                f"{path}: the file is empty, there is no row in it; check the path, or leave the file out"
            )


def _format(name: str, path: Path) -> str:
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    if not path.exists() and _HUB_ID.fullmatch(name):
        return "hub"
    _check_file(path)
    raise MitigateError(
        f"{path}: the suffix {path.suffix!r} does not tell its format; set format to jsonl, json, csv, parquet or text"
    )


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES)
        raise MitigateError(f"{path}: a folder, not a file; name its files: {summarize(inside) or 'there are none'}")
    if path.is_file():
        return
    if not path.parent.is_dir():
        raise MitigateError(f"{path}: no such file (nor is there a folder {path.parent}); correct the path")
    there = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in _SUFFIXES)
    nearest = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5) or there
    raise MitigateError(f"{path}: no such file; in that folder: {summarize(nearest) or 'no file of a known format'}")


def _json_lines(path: Path) -> Iterator[Row]:
    position = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            row = Row(f"{path.name}:{number}", path.stem, number)
            if line.removeprefix(_BOM).strip():
                yield _parse(row, line, position)
            position += len(line)


def _parse(row: Row, line: bytes, position: int) -> Row:
    try:
        values = json.loads(line.decode().removeprefix("\ufeff").rstrip())
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {position + error.start}; save the file as UTF-8"
    except json.JSONDecodeError as error:
        problem = f"malformed JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError):
        problem = "malformed JSON: a number too long or brackets too deep"
    else:
        if isinstance(values, dict):
            return Row(row.where, row.stem, row.number, values)
        problem = f"{_kind(values)}, not an object with fields"
    return Row(row.where, row.stem, row.number, problem=problem)


def _json_file(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        start = stream.read(4096).removeprefix(_BOM).lstrip()
    if not start.startswith(b"["):
        yield from _json_lines(path)
        return
    try:
        items = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise MitigateError(
            f"{path}:{error.lineno}: malformed JSON: {error.msg} at column {error.colno}; "
            "the file must be one array of objects, or one object per line"
        ) from None
    except (ValueError, RecursionError):
        raise MitigateError(f"{path}: malformed JSON: a number too long or brackets too deep") from None
    for number, item in enumerate(items, start=1):
        row = Row(f"{path.name}: item {number}", path.stem, number)
        if isinstance(item, dict):
            yield Row(row.where, row.stem, number, item)
        else:
            yield Row(row.where, row.stem, number, problem=f"{_kind(item)}, not an object with fields")


def _csv(path: Path) -> Iterator[Row]:
    """Every value as text, for a postcode's leading zero may be part of a secret; an empty cell is None."""
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    after = 0
    try:
        for cells in reader:
            line, after = after + 1, reader.line_num
            if columns is None:
                columns = cells
            elif len(cells) == len(columns):
                values = {name: cell or None for name, cell in zip(columns, cells, strict=True)}
                yield Row(f"{path.name}:{line}", path.stem, line, values)
            elif cells:
                problem = f"{len(cells)} cells under {len(columns)} columns"
                yield Row(f"{path.name}:{line}", path.stem, line, problem=problem)
    except csv.Error as error:
        raise MitigateError(f"{path}:{reader.line_num}: malformed CSV ({error}); correct that line") from None


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path.name}: row {number}", path.stem, number, values)
    except pa.ArrowException as error:
        raise MitigateError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


def _text_file(path: Path) -> Iterator[Row]:
    if (text := _text(path)).strip():
        yield Row(path.name, path.stem, 0, {"text": text})


def _hub(name: str, source: DocumentSource) -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(name, source.name, split=source.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MitigateError(
            f"{name}: neither a file here nor, with split {source.split!r} and name {source.name!r}, a data set of the "
            f"hub ({reason}); correct path, name or split"
        ) from None
    for number, values in enumerate(rows, start=1):
        yield Row(f"{name}[{source.split}]: row {number}", name.rsplit("/", 1)[-1], number, values)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise MitigateError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None


def _kind(value: object) -> str:
    """What a value is, without saying it."""
    return {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )


_READERS = {"jsonl": _json_lines, "json": _json_file, "csv": _csv, "parquet": _parquet, "text": _text_file}
