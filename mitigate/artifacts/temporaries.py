"""Temporaries: what is being written, under a name that says whose it is, and its removal after a process was killed.

A temporary lies beside the file or directory that it becomes, `.NAME.mitigate-XXXXXXXX`, and its writer holds a lock on
it that the kernel releases when the process ends, however it ends. One whose lock is free is left over from a killed
process: it may hold private text, nothing reads it, and the next start in its place removes it. Process numbers would
not tell: they are used again, and other machines and containers on the same disk have their own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".mitigate.lock"  # in a directory that a process works in; see `mitigate.artifacts.locks`
_OURS = re.compile(r"\..+\.mitigate-[A-Za-z0-9_]{8}")
_TRIES = 10
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def temporary_for(path: Path, *, directory: bool) -> Iterator[Path]:
    """Yield a new temporary beside `path`, locked while the block runs; what is left of it is removed at the end.

    Args:
        path: the name that it is to take.
        directory: make an empty directory, not an empty file.
    """
    temporary, handle = _create(path, directory=directory)
    try:
        yield temporary
    finally:
        remove(temporary)
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a file or directory at once: cut short, it leaves a temporary, and nothing half-removed under its name."""
    if path.exists() or path.is_symlink():
        with temporary_for(path, directory=True) as aside:
            path.rename(aside / path.name)


def partial_of(output: Path) -> Path:
    """Where the checkpoints of an unfinished output lie."""
    return output.with_name(f"{output.name}.partial")


def is_temporary(path: Path) -> bool:
    """Whether a name is that of a temporary of ours, or of the lock of a process that works there."""
    return path.name == LOCK or _OURS.fullmatch(path.name) is not None


def holds_something(path: Path, *, but: Collection[str] = ()) -> bool:
    """Whether there is anything at `path` but an empty directory; temporaries do not count, nor names in `but`."""
    if not path.is_dir():
        return path.exists() or path.is_symlink()
    return any(entry.name not in but and not is_temporary(entry) for entry in path.iterdir())


def sweep(directory: Path, *, deep: bool = False) -> int:
    """Remove temporaries in a directory whose process is gone; those of a living one stay.

    Where the file system has no locks it cannot be told, and all of them stay.

    Args:
        directory: where to look; nothing happens if it is not there.
        deep (`bool`, *optional*, defaults to `False`): in the directories under it, too.

    Returns:
        how many were removed.
    """
    removed = 0
    for folder, names, files in os.walk(directory):
        for name in [name for name in (*names, *files) if _OURS.fullmatch(name)]:
            removed += _remove_if_dead(Path(folder) / name)
        names[:] = [name for name in names if deep and not _OURS.fullmatch(name)]
    return removed


def _create(path: Path, *, directory: bool) -> tuple[Path, int]:
    for _ in range(_TRIES):
        prefix = f".{path.name}.mitigate-"
        if directory:
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix))
            try:
                handle = os.open(temporary, os.O_RDONLY)
            except FileNotFoundError:
                continue  # another process's sweep came between the two: once more
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix)
            temporary = Path(name)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN:  # a file system without locks, where nobody sweeps
                return temporary, handle
        else:
            if temporary.exists():
                return temporary, handle
        os.close(handle)  # ... or between the making and the lock
        remove(temporary)
    raise OSError(errno.EBUSY, "temporaries are removed as fast as they are made")


def _remove_if_dead(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
            return not path.exists()
        return False
    finally:
        os.close(handle)
