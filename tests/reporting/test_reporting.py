"""The report: what it says, what it never says, and that hostile text stays text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from made_up import REPORT, TEXT, Page, changed, make_audit, pair, with_metadata

from mitigate.errors import MitigateError
from mitigate.reporting.heat_map import LEVELS, LONGEST, build_heat_map, level
from mitigate.reporting.masking import BULLET, Mask, visible
from mitigate.reporting.page import heat_map, render_report
from mitigate.reporting.plots import against_references, score_distribution

BIDI = "\u202e"


def test_first_screen_says_the_verdict_the_leakage_with_intervals_and_the_cost() -> None:
    text = Page(render_report(changed(skipped=[]), *pair(), text="masked")).all_text
    first = text[: text.index("How to read it")]
    assert "Leakage fell to the level of text never seen, and other text kept its quality." in first
    assert "0.978 (95 % interval 0.961 to 0.990) to 0.541 (95 % interval 0.482 to 0.604)" in first
    assert "retained text +0.029 (+0.033 against the retrained model), on never-seen text +0.020" in first
    assert "None of 104 secrets is completed word for word any more (at most 3.5 %" in first


def test_sections_after_the_first_screen_say_what_was_selected_how_and_from_what() -> None:
    text = Page(render_report(REPORT, *pair(), text="masked")).all_text
    for words in (
        "Selected: spans that score high.",
        "1.0 × hinge + 0.5 × distill",
        "control level reached at step 140",
        "100 parameters, 10.00 % of the model's 1,000",
        "tickets.jsonl:17: malformed JSON",
        "score: log_ratio",
        "2.13.0",
        "00aa",
        "2026-01-02 03:04:05 UTC",
    ):
        assert words in text


def test_null_figures_read_not_measured_with_the_note_that_says_why() -> None:
    note = "No oracle was given: distances to it are not measured."
    report = changed(oracle_distance={"before": None, "after": None, "ratio": None}, notes=[note])
    report["utility"]["retain_nll"]["oracle"] = report["utility"]["holdout_nll"]["oracle"] = None
    report["leakage"]["before"]["tpr_at_1pct_fpr"] = float("nan")
    page = render_report(report, *pair(), text="masked")
    row = page[page.index("To the retrained model (oracle)") :]
    row = row[: row.index("</tr>")]
    assert row.count("not measured</a>") == 2
    assert row.count(note) == 2
    assert 'id="notes"' in page
    assert "nan" not in Page(page).all_text.lower().split()
    assert "None" not in Page(page).all_text.replace("None of", "")


def test_an_audit_without_unlearning_has_one_side_and_no_after() -> None:
    report = changed(unlearn=None, over_forgotten_share=None)
    report["leakage"]["after"] = None
    report["extraction"] = {"before": 0.5, "after": None, "secrets": 4}
    for section in ("oracle_distance", "out_distance"):
        report[section]["after"] = None
    for section in report["utility"].values():
        section |= {"after": None, "oracle": None}
    page = Page(render_report(report, pair()[0], None, text="masked"))
    assert "One memorized span was selected in one document. Nothing was unlearned yet." in page.all_text
    assert "After" not in page.all_text
    assert len(page.sides) == 2  # two documents, one side each


def test_hostile_text_stays_text_everywhere() -> None:
    evil = f"<script>alert(1)</script> \"'><img src=x onerror=alert(2)> {{{{7*7}}}} {BIDI}txt\x00\x1b[31m\x85 &amp;"
    known = {"a": [(0, 8, evil)]}
    texts = {"a": evil, evil: "other <b>text</b>"}
    audits = [make_audit(texts, known=known, sets={"a": "forget", evil: evil}, shift=s) for s in (0, -4)]
    audits[0] = with_metadata(audits[0], target=audits[0].metadata.target.model_copy(update={"name": evil}))
    report = changed(name=evil, notes=[evil], skipped=[evil], recipe={evil: evil}, versions={evil: evil})
    report["selected"]["rule"] = evil
    report["unlearn"]["stopped"] = evil
    page = render_report(report, *audits, text="all")
    tags = Page(page).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert "img" not in [tag for tag, _ in tags]
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "49" not in Page(page).all_text.split()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert "⟨U+202E⟩txt␀␛[31m⟨U+0085⟩" in page


def test_a_page_names_no_address_outside_itself_and_its_policy_forbids_any() -> None:
    page = render_report(REPORT, *pair(), text="all")
    assert not re.search(r"(https?:)?//[\w.-]+\.\w", page)
    attributes = {name: value for _, own in Page(page).tags for name, value in own.items() if name in ("src", "href")}
    assert all(str(value).startswith("#") for value in attributes.values())
    assert "default-src 'none'" in page


@pytest.mark.parametrize("render", ["report", "fragment"])
def test_masked_mode_leaks_no_span_text_anywhere(render: str) -> None:
    secret, name = "555-0123", "Ann Lee"
    texts = {
        f"ticket of {name}": f"Call {name} on {secret} now",
        "other": f"again: {secret}, and ANN\nLEE, and half of it: tel.{secret}!",
    }
    first = f"ticket of {name}"
    audits = [
        make_audit(
            texts,
            known={first: [(5, 12, name)]},  # even a label that repeats the secret
            found={first: [(5, 24)]},
            sets={first: "forget"},
            shift=shift,
        )
        for shift in (0.0, -4.0)
    ]
    if render == "fragment":
        page = heat_map(audits[0], text="masked")
    else:
        report = changed(
            name=f"Erasure of {name}",
            notes=[f"about {secret}"],
            skipped=[f"x:1: {name}"],
            recipe={"documents": {"where": {"text": {"matches": secret}}, name: [name]}},
        )
        report["selected"]["rule"] = f"contains {name.upper()}"
        page = render_report(report, *audits, text="masked")
    plain = re.sub(r"\s+", " ", page).lower()
    for text in (secret, name, "0123", "lee"):
        assert text.lower() not in plain
    assert BULLET * len(secret) in page
    assert "now" in page
    assert ">half<" in page
    shown = heat_map(audits[0], text="all") if render == "fragment" else render_report(report, *audits, text="all")
    assert secret in shown


def test_masked_text_keeps_its_length_and_the_rest_of_the_document() -> None:
    sides = Page(heat_map(pair()[0], text="masked")).sides
    assert sides[0] == BULLET * 8 + " " + BULLET * 11 + " now", "Call Ann may be a name"


@pytest.mark.parametrize(
    ("text", "offsets"),
    [
        ("I 👩‍👩‍👧 like 🙂 é\n\ttabs  and\n", [(0, 1), (2, 3), (2, 3), (3, 5), (4, 7), (8, 12), (13, 14), (13, 14)]),
        ("\n leading and trailing \n", [(0, 1), (2, 9), (10, 13)]),
        ("no token at all", [(0, 0)]),
        ("overlap", [(0, 5), (3, 7), (1, 2), (0, 99)]),
        ("שלום hello مرحبا", [(0, 4), (5, 10), (11, 16)]),
    ],
)
def test_shown_documents_are_reproduced_exactly(text: str, offsets: list[tuple[int, int]]) -> None:
    audits = [
        make_audit({"a": text}, offsets={"a": offsets}, known={"a": [(2, 6, "x"), (4, 7, "")]}, found={"a": [(3, 9)]})
        for _ in range(2)
    ]
    assert Page(render_report(REPORT, *audits, text="all")).sides == [text, text]
    assert Page(heat_map(audits[0], text="all")).sides == [text]


def test_tokens_that_share_characters_share_a_cell_that_lists_each() -> None:
    audit = make_audit({"a": "x 🙂 y"}, offsets={"a": [(0, 1), (2, 3), (2, 3), (2, 3), (4, 5)]})
    pieces = Page(heat_map(audit, text="all")).pieces()
    assert len(pieces) == 3
    assert str(pieces[1]["title"]).count("score") == 3
    assert "token 3 of 3" in str(pieces[1]["title"])


def test_before_and_after_line_up_token_by_token() -> None:
    page = Page(render_report(REPORT, *pair(), text="all"))
    assert page.sides == [TEXT, TEXT, "Nothing here", "Nothing here"]
    pieces = page.pieces()
    before, after = pieces[:5], pieces[5:10]
    assert [piece["title"] for piece in before] == [piece["title"] for piece in after]
    number = before[3]
    assert number["class"] == f"t s p{LEVELS}"
    assert after[3]["class"] == "t s"
    title = str(number["title"])
    assert "score 4.25 → 0.25" in title
    assert "log-probability −0.50 → −4.50" in title
    assert "without it (references) −4.75" in title
    assert "each reference −4.50 · not used" in title
    assert "known secret: phone" in title


def test_documents_of_the_reaudit_may_come_in_another_order() -> None:
    texts = {"a": TEXT, "b": "Nothing here"}
    before = make_audit(texts, sets={"a": "forget"})
    after = make_audit(dict(reversed(texts.items())), sets={"a": "forget"}, shift=-4.0)
    assert Page(render_report(REPORT, before, after, text="all")).sides[:2] == [TEXT, TEXT]


def test_a_reaudit_with_other_tokens_is_refused() -> None:
    before = make_audit({"a": TEXT})
    after = make_audit({"a": TEXT}, offsets={"a": [(0, 4)]})
    with pytest.raises(MitigateError, match="document a has other tokens in the re-audit"):
        render_report(REPORT, before, after, text="all")


def test_an_unknown_document_is_refused_by_name() -> None:
    with pytest.raises(MitigateError, match=r"no document nobody; it has a, b"):
        heat_map(pair()[0], doc_ids=["nobody"], text="masked")


def test_documents_can_be_chosen_and_are_limited() -> None:
    texts = {f"d{number}": f"text {number}" for number in range(8)}
    sets = {f"d{number}": "forget" for number in range(6)}
    audit = make_audit(texts, found={name: [(0, 4)] for name in texts}, sets=sets)
    assert Page(heat_map(audit, doc_ids=["d7", "d2"], text="all")).sides == ["text 7", "text 2"]
    drawn = build_heat_map(audit, mask=Mask([audit], text="all"), most_documents=4).documents
    assert [document.id for document in drawn] == ["d0", "d1", "d2", "d6"]  # a quarter is for unselected ones


def test_long_documents_are_cut_to_their_spans() -> None:
    text = "word " * 2000 + "secret here" + " word" * 2000
    at = text.index("secret")
    audit = make_audit({"a": text}, found={"a": [(at, at + 6)]}, sets={"a": "forget"})
    side = Page(heat_map(audit, text="all")).sides[0]
    assert "secret here" in side
    assert len(side) < LONGEST
    assert "9,850 characters not shown" in side


def test_shades_grow_with_the_score_and_keep_its_sign() -> None:
    assert [level(score, scale=5.0) for score in (None, 0.0, 0.4, 0.6, 2.5, 5.0, 50.0, -0.6, -50.0)] == [
        0, 0, 0, 1, 3, 5, 5, -1, -5,
    ]  # fmt: skip


def test_invisible_and_direction_characters_become_visible_and_emoji_stay() -> None:
    assert visible("a\u200bb\u2067c\rd\u0007") == "a⟨U+200B⟩b⟨U+2067⟩c␍d␇"
    assert visible("👩‍👩‍👧 ❤️ é\t\n") == "👩‍👩‍👧 ❤️ é\t\n"


def test_the_fragment_is_whole_without_the_report() -> None:
    fragment = heat_map(pair()[0], text="all")
    tags = [tag for tag, _ in Page(fragment).tags]
    assert "style" in tags
    assert not {"html", "body", "script", "link"} & set(tags)


def test_empty_audit_renders() -> None:
    empty = make_audit({"a": "x"}, offsets={"a": [(0, 0)]})
    page = render_report({"leakage": {"before": {}, "after": None}, "unlearn": None}, empty, None, text="masked")
    assert "No memorized text was selected" in page


def test_plots_are_equal_for_equal_data_and_name_no_address() -> None:
    scores = {"member": np.array([1.0, 2.0, np.nan]), "other": np.array([]), "more": np.array([-9.0, 9.0])}
    drawn = [score_distribution(scores, title="T", axis="score", limits=(-3, 3)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith("<svg role=")
    cloud = against_references(np.full(5000, -2.0), np.full(5000, -30.0), title="T", lowest=-8)
    for svg in (drawn[0], cloud):
        assert "http" not in svg
        assert "currentColor" in svg
        assert set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", svg))
        defined = set(re.findall(r'\bid="([^"]+)"', svg))
        used = {a or b for a, b in re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", svg)}
        assert used <= defined
    assert not set(re.findall(r'\bid="([^"]+)"', drawn[0])) & set(re.findall(r'\bid="([^"]+)"', cloud))


def test_a_found_word_is_masked_in_no_sentence_of_ours_whatever_stands_beside_it() -> None:
    audits = pair("Call Ann, before noon", known={}, found={"a": [(8, 16), (10, 16)]})
    ours = "None of 278 secrets is completed any more; before, 33.8 % were."
    assert audits[0].documents["text"][0].as_py()[8:16] == ", before"
    assert [Mask(shown).text(ours) for shown in (audits[:1], audits)] == [ours, ours]
    sure = pair("Call Ann before noon", known={"a": [(9, 15, "time")]}, found={"a": [(9, 15)]})
    assert BULLET * 6 in Mask(sure).text(ours)
