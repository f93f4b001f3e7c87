"""One job at a time works in a directory; a second one is told who is there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from accelerate import PartialState

from mitigate.artifacts.temporaries import LOCK
from mitigate.errors import MitigateError
from mitigate.runtime import together

logger = logging.getLogger(__name__)


@contextmanager
def sole_worker(directory: Path, state: PartialState, *, option: str = "--out") -> Iterator[None]:
    """Hold a directory for this job while the block runs; it is made if need be.

    All processes of the job call this, and the first of them holds the directory. The kernel releases it when that
    process ends, however it ends.

    Args:
        directory: to hold.
        state: the processes of the job.
        option (`str`, *optional*, defaults to `--out`): what chooses another directory, for the message.

    Raises:
        MitigateError: another job works there, or the directory cannot be written.
    """
    with ExitStack() as held:
        with together(state):
            if state.is_main_process:
                held.enter_context(_hold(directory, option))
        yield


@contextmanager
def _hold(directory: Path, option: str) -> Iterator[None]:
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        stream = _locked(path)
    except OSError as error:
        reason = error.strerror or error
        raise MitigateError(
            f"{directory}: cannot be written ({reason}); free some space or choose another directory"
        ) from error
    if stream is None:
        raise MitigateError(
            f"{directory}: {_holder(path)} works there now; wait until it has ended, stop it, or choose another "
            f"{option}"
        )
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        stream.truncate(0)
        stream.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
        stream.flush()
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile looks again, see `_locked`
        stream.close()
        with suppress(OSError):  # it is not empty, but where nothing came of the work
            directory.rmdir()


def _locked(path: Path) -> IO[str] | None:
    """The lock file, held; None where another process holds it."""
    while True:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return None
        except OSError as error:
            logger.warning(
                "%s: the file system has no locks (%s); make sure yourself that one process at a time works there",
                path.parent,
                error.strerror,
            )
            return stream
        try:
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except FileNotFoundError:
            pass
        stream.close()  # its holder ended and removed it between our opening and our locking it


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(who['pid'])} on {who['host']} (since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is just writing its name
        return "another process"
