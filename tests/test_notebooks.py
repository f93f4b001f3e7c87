"""The notebooks run from top to bottom, and show what is committed with them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from run_notebooks import NOTEBOOKS, execute, is_picture

# How far a figure may be from the committed one: 0.15 (of an AUC, of a rate, of nats a token) or 15 %. With the same
# versions on the same processor figures are equal; elsewhere sums are rounded in another order, and a hundred steps of
# training with a large rate carry that to the first decimal. What a notebook claims (0.9 falls to 0.5) is more.
NEAR = {"abs": 0.15, "rel": 0.15}
_NUMBER = re.compile(r"(?<![\w.\-−])[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")

Shown = list[tuple[str, list[str], list[float]]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_committed_with_it(path: Path) -> None:
    committed, now = nbformat.read(path, as_version=4), execute(path)
    for cell, again in zip(code_cells(committed), code_cells(now), strict=True):
        varies = "varies" in cell.metadata.get("tags", ())
        for (kind, words, figures), (new_kind, new_words, new_figures) in zip(shown(cell), shown(again), strict=True):
            assert kind == new_kind, cell.source
            assert bool(words) == bool(new_words), cell.source
            if not varies:
                assert words == new_words, cell.source
                assert new_figures == pytest.approx(figures, **NEAR), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_ran_with_pictures_that_a_code_host_shows(path: Path) -> None:
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"]
    pictures = [output.data for output in outputs if is_picture(output)]
    assert len(pictures) >= 2
    assert all(set(data) == {"image/png"} for data in pictures)
    assert path.stat().st_size < 1_000_000


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: NotebookNode) -> Shown:
    """What a cell shows, without warnings: (kind, words, figures) of each output; pictures have neither."""
    result: Shown = []
    for output in cell.outputs:
        assert output.output_type != "error", output
        if is_picture(output):
            result.append(("picture", [], []))
        elif output.get("name") != "stderr":
            text = output["text"] if output.output_type == "stream" else output.data["text/plain"]
            figures = [float(number.replace("−", "-")) for number in _NUMBER.findall(text)]
            result.append((output.output_type, _NUMBER.sub("#", text).split(), figures))
    return result
