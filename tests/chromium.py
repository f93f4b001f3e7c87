"""Headless Chromium, for the tests of the report's script and for pictures of pages."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = f"no Chromium on the path ({', '.join(NAMES)}); on Debian: apt-get install chromium"
_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


def chromium() -> str | None:
    """The path of the program, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def dumped(page: Path, *, width: int) -> str:
    """A page as it is once its scripts have run for two seconds (of its own time, which flies)."""
    return _run(page, "--virtual-time-budget=2000", "--dump-dom", size=(width, 700))


def screenshot(page: Path, picture: Path, *, size: tuple[int, int]) -> None:
    """Write a PNG of the first `size` pixels of a page."""
    _run(page, f"--screenshot={picture}", size=size)


def _run(page: Path, *options: str, size: tuple[int, int]) -> str:
    program = chromium()
    if program is None:
        raise FileNotFoundError(MISSING)
    with tempfile.TemporaryDirectory() as profile:
        window = f"--window-size={size[0]},{size[1]}"
        command = [program, *_QUIET, f"--user-data-dir={profile}", window, *options, page.as_uri()]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
