"""The script of the report's page, run in headless Chromium: the filter, a token's figures, and what is printed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from chromium import MISSING, chromium, dumped
from made_up import REPORT, Page, make_audit

from mitigate.reporting.page import render_report

TEXTS = {
    "ticket-1": "Call Ann on 555-0123 now",
    "Ticket-2": "Nothing to see here",
    "note <b>3</b>": "The key is 9911 there",
    "4": "Of no set",
}
SETS = {"ticket-1": "forget", "Ticket-2": "retain", "note <b>3</b>": "forget"}
KNOWN = {"ticket-1": [(12, 20, "<i>phone</i>")]}

# What a page's own script or policy would complain about is told with the answer.
LISTEN = """
var complaints = [];
addEventListener("error", function (event) { complaints.push(event.message); });
addEventListener("securitypolicyviolation", function (event) { complaints.push(event.violatedDirective); });
"""
TOOLS = """
var popup = document.getElementById("popup"), filter = document.getElementById("filter");
function token(text, side) {
  var sides = document.querySelectorAll(".mh-doc")[0].querySelectorAll(".mh-side");
  return Array.from(sides[side || 0].querySelectorAll(".t")).find(function (one) { return one.textContent === text; });
}
function point(element, kind) { element.dispatchEvent(new MouseEvent(kind || "mouseover", { bubbles: true })); }
function outlined() {
  return Array.from(document.querySelectorAll(".twin")).map(function (one) {
    return [one.textContent, one.closest(".mh-side").querySelector("h4").textContent];
  });
}
function choose(values) {
  Object.keys(values).forEach(function (name) {
    var field = filter.elements[name];
    if (field.type === "checkbox") field.checked = values[name]; else field.value = values[name];
    field.dispatchEvent(new Event("input", { bubbles: true }));
  });
  var shown = Array.from(document.querySelectorAll(".mh-doc")).filter(function (one) { return one.offsetHeight > 0; });
  var ids = shown.map(function (one) { return one.querySelector("header b").textContent; });
  return [ids, document.getElementById("shown").textContent];
}
"""

Answer = Callable[..., Any]


@pytest.fixture
def answer(tmp_path: Path) -> Answer:
    """`answer(page, script)`: what the script returns, run in the page once that is loaded.

    Its errors and what its policy forbade must be `complaints`: by default there are none.
    """
    if chromium() is None:
        pytest.skip(MISSING)

    def run(page: str, script: str, *, width: int = 1000, complaints: Sequence[str] = ()) -> Any:
        asked = (
            f"{TOOLS}addEventListener('load', function () {{\nsetTimeout(function () {{\n"
            f"var told = (function () {{ {script} }})();\n"
            "document.documentElement.dataset.told = JSON.stringify([told, complaints]);\n}, 200);\n});"
        )
        file = tmp_path / "report.html"
        file.write_text(_with_scripts(page, LISTEN, asked), encoding="utf-8")
        told, made = json.loads(str(Page(dumped(file, width=width)).tags[0][1]["data-told"]))
        assert made == list(complaints)
        return told

    return run


@pytest.fixture(scope="module")
def page() -> str:
    """A report with four documents, before and after."""
    found = {"ticket-1": [(9, 20)]}
    before, after = (make_audit(TEXTS, known=KNOWN, found=found, sets=SETS, shift=shift) for shift in (0.0, -4.0))
    return render_report(REPORT, before, after, text="all")


def test_the_filter_shows_documents_of_a_set_with_selected_spans_or_with_words_in_their_id(
    answer: Answer, page: str
) -> None:
    told = answer(
        page,
        """return [filter.hidden, choose({}), choose({ set: "forget" }), choose({ only: true }),
        choose({ set: "", only: false, words: "TICKET" }), choose({ words: "<b>" }), choose({ set: "none", words: "" }),
        choose({ set: "holdout" }), choose({ set: "" })];""",
    )
    hidden, first, forget, only, ticket, tag, none, holdout, every = told
    assert not hidden
    assert sorted(first[0]) == sorted(TEXTS)
    assert first[1] == "4 of 4 shown"
    assert (sorted(forget[0]), forget[1]) == (["note <b>3</b>", "ticket-1"], "2 of 4 shown")
    assert only == [["ticket-1"], "1 of 4 shown"]
    assert sorted(ticket[0]) == ["Ticket-2", "ticket-1"]
    assert tag[0] == ["note <b>3</b>"]
    assert none[0] == ["4"]
    assert holdout == [[], "0 of 4 shown"]
    assert every == first


def test_the_filter_is_not_sent_anywhere(answer: Answer, page: str) -> None:
    script = """var sent = new Event("submit", { bubbles: true, cancelable: true }); filter.dispatchEvent(sent);
    return sent.defaultPrevented;"""
    assert answer(page, script)


@pytest.mark.parametrize("kind", ["mouseover", "click"], ids=["pointer", "tap"])
def test_a_token_shows_its_figures_and_outlines_itself_on_the_other_side(answer: Answer, page: str, kind: str) -> None:
    told = answer(
        page,
        f"""var own = token("555-0123", 0), before = own.title;
        point(own, {kind!r});
        var shown = [!popup.hidden, popup.textContent, popup.children.length, own.hasAttribute("title"), outlined()];
        point(token("Ann", 1), {kind!r});
        var next = [!popup.hidden, own.title, outlined()];
        point(document.querySelector("h1"), {kind!r});
        return [before, shown, next, [popup.hidden, token("Ann", 1).title !== "", outlined()]];""",
    )
    title, shown, following, left = told
    assert "score 4.25 → 0.25" in title
    assert title.endswith("known secret: <i>phone</i>")
    assert shown == [True, title, 0, False, [["555-0123", "After"]]], "the browser's own tip is not shown as well"
    assert following == [True, title, [["Ann", "Before"]]]
    assert left == [True, True, []]


def test_escape_and_scrolling_hide_the_figures(answer: Answer, page: str) -> None:
    told = answer(
        page,
        """function pressed(key) { return new KeyboardEvent("keydown", { key: key }); }
        return [pressed("a"), pressed("Escape"), new Event("scroll")].map(function (event) {
          point(token("Ann"));
          document.dispatchEvent(event);
          var after = [popup.hidden, token("Ann").title !== "", outlined().length];
          point(document.body);
          return after;
        });""",
    )
    assert told == [[False, False, 1], [True, True, 0], [True, True, 0]]


@pytest.mark.parametrize("width", [500, 1400])
def test_the_figures_are_within_the_window(answer: Answer, width: int) -> None:
    texts = {"a": "word " * 300 + "last"}
    audits = [make_audit(texts, found={"a": [(0, 4)]}, sets={"a": "forget"}, shift=shift) for shift in (0.0, -4.0)]
    outside = answer(
        render_report(REPORT, *audits, text="all"),
        """var all = Array.from(document.querySelectorAll(".mh .t")), outside = [];
        all.forEach(function (one, number) {
          if (number % 29) return;
          one.scrollIntoView({ block: number % 2 ? "end" : "start" });
          point(one);
          var box = popup.getBoundingClientRect(), own = one.getClientRects()[0];
          if (popup.hidden || box.left < 0 || box.right > innerWidth || box.top < 0 || box.bottom > innerHeight ||
              (box.bottom > own.top && box.top < own.bottom)) outside.push(number);
        });
        return [all.length > 500, outside];""",
        width=width,
    )
    assert outside == [True, []]


def test_what_is_folded_is_printed_open(answer: Answer, page: str) -> None:
    script = """function open() { return Array.from(document.querySelectorAll("details")).map((one) => one.open); }
    var before = open(); dispatchEvent(new Event("beforeprint")); return [before, open()];"""
    assert answer(page, script) == [[False, False], [True, True]]


def test_a_report_without_text_has_no_filter_and_its_script_no_complaint(answer: Answer) -> None:
    audit = make_audit(TEXTS, known=KNOWN, sets=SETS)
    page = render_report(REPORT, audit, None, text="none")
    assert answer(page, "point(document.body); return [filter, popup.hidden];") == [None, True]


def test_another_script_than_the_pages_own_does_not_run_and_without_it_no_filter_is_offered(
    answer: Answer, page: str
) -> None:
    changed = page.replace("bar.hidden = false;", "bar.hidden = false; ")
    assert answer(changed, "return filter.hidden;", complaints=["script-src-elem"])


def _with_scripts(page: str, first: str, last: str) -> str:
    """A page with two more scripts, which its policy then allows by their hashes as it does its own."""
    for script in (first, last):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    page = page.replace("<head>", f"<head><script>{first}</script>", 1)
    before, after = page.rsplit("</body>", 1)
    return f"{before}<script>{last}</script></body>{after}"
