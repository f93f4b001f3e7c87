"""Digests of files: what is on the disk is what was written, or it is damaged."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mitigate.artifacts.temporaries import is_temporary

_SETTLED_NS = 2_000_000_000  # a file changed later than this before it was read may change again at the same time stamp


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits.

    A settled file is read once in a process as long as its size, times and inode stay. Nothing is taken over from an
    earlier process: times can be set back.
    """
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS
    return _read_once(path, key) if settled else _read(path)


def tree_digests(root: Path) -> dict[str, str]:
    """SHA-256 of a file, or of all files under a directory, by their names relative to it.

    Temporaries are left out, and so are model cards (`*.md`), which are there to be edited and which nothing reads.
    """
    if root.is_file():
        return {root.name: file_digest(root)}
    found = {}
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not is_temporary(Path(name))]
        for name in files:
            path = Path(folder) / name
            if not is_temporary(path) and path.suffix != ".md":
                found[path.relative_to(root).as_posix()] = file_digest(path)
    return dict(sorted(found.items()))


def differences(root: Path, digests: Mapping[str, Any]) -> dict[str, str]:
    """What differs from the digests that were taken when it was written: a line for each such file, by its name.

    Files that were added since are not looked at.

    Args:
        root: a file, or a directory.
        digests: of `tree_digests`.
    """
    parent, found = root.parent if root.is_file() else root, {}
    for name, digest in digests.items():
        path = parent / name
        if not path.is_file():
            found[name] = f"{name} is missing"
        elif file_digest(path) != digest:
            found[name] = f"{name} is not what was written (damaged?)"
    return found


@lru_cache(maxsize=4096)
def _read_once(path: Path, _: tuple[int, ...]) -> str:
    return _read(path)


def _read(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
