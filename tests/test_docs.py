"""The pages that people read: their links lead somewhere, what they name exists, and the README is short."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml

import mitigate
from mitigate.cli.app import app
from mitigate.reporting import judgement
from mitigate.reporting.content import Report

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
LONGEST_README = 10_000  # bytes
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """A page's text without its blocks of code."""
    return INDENTED.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> list[str]:
    """What a page links to or shows, in this repository: a path, an anchor, or both."""
    found = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("code", prose(page)))
    return [link for link in found if not re.match(r"https?://", link)]


def anchors(page: Path) -> set[str]:
    """The anchors that a code host gives to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    made: set[str] = set()
    for title in titles:
        anchor = re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-")
        count = sum(one == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", one) is not None for one in made)
        made.add(f"{anchor}-{count}" if count else anchor)
    return made


@pages
def test_every_link_leads_to_a_file_and_an_anchor_that_exist(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert not {page for page in PAGES if page.name != "README.md"} - linked


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= LONGEST_README


@pages
def test_paths_named_in_the_text_exist(page: Path) -> None:
    named = [
        path for path in CODE.findall(prose(page)) if re.fullmatch(r"(mitigate|recipes|tests|docs)/[\w./-]+", path)
    ]
    assert [path for path in named if not (ROOT / path).exists()] == []


@pages
def test_python_of_a_page_imports_what_exists(page: Path) -> None:
    for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(code, str(page), "exec")
            for module, names in re.findall(r"^from ([\w.]+) import (.+)$", code, re.MULTILINE):
                home = import_module(module)
                assert [name for name in names.split(", ") if not hasattr(home, name)] == []


def commands(page: Path) -> list[list[str]]:
    """The words of each `mitigate VERB ...` in a page's blocks of code and in its text."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for _, block in FENCE.findall(text)] + INDENTED.findall(text)
    lines = [line for block in blocks for line in re.sub(r" *\\\n\s*", " ", block).split("\n")]
    return [
        shlex.split(line, comments=True)
        for line in [one.strip() for one in lines] + CODE.findall(prose(page))
        if re.match(r"mitigate [a-z]", line) and line.count('"') % 2 == 0
    ]


def test_commands_on_the_pages_have_the_verbs_and_options_that_they_name() -> None:
    checked = 0
    for page in PAGES:
        for words in commands(page):
            command, rest = typer.main.get_command(app), words[1:]
            while rest and (verbs := getattr(command, "commands", None)):
                assert rest[0] in verbs, " ".join(words)
                command, rest = verbs[rest[0]], rest[1:]
            options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
            assert [word for word in rest if word.startswith("--") and word not in options] == [], " ".join(words)
            checked += 1
    assert checked > 20


def test_every_key_of_a_report_is_explained() -> None:
    explained = set(re.findall(r"`([a-z_]+)[.`]", (ROOT / "docs/report.md").read_text(encoding="utf-8")))
    report = json.loads((ROOT / "recipes/results/quickstart.json").read_text(encoding="utf-8"))
    assert {key.removesuffix("_interval") for key in report} - explained == set()


def test_the_version_and_the_licence_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    latest = re.search(
        r"^## ([\d.]+) - (unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert latest is not None
    assert project["version"] == mitigate.__version__ == citation["version"] == latest[1]
    assert project["license"] == citation["license"]


def test_the_citation_file_has_what_the_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert all(isinstance(citation[key], str) and citation[key] for key in ("message", "title"))
    assert citation["authors"] == [{"name": "The mitigate authors"}]


def test_the_package_says_that_it_has_types() -> None:
    assert (Path(mitigate.__file__).parent / "py.typed").is_file()


def test_the_report_page_explains_every_key_of_the_report() -> None:
    section = (ROOT / "docs" / "report.md").read_text(encoding="utf-8").partition("## Keys of report.json")[2]
    named = {
        re.split(r"[.{]", code)[0] for row in re.findall(r"^\| (`.*?) \|", section, re.M) for code in CODE.findall(row)
    }
    missing = {key for key in Report.__annotations__ if not key.endswith("_interval")} - named
    assert missing == set()


def test_the_limits_of_the_verdict_are_those_that_it_judges_by() -> None:
    def share(value: float) -> str:
        return f"{value:.0%}".replace("%", " %")

    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8").partition("## Verdict")[2].partition("\n## ")[0]
    rows = {row[0].split()[0]: row[1:] for row in re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", page, re.M)}
    limits = {
        "AUC": (f"within ±{judgement.EXCESS:.2f}", f"above {judgement.TOLD:.2f}"),
        "secrets": (f"at most {share(judgement.CAUGHT[1])}", f"above {share(judgement.CAUGHT[0])}"),
        "extraction": (f"at most {share(judgement.EXTRACTED)}", "above 0"),
        "over-forgotten:": (f"at most {share(judgement.TOO_UNLIKELY[1])}", f"above {share(judgement.TOO_UNLIKELY[0])}"),
    }
    assert {name: rows[name] for name in limits} == limits
    assert f"at most {0.5 + judgement.EXCESS:.2f}" in page
