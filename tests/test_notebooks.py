"""The notebooks run from top to bottom, and show what is committed with them."""

from __future__ import annotations

import copy
import re
from itertools import zip_longest
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output
from run_notebooks import NOTEBOOKS, execute, is_picture

# How far a figure with decimals may be from the committed one. With the same versions on the same processor they are
# equal; elsewhere sums are rounded in another order, and training with a large rate carries that to the first decimal.
# What the notebooks claim (0.9 falls to 0.5) is more. Whole numbers count documents, spans and parameters: equal.
NEAR = {"abs": 0.15, "rel": 0.15}
_NUMBER = re.compile(r"(?<![\w.\-−])[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")
_MARKUP = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL)
_SECRET = re.compile(r"[\w.]+@[\w.]+\.\w+|sk_test_\w+")  # an e-mail address or a key


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_without_a_doubt_and_shows_what_is_committed_with_it(path: Path) -> None:
    fresh = execute(path)
    outputs = [output for cell in code_cells(fresh) for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr" and "doubtful:" in output.text]
    pages = [
        output.data["text/html"] for output in outputs if 'class="mh"' in output.get("data", {}).get("text/html", "")
    ]
    assert pages
    assert all(_SECRET.search(_MARKUP.sub("", page)) for page in pages), "the heat map shows the invented people"
    assert differences(nbformat.read(path, as_version=4), fresh) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_ran_with_pictures_that_a_code_host_shows(path: Path) -> None:
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"]
    pictures = [output.data for output in outputs if is_picture(output)]
    assert len(pictures) >= 2
    assert all(set(data) == {"image/png"} for data in pictures)
    assert path.stat().st_size < 600_000


def shown_notebook() -> NotebookNode:
    """A notebook with a table, a printed line, a picture and a cell that varies."""
    table = "           before  after\nspan AUC     0.98   0.52"
    picture = new_output("display_data", data={"image/png": "iVBORw0KGgo="})
    cells = [
        new_code_cell("table", outputs=[new_output("execute_result", data={"text/plain": table})]),
        new_code_cell("print", outputs=[new_output("stream", name="stdout", text="spans: 24 of person-0001")]),
        new_code_cell("show", outputs=[picture]),
        new_code_cell(
            "found",
            outputs=[new_output("execute_result", data={"text/plain": "  doc_id  score\n0   a-01   1.23"})],
            metadata={"tags": ["varies"]},
        ),
    ]
    return new_notebook(cells=cells)


def test_what_another_processor_changes_is_no_difference() -> None:
    committed, fresh = shown_notebook(), shown_notebook()
    fresh.cells[0].outputs[0].data["text/plain"] = "           before  after\nspan AUC      1.0   0.60"
    fresh.cells[2].outputs[0].data = {"text/html": '<div class="mh">a@b.example</div>', "text/plain": "<HTML object>"}
    fresh.cells[3].outputs[0].data["text/plain"] = "  doc_id  score\n0   b-02   7.00\n1   b-03   6.00"
    fresh.cells[1].outputs.append(new_output("stream", name="stderr", text="a library's advice"))
    assert differences(committed, fresh) == []


@pytest.mark.parametrize(
    ("cell", "was", "becomes"),
    [
        (0, "0.52", "0.72"),
        (0, "0.98", "nan"),
        (0, "after", "later"),
        (1, "24", "25"),
        (1, "person-0001", "person-0002"),
        (3, "score", "q"),
    ],
)
def test_a_figure_or_word_that_is_off_is_a_difference(cell: int, was: str, becomes: str) -> None:
    committed, fresh = shown_notebook(), shown_notebook()
    [output] = fresh.cells[cell].outputs
    place = output if "text" in output else output.data
    name = "text" if "text" in output else "text/plain"
    place[name] = place[name].replace(was, becomes)
    [difference] = differences(committed, fresh)
    assert committed.cells[cell].source in difference


def test_an_output_too_few_a_picture_that_is_none_or_a_changed_cell_is_a_difference() -> None:
    committed = shown_notebook()
    for change in (
        lambda cell: cell.outputs.clear(),
        lambda cell: cell.outputs.append(copy.deepcopy(cell.outputs[0])),
        lambda cell: cell.outputs[0].update(data={"text/plain": "<IPython.core.display.HTML object>"}),
        lambda cell: cell.update(source="show again"),
    ):
        fresh = shown_notebook()
        change(fresh.cells[2])
        assert len(differences(committed, fresh)) == 1
    fresh = shown_notebook()
    del fresh.cells[-1]
    assert len(differences(committed, fresh)) == 1


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def differences(committed: NotebookNode, fresh: NotebookNode) -> list[str]:
    """A line for each cell whose outputs differ in what must not change.

    That is their number and kinds, their words and their figures (`NEAR`); of a cell tagged `varies` its first line.
    Warnings are left out: libraries of another version have their own.
    """
    found = []
    for cell, again in zip_longest(code_cells(committed), code_cells(fresh)):
        if cell is None or again is None or cell.source != again.source:
            found.append(f"another cell: {(cell or again).source}")
            continue
        before, after = shown(cell), shown(again)
        if len(before) != len(after) or not all(map(_alike, before, after)):
            found.append(f"{cell.source}\n--- showed\n{before}\n--- shows\n{after}")
    return found


def shown(cell: NotebookNode) -> list[tuple[str, str]]:
    """What a cell shows, without warnings: (kind, text) of each output; pictures have no text."""
    outputs = []
    for output in cell.outputs:
        if is_picture(output):
            outputs.append(("picture", ""))
        elif output.get("name") != "stderr":
            text = output["text"] if output.output_type == "stream" else output.data["text/plain"]
            first = text.splitlines()[0] if "varies" in cell.metadata.get("tags", ()) else text
            outputs.append((output.output_type, first))
    return outputs


def _alike(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether two outputs are of one kind, with the same words and whole numbers, and figures that are near."""
    if one[0] != other[0] or _NUMBER.sub("#", one[1]).split() != _NUMBER.sub("#", other[1]).split():
        return False
    return all(
        was == now if "." not in was + now else float(_ascii(now)) == pytest.approx(float(_ascii(was)), **NEAR)
        for was, now in zip(_NUMBER.findall(one[1]), _NUMBER.findall(other[1]), strict=True)
    )


def _ascii(number: str) -> str:
    return number.replace("−", "-")
