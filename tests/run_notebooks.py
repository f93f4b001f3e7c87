"""Run the notebooks and write them with what they show: `make notebooks` (takes headless Chromium).

A code host shows no styled HTML and no page in a frame, so heat maps and reports are written as pictures of themselves;
whoever runs a notebook sees the real ones. `test_notebooks.py` runs them again and compares.
"""

from __future__ import annotations

import base64
import io
import os
import re
import tempfile
from html import unescape
from pathlib import Path

import nbformat
from chromium import screenshot
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image, ImageChops

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
_WIDTH, _HEIGHT = 1000, 2400  # of a picture in pixels, at most
_HERE = re.compile(r"/(tmp|home|root|Users)\b|site-packages")  # of paths, which differ on each machine


def execute(path: Path) -> NotebookNode:
    """A notebook run from top to bottom, on one thread unless OMP_NUM_THREADS says more: tiny models are fastest so."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell |= {"outputs": [], "execution_count": None}
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found"}
    NotebookClient(notebook, timeout=3600, startup_timeout=600, kernel_name="python3", record_timing=False).execute(
        env=environment
    )
    return notebook


def with_pictures(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is committed.

    Raises:
        ValueError: an output has a warning or a path of this machine.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if is_picture(output):
                page = output.data.pop("text/html")
                output.data = {"image/png": base64.b64encode(_pictured(page)).decode()}
            shown = str({**output, "data": {k: v for k, v in output.get("data", {}).items() if k != "image/png"}})
            if output.get("name") == "stderr" or _HERE.search(shown):
                raise ValueError(f"a warning or a path of this machine in an output: {shown[:500]}")
    return notebook


def is_picture(output: NotebookNode) -> bool:
    """Whether an output is a heat map or a report, or the picture of one."""
    data = output.get("data", {})
    return "image/png" in data or 'class="mh"' in data.get("text/html", "") or "<iframe" in data.get("text/html", "")


def _pictured(html: str) -> bytes:
    """A PNG of a fragment of HTML, or of the top of the page in a frame."""
    frame = re.search(r'srcdoc="([^"]*)"', html)
    page = unescape(frame[1]) if frame else f"<!DOCTYPE html><meta charset=utf-8><body>{html}</body>"
    with tempfile.TemporaryDirectory() as folder:
        file, picture = Path(folder, "page.html"), Path(folder, "page.png")
        file.write_text(page, encoding="utf-8")
        screenshot(file, picture, size=(_WIDTH, 1100 if frame else _HEIGHT))
        image = Image.open(picture).convert("RGB")
    blank = Image.new("RGB", image.size, image.getpixel((0, 0)))
    _, _, _, bottom = ImageChops.difference(image, blank).getbbox() or (0, 0, 0, image.height)
    written = io.BytesIO()
    cropped = image.crop((0, 0, image.width, min(image.height, bottom + 8)))
    cropped.quantize(128).save(written, "PNG", optimize=True)
    return written.getvalue()


def main() -> None:
    """Run all, and write them only once all ran."""
    done = {path: with_pictures(execute(path)) for path in NOTEBOOKS}
    for path, notebook in done.items():
        nbformat.write(notebook, path)
        print(path.name, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
