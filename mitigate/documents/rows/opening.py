"""Open files of rows: regular files only, plain or compressed, UTF-8, and never a line or a file too long to hold."""

from __future__ import annotations

import bz2
import codecs
import difflib
import glob
import gzip
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pyarrow as pa

from mitigate.errors import MitigateError, summarize

MOST_LINE_BYTES = 256 * 2**20
MOST_FILE_BYTES = 2 * 2**30  # of a file that is read as a whole
BOM = b"\xef\xbb\xbf"
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, gzip.BadGzipFile)
_GLOB = re.compile(r"[*?\[]")


_PACKED = {".gz", ".bz2", ".xz", ".zst"}


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, in small letters: `.jsonl` of `train.jsonl.gz`."""
    return Path(path.stem if path.suffix.lower() in _PACKED else path.name).suffix.lower()


def stem_of(path: Path) -> str:
    """The name without the suffixes of format and compression: `train` of `train.jsonl.gz`."""
    return Path(path.stem).stem if path.suffix.lower() in _PACKED else path.stem


def find_files(name: str, root: Path | None, *, suffixes: Collection[str]) -> list[Path]:
    """The file, or the files in order that a pattern such as `data/*.jsonl` means.

    Args:
        name: a path or a pattern.
        root (*optional*): folder that relative paths start from.
        suffixes: of files to name where nothing is found.

    Raises:
        MitigateError: a pattern that no file fits.
    """
    path = (root or Path()) / Path(name).expanduser()
    if kind_of(path) != "nothing" or not _GLOB.search(str(name)):
        return [path]
    found = sorted(Path(place) for place in glob.glob(str(path), recursive=True))
    if files := [place for place in found if kind_of(place) == "file"]:
        return files
    folder = next((parent for parent in path.parents if not _GLOB.search(str(parent))), Path())
    raise MitigateError(
        f"{path}: no file fits this pattern; in {folder} there are: {_names(folder, suffixes) or 'no such files'}"
    )


def kind_of(path: Path) -> str:
    """`file`, `folder`, `nothing`, or what else is at that path, in words.

    Raises:
        MitigateError: the path cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except ValueError:
        raise MitigateError(f"{str(path)!r}: not a path (a NUL character is in it); correct it") from None
    except OSError as error:
        shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}... ({len(str(path))} characters)"
        raise MitigateError(f"{shown}: cannot be looked at ({error.strerror}); correct the path") from None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def check_file(path: Path, *, suffixes: Collection[str]) -> None:
    """Refuse what is no regular file: reading a pipe or a device would wait without end.

    Raises:
        MitigateError: nothing there (with the nearest names), a folder, a pipe, a device.
    """
    kind = kind_of(path)
    if kind == "file":
        return
    if kind == "folder":
        raise MitigateError(
            f"{path}: a folder, not a file; name its files: {_names(path, suffixes) or 'there are none'}, or give a "
            f"pattern such as {path}/*.jsonl"
        )
    if kind != "nothing":
        raise MitigateError(f"{path}: {kind}, not a file; write its content to a file and give that")
    if kind_of(path.parent) != "folder":
        raise MitigateError(f"{path}: no such file (nor is there a folder {path.parent}); correct the path")
    there = [entry.name for entry in _entries(path.parent, suffixes)]
    nearest = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5) or there
    raise MitigateError(f"{path}: no such file; in that folder: {summarize(nearest) or 'no file of a known format'}")


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked by its suffix.

    Raises:
        MitigateError: they are UTF-16, UTF-32 or no text at all.
    """
    with _open(path) as stream:
        head = stream.peek(4096)[:4096]
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
            raise MitigateError(
                f"{path}: UTF-16 or UTF-32 (it begins with that byte order mark); save the file as UTF-8 "
                "(iconv -f UTF-16 -t UTF-8)"
            )
        if head.count(0) > len(head) // 8:
            raise MitigateError(f"{path}: every so many bytes are NUL: UTF-16, or no text; save the file as UTF-8")
        yield stream


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file.

    Raises:
        MitigateError: a line longer than `MOST_LINE_BYTES`.
    """
    with open_bytes(path) as stream:
        number = 0
        while line := stream.readline(MOST_LINE_BYTES + 1):
            number += 1
            if len(line) > MOST_LINE_BYTES:
                raise MitigateError(
                    f"{path}:{number}: a line of more than {MOST_LINE_BYTES // 2**20} MiB; write one row a line, and "
                    "cut up longer texts"
                )
            yield line


def whole_text(path: Path) -> str:
    """A file's text, without a byte order mark.

    Raises:
        MitigateError: not UTF-8, or more than `MOST_FILE_BYTES`.
    """
    with open_bytes(path) as stream:
        content = stream.read(MOST_FILE_BYTES + 1)
    if len(content) > MOST_FILE_BYTES:
        raise MitigateError(
            f"{path}: more than {MOST_FILE_BYTES // 2**30} GiB in one piece; cut it up, or write it as JSON lines"
        )
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise MitigateError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None


def bad_byte(path: Path) -> int:
    """Place of the first byte of a file (unpacked) that is not UTF-8, or its length."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with open_bytes(path) as stream:
        while chunk := stream.read(2**20):
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                return position - held + error.start
            position += len(chunk)
    return position - len(decoder.getstate()[0])


def _open(path: Path) -> io.BufferedReader:
    match path.suffix.lower():
        case ".gz":
            return cast(io.BufferedReader, gzip.open(path))
        case ".bz2":
            return cast(io.BufferedReader, bz2.open(path))
        case ".xz":
            return cast(io.BufferedReader, lzma.open(path))
        case ".zst":
            return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
        case _:
            return path.open("rb")


def _entries(folder: Path, suffixes: Collection[str]) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if suffix_of(entry) in suffixes)


def _names(folder: Path, suffixes: Collection[str]) -> str:
    return summarize(entry.name for entry in _entries(folder, suffixes)) if kind_of(folder) == "folder" else ""
