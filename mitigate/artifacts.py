"""Files that last: written whole or not at all, readable by their owner only, recognized by content.

Audits hold private text, so every directory is made with mode 0700 and every file in it with 0600. A directory
appears under its final name only when everything in it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from mitigate.errors import MitigateError


def fingerprint(value: Any) -> str:
    """SHA-256 (16 hex digits) of a JSON-able value; equal values give equal fingerprints in every process."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """SHA-256 (16 hex digits) of the names and contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all, mode 0600."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        MitigateError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MitigateError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MitigateError(f"{path}: not JSON ({error}); remove the directory and run its stage again") from None


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow table as Parquet, whole or not at all; equal tables give equal bytes."""
    with new_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file.

    Raises:
        MitigateError: the file is missing or is not Parquet.
    """
    if not path.is_file():
        raise MitigateError(f"{path}: no such file")
    try:
        return pq.read_table(path)
    except pa.ArrowException as error:
        raise MitigateError(f"{path}: not a Parquet file ({error}); run its stage again") from None


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name, mode 0600, when the block ends without an error.

    Raises:
        MitigateError: the directory cannot be written, or the disk is full.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o600)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory that takes the name `path` when the block ends without an error.

    Its files get mode 0600, its directories 0700. After an error (or Ctrl-C) nothing is left behind.

    Args:
        path: the final name.
        replace (`bool`, *optional*, defaults to `False`): an existing directory is put aside by the new one.

    Raises:
        MitigateError: `path` exists and is not empty, cannot be written, or the disk is full.
    """
    if not replace:
        check_free(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            for folder, _, names in os.walk(temporary):
                Path(folder).chmod(0o700)
                for name in names:
                    (Path(folder) / name).chmod(0o600)
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: Path) -> None:
    """Refuse a place that is taken: called before long work, not only after it.

    Raises:
        MitigateError: `path` exists and is not an empty directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise MitigateError(f"{path}: already holds something; choose another directory or remove it")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into a message with its remedy."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        torch_says_full = "inline_container" in str(error)  # torch.save has no exception of its own for it
        if isinstance(error, RuntimeError) and not torch_says_full:
            raise
        reason = getattr(error, "strerror", None) or error
        raise MitigateError(
            f"{path}: cannot be written ({reason}); free some space or choose another directory"
        ) from error


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
