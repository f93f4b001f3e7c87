"""Files that would hang, crash or mislead the reader: each is answered with what, where and remedy."""

from __future__ import annotations

import gzip
import os
import signal
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from on_disk import write_lines
from pydantic import ValidationError

import mitigate.cli.app
from mitigate.documents import DocumentSource, Request, read_documents, source_reader
from mitigate.documents.erasure import apply_request
from mitigate.errors import MitigateError
from mitigate.text import patterns

SLOW = r"(a+)+$"
LONG = "a" * 60 + "!"
ROW = b'{"text": "SECRET"}\n'


def refused(path: Path | str, **keys: object) -> str:
    """The message that reading a path is refused with; it repeats no text and says where."""
    with pytest.raises(MitigateError) as error:
        read_documents(DocumentSource(path=str(path), **keys))
    assert "SECRET" not in str(error.value)
    return str(error.value)


def _damaged_stream(content: bytes, *, at: int) -> bytes:
    return content[:at] + bytes(255 - byte for byte in content[at : at + 8]) + content[at + 8 :]


def _feather() -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.feather.write_feather(pa.table({"text": ["SECRET"] * 9}), sink, compression="uncompressed")
    return sink.getvalue().to_pybytes()


PACKED = gzip.compress(ROW * 2000)
FILES: list[tuple[str, bytes, str]] = [
    ("cut.jsonl.gz", PACKED[:-20], "damaged or cut short .*; copy or make it again"),
    ("no.jsonl.gz", ROW, "damaged or cut short"),
    ("bits.jsonl.gz", _damaged_stream(PACKED, at=20), "damaged or cut short"),
    ("no.jsonl.zst", ROW, "cannot be read .*; correct or make it again"),
    ("no.jsonl.xz", ROW, "damaged or cut short"),
    ("no.jsonl.bz2", ROW, "cannot be read"),
    ("no.arrow", ROW, "not an Arrow file, or damaged"),
    ("cut.arrow", _feather()[:-30], "not an Arrow file, or damaged"),
    ("offsets.arrow", _feather().replace(b"\x06\0\0\0\x0c\0\0\0", b"\xff\xff\xff\x7f\x0c\0\0\0"), "damaged"),
    ("no.parquet", ROW, "not a Parquet file, or damaged"),
    ("utf16.jsonl", ROW.decode().encode("utf-16"), "UTF-16 or UTF-32 .*; save the file as UTF-8"),
    ("utf16.csv", "text\nSECRET\n".encode("utf-16"), "UTF-16 or UTF-32"),
    ("utf16.txt", "SECRET".encode("utf-16-be"), "UTF-16, or no text; save the file as UTF-8"),
    ("utf32.json", "[]".encode("utf-32"), "UTF-16 or UTF-32"),
    ("binary.txt", bytes(range(256)) * 4 + bytes(1000), "no text"),
    ("twice.csv", b"text,id,text\nSECRET,1,b\n", "more than one column is named 'text'; rename them"),
    ("twice.jsonl", b'{"text": "SECRET", "text": "b"}\n', "jsonl:1: field 'text' is in an object more than once"),
    ("twice.json", b'[{"text": "SECRET", "text": "b"}]', "field 'text' is in an object more than once"),
    ("deep.jsonl", b'{"text": "SECRET", "x": ' + b"[" * 10**5 + b"}\n", "brackets too deep"),
    ("deep.json", b"[" * 10**5, "brackets too deep"),
    ("huge.jsonl", b'{"text": "SECRET", "id": ' + b"9" * 5000 + b"}\n", "a number too long"),
    ("infinite.jsonl", b'{"text": 1e999}\n', "field 'text' is empty or not text"),
    ("infinity.jsonl", b'{"text": "SECRET", "id": -Infinity}\n', "field 'id' is empty or not text"),
    ("nul.jsonl", b'{"text": "SECRET", "id": "a\\u0000b"}\n', r"id: it has the control character U\+0000"),
    ("escape.jsonl", b'{"text": "SECRET", "id": "a\\u001b[2Jb"}\n', r"id: it has the control character U\+001B"),
    ("line.jsonl", b'{"text": "SECRET", "group": "a\\nclear"}\n', r"group: it has the control character U\+000A"),
    ("label.jsonl", b'{"text": "abc", "spans": [{"start": 0, "end": 1, "label": "a\\u0085"}]}\n', r"span 1.*U\+0085"),
    ("list.jsonl", b'{"text": "SECRET", "id": [1]}\n', "field 'id' is empty or not text .it is of type list"),
    ("map.jsonl", b'{"text": "SECRET", "group": {"a": 1}}\n', "field 'group' is empty or not text .it is of type dict"),
    ("long.jsonl", b'{"text": "a", "id": "' + b"SECRET" * 200 + b'"}\n', "id: 1,200 characters, 1,000 at most"),
    ("big.jsonl", b'{"text": "' + b"a b " * 3_000_000 + b'"}\n', "12,000,000 characters.*set per: paragraph or line"),
    ("chat.jsonl", b'{"messages": "SECRET"}\n', "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[name for name, *_ in FILES])
def test_a_file_that_is_not_what_it_should_be_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MitigateError, match=rf"(?s){name}.*{message}") as error:
        read_documents(tmp_path / name)
    assert "SECRET" not in str(error.value)


def test_columns_of_one_name_are_refused_in_every_table(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "d.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "d.arrow")
    for name in ("d.parquet", "d.arrow"):
        assert "more than one column is named 'text'" in refused(tmp_path / name)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to("/dev/zero")
    (tmp_path / "round.jsonl").symlink_to("round.jsonl")
    (tmp_path / "state.json").write_text("{")
    assert "a named pipe, not a file; write its content to a file" in refused(tmp_path / "pipe.jsonl")
    assert "a device, not a file" in refused(tmp_path / "link.jsonl")
    assert "round.jsonl: cannot be looked at" in refused(tmp_path / "round.jsonl")
    assert "File name too long" in refused(tmp_path / ("x" * 300 + ".jsonl"))
    assert "a NUL character is in it" in refused("a\0b.jsonl")
    assert "no file fits this pattern" in refused(tmp_path / "*.csv")
    assert "a damaged folder of save_to_disk" in refused(tmp_path)


def test_a_line_too_long_to_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitigate.documents.rows.opening.MOST_LINE_BYTES", 1000)
    monkeypatch.setattr("mitigate.documents.rows.opening.MOST_FILE_BYTES", 1000)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * 10**6))
    assert "bomb.jsonl.gz:1: a line of more than" in refused(tmp_path / "bomb.jsonl.gz")
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"a " * 10**6))
    assert "in one piece; cut it up" in refused(tmp_path / "bomb.txt.gz")


def test_a_long_text_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_reader, "_MOST_CHARACTERS", 50)
    (tmp_path / "d.txt").write_text("\n\n".join(f"paragraph {number}" for number in range(9)))
    assert "set per: paragraph or line" in refused(tmp_path / "d.txt")
    assert len(read_documents(DocumentSource(path=str(tmp_path / "d.txt"), per="paragraph"))) == 9


# Patterns


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"spans": {"patterns": {"letters": SLOW}}}, "spans.patterns.letters"),
        ({"replace": [{"pattern": "x", "with": "y"}, {"pattern": SLOW, "with": "b"}]}, "replace, rule 2"),
        ({"where": {"text": {"matches": SLOW}}}, "where.text.matches"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_pattern_that_backtracks_without_end_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict, name: str, on_error: str
) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    path = write_lines(tmp_path / "d.jsonl", {"text": "aa"}, {"text": LONG})
    before = time.process_time()
    message = refused(path, on_error=on_error, **keys)
    assert f"d.jsonl:2: {name}: still running after 0.0506 s on a text of 61 characters" in message
    assert time.process_time() - before < 5


def test_a_pattern_of_an_erasure_request_is_stopped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    path = write_lines(tmp_path / "d.jsonl", {"text": LONG})
    with pytest.raises(MitigateError, match=r"where.text.matches: still running"):
        read_documents(path, mark=Request(where={"text": {"matches": SLOW}}).where)


def test_patterns_leave_no_timer_behind_and_work_in_other_threads(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    assert patterns.find_all("(b)|a", "abab", name="x") == [(1, 2), (3, 4)]
    assert (signal.getsignal(signal.SIGVTALRM), signal.getitimer(signal.ITIMER_VIRTUAL)) == (before, (0.0, 0.0))
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(patterns.search("b", "abc", name="x")))
    thread.start()
    thread.join()
    assert found == [True]


# Settings


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"where": {"n": float("nan")}}, "not a finite number; a missing value is null"),
        ({"where": {"n": [1, float("inf")]}}, "not a finite number"),
        ({"where": {"n": {"not": float("-inf")}}}, "not a finite number"),
        ({"skip": 2**63}, "less than or equal to 9223372036854775807"),
        ({"limit": 10**30}, "less than or equal to 9223372036854775807"),
        ({"sets": {"forget": float("nan")}}, "neither a number of groups"),
        ({"sets": {"forget": float("inf")}}, "neither a number of groups"),
    ],
)
def test_numbers_that_are_none_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DocumentSource(path="d.jsonl", **keys)


def test_large_numbers_are_just_large(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"text": "a", "id": 2**70})
    source = DocumentSource(path=str(path), limit=2**63 - 1, shuffle=10**40, seed=10**40, rows_per_group=10**30)
    assert read_documents(source)[0].id == str(2**70)
    assert "skip: 9223372036854775807 leaves no row" in refused(path, skip=2**63 - 1)


# Texts in two sets


def in_sets(tmp_path: Path, **sets: list[str]) -> list[Path]:
    return [
        write_lines(tmp_path / f"{name}.jsonl", *({"text": text, "set": name} for text in texts))
        for name, texts in sets.items()
    ]


def test_a_control_that_was_trained_on_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = in_sets(tmp_path, forget=["call  555", "x"], retain=["mail", "x"], holdout=["mail\n", "call 555", "new"])
    documents = read_documents(paths)
    assert [document.text for document in documents.subset("holdout")] == ["new"]
    assert documents.skipped == (
        "holdout-1: its text is in forget or retain, too: no never-seen control",
        "holdout-2: its text is in forget or retain, too: no never-seen control",
    )
    assert "2 documents of the set holdout are left out" in caplog.text
    assert "2 documents stand in forget and in retain with one text" in caplog.text


def test_controls_that_were_all_trained_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match=r"every document of the set holdout .* give others"):
        read_documents(in_sets(tmp_path, forget=["a"], retain=["b"], holdout=["a", "b"]))


def test_an_erasure_request_leaves_no_control_with_a_text_that_it_forgets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"id": "a", "text": "Ann"}, {"id": "b", "text": "Bob"})
    unseen = write_lines(tmp_path / "unseen.jsonl", {"id": "c", "text": "Ann"}, {"id": "d", "text": "Eve"})
    documents = read_documents([path, DocumentSource(path=str(unseen), assign="holdout")])
    assert "1 documents of the set holdout have the text of documents without a set" in caplog.text
    applied = apply_request(documents, Request(ids=["a"]))
    assert [document.id for document in applied.subset("holdout")] == ["d"]
    assert applied.skipped == ("c: its text is in forget or retain, too: no never-seen control",)


@pytest.mark.parametrize("seed", range(5))
def test_equal_texts_of_different_people_are_dealt_to_one_set(tmp_path: Path, seed: int) -> None:
    rows = [{"text": f"own {number}", "group": f"g{number}"} for number in range(12)]
    rows += [{"text": "thanks", "group": "g1"}, {"text": "thanks", "group": "g7"}, {"text": "own 7", "group": "g9"}]
    path = write_lines(tmp_path / "d.jsonl", *rows)
    documents = read_documents(DocumentSource(path=str(path), sets={"forget": 3, "holdout": "rest"}, seed=seed))
    assert len(documents) == 15
    assert len({document.set for document in documents if document.group in ("g1", "g7", "g9")}) == 1
    assert len({document.set for document in documents}) == 2
    assert not documents.skipped


def test_rows_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"text": "a"}, {"text": ""}, "{", {"body": 1})
    assert len(read_documents(DocumentSource(path=str(path), on_error="skip")).skipped) == 3
    assert "3 rows left out (on_error: skip): d.jsonl:2, d.jsonl:3, d.jsonl:4" in caplog.text


def test_documents_are_not_written_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(MitigateError, match=r"there.jsonl: already there, and not written over"):
        mitigate.cli.app.documents(tmp_path / "recipe.yaml", [], out=tmp_path / "there.jsonl")
    assert (tmp_path / "there.jsonl").read_text() == "mine"
