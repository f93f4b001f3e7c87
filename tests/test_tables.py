"""README.md and docs/ say what the files of recipes/results say, and recipes/tables.py sees every change."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import table_rows  # noqa: E402
import tables  # noqa: E402

BLOCKS = [
    (page, match["name"], match["body"])
    for page in tables.pages()
    for match in tables.BLOCK.finditer(page.read_text(encoding="utf-8"))
]


def run(*arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "recipes/tables.py", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """README.md, docs and recipes of this repository, to be changed."""
    shutil.copy(ROOT / "README.md", tmp_path)
    for folder in ("docs", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.png", "__pycache__"))
    return tmp_path


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_every_figure_of_a_page_is_that_of_its_results_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.written(text, page) == text, "run: python recipes/tables.py"


def test_every_table_and_every_results_file_stands_on_a_page() -> None:
    assert sorted(name for _, name, _ in BLOCKS) == sorted(tables.TABLES)
    used = {file for table in tables.TABLES.values() for file in table.files}
    assert used == {path.stem for path in tables.RESULTS.glob("*.json")} == set(tables.COMMANDS)


@pytest.mark.parametrize(("page", "name", "body"), BLOCKS, ids=[name for _, name, _ in BLOCKS])
def test_a_table_names_its_commands_and_its_files(page: Path, name: str, body: str) -> None:
    for file in tables.TABLES[name].files:
        [line] = [line for line in body.splitlines() if f"`{tables.COMMANDS[file]}`: [{file}.json](" in line]
        assert (page.parent / line.rsplit("](", 1)[1].rstrip(")")).resolve() == tables.RESULTS / f"{file}.json"


@pytest.mark.parametrize(("page", "name", "body"), BLOCKS, ids=[name for _, name, _ in BLOCKS])
def test_a_table_changes_with_every_results_file_it_names(
    page: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shaken(value: Any) -> Any:
        """Every figure another one; not the settings that rows are found by."""
        if isinstance(value, dict):
            return {key: one if key in ("a", "gamma") else shaken(one) for key, one in value.items()}
        if isinstance(value, list):
            return [shaken(one) for one in value]
        return value * 0.75 + 0.01 if isinstance(value, float) else value

    read = tables.read
    for changed in tables.TABLES[name].files:
        monkeypatch.setattr(tables, "read", lambda file, it=changed: shaken(read(file)) if file == it else read(file))
        if name == "simulated-reports":  # holds counts, not floats
            monkeypatch.setattr(tables, "read", lambda file: {"verdicts": read(file)["verdicts"][1:]})
        assert tables.block(name, page) not in body


def test_the_check_sees_a_figure_changed_by_hand_in_a_table_and_in_a_sentence(copied: Path) -> None:
    assert run("--check", root=copied).returncode == 0
    readme, page = copied / "README.md", copied / "docs/benchmarks.md"
    for path, old, new in ((page, "| 0.935 |", "| 0.936 |"), (readme, "21 and 30 people", "22 and 30 people")):
        whole = path.read_text(encoding="utf-8")
        assert old in whole
        path.write_text(whole.replace(old, new), encoding="utf-8")
        found = run("--check", root=copied)
        assert (found.returncode, str(path.relative_to(copied)) in found.stdout) == (1, True)
        path.write_text(whole, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "pages"),
    [("lume", ("docs/benchmarks.md", "docs/erasure.md")), ("hard", ("README.md", "docs/benchmarks.md"))],
)
def test_a_result_recorded_anew_is_written_into_every_page_that_shows_it(
    copied: Path, name: str, pages: tuple[str, ...]
) -> None:
    file = copied / f"recipes/results/{name}.json"
    report = json.loads(file.read_text(encoding="utf-8"))
    report["leakage"]["after"]["span_auc"] = 0.4321
    report["never_seen"] = {"source": "oracle", "span_auc": 0.4567, "document_auc": 0.5}
    report["verdict"] = {"status": "cannot_tell"}
    file.write_text(json.dumps(report), encoding="utf-8")
    done = run(root=copied)
    assert done.returncode == 0
    assert set(done.stdout.split()) >= {f"{page}:" for page in pages}
    for page in pages:
        assert "→ 0.432 (0.457)" in (copied / page).read_text(encoding="utf-8")
    assert run("--check", root=copied).returncode == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- table: nobody -->\n<!-- end -->", "no table is called nobody"),
        ("<!-- table: detect -->\n| 1 |\n", "needs its `<!-- end -->` line"),
        ("<!-- table: detect -->\n<!-- table: speed -->\n<!-- end -->", "needs its `<!-- end -->` line"),
    ],
)
def test_a_block_that_nobody_makes_or_that_does_not_end_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        tables.written(text, ROOT / "docs/report.md")


def test_a_quoted_sentence_that_is_gone_is_refused() -> None:
    page = ROOT / "docs/benchmarks.md"
    text = page.read_text(encoding="utf-8").replace("over a model of 1.2 billion parameters", "over a large model")
    with pytest.raises(ValueError, match="0 times and not once"):
        tables.written(text, page)


def test_figures_with_two_decimals_stand_in_tables_and_quoted_sentences_alone() -> None:
    """In the README and among the benchmarks, so that no figure of a results file is written by hand."""
    for page in (ROOT / "README.md", ROOT / "docs/benchmarks.md"):
        text = tables.BLOCK.sub("", page.read_text(encoding="utf-8"))
        for quote in tables.QUOTES:
            text = quote.pattern().sub("", text)
        text = text.replace("Python 3.11", "Python")
        text = re.sub(r"```.*?```|^    .*?$|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL | re.MULTILINE)
        assert re.findall(r"\d*\.\d{2,}", text) == []


def test_numbers_are_written_with_a_minus_and_without_a_negative_zero() -> None:
    assert [table_rows.number(value) for value in (0.9975, -0.0196, -0.0001, 0, None)] == [
        "0.998",
        "−0.020",
        "0.000",
        "0.000",
        "–",
    ]
    assert [table_rows.signed(value) for value in (0.205, -0.02, 0.0001)] == ["+0.205", "−0.020", "0.000"]
    assert [table_rows.percent(value) for value in (0, 0.0049, 0.0995, 0.62, 1, None)] == [
        "0",
        "0.5 %",
        "10 %",
        "62 %",
        "100 %",
        "–",
    ]


def test_a_run_without_what_older_or_smaller_ones_lack_gets_dashes() -> None:
    report = copy.deepcopy(tables.read("tofu"))
    report["leakage"]["before"]["document_auc"] = report["leakage"]["after"]["document_auc"] = None
    rows = {row[0]: row[1] for row in table_rows.runs({"tofu": report})}
    assert rows["document AUC"] == "–"
    report["unlearn"], report["retrain"] = None, {"redact": "mask"}
    rows = {row[0]: row[1] for row in table_rows.runs({"tofu": report})}
    assert (rows["unlearned by"], rows["unlearning ended"]) == ("retrained, mask", "–")
