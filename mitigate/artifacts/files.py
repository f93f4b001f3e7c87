"""Files that last: written whole or not at all, readable by their owner only, recognized by content.

Audits hold private text, so every directory is made with mode 0700 and every file in it with 0600. A directory
appears under its final name only when everything in it is written and on the disk. It holds the digests of its files
(`digests.json`), and a record of its own (`write_record`) that of its content: what was damaged since is not read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from mitigate.artifacts.digests import differences, file_digest, tree_digests
from mitigate.artifacts.temporaries import holds_something, sweep, temporary_for
from mitigate.errors import MitigateError

DIGESTS = "digests.json"  # in every directory that `new_directory` makes: SHA-256 of each of its files
_SEAL = "digest"  # key of a record: SHA-256 of all else in it


def fingerprint(value: Any) -> str:
    """SHA-256 (16 hex digits) of a JSON-able value; equal values give equal fingerprints in every process."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """SHA-256 (16 hex digits) of the names and contents of files, in the order of their names."""
    return fingerprint([[path.name, file_digest(path)] for path in sorted(paths, key=lambda path: path.name)])


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all, mode 0600."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, *, remedy: str = "remove the directory and make it again") -> Any:
    """Read JSON.

    Args:
        path: the file.
        remedy (`str`, *optional*): what to do about a damaged one, for the message.

    Raises:
        MitigateError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MitigateError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MitigateError(f"{path}: not JSON ({error}); {remedy}") from None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object with a digest of its content, for `read_record`; whole or not at all, mode 0600."""
    write_json(path, {**record, _SEAL: _seal(record)})


def read_record(path: Path, *, remedy: str = "remove the directory and make it again") -> dict[str, Any]:
    """Read what `write_record` wrote; an object without a digest (of an earlier version) is taken as it is.

    Raises:
        MitigateError: the file is missing, is not JSON, or is not what was written.
    """
    record = read_json(path, remedy=remedy)
    if not isinstance(record, dict) or record.pop(_SEAL, None) not in (None, _seal(record)):
        raise MitigateError(f"{path}: is not what was written (damaged, or changed by hand?); {remedy}")
    return record


def check_version(path: Path, record: Any, *, expected: int, remedy: str, unsaid: int | None = None) -> None:
    """Refuse a file that was written by a version which this code does not read.

    Args:
        path: the file, for the message.
        record: its content; `schema` is its version.
        expected: the version that this code reads.
        remedy: what to do about another one, for the message.
        unsaid (*optional*): the version of a file that does not say its own.

    Raises:
        MitigateError: it is of another version, or says none.
    """
    found = record.get("schema", unsaid) if isinstance(record, dict) else None
    if type(found) is not int or found != expected:
        said = "says no version" if found is None else f"is of version {found!r}"
        raise MitigateError(f"{path}: {said}, and this code reads version {expected}; {remedy}")


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
        raise MitigateError(f"{path}: not a Parquet file ({error}); remove the directory and make it again") from None


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name, mode 0600, when the block ends without an error.

    Raises:
        MitigateError: the directory cannot be written, or the disk is full.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with temporary_for(path, directory=False) as temporary:
            yield temporary
            temporary.chmod(0o600)
            _to_disk(temporary)
            temporary.replace(path)
            _to_disk(path.parent)


@contextmanager
def new_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory that takes the name `path` when the block ends without an error.

    Its files get mode 0600, its directories 0700, and their digests are written to `digests.json` in it. After an error
    (or Ctrl-C) nothing is left behind; what a killed process left is removed.

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
        sweep(path.parent)
        with temporary_for(path, directory=True) as temporary:
            yield temporary
            write_digests(temporary)
            for folder, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    (Path(folder) / name).chmod(0o600)
                    _to_disk(Path(folder) / name)
                Path(folder).chmod(0o700)
                _to_disk(Path(folder))
            if not replace:
                check_free(path)  # another process may have been faster
            with temporary_for(path, directory=True) as aside:  # cut short between the two: nothing there, made again
                if path.exists():
                    path.rename(aside / path.name)
                temporary.rename(path)
                _to_disk(path.parent)


def check_free(path: Path) -> None:
    """Refuse a place that is taken: called before long work, not only after it. What a killed process left goes.

    Raises:
        MitigateError: `path` exists and is not an empty directory.
    """
    if holds_something(path):
        raise MitigateError(f"{path}: already holds something; choose another directory or remove it")
    for directory in (path.parent, path):
        sweep(directory)


def write_digests(directory: Path, names: Iterable[str] | None = None) -> None:
    """Write the digests of a directory's files (or of those that are named) beside them, for `check_digests`."""
    (directory / DIGESTS).unlink(missing_ok=True)
    found = tree_digests(directory) if names is None else {name: file_digest(directory / name) for name in names}
    write_json(directory / DIGESTS, found)


def check_digests(directory: Path) -> None:
    """Refuse files of ours that are no longer what was written; a directory without digests is not ours.

    Raises:
        MitigateError: a file is missing or has another content.
    """
    if wrong := damage(directory):
        raise MitigateError(
            f"{directory}: {wrong[0]}; make it again, or restore it from a backup (if the change is meant, remove "
            f"{DIGESTS} there)"
        )


def damage(directory: Path) -> list[str]:
    """What is not as `write_digests` found it, a line each; empty if nothing is, or if there are no digests."""
    if not (directory / DIGESTS).is_file():
        return []
    try:
        digests = read_json(directory / DIGESTS)
    except MitigateError:
        digests = None
    return list(differences(directory, digests).values()) if isinstance(digests, dict) else [f"{DIGESTS} is damaged"]


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


def _seal(record: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(record, ensure_ascii=False))  # where the keys of all objects are strings
    return hashlib.sha256(_canonical(as_read).encode()).hexdigest()


def _to_disk(path: Path) -> None:
    """Have the disk hold a file's content, or a directory's names, before what comes next."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(handle)
