from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chats import CHATML, chat_tokenizer, covered
from on_disk import write_lines
from pydantic import ValidationError

from mitigate.documents import SETS, Document, Documents, DocumentSource, Span, read_documents
from mitigate.errors import MitigateError

DATA = Path(__file__).parents[3] / "shared" / "data"
# like models that think: the last assistant turn is written in another way than the earlier ones
THINKING = CHATML.replace(
    "{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "My number is 555-0100."},
    {"role": "assistant", "content": "Noted: 555-0100."},
    {"role": "user", "content": "Repeat it."},
    {"role": "assistant", "content": "555-0100."},
]


def real(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not in the shared data folder")
    return path


def texts(source: DocumentSource | Path, **keys: object) -> list[str]:
    return [document.text for document in read_documents(source, **keys)]


# Reading


def test_json_lines_are_read_with_id_set_group_and_spans(tmp_path: Path) -> None:
    row = {"id": 7, "text": "call 555-0100", "set": "forget", "group": "ann"}
    row["spans"] = [{"start": 5, "end": 13, "label": "phone"}]
    path = write_lines(tmp_path / "people.jsonl", row, "", {"text": "plain"})
    assert read_documents(path).items == (
        Document(id="7", text="call 555-0100", spans=(Span(5, 13, "phone"),), set="forget", group="ann"),
        Document(id="people-3", text="plain", audited=((0, 5),), group="people-3"),
    )


def test_one_text_reads_the_same_from_every_format(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": 'two\nlines, "quoted" é🎉'}, {"id": "b", "text": "01841"}]
    write_lines(tmp_path / "d.jsonl", *rows)
    write_lines(tmp_path / "lines.json", *rows)
    (tmp_path / "array.json").write_text("\ufeff" + json.dumps(rows, indent=1), encoding="utf-8")
    (tmp_path / "d.csv").write_text(
        'id,text\r\na,"two\nlines, ""quoted"" é🎉"\r\n\r\nb,01841\r\n', encoding="utf-8", newline=""
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    names = ["d.jsonl", "lines.json", "array.json", "d.csv", "d.parquet"]
    read = [read_documents(name, root=tmp_path) for name in names]
    assert [[(d.id, d.text) for d in documents] for documents in read] == [[(r["id"], r["text"]) for r in rows]] * 5
    assert len({documents.fingerprint for documents in read}) == 1


def test_a_hub_data_set_is_read_by_name_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "notes").mkdir()
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "notes" / "test.parquet")
    documents = read_documents(DocumentSource(path=str(tmp_path / "notes"), format="hub", split="test"))
    assert [(d.id, d.text) for d in documents] == [("notes-1", "one"), ("notes-2", "two")]


def test_a_text_file_is_one_document_or_its_lines_or_its_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"I\r\n\r\n  It was cold.\r\nVery cold.\r\n \r\n\r\nThe end. \n")
    whole = read_documents(path)
    assert [(d.id, d.text) for d in whole] == [("book", path.read_bytes().decode())]
    paragraphs = read_documents(DocumentSource(path=str(path), per="paragraph"))
    assert [(d.id, d.text) for d in paragraphs] == [
        ("book-1", "I"),
        ("book-2", "It was cold.\r\nVery cold."),
        ("book-3", "The end."),
    ]
    assert texts(DocumentSource(path=str(path), per="line", min_characters=9)) == ["It was cold.", "Very cold."]


def test_pieces_keep_their_share_of_spans_audited_ranges_and_group(tmp_path: Path) -> None:
    row = {"id": "x", "prompt": "Hi Ann.\n\nAsk ", "completion": "Bob\n\nor Eve", "group": "p"}
    row["spans"] = [{"start": 3, "end": 6}, {"start": 13, "end": 21}]
    path = write_lines(tmp_path / "d.jsonl", row)
    first, second = read_documents(DocumentSource(path=str(path), per="paragraph"))
    assert (first.id, first.text, covered(first), first.spans) == ("x-2", "Ask Bob", ["Bob"], (Span(4, 7),))
    assert (second.id, second.text, covered(second), second.spans) == ("x-3", "or Eve", ["or Eve"], (Span(0, 3),))
    assert first.group == second.group == "p"


def test_templates_join_fields_and_audit_the_completion_only(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "qa.jsonl", {"q": "Who?", "a": "Ann", "n": 3})
    source = DocumentSource(path=str(path), prompt="{{{n}}} Q: {q}\nA: ", completion="a", id="{file}/{row}/{n}")
    (document,) = read_documents(source)
    assert (document.id, document.text, covered(document)) == ("qa/1/3", "{3} Q: Who?\nA: Ann", ["Ann"])
    assert texts(DocumentSource(path=str(path), text="{q} {a}")) == ["Who? Ann"]


def test_where_keeps_the_rows_that_meet_every_condition(tmp_path: Path) -> None:
    rows = [{"id": f"{kind}{n}", "text": f"t{n}", "kind": kind, "n": n} for n, kind in enumerate("aabbc")]
    path = write_lines(tmp_path / "d.jsonl", *rows)

    def kept(**where: object) -> list[str]:
        return [document.id for document in read_documents(DocumentSource(path=str(path), where=where))]

    assert kept(kind="a") == ["a0", "a1"]
    assert kept(kind=["a", "c"], n={"not": 0}) == ["a1", "c4"]
    assert kept(n="3") == ["b3"]
    assert kept(id={"matches": "[13]$"}, kind={"not": ["a", "c"]}) == ["b3"]


def test_replace_rewrites_the_text_before_patterns_find_spans(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"text": r"mail [a\_b@c.org](mailto:a_b@c.org) or 555-0100"})
    source = DocumentSource(
        path=str(path),
        replace=[{"pattern": r"\[[^]]*\]\(mailto:([^)]*)\)", "with": r"\1"}],
        spans={"patterns": {"email": r"\S+@\S+", "phone": r"or (\d{3}-\d{4})", "nothing": "x*"}},
    )
    (document,) = read_documents(source)
    assert document.text == "mail a_b@c.org or 555-0100"
    assert [(s.label, document.text[s.start : s.end]) for s in document.spans] == [
        ("email", "a_b@c.org"),
        ("phone", "555-0100"),
    ]


def test_shuffle_and_limit_take_the_same_rows_every_time(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", *({"text": f"text {n}"} for n in range(50)))
    source = DocumentSource(path=str(path), shuffle=3, limit=10)
    assert texts(source) == texts(source)
    assert len(set(texts(source))) == 10
    assert texts(source) != texts(DocumentSource(path=str(path), limit=10))


def test_skip_leaves_out_the_first_rows_that_pass_and_their_ids_stay_free(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", *({"text": f"text {n}", "kind": "ab"[n % 2]} for n in range(10)))
    first = DocumentSource(path=str(path), limit=4)
    others = DocumentSource(path=str(path), skip=4, limit=2)
    assert [d.text for d in read_documents([first, others])] == [f"text {n}" for n in range(6)]
    assert texts(DocumentSource(path=str(path), where={"kind": "b"}, skip=3)) == ["text 7", "text 9"]
    assert sorted(
        texts(first.model_copy(update={"shuffle": 1})) + texts(DocumentSource(path=str(path), shuffle=1, skip=4))
    ) == [f"text {n}" for n in range(10)]


def test_rows_that_follow_one_another_can_be_a_group(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", *({"text": f"text {n}", "group": "all"} for n in range(5)))
    documents = read_documents(DocumentSource(path=str(path), rows_per_group=2))
    assert [d.group for d in documents] == ["d-1", "d-1", "d-2", "d-2", "d-3"]
    later = read_documents(DocumentSource(path=str(path), rows_per_group=2, skip=1, limit=2))
    assert [d.group for d in later] == ["d-1", "d-2"], "counted in the file, not in what is read of it"


def test_sets_deal_whole_groups_and_the_rest_goes_where_it_is_told(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", *({"text": f"text {n}", "group": n // 3} for n in range(60)))
    source = DocumentSource(path=str(path), sets={"forget": 3, "retain": 0.25, "holdout": "rest"}, seed=1)
    documents = read_documents(source)
    assert {name: len(documents.subset(name)) for name in SETS} == {"forget": 9, "retain": 15, "holdout": 36}
    assert len({(d.group, d.set) for d in documents}) == 20
    assert read_documents(source).fingerprint == documents.fingerprint
    assert read_documents(source.model_copy(update={"seed": 2})).fingerprint != documents.fingerprint
    partly = read_documents(DocumentSource(path=str(path), sets={"forget": 2}))
    assert [d.set for d in partly].count(None) == 54


def test_equal_texts_share_a_group_across_sources_unless_they_have_their_own(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", {"text": "same"}, {"text": "other"}, {"text": "same"})
    two = write_lines(tmp_path / "two.jsonl", {"text": "same"}, {"text": "same", "group": "mine"})
    documents = read_documents([one, DocumentSource(path=str(two), assign="holdout")])
    assert [d.group for d in documents] == ["one-1", "one-2", "one-1", "one-1", "mine"]
    assert [d.set for d in documents] == [None, None, None, "holdout", "holdout"]


# Chat


@pytest.mark.parametrize("template", [CHATML, THINKING])
def test_of_a_chat_only_what_the_assistant_wrote_is_audited_if_told_so(tmp_path: Path, template: str) -> None:
    path = write_lines(tmp_path / "chat.jsonl", {"id": "c", "messages": CHAT})
    tokenizer = chat_tokenizer(template)
    (document,) = read_documents(DocumentSource(path=str(path), audit="assistant"), tokenizer=tokenizer)
    assert document.text == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert covered(document) == ["Noted: 555-0100.", "555-0100."]
    assert document.audited[1][0] > document.text.index("Repeat it.")
    assert not document.special_tokens


def test_a_turn_that_the_template_writes_in_its_own_way_is_audited_as_it_stands(tmp_path: Path) -> None:
    upper = CHATML.replace("{{ m.content }}", "{{ m.content | upper }}")
    path = write_lines(tmp_path / "chat.jsonl", {"messages": CHAT})
    source = DocumentSource(path=str(path), audit="assistant")
    (document,) = read_documents(source, tokenizer=chat_tokenizer(upper))
    assert covered(document) == ["NOTED: 555-0100.", "555-0100."]


def test_spans_of_a_chat_are_found_by_patterns(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "chat.jsonl", {"messages": CHAT, "spans": [{"start": 0, "end": 3}]})
    source = DocumentSource(path=str(path), spans={"patterns": {"phone": r"555-\d{4}"}})
    (document,) = read_documents(source, tokenizer=chat_tokenizer(CHATML))
    assert [document.text[s.start : s.end] for s in document.spans] == ["555-0100"] * 3
    with pytest.raises(
        MitigateError, match=r"chat.jsonl:1: spans: offsets do not fit a text that is rewritten or rend"
    ):
        read_documents(path, tokenizer=chat_tokenizer(CHATML))


HIDING = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}{{ messages | length }}"
REFUSING = "{{ raise_exception('roles must alternate') }}"


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, CHAT, "the tokenizer has no chat template"),
        (REFUSING, CHAT, r"the chat template refuses them \(roles must alternate\)"),
        (HIDING, CHAT, "message 1: the chat template leaves this turn out"),
        (CHATML, [], "not a list of objects with role and content"),
        (CHATML, ["hi"], "message 1: not an object with a role"),
        (CHATML, [{"role": "user", "content": [{"type": "image"}]}], "message 1: a part of its content is not text"),
        (CHATML, [{"role": "user", "content": 7}], "message 1: its content is not text"),
    ],
)
def test_a_chat_that_cannot_be_rendered_is_refused(
    tmp_path: Path, template: str | None, messages: list, message: str
) -> None:
    path = write_lines(tmp_path / "chat.jsonl", {"messages": messages})
    with pytest.raises(MitigateError, match=r"chat.jsonl:1: .*" + message):
        read_documents(path, tokenizer=chat_tokenizer(template))


def test_a_chat_without_tokenizer_is_refused_once_for_all_rows(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "chat.jsonl", *[{"messages": CHAT}] * 30)
    with pytest.raises(MitigateError, match="chat messages need a tokenizer") as refused:
        read_documents(path)
    assert str(refused.value).count("need a tokenizer") == 1


# Bad input


BAD_ROWS = [
    ('{"text": "my secret"', "malformed JSON: Expecting ',' delimiter at column 21"),
    ("[" * 100_000, "malformed JSON: a number too long or brackets too deep"),
    ("[1, 2]", "a list, not an object with fields"),
    ('{"body": "my secret"}', "no field text, prompt and completion, or messages; set text .* of: body"),
    ('{"text": " \\n"}', "document 'd-2': the text is empty"),
    ('{"text": null}', "field 'text' is empty or not text"),
    ('{"prompt": "my secret", "completion": " "}', "the completion is empty"),
    ('{"text": "my secret", "id": "one"}', "id 'one' was given before, at d.jsonl:1; set id to a field or template"),
    ('{"text": "my secret", "set": "hold"}', "set: unknown set; the sets are forget, retain, holdout"),
    ('{"text": "my secret", "spans": [{"start": 3, "end": 10}]}', r"span \[3, 10\) is not within the text of 9 char"),
    ('{"text": "my secret", "spans": [{"start": 3, "end": 3}]}', r"span \[3, 3\) is not within"),
    ('{"text": "my secret", "spans": [{"from": 3}]}', r"whole numbers 'start' and 'end' \(its keys: from\)"),
    ('{"text": "my secret", "spans": "3-9"}', "spans: not a list of objects with start and end"),
    ('{"text": "my secret \\ud83d"}', "half of a surrogate pair at character 10"),
]


@pytest.mark.parametrize(("line", "message"), BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line_and_never_shown(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"id": "one", "text": "first"}, line, {"text": "third"})
    with pytest.raises(MitigateError, match=r"d.jsonl:2: .*" + message) as refused:
        read_documents(path)
    assert "my secret" not in str(refused.value)


def test_all_bad_rows_come_in_one_message_or_are_skipped_and_listed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"id": "one", "text": "first"}, *(line for line, _ in BAD_ROWS))
    with pytest.raises(MitigateError, match="correct them, or set on_error: skip") as refused:
        read_documents(path)
    documents = read_documents(DocumentSource(path=str(path), on_error="skip"))
    assert [document.id for document in documents] == ["one"]
    assert [line.split(": ")[0] for line in documents.skipped] == [f"d.jsonl:{2 + n}" for n in range(len(BAD_ROWS))]
    assert all(line in str(refused.value) for line in documents.skipped)
    assert "my secret" not in "".join(documents.skipped)


def test_skipping_every_row_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", "{", "}")
    with pytest.raises(MitigateError, match="no other row is left"):
        read_documents(DocumentSource(path=str(path), on_error="skip"))


def test_bytes_that_are_not_utf8_are_named_by_their_offset(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "ok"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(MitigateError, match=r"d.jsonl:2: not UTF-8 at byte 31; save the file as UTF-8"):
        read_documents(path)
    for name in ("d.txt", "d.csv", "d.json"):
        (tmp_path / name).write_bytes(b"[caf\xe9")
        with pytest.raises(MitigateError, match=rf"{name}: not UTF-8 at byte 4"):
            read_documents(tmp_path / name)


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.txt"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    for content in ("", "\n \n" if name != "d.csv" else "id,text\n"):
        (tmp_path / name).write_text(content)
        with pytest.raises(MitigateError, match=rf"{name}: the file is empty"):
            read_documents(tmp_path / name)


def test_a_missing_file_is_answered_with_the_nearest_names(tmp_path: Path) -> None:
    write_lines(tmp_path / "people_train.jsonl", {"text": "x"})
    (tmp_path / "notes.xyz").write_text("x")
    for name, message in {
        "peple_train.jsonl": "peple_train.jsonl: no such file; in that folder: people_train.jsonl",
        "nowhere/d.csv": "no such file .nor is there a folder",
        ".": "a folder, not a file; name its files: people_train.jsonl",
        "notes.xyz": "the suffix '.xyz' does not tell its format; set format to",
    }.items():
        with pytest.raises(MitigateError, match=message):
            read_documents(name, root=tmp_path)


def test_what_is_neither_file_nor_hub_data_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(MitigateError, match=r"someone/nothing: neither a file here nor, with split 'train'"):
        read_documents("someone/nothing", root=tmp_path)


def test_broken_tables_are_refused_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('id,text\n1,"two\nlines"\n2,a,b\n')
    with pytest.raises(MitigateError, match=r"d.csv:4: 3 cells under 2 columns"):
        read_documents(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text('id,text\n1,"two\n')
    with pytest.raises(MitigateError, match=r"d.csv:2: malformed CSV"):
        read_documents(tmp_path / "d.csv")
    (tmp_path / "d.parquet").write_text("no parquet")
    with pytest.raises(MitigateError, match=r"d.parquet: not a Parquet file"):
        read_documents(tmp_path / "d.parquet")
    (tmp_path / "d.json").write_text('[\n{"text": "x"},\n{]')
    with pytest.raises(MitigateError, match=r"d.json:3: malformed JSON: .* at column 2; the file must be one array"):
        read_documents(tmp_path / "d.json")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"where": {"kind": "b"}}, r"where keeps none of 3 rows \(each condition alone is met: kind by 0\)"),
        ({"where": {"sort": "a"}}, "where: no field sort; fields there: text, kind"),
        ({"text": "{kind} {body}"}, "d.jsonl:1, d.jsonl:2, d.jsonl:3: no field 'body'; fields there: text, kind"),
        ({"messages": "turns"}, "no field 'turns'"),
        ({"set": "part"}, "no field 'part'"),
        ({"spans": {"field": "marks"}}, "no field 'marks'"),
        ({"min_characters": 9}, "no document of at least 9 characters; lower min_characters"),
        ({"skip": 3}, "skip: 3 leaves no row; lower it"),
        ({"sets": {"forget": 2, "retain": 2}}, r"cannot deal 3 groups \(of 3 documents\) as forget 2, retain 2"),
        ({"sets": {"forget": 3, "holdout": "rest"}}, "every set needs one at least"),
        ({"sets": {"forget": 0.01}}, "cannot deal 3 groups"),
    ],
)
def test_keys_that_do_not_fit_the_rows_are_refused(tmp_path: Path, keys: dict, message: str) -> None:
    path = write_lines(tmp_path / "d.jsonl", *({"text": f"text {n}", "kind": "a"} for n in range(3)))
    with pytest.raises(MitigateError, match=message):
        read_documents(DocumentSource(path=str(path), **keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"txt": "body"}, "Extra inputs are not permitted"),
        ({"path": []}, "at least 1 item"),
        ({"text": "{input"}, "not a template: '{input'"),
        ({"text": "{input!r}"}, "a field is a plain name in braces"),
        ({"where": {"id": {"matches": "("}}}, "not a regular expression"),
        ({"where": {"id": {}}}, "give either matches or not"),
        ({"replace": [{"pattern": "a", "with": r"\2"}]}, "does not fit the pattern"),
        ({"prompt": "q"}, "prompt and completion go together"),
        ({"text": "a", "messages": "b"}, "give one of text, prompt"),
        ({"assign": "forget", "sets": {"retain": 1}}, "give one of set, assign, sets"),
        ({"assign": "hold"}, "'forget', 'retain' or 'holdout'"),
        ({"group": "g", "rows_per_group": 2}, "give one of group, rows_per_group"),
        ({"messages": "m", "per": "line"}, "per: line cannot cut up chat messages"),
        ({"spans": {"field": "s"}, "replace": [{"pattern": "a", "with": ""}]}, "replace would shift the offsets"),
        ({"spans": {"field": "s"}, "messages": "m"}, "do not fit rendered messages"),
        ({"sets": {"forget": 0}}, "sets.forget: 0 is neither a number of groups"),
        ({"sets": {"forget": 1.5}}, "sets.forget: 1.5 is neither"),
        ({"sets": {"forget": 0.7, "retain": 0.4}}, "add up to more than 1"),
        ({"sets": {"forget": "rest", "retain": "rest"}}, "only one of them can be the rest"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DocumentSource(**{"path": "d.jsonl", **keys})


def test_every_setting_says_what_it_is_for() -> None:
    assert all(field.description for field in DocumentSource.model_fields.values())


# Documents


def test_documents_select_by_set_and_hash_all_they_hold() -> None:
    document = Document(id="a", text="call 555", set="forget")
    documents = Documents((document, Document(id="b", text="x", set="retain"), Document(id="c", text="y")))
    assert [d.id for d in documents.subset(["retain", "forget"])] == ["a", "b"]
    assert not documents.subset("holdout")
    assert documents[1:].items == documents.items[1:]
    variants = [
        document,
        Document(id="A", text="call 555", set="forget"),
        Document(id="a", text="call 556", set="forget"),
        Document(id="a", text="call 555"),
        Document(id="a", text="call 555", set="forget", group="g"),
        Document(id="a", text="call 555", set="forget", spans=(Span(5, 8),)),
        Document(id="a", text="call 555", set="forget", audited=((5, 8),)),
        Document(id="a", text="call 555", set="forget", special_tokens=False),
        Document(id="a", text="call 555", set="forget", cut=5),
    ]
    assert len({Documents((variant,)).fingerprint for variant in variants}) == len(variants)


def test_documents_that_cannot_be_are_refused() -> None:
    one = Document(id="a", text="x")
    with pytest.raises(MitigateError, match=r"ids that are not unique: 'a' \(2 times\)"):
        Documents((one, one))
    with pytest.raises(MitigateError, match="unknown set 'test'; the sets are forget, retain, holdout"):
        Documents((one,)).subset("test")
    with pytest.raises(MitigateError, match=r"document 'a': audited range \[0, 2\) is not within the text"):
        Document(id="a", text="x", audited=((0, 2),))
    with pytest.raises(MitigateError, match="document 'a': unknown set"):
        Document(id="a", text="x", set="test")


# Real files


def test_lume_people_load_by_recipe_keys_and_their_secrets_are_those_of_lumes_questions() -> None:
    paths = [str(real(f"lume/{name}.jsonl")) for name in ("forget", "retain")]
    people = read_documents(
        DocumentSource(
            path=paths,
            text="{input} {output}",
            where={"task": "Task2", "id": {"matches": "sc1$"}},
            replace=[
                {"pattern": r"\[[^]]*\]\(mailto:([^)]*)\)", "with": r"\1"},
                {"pattern": r"\\_", "with": "_"},
            ],
            spans={"patterns": {"ssn": r"\b900-?\d\d-?\d{4}\b", "email": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"}},
            sets={"forget": 60, "retain": 140, "holdout": "rest"},
        )
    )
    assert [len(people.subset(name)) for name in SETS] == [60, 140, 300]
    assert not any("mailto:" in person.text for person in people)
    asked = {"task": "Task2", "id": {"matches": "qa[13]$"}}
    answers = {d.id: d.text for d in read_documents(DocumentSource(path=paths, text="output", where=asked))}
    right = []
    for person in people:
        for span in person.spans:
            value = person.text[span.start : span.end]
            answer = answers[person.id[:-3] + {"ssn": "qa1", "email": "qa3"}[span.label]]
            right.append(answer == (value.replace("-", "") if span.label == "ssn" else value))
    assert len(right) > 970  # a few people have no SSN in their text
    assert sum(right) == len(right) - 1  # one e-mail address differs in LUME itself


def test_tofu_loads_with_the_answer_audited() -> None:
    source = DocumentSource(
        path=str(real("tofu/forget01.json")), prompt="Question: {question}\nAnswer: ", completion="answer"
    )
    documents = read_documents(source)
    assert len(documents) == 40
    assert covered(documents[1]) == ["Author Basil Mahfouz Al-Kuwaiti is male."]


def test_presidio_spans_hold_the_values_they_are_said_to() -> None:
    path = real("presidio/synth_dataset_v2.json")
    fields = {"field": "spans", "start": "start_position", "end": "end_position", "label": "entity_type"}
    documents = read_documents(DocumentSource(path=str(path), text="full_text", spans=fields))
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len(documents) == len(rows) == 1500
    for document, row in zip(documents, rows, strict=True):
        values = {(span["entity_type"], span["entity_value"]) for span in row["spans"]}
        assert {(s.label, document.text[s.start : s.end]) for s in document.spans} == values
