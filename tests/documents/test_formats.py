"""Formats that trainers leave, read without a template: the text and what of it is audited, written out by hand."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import logging
import lzma
import random
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from chats import CHATML, chat_tokenizer, covered
from on_disk import write_lines
from transformers import PreTrainedTokenizerFast

from mitigate.documents import Document, DocumentSource, read_documents
from mitigate.errors import MitigateError
from mitigate.tokens.tokenization import tokenize_documents

NO_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n"
)
USER, ASSISTANT, SYSTEM = (f"<|im_start|>{role}\n" for role in ("user", "assistant", "system"))
END = "<|im_end|>\n"
ASK, ANSWER, BAD = (
    {"role": r, "content": c} for r, c in (("user", "Call?"), ("assistant", "555."), ("assistant", "No."))
)
CHAT = f"{USER}Call?{END}{ASSISTANT}555.{END}"

# (rows, text of each, what of it is audited; None: all of it)
FORMATS: dict[str, tuple[list[dict], list[str], list[list[str] | None]]] = {
    "Alpaca": (
        [
            {"instruction": "Who {is} it?", "input": "A {name}.", "output": "Ann."},
            {"instruction": "Who?", "input": "", "output": "Bob."},
            {"instruction": "Who?", "input": None, "output": "Bo"},
            {"instruction": "Who?", "output": "Eve."},
        ],
        [
            f"{WITH_INPUT}Who {{is}} it?\n\n### Input:\nA {{name}}.\n\n### Response:\nAnn.",
            f"{NO_INPUT}Who?\n\n### Response:\nBob.",
            f"{NO_INPUT}Who?\n\n### Response:\nBo",
            f"{NO_INPUT}Who?\n\n### Response:\nEve.",
        ],
        [None] * 4,
    ),
    "Alpaca with history": (
        [{"instruction": "Call", "input": "me?", "output": "555.", "system": "Hi.", "history": [["a", "b"]]}],
        [f"{SYSTEM}Hi.{END}{USER}a{END}{ASSISTANT}b{END}{USER}Call\nme?{END}{ASSISTANT}555.{END}"],
        [["Hi.", "a", "b", "Call\nme?", "555."]],
    ),
    "ShareGPT": (
        [
            {"conversations": [{"from": "human", "value": "Call?"}, {"from": "gpt", "value": "555."}]},
            {"system": "Hi.", "conversation": [{"from": "User", "value": "Call?"}, {"from": "gpt", "value": "555."}]},
        ],
        [CHAT, f"{SYSTEM}Hi.{END}{CHAT}"],
        [["Call?", "555."], ["Hi.", "Call?", "555."]],
    ),
    "OpenAI messages": ([{"messages": [ASK, ANSWER]}], [CHAT], [["Call?", "555."]]),
    "messages as JSON": (
        [
            {"messages": json.dumps([ASK, ANSWER])},
            {"conversations": json.dumps([{"from": "human", "value": "Call?"}, {"from": "gpt", "value": "555."}])},
        ],
        [CHAT, CHAT],
        [["Call?", "555."]] * 2,
    ),
    "prompt and completion": ([{"prompt": "Call ", "completion": "555."}], ["Call 555."], [["555."]]),
    "conversational prompt and completion": (
        [
            {"prompt": [ANSWER, ASK], "completion": [ANSWER]},
            {"prompt": [ASK], "completion": "555."},
            {"prompt": "Call?", "completion": [ANSWER]},
        ],
        [f"{ASSISTANT}555.{END}{CHAT}", CHAT, CHAT],
        [["555."]] * 3,
    ),
    "preference": (
        [
            {"prompt": "Call ", "chosen": "555.", "rejected": "no."},
            {"prompt": [ASK], "chosen": [ANSWER], "rejected": [BAD]},
            {"prompt": "Call?", "chosen": [ASK, ANSWER], "rejected": [ASK, BAD]},
        ],
        ["Call 555.", CHAT, CHAT],
        [["555."]] * 3,
    ),
    "preference with the prompt in both": (
        [
            {"chosen": "H: Call? A: 555.", "rejected": "H: Call? A: no."},
            {"chosen": [ASK, ANSWER], "rejected": [ASK, BAD]},
        ],
        ["H: Call? A: 555.", CHAT],
        [[" 555."], ["555."]],
    ),
    "Dolly": (
        [
            {"instruction": "Who?", "context": "", "response": "Ann.", "category": "qa"},
            {"instruction": "Who?", "context": "A name.", "response": "Ann.", "category": "qa"},
        ],
        [
            f"{NO_INPUT}Who?\n\n### Response:\nAnn.",
            f"{NO_INPUT}Who?\n\nInput:\nA name.\n\n### Response:\nAnn.",
        ],
        [None, None],
    ),
    "question and answer": (
        [{"question": "Who?", "answer": "Ann."}], ["Question: Who?\nAnswer: Ann."], [None]
    ),
    "query and response": (
        [{"query": "Call?", "response": "555."}, {"query": "Call?", "response": "555.", "history": [["a", "b"]]}],
        ["Call?\n555.", f"{USER}a{END}{ASSISTANT}b{END}{CHAT}"],
        [None, ["a", "b", "Call?", "555."]],
    ),
    "a mixture": (
        [{"text": "one", "messages": None}, {"text": None, "messages": [ASK, ANSWER]}, {"question": "q", "answer": 1}],
        ["one", CHAT, "Question: q\nAnswer: 1"],
        [None, ["Call?", "555."], None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_trainers_are_read_without_a_template(tmp_path: Path, name: str) -> None:
    rows, texts, audited = FORMATS[name]
    documents = read_documents(write_lines(tmp_path / "d.jsonl", *rows), tokenizer=chat_tokenizer(CHATML))
    assert [document.text for document in documents] == texts
    wanted = [[text] if parts is None else parts for text, parts in zip(texts, audited, strict=True)]
    assert [covered(document) for document in documents] == wanted
    # the same from a table, where each row has all columns and what a row has not is null
    nothing = dict.fromkeys(key for row in rows for key in row)
    for number, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([nothing | row]), tmp_path / f"{number}.parquet")
    again = read_documents(tmp_path / "*.parquet", tokenizer=chat_tokenizer(CHATML))
    assert [(one.text, one.audited) for one in again] == [(one.text, one.audited) for one in documents]


def test_what_was_recognised_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mitigate")
    rows = [*FORMATS["Alpaca"][0], {"text": "plain"}, {"text": "one", "question": "q", "answer": "a", "source": "web"}]
    read_documents(write_lines(tmp_path / "d.jsonl", *rows))
    assert [line.replace(str(tmp_path), "") for line in caplog.messages] == [
        "/d.jsonl: 4 rows of Alpaca (instruction, output, input), rendered as Stanford's prompt (with system or history"
        " by the chat template); audited: all of it (audit: completion for the answer alone); set text to a template "
        "to change it",
        "/d.jsonl: 1 rows of text (text), as it stands; 1 are question and answer too, and were read as text; audited: "
        "all of it; set text to a template to change it",
        "/d.jsonl: fields that are not read: question, answer, source",
    ]


def test_the_answer_alone_is_audited_where_the_source_says_so(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", *FORMATS["Alpaca"][0])
    documents = read_documents(DocumentSource(path=str(path), audit="completion"))
    assert [covered(document) for document in documents] == [["Ann."], ["Bob."], ["Bo"], ["Eve."]]


def test_a_source_key_goes_before_what_a_row_looks_like(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"instruction": "Who?", "output": "Ann.", "text": "no", "said": "yes"})
    assert read_documents(DocumentSource(path=str(path), text="said"))[0].text == "yes"
    source = DocumentSource(path=str(path), prompt="{instruction} ", completion="output")
    assert covered(read_documents(source)[0]) == ["Ann."]


JUNK = (
    *(None, True, 0, -1, 2**70, float("nan"), float("inf"), "", "x", "[", "{}", '[{"role": 1}]', [], {}, [1], [[1, 2]]),
    *(["a"], [None], [{}], {"a": 1}, [{"role": "user"}], [{"from": "human"}], [{"from": "gpt", "value": None}]),
    *([{"from": 3, "value": "a"}], [{"from": "function_call", "value": "{"}], [{"role": "user", "content": {"a": 1}}]),
)
ROLES = ("id", "group", "set", "spans", "tools", "chat_template_kwargs", "text", "rejected", "labels", "mitigate")


def test_any_row_is_read_or_refused_in_words(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [row for made, *_ in FORMATS.values() for row in made]
    fields = sorted({*ROLES, *(name for row in rows for name in row)})
    tokenizer = chat_tokenizer(CHATML)
    read = 0
    for _ in range(400):
        row = rng.choice(rows) | {rng.choice(fields): rng.choice(JUNK) for _ in range(rng.randint(1, 4))}
        try:
            read += len(read_documents(write_lines(tmp_path / "d.jsonl", row), tokenizer=tokenizer)) == 1
        except MitigateError as error:
            assert "d.jsonl:1: " in str(error)  # noqa: PT017
    assert 100 < read < 300


# Token ids


def _tokenized(tokenizer: PreTrainedTokenizerFast, text: str, trained_from: str, **keys: bool) -> dict:
    """A row as a trainer leaves it: labels −100 before a part of the text."""
    encoded = tokenizer(text, return_offsets_mapping=True, **keys)
    border = text.index(trained_from)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    return {
        "input_ids": ids,
        "labels": [id if start >= border else -100 for id, (start, _) in zip(ids, offsets, strict=True)],
    }


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("text", ["Call Ann: 555-0147 é🎉 now.", "<|endoftext|>Call Ann: 555-0147 é🎉 now."])
def test_token_ids_are_read_as_the_text_that_gives_them_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, text: str, padding: int, added: bool
) -> None:
    text = text.replace("<|endoftext|>", tokenizer.eos_token) if "<|" in text else text
    row = _tokenized(tokenizer, text, "555", add_special_tokens=added)
    length = len(row["input_ids"])
    row["attention_mask"] = [1] * length + [0] * padding
    row["input_ids"] = row["input_ids"] + [tokenizer.eos_token_id] * padding
    row["labels"] = row["labels"] + [-100] * padding
    path = write_lines(tmp_path / "d.jsonl", row)
    documents = read_documents(path, tokenizer=tokenizer)
    assert documents[0].text in (text, tokenizer.bos_token + text)
    assert covered(documents[0]) == [text[text.index("555") :]]
    (tokens,) = tokenize_documents(documents, tokenizer)
    assert tokens.ids.tolist() == row["input_ids"][:length]
    assert tokens.audited.tolist() == [label != -100 for label in row["labels"][:length]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [5, 5]}, "labels: not a list as long as input_ids"),
        ({"labels": "shifted"}, "labels: other than input_ids where they are not -100"),
        ({"labels": "none"}, "no token was trained on"),
        ({"input_ids": [10**9]}, "input_ids: not whole numbers from 0 to"),
        ({"input_ids": "cut"}, "the text that they decode to gives other ids"),
    ],
)
def test_token_ids_that_cannot_be_followed_are_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, change: dict, message: str
) -> None:
    row = _tokenized(tokenizer, "Call Ann: 555-0147 é🎉 now.", "555")
    ids = row["input_ids"]
    made = {"shifted": [*ids[1:], -100], "none": [-100] * len(ids), "cut": tokenizer.encode("🎉")[1:2] * 2}
    row |= {key: made[value] if isinstance(value, str) else value for key, value in change.items()}
    if "input_ids" in change:
        del row["labels"]
    path = write_lines(tmp_path / "d.jsonl", row)
    with pytest.raises(MitigateError, match=r"d.jsonl:1: .*" + message):
        read_documents(path, tokenizer=tokenizer)
    with pytest.raises(MitigateError, match="input_ids need the fast tokenizer that made them"):
        read_documents(path)


# Files

ROWS = [{"id": "a", "text": 'two\nlines; "é🎉"'}, {"id": "b", "text": "01841"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
BARS = 'id|text\na|"two\nlines; ""é🎉"""\nb|01841\n'.encode()
SEMICOLONS = 'id;text\r\na;"two\nlines; ""é🎉"""\r\nb;01841\r\n'


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def _stream(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _packed_in_folders(path: Path) -> None:
    for name, row in zip("01", ROWS, strict=True):
        (path.parents[1] / name).mkdir()
        (path.parents[1] / name / "x.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))


FILES = {
    "d.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "d.jsonl.zst": lambda path: path.write_bytes(_zstd(LINES)),
    "d.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "d.ndjson.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "d.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "d.csv": lambda path: path.write_text(SEMICOLONS, encoding="utf-8", newline=""),
    "sep.csv": lambda path: path.write_text("\ufeffsep=;\r\n" + SEMICOLONS, encoding="utf-8", newline=""),
    "d.csv.gz": lambda path: path.write_bytes(gzip.compress(BARS)),
    "file.arrow": lambda path: pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), path, compression="lz4"),
    "stream.arrow": lambda path: _stream(path, pa.Table.from_pylist(ROWS)),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "split": lambda path: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(path),
    "part-?.jsonl": lambda path: [
        write_lines(path.parent / f"part-{number}.jsonl", row) for number, row in enumerate(ROWS)
    ],
    "*/*.jsonl.gz": _packed_in_folders,
}


@pytest.mark.parametrize("name", FILES)
def test_one_text_reads_the_same_from_every_file(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    documents = read_documents(name, root=tmp_path)
    assert [(document.id, document.text) for document in documents] == [(row["id"], row["text"]) for row in ROWS]


def test_several_splits_of_a_saved_data_set_are_read_by_name(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("fit", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert read_documents(DocumentSource(path=str(tmp_path / "saved"), split="test"))[0].text == "test"
    with pytest.raises(MitigateError, match="no split 'train'; set split to one of: fit, test"):
        read_documents(tmp_path / "saved")


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow"])
def test_times_and_decimal_numbers_of_a_table_are_text(tmp_path: Path, name: str) -> None:
    nanoseconds = pa.array([1_614_837_906_000_000_001], pa.timestamp("ns"))
    columns = {
        "text": ["paid"],
        "at": pa.array([datetime.datetime(2021, 3, 4, 5, 6, 7)], pa.timestamp("us")),
        "fine": nanoseconds,
        "utc": pa.array([datetime.datetime(2021, 3, 4, 5, 6, 7, 250)], pa.timestamp("us", tz="UTC")),
        "day": [datetime.date(2021, 3, 4)],
        "sum": [Decimal("12.50")],
        "tiny": [Decimal("0.00000010")],
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / name) if name.endswith("parquet") else _stream(tmp_path / name, table)
    template = "{text} {at} {fine} {utc} {day} {sum} {tiny}"
    source = DocumentSource(path=str(tmp_path / name), text=template, id="{day}", group="sum", where={"sum": "12.50"})
    (document,) = read_documents(source)
    assert document.text == (
        "paid 2021-03-04 05:06:07 2021-03-04 06:05:06.000000001 2021-03-04 05:06:07.000250+00:00 2021-03-04 12.50 "
        "0.00000010"
    )
    assert (document.id, document.group) == ("2021-03-04", "12.50")


# Missing values


def _missing_jsonl(path: Path, row: dict) -> Path:
    return write_lines(path / "d.jsonl", json.dumps(row))


def _missing_parquet(path: Path, row: dict) -> Path:
    pq.write_table(pa.table({name: [value] for name, value in row.items()}), path / "d.parquet")
    return path / "d.parquet"


@pytest.mark.parametrize("write", [_missing_jsonl, _missing_parquet])
@pytest.mark.parametrize("nothing", [None, float("nan"), ""], ids=["null", "NaN", "blank"])
def test_a_missing_value_is_missing_in_every_role(tmp_path: Path, write, nothing: object) -> None:
    row = {"text": "call", "id": nothing, "group": nothing, "set": nothing, "spans": nothing, "n": nothing}

    def read(**keys: object) -> tuple[Document, ...]:
        return read_documents(DocumentSource(path=str(write(tmp_path, row)), **keys)).items

    plain = (Document(id="d-1", text="call", group="d-1"),)
    assert read() == read(id="n", group="n", set="n") == plain
    assert read(where={"n": None}) == read(where={"n": ""}) == read(where={"n": {"not": "nan"}}) == plain
    for condition in ("nan", {"matches": "nan"}, {"matches": ""}, {"not": None}):
        with pytest.raises(MitigateError, match="where keeps none of 1 rows"):
            read(where={"n": condition})
    with pytest.raises(MitigateError, match="group: field 'n' is empty"):
        read(group="{text} {n}")
    if nothing != "":
        with pytest.raises(MitigateError, match="field 'n' is empty or not text"):
            read(text="{text} {n}")
    row["text"] = nothing
    with pytest.raises(MitigateError, match="field 'text' is empty or not text"):
        read()


def test_people_without_a_group_are_no_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": f"text {number}", "group": float("nan") if number else "ann"} for number in range(3)]
    documents = read_documents(write_lines(tmp_path / "d.jsonl", *rows))
    assert [document.group for document in documents] == ["ann", "d-2", "d-3"]
    assert "2 of 3 rows have no group; each of them stands for itself" in caplog.text
