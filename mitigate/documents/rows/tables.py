"""Rows of tables: CSV, Parquet, Arrow files, folders of `save_to_disk`, hub data sets. Values come out as plain ones.

NaN is a missing value. Dates, times and decimal numbers are text, as Python writes them.
"""

from __future__ import annotations

import csv
import datetime
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from mitigate.documents.rows.opening import MOST_LINE_BYTES, bad_byte, open_bytes, suffix_of
from mitigate.errors import MitigateError, first_line, summarize

logger = logging.getLogger(__name__)
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SEPARATOR_LINE = re.compile("\ufeff?sep=(.)\r?\n?")  # spreadsheets write it before the header
_LONGEST_HEADER = 2**20
_BROKEN = (pa.ArrowException, UnicodeDecodeError)  # names of columns may be damaged, too

Numbered = Iterator[tuple[int, dict[str, Any]]]


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, values or why there are none) of each row.

    Every value is text, for a postcode's leading zero may be part of a secret; an empty cell is None. What separates
    the columns (comma, semicolon, tab, vertical bar) is told by the header.

    Raises:
        MitigateError: malformed, not UTF-8, or columns of one name.
    """
    csv.field_size_limit(min(MOST_LINE_BYTES, 2**31 - 1))
    start, reader = 0, csv.reader([])
    try:
        with open_bytes(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
            header = stream.readline(_LONGEST_HEADER)
            told = _SEPARATOR_LINE.fullmatch(header)
            delimiter = told[1] if told else _delimiter(path, header)
            start = 1 if told else 0
            reader = csv.reader(stream if told else chain([header], stream), delimiter=delimiter, strict=True)
            columns: list[str] | None = None
            line = after = start
            for cells in reader:
                line, after = after + 1, start + reader.line_num
                if columns is None:
                    columns = cells
                    check_names(path, columns)
                elif len(cells) == len(columns):
                    yield line, {name: cell or None for name, cell in zip(columns, cells, strict=True)}
                elif cells:
                    yield line, f"{len(cells)} cells under {len(columns)} columns"
    except csv.Error as error:
        raise MitigateError(f"{path}:{start + reader.line_num}: malformed CSV ({error}); correct that line") from None
    except UnicodeDecodeError:
        raise MitigateError(f"{path}: not UTF-8 at byte {bad_byte(path)}; save the file as UTF-8") from None


def _delimiter(path: Path, header: str) -> str:
    """The separator that makes the most columns of the header; the usual one where others make as many."""
    usual = "\t" if suffix_of(path) == ".tsv" else ","
    columns = {
        delimiter: len(next(csv.reader([header], delimiter=delimiter), [])) for delimiter in (usual, *_DELIMITERS)
    }
    best = max(columns, key=lambda delimiter: columns[delimiter])
    if best != usual:
        logger.info("%s: %s separate its %d columns", path.name, _DELIMITERS[best], columns[best])
    return best


def check_names(path: Path | str, columns: Iterable[str]) -> None:
    """Refuse a table in which two columns have one name: one of them would be read in the other's place.

    Raises:
        MitigateError: such names.
    """
    if twice := [repr(name) for name, count in Counter(columns).items() if count > 1]:
        raise MitigateError(f"{path}: more than one column is named {summarize(twice)}; rename them")


def read_parquet(path: Path) -> Numbered:
    """(row from 1, values) of each row of a Parquet file.

    Raises:
        MitigateError: no such file, or columns of one name.
    """
    try:
        with pq.ParquetFile(path) as table:
            check_names(path, table.schema_arrow.names)
            yield from table_rows(path, table.iter_batches(batch_size=1024))
    except _BROKEN as error:
        raise MitigateError(f"{path}: not a Parquet file, or damaged ({first_line(error)}); make it again") from None


def read_arrow(path: Path) -> Numbered:
    """(row from 1, values) of each row of an Arrow file or stream (`.arrow`, `.feather`).

    Raises:
        MitigateError: no such file, damaged, or columns of one name.
    """
    try:
        with pa.memory_map(str(path)) as source:
            magic = source.read(6)
            source.seek(0)
            if magic == b"ARROW1":
                file = pa.ipc.open_file(source)
                check_names(path, file.schema.names)
                yield from table_rows(path, (file.get_batch(number) for number in range(file.num_record_batches)))
            else:
                stream = pa.ipc.open_stream(source)
                check_names(path, stream.schema.names)
                yield from table_rows(path, stream)
    except (*_BROKEN, OSError) as error:
        raise MitigateError(f"{path}: not an Arrow file, or damaged ({first_line(error)}); make it again") from None


def is_saved_data_set(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of a data set or of a dictionary of them."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_saved_data_set(path: Path, *, split: str) -> Numbered:
    """(row from 1, values) of each row of a folder that `save_to_disk` wrote.

    Args:
        path: the folder.
        split: which one to read, where the folder has several.

    Raises:
        MitigateError: damaged, or no such split.
    """
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # the files in it may hold anything, and datasets raises of all kinds
        raise MitigateError(
            f"{path}: a damaged folder of save_to_disk ({type(error).__name__}: {first_line(error)}); save it again"
        ) from None
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise MitigateError(f"{path}: no split {split!r}; set split to one of: {summarize(saved, most=20)}")
        saved = saved[split]
    yield from data_set_rows(path, saved)


def data_set_rows(name: Path | str, rows: Any) -> Numbered:
    """(row from 1, values) of each row of a `datasets.Dataset`."""
    try:
        tables = rows.with_format("arrow").iter(batch_size=1024)
        yield from table_rows(name, chain.from_iterable(table.to_batches() for table in tables))
    except _BROKEN as error:
        raise MitigateError(f"{name}: damaged ({first_line(error)}); make it again") from None


def table_rows(name: Path | str, batches: Iterable[pa.RecordBatch]) -> Numbered:
    """(row from 1, values) of each row of Arrow batches.

    Raises:
        MitigateError: dates outside the years 1 to 9999, or finer than this Python can write.
    """
    number = 0
    for batch in batches:
        batch.validate(full=True)  # a damaged one would crash the process where it is read
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:
            raise MitigateError(
                f"{name}: values of rows {number + 1} to {number + len(batch)} that cannot be written as text "
                f"({first_line(error)}); save these columns as text"
            ) from None
        for values in rows:
            number += 1
            yield number, {key: plain(value) for key, value in values.items()}


def plain(value: Any) -> Any:
    """A value as JSON could have held it: NaN is None; dates, times and decimal numbers are text."""
    match value:
        case float():
            return None if value != value else value
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case datetime.date() | datetime.time() | datetime.timedelta():
            return str(value)
        case Decimal():
            return format(value, "f")
        case _:
            return value
