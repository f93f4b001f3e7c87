"""Erasure requests: what is selected, where the same secrets stand besides, and what the report says of it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from commands import Mitigate, modified, tiny_recipe, working_in
from forgetting import cpu
from world import World

from mitigate.cli.options import request_from
from mitigate.detection.audit import audit, reaudit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.documents import Document, Documents, DocumentSource, Request, Span, read_documents
from mitigate.documents.erasure import apply_request
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError
from mitigate.models.store import ModelStore
from mitigate.pipeline.run import Pipeline, run
from mitigate.recipe.loading import check_recipe, load_recipe
from mitigate.secrets.copies import Linked, Sought, find_linked
from mitigate.text.folding import fold
from mitigate.verification.compare import compare

# --- what a request selects -------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {"id": "a", "text": "Jane Roe called about the boiler.", "customer": 17, "year": 2021, "set": "retain"},
    {"id": "b", "text": "The invoice of jane\n  ROE is late.", "customer": 17, "year": 2022, "set": "retain"},
    {"id": "c", "text": "Mary Jane Roebuck wants a refund.", "customer": 18, "year": 2022, "set": "forget"},
    {"id": "d", "text": "Nothing to see here.", "customer": 19, "year": 2022, "set": "retain", "group": "dan"},
    {"id": "e", "text": "Nor is there here.", "customer": 20, "year": 2022, "set": "retain", "group": "dan"},
    {"id": "f", "text": "Jane Roe came in person.", "customer": 17, "year": 2023, "set": "holdout"},
]


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def applied(path: Path, **request: Any) -> Documents:
    asked = Request(**request)
    return apply_request(read_documents(path, mark=asked.where), asked)


def in_set(documents: Documents, name: str = "forget") -> list[str]:
    return [document.id for document in documents.subset(name)]


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ({"ids": ["d", "a"]}, ["a", "d"]),
        ({"contains": ["Jane Roe"]}, ["a", "b"]),
        ({"where": {"customer": 17}}, ["a", "b"]),
        ({"where": {"customer": "17", "year": [2022, 2023]}}, ["b"]),
        ({"where": {"text": {"matches": "^N"}, "year": {"not": 2021}}}, ["d", "e"]),
        ({"ids": ["d"], "contains": ["jane roe"], "where": {"customer": 18}}, ["a", "b", "c", "d"]),
    ],
    ids=["ids", "contains", "where", "where-all", "where-conditions", "union"],
)
def test_a_request_selects_by_id_by_text_and_by_the_fields_of_a_row(
    tickets: Path, request_: dict[str, Any], wanted: list[str]
) -> None:
    documents = applied(tickets, **request_)
    assert in_set(documents) == wanted
    assert documents.erasure is not None
    assert list(documents.erasure.doc_ids) == wanted


def test_the_request_replaces_the_forget_set_and_leaves_all_else(tickets: Path) -> None:
    before, after = read_documents(tickets), applied(tickets, ids=["a"])
    assert in_set(before) == ["c"]
    assert in_set(after, "retain") == ["b", "c", "d", "e"]
    assert in_set(after, "holdout") == in_set(before, "holdout")
    assert [replace(d, set=None) for d in before] == [replace(d, set=None) for d in after]


def test_other_trained_documents_are_retained_text_and_unlearning_and_the_report_see_them(world: World) -> None:
    plain = Documents(tuple(replace(d, set=None if d.set == "retain" else d.set) for d in world.documents))
    request = Request(ids=["forget-0"])
    assert in_set(apply_request(plain, request), "retain") == [
        d.id for d in plain if d.set != "holdout" and d.id != "forget-0"
    ]
    lab = apply_request(plain, request, never_trained=("holdout", None))
    assert [d.id for d in lab if d.set is None] == [d.id for d in plain if d.set is None], "in a lab: never trained on"
    found = audit(
        world.target, [world.references], documents=plain, forget=request, detect=Detect(select="known"), store=cpu()
    )
    report = compare(found).report
    assert report["counts"]["retain"] == 9
    assert report["utility"]["retain_nll"]["before"] is not None
    assert report["leakage"]["before"]["people"]["members"] == 1
    assert report["leakage"]["before"]["span_auc_interval"] is None
    assert report["erasure"]["score_interval"] == {"before": None, "after": None}


def test_what_the_target_never_saw_is_not_forgotten_but_named(tickets: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents = applied(tickets, contains=["Jane Roe"])
    assert documents.erasure is not None
    assert documents.erasure.never_trained == ("f",)
    assert in_set(documents, "holdout") == ["f"]
    assert "1 requested documents stay as they are" in caplog.text
    with pytest.raises(MitigateError, match=r"not trained on what it names \(f: set holdout"):
        applied(tickets, ids=["f"])


def test_documents_of_the_same_person_are_listed_not_forgotten(tickets: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents = applied(tickets, ids=["d"])
    assert documents.erasure is not None
    assert documents.erasure.same_group == ("e",)
    assert in_set(documents) == ["d"]
    assert "not requested: e; add their ids" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "text", "stands"),
    [
        ("Jane Roe", "by JANE\u00a0\n\tROE, twice", ["JANE\u00a0\n\tROE"]),
        ("José Peña", unicodedata.normalize("NFD", "for josé peña."), [unicodedata.normalize("NFD", "josé peña")]),
        (unicodedata.normalize("NFD", "José"), "JOSÉ and José", ["JOSÉ", "José"]),
        ("Jose", unicodedata.normalize("NFD", "José"), []),
        ("Müller", "Mueller or Muller", []),
        ("Straße", "STRASSE 7", ["STRASSE"]),
        ("O'Brien", "O\u2019Brien\u2019s", ["O\u2019Brien"]),
        ("Jane Roe", "Jane\u200b Roe\u00ad", ["Jane\u200b Roe"]),
        ("Ann", "Anna, Joann, Ann-Marie, (ann)", ["Ann", "ann"]),
        ("Ｊａｎｅ", "jane", ["jane"]),
        ("王小明", "昨天王小明来了。", ["王小明"]),
        ("5551234", "95551234 555-1234", []),
        ("C++", "knows C++ well, not C", ["C++"]),
    ],
)
def test_a_text_is_found_however_it_is_written_but_as_whole_words(wanted: str, text: str, stands: list[str]) -> None:
    documents = Documents((Document("one", text, set="retain"), Document("other", wanted, set="retain")))
    erasure = apply_request(documents, Request(contains=[wanted])).erasure
    assert erasure is not None
    assert [text[start:end] for doc_id, start, end in erasure.matches if doc_id == "one"] == stands


def test_plain_text_folds_as_any_other() -> None:
    draw = Random(4)
    for length in range(60):
        text = "".join(draw.choice("aB9.- \n\t\x1f'") for _ in range(length))
        plain, other = fold(text), fold(text + "é")
        assert (plain.text, list(plain.starts), list(plain.ends)) == (
            other.text[: len(plain.text)],
            list(other.starts[: len(plain.text)]),
            list(other.ends[: len(plain.text)]),
        )
        assert other.text == plain.text + "e\u0301"


def test_rows_of_a_source_without_the_field_meet_no_condition(tmp_path: Path, tickets: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "z", "text": "another file"}\n', encoding="utf-8")
    asked = Request(where={"customer": {"not": [18, 19, 20]}})
    assert in_set(apply_request(read_documents([tickets, other], mark=asked.where), asked)) == ["a", "b"]


def test_marks_are_of_documents_that_were_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps({"id": "x", "text": "one line\ntwo\nthree lines", "customer": 17}) + "\n")
    source = DocumentSource(path=str(path), per="line", min_characters=5, limit=1)
    marks = read_documents(source, mark={"customer": 17}).marks
    assert marks is not None
    assert (marks.doc_ids, dict(marks.met)) == (frozenset({"x-1"}), {"customer": 1})


def test_every_mistake_of_a_request_is_named_at_once(tickets: Path) -> None:
    with pytest.raises(MitigateError) as caught:
        applied(
            tickets, ids=["a", "aa", "zzz"], contains=["Jane Roe", "Jane Doe"], where={"customer": 17, "year": 1999}
        )
    message = str(caught.value)
    assert message.startswith("erasure request: 4 mistakes\n")
    assert "ids: no document 'aa'; did you mean a?" in message
    assert "ids: no document 'zzz'; ids there: a, b, c and 3 more" in message
    assert "contains: 'Jane Doe' stands in none of 6 documents" in message
    assert "where: met by none of 6 documents (each condition alone is met: customer by 3, year by 0)" in message


def test_a_where_needs_fields_that_are_known(tickets: Path) -> None:
    with pytest.raises(MitigateError, match=r"where: no field custmer; fields there: id, text, customer, year, set"):
        applied(tickets, where={"custmer": 17})
    with pytest.raises(MitigateError, match=r"read_documents\(..., mark=request.where\)"):
        apply_request(read_documents(tickets), Request(where={"customer": 17}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["forget={}"], "forget: an empty request selects nothing; give ids, contains or where"),
        (["forget.contains=['--']"], "no letter or digit to look for; got '--'"),
        (["forget.contian=[Jane]"], "forget.contian: unknown key; did you mean forget.contains?"),
        (["forget.ids=7"], "forget.ids: should be a valid list; got 7"),
        (["forget.where={a: {matches: '('}}"], "not a regular expression"),
    ],
)
def test_a_recipe_s_request_is_checked(overrides: list[str], message: str) -> None:
    own = ["models.target=m", "models.base=b", "data.documents=[{path: a.jsonl}]"]
    with pytest.raises(MitigateError, match=re.escape(message)):
        load_recipe(None, [*own, *overrides])


def test_yaml_s_numbers_are_ids_and_texts() -> None:
    own = ["models.target=m", "models.base=b", "data.documents=[{path: a.jsonl}]"]
    request = load_recipe(None, [*own, "forget.ids=[7]", "forget.contains=[5551234]"]).forget
    assert request == Request(ids=["7"], contains=["5551234"])
    request = load_recipe(None, [*own, "forget.ids=[007, 12e5]", "forget.contains=[030555, 12:30:00, +4930]"]).forget
    assert request == Request(ids=["007", "12e5"], contains=["030555", "12:30:00", "+4930"])


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [("customer=010", ["b"]), ("customer=8", ["a"]), ("name=no", ["b"]), ("price=17.50", ["b"]), ("price=17.0", ["a"])],
)
def test_a_condition_means_what_is_written(tmp_path: Path, condition: str, wanted: list[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text,customer,name,price\na,One.,8,False,17\nb,Two.,010,no,17.50\n")
    request = request_from(None, None, [condition], linked=True)
    assert request is not None
    if condition == "price=17.0":  # a number in JSON is the same however it is written
        path = tmp_path / "rows.jsonl"
        path.write_text('{"id": "a", "text": "One.", "price": 17}\n{"id": "b", "text": "Two.", "price": 17.5}\n')
    assert in_set(apply_request(read_documents(path, mark=request.where), request)) == wanted


# --- the same secrets in other documents ------------------------------------------------------------------------------


def linked_of(texts: dict[str, str], secrets: Sequence[str], *, known: bool = True) -> Linked:
    """Links of document `own`, which is the secrets, one a line."""
    own = "\n".join(secrets)
    starts = [own.index(secret) for secret in secrets]
    spans = [
        Sought(n, "own", at, at + len(secret), "", known=known)
        for n, (at, secret) in enumerate(zip(starts, secrets, strict=True))
    ]
    documents = Documents((Document("own", own), *(Document(id, text) for id, text in texts.items())))
    return find_linked(documents, {"own"}, spans)


@pytest.mark.parametrize(
    ("secret", "text", "stands"),
    [
        ("555-1234", "her number is 5551234, or (555) 1234.", ["5551234", "555) 1234"]),
        ("(555) 123-4567", "reach 555.123.4567 now", ["555.123.4567"]),
        ("555-1234", "95551234 and 55512345 and 555-12345", []),
        ("Jane.Roe@Mail.example", "mail: jane.roe@mail.example!", ["jane.roe@mail.example"]),
        ("AKIA-9F3K-22LQ", "key=akia9f3k22lq", ["akia9f3k22lq"]),
        ("12 Elm Street, 62704", "lives at 12  Elm\nStreet, 62704.", ["12  Elm\nStreet, 62704"]),
        ("555-1234", "555 ----- 1234", []),
        ("５５５１２３４", "555-1234", ["555-1234"]),
        ("12345", "12345", []),
        ("000-000-000", "000000000", []),
    ],
)
def test_a_secret_is_found_in_another_format_with_exact_characters(secret: str, text: str, stands: list[str]) -> None:
    hits = linked_of({"other": text}, [secret]).hits
    assert [text[hit.char_start : hit.char_end] for hit in hits] == stands


def test_the_number_in_a_longer_found_span_is_a_secret_of_its_own() -> None:
    span = "call her at 555-123-4567, or write to jane@mail.example today"
    text = "jane@mail.example is also on 5551234567"
    hits = linked_of({"other": text}, [span], known=False).hits
    assert [text[hit.char_start : hit.char_end] for hit in hits] == ["jane@mail.example", "5551234567"]


def test_a_common_phrase_is_no_secret_unless_it_is_known_as_one() -> None:
    phrases = ["in the morning after the storm", "the violet lantern of the watchman"]
    many = {f"d{n}": f"Document {n}: {phrases[0]}, at last." for n in range(8)}
    few = {f"e{n}": f"It was {phrases[1]}, number {n}." for n in range(3)}
    found = linked_of(many | few, phrases, known=False)
    assert {hit.doc_id for hit in found.hits} == set(few)
    assert (found.secrets, found.too_common, found.too_short) == (1, 1, 0)
    assert len(linked_of(many | few, phrases).hits) == 11


def test_a_few_words_that_the_detector_found_are_no_secret_but_known_ones_are() -> None:
    words = ["Orange,", "1984, in the United", "in May"]
    texts = {"other": "Born in May 1984, in the United States, near Orange."}
    found = linked_of(texts, words, known=False)
    assert (found.hits, found.secrets, found.too_short) == ((), 0, 3)
    assert len(linked_of(texts, words).hits) == 2, "in May has five letters"


def test_a_time_of_day_that_the_detector_found_is_no_secret_but_a_number_beside_it_is() -> None:
    texts = {"other": "13:15:02 INFO queue empty, 13:15:02 ticket 71-40-93"}
    assert linked_of(texts, ["13:15:02 retry", "(13:15:02),"], known=False).hits == ()
    for written in ("13:15:02 retry, ticket 71-40-93", "714093"):
        hits = linked_of(texts, [written], known=False).hits
        assert [texts["other"][hit.char_start : hit.char_end] for hit in hits] == ["71-40-93"]
    assert len(linked_of(texts, ["13:15:02"]).hits) == 2, "known as a secret"


def test_of_places_within_one_another_the_longest_counts() -> None:
    text = "12 Elm Street, 627040 again 627040"
    hits = linked_of({"other": text}, ["12 Elm Street, 627040", "627040"]).hits
    assert [(hit.char_start, hit.char_end, hit.origins) for hit in hits] == [(0, 21, (0,)), (28, 34, (0, 1))]


def naive_hits(text: str, secrets: Sequence[str]) -> set[str]:
    """Secrets that stand in a text, by a regular expression each."""
    found = set()
    for secret in secrets:
        letters = re.sub(r"[\W_]", "", secret)
        pattern = r"(?<![^\W_])" + r"[\W_]{0,3}".join(map(re.escape, letters)) + r"(?![^\W_])"
        found |= {secret} if re.search(pattern, text, flags=re.IGNORECASE) else set()
    return found


def test_links_are_those_of_a_naive_search() -> None:
    draw = Random(3)
    numbers = ["".join(draw.sample("1234567", draw.choice((6, 7)))) for _ in range(40)]

    def written(number: str) -> str:
        return "".join(digit + draw.choice(["", "", "-", " ", ") ", "x", " -- -- "]) for digit in number)

    texts = {f"d{n}": " and ".join(written(draw.choice(numbers)) for _ in range(4)) for n in range(150)}
    linked = linked_of(texts, numbers)
    found = {(hit.doc_id, re.sub(r"\D", "", texts[hit.doc_id][hit.char_start : hit.char_end])) for hit in linked.hits}
    assert {numbers[number] for hit in linked.hits for number in hit.origins} == {secret for _, secret in found}
    assert found == {(id, secret) for id, text in texts.items() for secret in naive_hits(text, numbers)}
    assert 20 < len(found) < 200


def test_the_order_of_documents_and_spans_does_not_matter(world: World) -> None:
    documents = with_copies(world)
    asked = Request(ids=["forget-0"])

    def found(order: Sequence[Document]) -> set[tuple[str, int, int, str]]:
        chosen = apply_request(Documents(tuple(order)), asked)
        spans = [
            Sought(n, d.id, s.start, s.end, s.label, known=True)
            for n, (d, s) in enumerate((d, s) for d in chosen for s in d.spans)
        ]
        hits = find_linked(chosen, {"forget-0"}, spans).hits
        return {(hit.doc_id, hit.char_start, hit.char_end, hit.label) for hit in hits}

    once = found(documents)
    assert {doc_id for doc_id, *_ in once} == {"copy-retain", "copy-holdout"}
    for seed in range(3):
        assert found(Random(seed).sample(list(documents), len(documents))) == once


# --- an audit with a request ------------------------------------------------------------------------------------------


def with_copies(world: World) -> Documents:
    """The world's documents, and two that hold the code of forget-0 in another format."""
    [span] = world.documents[0].spans
    code = world.documents[0].text[span.start : span.end]
    copies = (
        Document("copy-retain", f"Note: the alarm is {code[:3]}-{code[3:]} at the museum.", set="retain"),
        Document("copy-holdout", f"Note: the alarm is {code[:3]} {code[3:]} at the market.", set="holdout"),
    )
    return Documents((*world.documents, *copies))


def audited(world: World, request: Request, *, select: str = "known") -> Audit:
    return audit(
        world.target,
        [world.references],
        documents=with_copies(world),
        detect=Detect(select=select),
        store=ModelStore(device="cpu"),
        forget=request,
    )


@pytest.fixture(scope="module")
def requested(world: World) -> Audit:
    return audited(world, Request(ids=["forget-0"]))


def linked_rows(audit: Audit) -> dict[str, dict[str, Any]]:
    return {row["doc_id"]: row for row in audit.spans.to_pylist() if row["source"] == "linked"}


def test_a_linked_secret_is_selected_with_all_its_tokens_and_no_others(world: World, requested: Audit) -> None:
    rows = linked_rows(requested)
    assert set(rows) == {"copy-retain", "copy-holdout"}
    row, text = rows["copy-retain"], with_copies(world)[-2].text
    [origin] = world.documents[0].spans
    code = world.documents[0].text[origin.start : origin.end]
    assert text[row["char_start"] : row["char_end"]] == f"{code[:3]}-{code[3:]}"
    assert (row["label"], row["selected"]) == ("code", True)
    own = requested.rows["copy-retain"]
    inside = (requested.columns["char_start"][own] < row["char_end"]) & (
        requested.columns["char_end"][own] > row["char_start"]
    )
    assert inside.any()
    assert (requested.columns["selected"][own] == inside).all()


def test_only_the_request_is_selected_and_holdout_stays_holdout(requested: Audit) -> None:
    touched = {id for id, rows in requested.rows.items() if requested.columns["selected"][rows].any()}
    assert touched == {"forget-0", "copy-retain"}
    assert {id for id, name in requested.sets.items() if name == "forget"} == {"forget-0"}
    assert not linked_rows(requested)["copy-holdout"]["selected"]


def test_metadata_say_where_each_link_comes_from(requested: Audit) -> None:
    erasure = requested.metadata.erasure
    assert erasure is not None
    assert erasure.documents == ("forget-0",)
    assert erasure.criteria == {"ids": 1, "contains": 0, "where": []}
    spans = {row["span_id"]: row for row in requested.spans.to_pylist()}
    for place in erasure.linked:
        assert spans[place.span_id]["doc_id"] == place.doc_id
        assert {spans[number]["doc_id"] for number in place.origins} == {"forget-0"}
        assert 0 <= place.memorized_tokens <= place.tokens


def test_unlinked_places_are_listed_and_left(world: World) -> None:
    result = audited(world, Request(ids=["forget-0"], linked=False))
    assert set(linked_rows(result)) == {"copy-retain", "copy-holdout"}
    assert {id for id, rows in result.rows.items() if result.columns["selected"][rows].any()} == {"forget-0"}
    assert any("left as they are (linked: false)" in note for note in compare(result).report["notes"])


def test_an_audit_without_a_request_has_no_linked_spans(world: World) -> None:
    result = world.audit()
    assert result.metadata.erasure is None
    assert not linked_rows(result)
    assert compare(result).report["erasure"] is None


def test_what_the_detector_finds_is_linked_as_well(world: World) -> None:
    result = audited(world, Request(contains=[world.documents[0].text]), select="found")
    assert result.metadata.erasure.documents == ("forget-0",)
    assert linked_rows(result)["copy-retain"]["selected"]


def test_the_request_survives_saving_and_the_re_audit(world: World, requested: Audit, tmp_path: Path) -> None:
    requested.save(tmp_path / "audit")
    loaded = Audit.load(tmp_path / "audit")
    assert loaded.metadata == requested.metadata
    again = reaudit(loaded, world.base, store=ModelStore(device="cpu"))
    assert again.metadata.erasure == requested.metadata.erasure
    assert again.spans["source"] == requested.spans["source"]
    assert again.spans["selected"] == requested.spans["selected"]
    assert again.tokens["selected"] == requested.tokens["selected"]
    before, after = (linked_rows(one)["copy-retain"]["score"] for one in (requested, again))
    assert before != after


def test_linked_tokens_are_no_cost_to_retained_text(world: World, requested: Audit) -> None:
    rows = requested.columns["selected"].astype(bool)
    nll = compare(requested).report["utility"]["retain_nll"]["before"]
    sets = requested.sets
    retained = [sets[id] == "retain" for id in requested.tokens["doc_id"].to_pylist()]
    log_prob = requested.columns["log_prob"]
    kept = [-x for x, keep, chosen in zip(log_prob, retained, rows, strict=True) if keep and not chosen and x == x]
    assert nll == pytest.approx(sum(kept) / len(kept), rel=1e-5)


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_report_says_what_was_requested_and_where_else_it_stands_without_the_text(world: World) -> None:
    [span] = world.documents[0].spans
    code = world.documents[0].text[span.start : span.end]
    name = world.documents[0].text.split("door code of ")[1].split()[0]
    before = audited(world, Request(contains=[f"code of {name} is {code}"]))
    recipe = {"forget": {"ids": [], "contains": [f"code of {name} is {code}"], "where": {"customer": 17}}}
    comparison = compare(before, reaudit(before, world.base, store=ModelStore(device="cpu")), recipe=recipe)
    figures = comparison.report["erasure"]
    assert (figures["documents"], figures["spans"]) == (["forget-0"], 1)
    assert figures["score"]["after"] < figures["score"]["before"]
    places = {place["doc_id"]: place for place in figures["linked"]}
    assert places["copy-retain"]["selected"]
    assert places["copy-retain"]["before"] == pytest.approx(linked_rows(before)["copy-retain"]["score"])
    assert comparison.report["recipe"]["forget"] == {
        "ids": [],
        "contains": ["(hidden)"],
        "where": {"customer": "(hidden)"},
    }
    page = comparison.html()
    assert 'id="erasure"' in page
    assert "2 places in 2 other documents" in page
    for text in (code, f"{code[:3]}-{code[3:]}", f"{code[:3]} {code[3:]}", f"code of {name} is"):
        assert text not in page, "secret, or what the request was looked up by"
        assert text not in json.dumps(comparison.report)
    shown = compare(before, recipe=recipe, text="all")
    assert shown.report["recipe"] == recipe
    assert f"{code[:3]}-{code[3:]}" in shown.html()


# --- a whole recipe ---------------------------------------------------------------------------------------------------


def test_a_whole_lab_recipe_forgets_what_a_request_names_and_trains_no_model_again(tmp_path: Path) -> None:
    with working_in(tmp_path):
        plain = Pipeline(tiny_recipe(unlearn=None))
        plain.run()
        models = {name: modified(tmp_path / "run" / name) for name in ("lab/target", "references")}
        retained = plain.inputs.documents.subset("retain")[0]
        given = plain.inputs.documents.subset("forget")

        pipeline = Pipeline(tiny_recipe(forget={"contains": [retained.text[:40]], "linked": True}))
        report = pipeline.run().report

        assert models == {name: modified(tmp_path / "run" / name) for name in models}, "trained as before the request"
        assert report["erasure"]["documents"] == [retained.id]
        assert report["erasure"]["criteria"] == {"ids": 0, "contains": 1, "where": []}
        assert report["counts"]["forget"] == 1
        assert report["counts"]["retain"] == len(plain.inputs.documents.subset(["forget", "retain"])) - 1
        before, after = Audit.load("run/audit"), Audit.load("run/reaudit")
        assert {name for name, kind in before.sets.items() if kind == "forget"} == {retained.id}
        assert all(before.sets[document.id] == "retain" for document in given)
        assert after.metadata.erasure == before.metadata.erasure
        assert (tmp_path / "run/adapter/adapter_model.safetensors").is_file()
        assert retained.text[:40] not in (tmp_path / "run/report.html").read_text(encoding="utf-8")

        trained = json.loads((tmp_path / "run/run.json").read_text())["stages"]["lab.oracle"]["fingerprint"]
        other = Pipeline(tiny_recipe(forget={"ids": [given[0].id]}, unlearn=None))
        assert other.run().report["erasure"]["documents"] == [given[0].id]
        assert models == {name: modified(tmp_path / "run" / name) for name in models}
        again = json.loads((tmp_path / "run/run.json").read_text())["stages"]["lab.oracle"]["fingerprint"]
        assert again != trained, "the oracle is trained on everything but the requested documents"
        assert given[0].id not in {document.id for document in other.inputs.audited.subset("retain")}


def test_linked_secrets_are_unlearned_with_the_requested_ones(world: World, tmp_path: Path) -> None:
    with working_in(tmp_path):
        write_jsonl(with_copies(world), tmp_path / "train.jsonl")
        values = {
            "out": "run",
            "data": {"documents": [{"path": "train.jsonl"}]},
            "forget": {"where": {"id": "forget-0"}},
            "models": {"target": str(world.target), "device": "cpu"},
            "references": {"count": 0, "given": [str(world.references)]},
            "detect": {"select": "known"},
            "unlearn": {"objective": "npo", "max_steps": 8, "learning_rate": 5e-3, "stop_at_control": False},
            "report": {"extraction": False},
        }
        report = run(check_recipe(values)).report
        assert report["erasure"]["documents"] == ["forget-0"]
        [place] = [place for place in report["erasure"]["linked"] if place["selected"]]
        assert place["doc_id"] == "copy-retain"
        before, after = (Audit.load(f"run/{name}") for name in ("audit", "reaudit"))
        row = linked_rows(before)["copy-retain"]
        tokens = slice(*(before.rows["copy-retain"].start + row[f"token_{end}"] for end in ("start", "end")))
        fell = before.columns["log_prob"][tokens] - after.columns["log_prob"][tokens]
        assert fell.mean() > 0, "not held as an anchor"
        assert report["erasure"]["score"]["after"] < report["erasure"]["score"]["before"]


def test_a_lab_does_not_forget_what_it_did_not_train_on(tmp_path: Path, world: World) -> None:
    with working_in(tmp_path):
        unlabelled = [replace(d, set=None) if d.set == "retain" else d for d in world.documents]
        write_jsonl(unlabelled, tmp_path / "train.jsonl")
        values = tiny_recipe().model_dump(mode="json")
        values["lab"]["people"] = None
        values |= {"data": {"documents": [{"path": "train.jsonl"}]}, "forget": {"ids": ["retain-0"]}}
        with pytest.raises(MitigateError, match=r"not trained on what it names \(retain-0: set holdout, or none"):
            run(check_recipe(values))
        assert not (tmp_path / "run").exists(), "refused before anything is written"


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_takes_a_request(
    mitigate_: Mitigate,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(with_copies(world), tmp_path / "train.jsonl")
    common = ("audit", "--target", world.target, "--reference", world.references, "--documents", "train.jsonl")
    known = ("--set", "select=known", "--device", "cpu")
    done = mitigate_(
        *(*common, *known, "--forget-ids", "forget-0, retain-1", "--forget-where", "id=retain-2", "--out", "audit"),
        *("--forget-contains", world.documents[1].text[:-1]),
    )
    assert done.status == 0, done.err
    assert "erasure request: 4 documents to forget; their secrets stand in 2 places" in done.out
    assert "1 selected: copy-retain, copy-holdout" in done.out
    found = Audit.load("audit").metadata.erasure
    assert sorted(found.documents) == ["forget-0", "forget-1", "retain-1", "retain-2"]
    done = mitigate_(*common, *known, "--forget-ids", "forget-0", "--no-linked", "--out", "unlinked")
    assert "2 places of other documents, 0 selected" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--forget-where", "customer"], "--forget-where customer: written field=value"),
        (["--no-linked"], "--no-linked belongs to an erasure request"),
        (["--forget-contains", "--"], "erasure request: 1 mistake"),
        (["--again", "audit", "--forget-ids", "a"], "a re-audit keeps the request of its audit"),
    ],
)
def test_the_command_line_s_request_is_checked(
    mitigate_: Mitigate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = mitigate_("audit", "--target", "nowhere", "--documents", "train.jsonl", *arguments)
    assert done.status == 2
    assert message in done.err


def test_a_source_s_own_spans_and_the_request_s_where_read_one_file(tickets: Path) -> None:
    source = DocumentSource(path=str(tickets), spans={"patterns": {"name": "Jane Roe"}}, where={"year": 2021})
    asked = Request(where={"customer": 17})
    [document] = apply_request(read_documents(source, mark=asked.where), asked)
    assert (document.set, document.spans) == ("forget", (Span(0, 8, "name"),))
