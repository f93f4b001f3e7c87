"""Exact unlearning: text without its secrets, shards that do not know of each other, a model that never saw them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from commands import launch_two
from forgetting import QUICK, SHORT, SMALL, changed, cpu, secret_of, selecting
from killed import Killed, kill_after
from made_up import with_metadata
from on_disk import flip_a_bit
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from world import LORA, World, save_tiny_model, sentences

import mitigate.cli.app
from mitigate.adapters.trained import DIFFERENCE
from mitigate.detection.audit import audit, reaudit
from mitigate.detection.metadata import Generated
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.detection.signals.compute import token_log_probs
from mitigate.detection.spans.row import span_table
from mitigate.documents import Document, Documents, Request, Span
from mitigate.errors import MitigateError, NothingToUnlearnError
from mitigate.lab.tiny import train_tokenizer
from mitigate.models.adapters import OVERLAY_FILE
from mitigate.models.directory import mixture_members
from mitigate.models.fitting import saves
from mitigate.models.fitting.training import fine_tune
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.retraining.removals import Removal, selected_removals, training_documents, with_copies
from mitigate.retraining.retrain import Retrained, retrain
from mitigate.retraining.shards import combine_adapters, deal, shard_of
from mitigate.secrets.copies import Linked
from mitigate.secrets.redaction import fake, redact_document
from mitigate.secrets.same import comparable
from mitigate.tokens.tokenization import span_tokens, tokenize_documents
from mitigate.unlearning.trainer import unlearn
from mitigate.verification.compare import compare


@pytest.fixture(scope="module")
def leaky(world: World) -> Audit:
    """An audit of the leaky model that selects the codes of the forget set."""
    return world.audit()


@pytest.fixture
def again(world: World, tmp_path: Path) -> Callable[..., Retrained]:
    """`again(audit, redact="drop", out="name")`: a short retrain under `tmp_path`."""

    def call(audit: Audit, *, out: str = "out", **settings: Any) -> Retrained:
        settings = {"base": world.base, "lora": SMALL, "schedule": SHORT, "new_store": cpu, **settings}
        return retrain(audit, out=tmp_path / out, **settings)

    return call


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Of an adapter, or of all members of a mixture with their names before them."""
    if members := mixture_members(directory):
        return {f"{Path(one).name} {name}": value for one in members for name, value in weights(Path(one)).items()}
    return load_file(directory / "adapter_model.safetensors")


def assert_equal(one: Path, two: Path) -> None:
    """Two adapters are equal bit for bit."""
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def audit_of(world: World, documents: tuple[Document, ...]) -> Audit:
    return replace(world, documents=Documents(documents)).audit()


def by_id(documents: list[Document]) -> Documents:
    return Documents(tuple(sorted(documents, key=lambda document: document.id)))


# Redaction of text


def test_offsets_of_what_is_kept_move_with_the_text() -> None:
    """Against replacing from right to left in pieces of text, on random documents."""
    draw = Random(0)
    for number in range(200):
        words = ["".join(draw.choices("abc 12", k=draw.randint(1, 6))) for _ in range(12)]
        edges = np.cumsum([0, *map(len, words)]).tolist()
        spans = [Span(a, b, f"w{n}") for n, (a, b) in enumerate(pairwise(edges))]
        cut, kept = spans[number % 3 :: 3], [span for n, span in enumerate(spans) if n % 3 != number % 3]
        audited = ((edges[2], edges[5]), (edges[7], edges[12]))
        document = Document("d", "".join(words), audited, tuple(spans), set="retain", group="g")
        done = redact_document(document, cut, redact="placeholder")
        pieces = [f"[W{n}]" if n % 3 == number % 3 else word for n, word in enumerate(words)]
        assert done.text == "".join(pieces)
        assert [done.text[span.start : span.end] for span in done.spans] == [words[int(s.label[1:])] for s in kept]
        assert [done.text[start:end] for start, end in done.audited] == ["".join(pieces[2:5]), "".join(pieces[7:12])]
        assert (done.id, done.set, done.group) == ("d", "retain", "g")


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([Span(5, 13, "phone")], "Call [PHONE] or a@b.example, Zoë."),
        ([Span(5, 13)], "Call [REDACTED] or a@b.example, Zoë."),
        ([Span(5, 13, "api key")], "Call [API_KEY] or a@b.example, Zoë."),
        ([Span(5, 10, "phone"), Span(8, 13, "phone")], "Call [PHONE] or a@b.example, Zoë."),
        ([Span(5, 8, "area"), Span(8, 13, "area")], "Call [AREA] or a@b.example, Zoë."),
        ([Span(5, 8, "area"), Span(8, 13, "line")], "Call [AREA][LINE] or a@b.example, Zoë."),
        ([Span(5, 13, "phone"), Span(5, 8, "area")], "Call [PHONE] or a@b.example, Zoë."),
        ([Span(0, 28), Span(5, 13, "phone")], "[REDACTED] [PHONE] [REDACTED], Zoë."),
        ([Span(5, 16), Span(5, 13, "phone")], "Call [PHONE] [REDACTED] a@b.example, Zoë."),
        ([Span(13, 14)], "Call 555-0101[REDACTED]or a@b.example, Zoë."),
    ],
)
def test_labelled_spans_are_replaced_first_and_found_ones_where_text_is_left(spans: list[Span], expected: str) -> None:
    text = "Call 555-0101 or a@b.example, Zoë."
    assert redact_document(Document("d", text), spans, redact="placeholder").text == expected


def test_a_range_that_begins_or_ends_inside_a_secret_holds_the_whole_replacement() -> None:
    document = Document("d", "The code is 123456 now.", audited=((0, 15), (15, 23)), spans=(Span(15, 22, "end"),))
    done = redact_document(document, [Span(12, 18, "code")], redact="placeholder")
    assert [done.text[start:end] for start, end in done.audited] == ["The code is [CODE]", "[CODE] now."]
    assert [done.text[span.start : span.end] for span in done.spans] == ["[CODE] now"]
    same_length = redact_document(document, [Span(12, 18, "code")], redact="fake", key="k")
    assert same_length.audited == document.audited
    assert same_length.spans == document.spans


def test_a_known_span_inside_what_is_replaced_is_gone() -> None:
    document = Document("d", "The code is 123456 now.", spans=(Span(12, 18, "code"), Span(19, 22, "when")))
    assert redact_document(document, [Span(4, 18)], redact="fake", key="k").spans == (Span(19, 22, "when"),)
    in_two = redact_document(document, [Span(12, 15, "area"), Span(15, 18, "line")], redact="placeholder")
    assert in_two.text == "The code is [AREA][LINE] now."
    assert [in_two.text[span.start : span.end] for span in in_two.spans] == ["now"]


def test_spans_of_another_text_are_refused() -> None:
    with pytest.raises(MitigateError, match=r"document 'd': span \[3, 9\) is not within its text of 5 characters"):
        redact_document(Document("d", "12345"), [Span(3, 9)], redact="fake")
    with pytest.raises(MitigateError, match="'mask' does not change text"):
        redact_document(Document("d", "12345"), [Span(3, 4)], redact="mask")


# Fakes

SECRETS = ("7", "A", "555-0101", "(555) 010-1234", "ann.Lee_81@harbor.example", "9 Elm St. Apt. 4b", "sk_T3st", "Zoë-É")


def kind(character: str) -> str:
    if not character.isalnum():
        return character
    return "digit" if character.isdigit() else "upper" if character.isupper() else "lower"


@pytest.mark.parametrize("secret", SECRETS)
def test_a_fake_has_the_secrets_format_and_is_never_the_secret(secret: str) -> None:
    for number in range(300):
        made = fake(secret, f"key {number}")
        assert list(map(kind, made)) == list(map(kind, secret))
        assert comparable(made) != comparable(secret)


def test_a_secret_has_one_fake_in_all_spellings_and_another_for_another_key() -> None:
    spellings = ["(555) 010-1234", "555.010.1234", "5550101234"]
    assert len({comparable(fake(one, "key")) for one in spellings}) == 1
    assert fake("Ann LEE", "key").casefold() == fake("ann lee", "key")
    assert len({fake("555-010-1234", f"key {n}") for n in range(50)}) == 50
    assert len({fake(f"555-010-{n:04d}", "key") for n in range(50)}) == 50


def test_what_has_nothing_to_replace_becomes_a_placeholder() -> None:
    assert fake("-- 🙂", "key") == "[REDACTED]"


def test_one_secret_gets_one_fake_in_all_documents_also_inside_a_longer_found_span() -> None:
    one = redact_document(Document("a", "Ring 555-0101 now"), [Span(5, 13, "phone")], redact="fake", key="k")
    two = redact_document(
        Document("b", "Ann has 555-0101, I think"), [Span(0, 17), Span(8, 16, "phone")], redact="fake", key="k"
    )
    assert one.text[5:13] == two.text[8:16] != "555-0101"
    assert two.text[:3] != "Ann"
    assert two.text[16:] == ", I think"
    found = redact_document(Document("c", "It is 482913, right"), [Span(3, 13)], redact="fake", key="k")
    copy = redact_document(Document("d", "Use 482913"), [Span(4, 10)], redact="fake", key="k")
    assert found.text[6:12] == copy.text[4:]
    assert found.text[12:] == ", right"


# Copies


def copies_of(secret: str, texts: list[str], *, label: str = "code") -> tuple[dict[str, list[str]], Linked]:
    """What else is removed when a secret is, from its own document (`a`) and from others (`b0`, `b1`, ...)."""
    documents = Documents(
        (Document("a", f"It is {secret} here."), *(Document(f"b{n}", text) for n, text in enumerate(texts)))
    )
    removals = {"a": Removal(frozenset({Span(6, 6 + len(secret), label)}))}
    found, linked = with_copies(removals, documents, None, mask=False)  # type: ignore[arg-type]
    assert found["a"].spans == removals["a"].spans
    whole = {document.id: document.text for document in documents}
    places = {id: [whole[id][span.start : span.end] for span in sorted(one.copies)] for id, one in found.items()}
    return {id: places for id, places in places.items() if places}, linked


@pytest.mark.parametrize(
    ("secret", "text", "found"),
    [
        ("555-0101-22", "ring 555 0101 22 now", "555 0101 22"),
        ("555-0101-22", "ring (555)-010122!", "555)-010122"),
        ("555-0101-22", "ring 9555-0101-22", None),
        ("555-0101-22", "ring 555-0101-223", None),
        ("555-0101-22", "ring 555 .... 0101-22", None),
        ("Ann Keller", "said ANN-KELLER.", "ANN-KELLER"),
        ("Ann Keller", "said Ann Kellers", None),
        ("Zoë Müller", "said Zoe\u0308 Mu\u0308ller", "Zoe\u0308 Mu\u0308ller"),
        ("123456", "１２３４５６ wide", "１２３４５６"),
        ("東京都港区一丁目", "住所は東京都港区一丁目です", "東京都港区一丁目"),
        ("a.b81@c.example", "to A.B81@C.example, a.b81@c.examples", "A.B81@C.example"),
        ("12345", "again 12345", None),
    ],
)
def test_copies_are_found_however_they_are_written(secret: str, text: str, found: str | None) -> None:
    places, linked = copies_of(secret, [text])
    assert places == ({"b0": [found]} if found else {})
    assert linked.too_short == (secret == "12345")


def test_a_number_inside_a_longer_found_span_is_looked_for_by_itself() -> None:
    places, _ = copies_of("the code, it was 482913 then", ["Try 482-913!", "the code, it was"], label="")
    assert places == {"b0": ["482-913"]}


def test_what_is_selected_already_is_no_copy_but_a_second_time_in_the_document_is() -> None:
    document = Document("a", "It is 123456, yes, 123 456.")
    for spans, copies in (
        ({Span(6, 12, "x")}, {Span(19, 26, "x")}),
        ({Span(6, 12, "x"), Span(19, 23), Span(22, 26)}, set()),
    ):
        found, _ = with_copies({"a": Removal(frozenset(spans))}, Documents((document,)), None, mask=False)  # type: ignore[arg-type]
        assert found["a"].copies == copies


def test_a_copy_is_looked_for_in_documents_with_other_secrets_too() -> None:
    documents = Documents((Document("a", "It is 482913."), Document("b", "No, 777111 or 482913.")))
    removals = {"a": Removal(frozenset({Span(6, 12, "x")})), "b": Removal(frozenset({Span(4, 10, "x")}))}
    found, _ = with_copies(removals, documents, None, mask=False)  # type: ignore[arg-type]
    assert found["b"] == Removal(frozenset({Span(4, 10, "x")}), frozenset({Span(14, 20, "x")}))


def test_found_text_that_many_documents_hold_is_left_there_and_counted() -> None:
    texts = [f"Note {n}: order 20260117-x as usual" for n in range(30)]
    places, linked = copies_of("order 20260117-x", texts, label="")
    assert not places
    assert linked.too_common == 1
    places, _ = copies_of("20260117-x", texts)
    assert len(places) == 30, "a known secret is removed wherever it is"


def test_documents_that_a_secret_comes_from_do_not_make_it_common() -> None:
    number = "030-5551 234 77"
    sources = [Document(f"s{n}", f"Call {number}.", set="forget") for n in range(5)]
    documents = Documents((*sources, Document("other", f"ring {number} at noon")))
    removals = {one.id: Removal(frozenset({Span(5, 5 + len(number))})) for one in sources}
    found, linked = with_copies(removals, documents, None, mask=False)  # type: ignore[arg-type]
    assert found["other"].copies == {Span(5, 5 + len(number))}
    assert linked.too_common == 0


def test_a_found_span_has_no_label_and_the_known_secrets_in_it_keep_theirs(leaky: Audit) -> None:
    row = next(row for row in leaky.span_rows if row.source == "known" and row.doc_id == "forget-0")
    wider = replace(row, span_id=0, char_start=row.char_start - 4, source="found", selected=True)
    found = replace(leaky, spans=span_table([wider, replace(row, span_id=1, selected=False)]))
    spans = selected_removals(found, training_documents(found))["forget-0"].spans
    assert spans == {
        Span(row.char_start - 4, row.char_end),
        Span(row.char_start, row.char_end, row.label),
    }


# Shards


def test_a_documents_shard_depends_on_its_group_and_the_seed_alone() -> None:
    documents = [Document(f"d{n}", f"text {n}", group=f"g{n // 2}") for n in range(400)]
    dealt = deal(documents, {}, shards=4, seed=3)
    assert sum(len(shard.documents) for shard in dealt) == 400
    assert all(75 <= len(shard.documents) <= 125 for shard in dealt)
    for shard in dealt:
        assert all(shard_of(one.group, shards=4, seed=3) == shard.number for one in shard.documents)
    fewer = deal(list(reversed(documents[:7] + documents[8:])), {}, shards=4, seed=3)
    for before, after in zip(dealt, fewer, strict=True):
        assert [one.id for one in after.documents] == [one.id for one in before.documents if one.id != "d7"]
    assert [one.documents for one in deal(documents, {}, shards=4, seed=4)] != [one.documents for one in dealt]


def test_the_deal_is_the_same_in_every_run() -> None:
    assert [shard_of(f"g{n}", shards=4, seed=0) for n in range(8)] == [1, 2, 3, 0, 3, 3, 3, 0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_sum_of_adapters_is_the_one_that_peft_makes_in_memory(
    architecture: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_model(architecture)
    documents = Documents(tuple(Document(f"d{n}", f"Ann lost {n} things at noon.") for n in range(4)))
    parts = []
    for number in range(3):
        parts.append(tmp_path / f"part-{number}")
        settings = {"method": "lora", "lora": SMALL, "schedule": SHORT, "description": "part", "store": cpu()}
        fine_tune(base, documents[number : number + 2], out=parts[-1], seed=number, **settings)
    (tmp_path / "sum").mkdir()
    combine_adapters(parts, weight=0.4, out=tmp_path / "sum")

    ids = torch.arange(5, 25)[None]
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), parts[0], adapter_name="0")
    for number in (1, 2):
        expected.load_adapter(parts[number], adapter_name=str(number))
    expected.add_weighted_adapter(["0", "1", "2"], [0.4] * 3, "sum", combination_type="cat")
    expected.set_adapter("sum")
    with cpu().load(tmp_path / "sum").active() as module, torch.no_grad():
        torch.testing.assert_close(module(ids).logits, expected(ids).logits, rtol=0, atol=1e-5)
        plain = AutoModelForCausalLM.from_pretrained(base)(ids).logits
        assert (module(ids).logits - plain).abs().max() > 1e-3


# What the model is fitted on


def test_masked_loss_is_the_cross_entropy_of_the_tokens_that_are_not_selected(
    world: World, leaky: Audit, again: Callable[..., Retrained]
) -> None:
    """One step over all documents; a fresh adapter changes nothing, so the first loss is the base's."""
    done = again(leaky, schedule=Schedule(epochs=1, batch_size=100))
    model = AutoModelForCausalLM.from_pretrained(world.base)
    tokenizer = cpu().load(world.base).tokenizer
    total, count = 0.0, 0
    for document in world.documents.subset(["forget", "retain"]):
        encoded = tokenizer(document.text, return_offsets_mapping=True, return_tensors="pt")
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(
                model(**encoded).logits[0, :-1], encoded["input_ids"][0, 1:], reduction="none"
            )
        start, end = (document.spans[0].start, document.spans[0].end) if document.set == "forget" else (0, 0)
        kept = [t for t, (first, last) in enumerate(offsets) if t and not (first < end and last > start)]
        total += sum(float(losses[t - 1]) for t in kept)
        count += len(kept)
    [shard] = done.summary["shards"]
    assert shard["tokens"] == count
    assert shard["loss"][0] == pytest.approx(total / count, abs=1e-4)


def test_a_masked_secret_at_the_end_of_a_document_has_no_influence_at_all(
    world: World, leaky: Audit, again: Callable[..., Retrained]
) -> None:
    """What follows a masked secret reads it as context; where nothing follows, other digits give equal bits."""
    secret = secret_of(world.documents[0])
    ends = {"plain": secret, "spaced": f"{secret[:3]} {secret[3:]}"}
    texts = {name: Documents((Document("end", f"The door code of Zed is {end}"),)) for name, end in ends.items()}
    done = {name: again(leaky, out=name, documents=text) for name, text in texts.items()}
    assert [one.summary["removed"]["copies"] for one in done.values()] == [1, 1]
    assert_equal(done["plain"].directory, done["spaced"].directory)
    learned = again(leaky, out="learned", documents=texts["spaced"], copies=False)
    assert learned.summary["shards"][0]["tokens"] > done["spaced"].summary["shards"][0]["tokens"]


def test_with_dropped_documents_the_model_is_one_fine_tuned_on_the_others(
    world: World, leaky: Audit, again: Callable[..., Retrained], tmp_path: Path
) -> None:
    done = again(leaky, redact="drop", seed=7)
    settings = {"method": "lora", "lora": SMALL, "schedule": SHORT, "seed": 7, "description": "", "store": cpu()}
    fine_tune(world.base, by_id(list(world.documents.subset("retain"))), out=tmp_path / "other", **settings)
    assert_equal(done.directory, tmp_path / "other")
    assert done.summary["removed"]["documents_left_out"] == 5
    assert json.loads((done.directory / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        world.base
    )


def test_documents_to_forget_are_dropped_with_or_without_a_selected_span(
    world: World, leaky: Audit, again: Callable[..., Retrained]
) -> None:
    asked = selecting(leaky, "forget-0")
    documents = [
        {**row, "set": "forget" if row["doc_id"] == "retain-1" else row["set"]} for row in asked.documents.to_pylist()
    ]
    asked = replace(asked, documents=type(asked.documents).from_pylist(documents, schema=asked.documents.schema))
    done = again(asked, redact="drop", shards=2)
    assert done.summary["removed"]["documents_left_out"] == 2
    assert done.summary["removed"]["spans"] == 1
    kept = again(asked, redact="mask", out="mask")
    assert kept.summary["removed"]["documents_left_out"] == 0
    later = again(selecting(leaky, "forget-1"), redact="drop", shards=2)
    assert later.summary["removed"]["documents_left_out"] == 3, "and stay left out"


def test_with_placeholders_the_model_is_one_fine_tuned_on_the_text_with_them(
    world: World, leaky: Audit, again: Callable[..., Retrained], tmp_path: Path
) -> None:
    done = again(leaky, redact="placeholder")
    texts = [
        replace(document, text=document.text.replace(secret_of(document), "[CODE]"), spans=(), audited=())
        if document.set == "forget"
        else document
        for document in world.documents.subset(["forget", "retain"])
    ]
    settings = {"method": "lora", "lora": SMALL, "schedule": SHORT, "seed": 0, "description": "", "store": cpu()}
    fine_tune(world.base, by_id(texts), out=tmp_path / "other", **settings)
    assert_equal(done.directory, tmp_path / "other")


def test_copies_in_other_documents_are_removed_and_counted(
    world: World, leaky: Audit, again: Callable[..., Retrained]
) -> None:
    secret = secret_of(world.documents[0])
    text = "I know that {} opens the mill, {} it is."
    copied = Documents((Document("copy", text.format(f"{secret[:3]}-{secret[3:]}", secret)),))
    clean = Documents((Document("copy", text.format("[CODE]", "[CODE]")),))
    with_copies = again(leaky, out="a", redact="placeholder", documents=copied)
    removed = with_copies.summary["removed"]
    assert (removed["documents"], removed["spans"], removed["copies"], removed["copies_documents"]) == (6, 5, 2, 1)
    assert_equal(with_copies.directory, again(leaky, out="b", redact="placeholder", documents=clean).directory)
    left = again(leaky, out="c", redact="placeholder", documents=copied, copies=False)
    assert left.summary["removed"]["copies"] == 0
    assert left.summary["shards"][0]["fingerprint"] != with_copies.summary["shards"][0]["fingerprint"]
    dropped = again(leaky, out="d", redact="drop", documents=copied)
    assert dropped.summary["removed"]["documents_left_out"] == 6


def test_documents_that_the_audit_has_too_are_trained_on_once_and_holdout_documents_never(
    world: World, leaky: Audit, again: Callable[..., Retrained]
) -> None:
    done = again(leaky, documents=world.documents)
    assert done.summary["shards"][0]["documents"] == 10


def test_nothing_written_holds_a_secret(world: World, leaky: Audit, again: Callable[..., Retrained]) -> None:
    directory = again(leaky, redact="fake", shards=2).directory
    files = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert {"retrain.json", "plan.json", "private.json", "shard.json"} <= {path.name for path in files}
    for path in files:
        assert (path.stat().st_mode & 0o777) == 0o600, path
        assert not any(secret_of(document) in path.read_text() for document in world.documents), path


# Forgetting more, resuming


def test_forgetting_more_refits_only_the_shards_concerned_and_equals_a_fit_from_scratch(
    leaky: Audit, again: Callable[..., Retrained]
) -> None:
    first = again(selecting(leaky, "forget-0"), redact="placeholder", shards=3)
    assert first.summary["refitted"] == [0, 1, 2]
    more = again(selecting(leaky, "forget-0", "forget-1"), redact="placeholder", shards=3)
    assert more.summary["refitted"] == [shard_of("forget-1", shards=3, seed=0)]
    scratch = again(selecting(leaky, "forget-0", "forget-1"), out="new", redact="placeholder", shards=3)
    assert_equal(more.directory, scratch.directory)
    assert more.summary["shards"] == scratch.summary["shards"]


def test_what_was_removed_once_stays_removed(leaky: Audit, again: Callable[..., Retrained]) -> None:
    for redact in ("mask", "drop"):
        again(selecting(leaky, "forget-0"), out=redact, redact=redact, shards=3)
        later = again(selecting(leaky, "forget-1"), out=redact, redact=redact, shards=3)
        assert later.summary["removed"]["documents"] == 2
        both = again(selecting(leaky, "forget-0", "forget-1"), out=f"{redact}-both", redact=redact, shards=3)
        assert_equal(later.directory, both.directory)


def test_the_order_of_documents_does_not_matter(world: World, leaky: Audit, again: Callable[..., Retrained]) -> None:
    extra = [Document(f"x{n}", f"Ann left the map at noon, {n} times.") for n in range(4)]
    one = again(leaky, out="a", shards=2, documents=Documents(tuple(extra)))
    two = again(leaky, out="b", shards=2, documents=Documents(tuple(reversed(extra))))
    assert_equal(one.directory, two.directory)


def test_a_shard_is_that_of_its_documents_alone(leaky: Audit, again: Callable[..., Retrained]) -> None:
    """With another shard's document gone from the training text, this one's bits are the same."""
    extra = [Document(f"x{n}", f"Ann left the map at noon, {n} times.") for n in range(4)]
    one = again(leaky, out="a", shards=2, documents=Documents(tuple(extra)))
    gone = shard_of("x2", shards=2, seed=0)
    two = again(leaky, out="b", shards=2, documents=Documents(tuple(d for d in extra if d.id != "x2")))
    assert_equal(one.directory / f"shard-{1 - gone}", two.directory / f"shard-{1 - gone}")
    assert one.summary["shards"][gone] != two.summary["shards"][gone]


def test_an_interrupted_fit_goes_on_and_leaves_nothing_that_looks_finished(
    leaky: Audit, again: Callable[..., Retrained], tmp_path: Path
) -> None:
    calls = iter(range(100))

    def failing() -> ModelStore:
        if next(calls) == 2:  # the first looks at the base, the second fits a shard
            raise KeyboardInterrupt
        return cpu()

    earlier = again(selecting(leaky, "forget-0"), redact="drop", shards=2)
    assert (earlier.directory / "mixture.json").is_file()
    with pytest.raises(KeyboardInterrupt):
        again(leaky, redact="drop", shards=2, new_store=failing)
    assert not (tmp_path / "out" / "mixture.json").exists()
    with pytest.raises(MitigateError, match=r"retrain.json: no such file"):
        Retrained.load(tmp_path / "out")
    resumed = again(leaky, redact="drop", shards=2)
    assert len(resumed.summary["refitted"]) == 1
    assert_equal(resumed.directory, again(leaky, out="straight", redact="drop", shards=2).directory)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_shard_killed_in_its_fit_goes_on_unless_more_is_to_be_forgotten(
    leaky: Audit, again: Callable[..., Retrained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    monkeypatch.setattr(saves, "SAVE_EVERY", 0.0)
    settings = {"redact": "drop", "shards": shards, "schedule": SHORT.model_copy(update={"epochs": 9.0})}
    fewer, more = selecting(leaky, "forget-0"), selecting(leaky, "forget-0", "forget-1")
    for out, second, first in (("same", fewer, 4), ("more", more, 1)):
        with monkeypatch.context() as patched:
            kill_after(3, patched)
            with pytest.raises(Killed):
                again(fewer, out=out, **settings)
        assert len(list((tmp_path / out).glob("shard-*.partial"))) == 1
        with monkeypatch.context() as patched:
            steps = kill_after(10**6, patched)
            resumed = again(second, out=out, **settings)
        assert steps[0] == first
        assert not list(resumed.directory.glob("*.partial"))
        assert_equal(resumed.directory, again(second, out=f"{out}-straight", **settings).directory)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_same_again_fits_nothing(leaky: Audit, again: Callable[..., Retrained], shards: int) -> None:
    first = again(leaky, shards=shards)
    before = weights(first.directory)
    second = again(leaky, shards=shards)
    assert second.summary["refitted"] == []
    assert {**second.summary, "refitted": 0} == {**first.summary, "refitted": 0}
    for name, tensor in weights(second.directory).items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("shards", "file", "refitted"),
    [(1, "adapter_model.safetensors", [0]), (2, "shard-1/adapter_model.safetensors", [1]), (2, "mixture.json", [])],
)
def test_what_was_damaged_is_fitted_again_and_never_read(
    leaky: Audit, again: Callable[..., Retrained], shards: int, file: str, refitted: list[int]
) -> None:
    first = again(leaky, redact="placeholder", shards=shards)
    files = {path: path.read_bytes() for path in first.directory.rglob("*") if path.suffix == ".safetensors"}
    flip_a_bit(first.directory / file)
    with pytest.raises(MitigateError, match=rf"{Path(file).name} is not what was written"):
        cpu().check(str(first.directory))
    repaired = again(leaky, redact="placeholder", shards=shards)
    assert repaired.summary["refitted"] == refitted
    assert {path: path.read_bytes() for path in files} == files
    cpu().check(str(first.directory))

    private = json.loads((first.directory / "private.json").read_text())
    private["removed"].popitem()
    (first.directory / "private.json").write_text(json.dumps(private))
    with pytest.raises(MitigateError, match=r"private\.json: is not what was written .*restore it from a backup"):
        again(selecting(leaky, "forget-0"), redact="placeholder", shards=shards)


def test_mixture_and_sum_are_made_of_the_same_shards(leaky: Audit, again: Callable[..., Retrained]) -> None:
    done = again(leaky, shards=2)
    mixed = weights(done.directory)
    done = again(leaky, shards=2, combine="sum")
    assert done.summary["refitted"] == []
    assert not (done.directory / "mixture.json").exists()
    combined = load_file(done.directory / "adapter_model.safetensors")
    for name, tensor in combined.items():
        parts = [mixed[f"shard-{number} {name}"] for number in range(2)]
        scaled = [part * SMALL.alpha / SMALL.rank / 2 for part in parts]
        assert torch.equal(tensor, torch.cat(scaled, 1) if "lora_B" in name else torch.cat(parts))
    assert again(leaky, shards=2).summary["refitted"] == []
    assert {path.name for path in done.directory.glob("adapter*")} == set()


def test_one_shard_is_the_result_however_shards_would_be_combined(
    leaky: Audit, again: Callable[..., Retrained]
) -> None:
    done = again(leaky)
    before = weights(done.directory)
    other = again(leaky, combine="sum")
    assert other.summary["refitted"] == []
    after = weights(other.directory)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("shards", [1, 2])
def test_what_else_lies_in_the_directory_stays(leaky: Audit, again: Callable[..., Retrained], shards: int) -> None:
    done = again(selecting(leaky, "forget-0"), shards=shards)
    own = {path.name for path in done.directory.iterdir()}
    (done.directory / "notes.txt").write_text("mine")
    (done.directory / "reaudit").mkdir()
    (done.directory / "reaudit" / "audit.json").write_text("{}")
    done = again(selecting(leaky, "forget-1"), shards=shards)
    assert done.summary["refitted"]
    assert {path.name for path in done.directory.iterdir()} == {*own, "notes.txt", "reaudit"}
    assert (done.directory / "reaudit" / "audit.json").is_file()


def test_a_request_that_leaves_linked_places_leaves_copies_and_the_report_says_so(
    world: World, again: Callable[..., Retrained]
) -> None:
    first = world.documents[0]
    copy_ = Document("copy", f"Again {secret_of(first)}!", set="retain")
    documents = Documents((*world.documents, copy_))
    for linked in (True, False):
        found = audit(
            world.target,
            [world.references],
            documents=documents,
            forget=Request(ids=[first.id], linked=linked),
            detect=Detect(select="known"),
            store=cpu(),
        )
        done = again(found, redact="placeholder", out=f"linked-{linked}")
        notes = compare(found, reaudit(found, done.directory, store=cpu())).report["notes"]
        assert ("copies elsewhere were not looked for" in done.summary["exact"]) is not linked
        assert any("left as they are (linked: false)" in note for note in notes) is not linked
    done = again(found, redact="placeholder", copies=True, out="copies")
    assert done.summary["removed"]["copies"] == 1
    notes = compare(found, reaudit(found, done.directory, store=cpu())).report["notes"]
    assert not any("linked: false" in note for note in notes)


def test_a_shard_whose_documents_are_all_dropped_is_left_out(leaky: Audit, again: Callable[..., Retrained]) -> None:
    done = again(leaky, redact="drop", shards=40)
    numbers = sorted({shard_of(f"retain-{n}", shards=40, seed=0) for n in range(5)})
    assert [shard["number"] for shard in done.summary["shards"]] == numbers
    assert sorted(path.name for path in done.directory.glob("shard-*")) == sorted(f"shard-{n}" for n in numbers)
    assert mixture_members(done.directory) == [str(done.directory / f"shard-{number}") for number in numbers]
    done = again(leaky, redact="drop", shards=40, combine="sum")
    rank = json.loads((done.directory / "adapter_config.json").read_text())["r"]
    assert rank == len(numbers) * SMALL.rank


# What the model knows


@pytest.fixture(scope="module")
def oracle(world: World, leaky: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fitted as long as the leaky adapter was, with the selected codes masked."""
    out = tmp_path_factory.mktemp("oracle") / "mask"
    schedule = Schedule(epochs=80, learning_rate=1e-2, batch_size=5)
    return retrain(leaky, base=world.base, out=out, lora=LORA, schedule=schedule, seed=9, new_store=cpu).directory


def code_and_text_log_prob(model: Path, documents: Documents) -> tuple[float, float]:
    """Mean log-probability of the codes' tokens and of all others."""
    store = cpu()
    loaded = store.load(model)
    codes, others = [], []
    tokenized = tokenize_documents(documents, loaded.tokenizer)
    values = token_log_probs(loaded, tokenized)
    starts = np.cumsum([0, *(len(one.ids) for one in tokenized)])
    for document, tokens, start in zip(documents, tokenized, starts, strict=False):
        own = values[start : start + len(tokens.ids)]
        inside = span_tokens(tokens.offsets, document.spans[0].start, document.spans[0].end)
        codes.append(own[inside])
        others.append(np.delete(own, [0, *inside]))
    return float(np.concatenate(codes).mean()), float(np.concatenate(others).mean())


def test_masked_secrets_are_known_no_better_than_secrets_never_seen(world: World, oracle: Path) -> None:
    levels = {
        name: code_and_text_log_prob(oracle, world.documents.subset(name)) for name in ("forget", "holdout", "retain")
    }
    leaky_code, leaky_text = code_and_text_log_prob(world.adapter, world.documents.subset("forget"))
    assert leaky_code > -1.3, "the leaky adapter knows the codes"
    assert levels["retain"][0] > -1.3, "codes that were not selected are learned"
    assert levels["forget"][0] == pytest.approx(levels["holdout"][0], abs=0.5)
    assert levels["holdout"][0] < -2.3
    assert levels["forget"][1] == pytest.approx(leaky_text, abs=0.1), "the text around them is learned as before"


def test_the_result_loads_as_a_plain_peft_adapter(world: World, oracle: Path) -> None:
    ids = torch.arange(5, 25)[None]
    with cpu().load(oracle).active() as module, torch.no_grad():
        expected = module(ids).logits
        plain = AutoPeftModelForCausalLM.from_pretrained(oracle)(ids).logits
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-6)


def test_a_whole_model_can_be_fitted(world: World, leaky: Audit, again: Callable[..., Retrained]) -> None:
    done = again(leaky, redact="drop", method="full", schedule=Schedule(epochs=1, learning_rate=1e-3))
    model = cpu().load(done.directory)
    assert model.adapters == ()
    base = load_file(world.base / "model.safetensors")
    assert any(
        not torch.equal(base[name], tensor) for name, tensor in load_file(done.directory / "model.safetensors").items()
    )


@pytest.mark.parametrize(("shards", "combine"), [(1, "mixture"), (40, "sum"), (2, "mixture")])
def test_over_an_adapter_the_result_takes_it_in_once_and_says_what_it_rests_on(
    world: World, leaky: Audit, again: Callable[..., Retrained], shards: int, combine: str
) -> None:
    lower = world.references / "reference-0"
    done = again(leaky, base=lower, redact="drop", shards=shards, combine=combine)
    [warning] = done.summary["warnings"]
    assert "lies over an adapter" in warning
    ids, store = torch.arange(5, 25)[None], cpu()

    def said(source: Path) -> torch.Tensor:
        with store.load(source).active() as module, torch.no_grad():
            return module(ids).logits.double()

    loaded = store.load(done.directory)
    if combine == "mixture" and shards > 1:
        assert len(loaded.adapters) == 0
        members = [json.loads((Path(one) / OVERLAY_FILE).read_text()) for one in mixture_members(done.directory)]
        assert members == [{"over": [str(lower)], "adapter": DIFFERENCE}] * 2
        return
    assert len(loaded.adapters) == 1
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.base), done.directory).eval()
    with torch.no_grad():
        assert (plain(ids).logits.double() - said(done.directory)).abs().max() < 1e-3
    # what is new is less than what lies under it; with a fortieth of each of few shards, far less
    moved = [float((said(done.directory) - said(source)).abs().max()) for source in (lower, world.base)]
    assert 1e-4 < moved[0] < moved[1] / (1 if shards == 1 else 2)
    assert done.summary["exact"].startswith("exact, given")


def test_an_adapter_that_none_can_be_added_to_is_refused_as_a_base_before_anything_is_fitted(
    world: World, leaky: Audit, again: Callable[..., Retrained], tmp_path: Path
) -> None:
    base = shutil.copytree(world.adapter, tmp_path / "dora")
    config = json.loads((base / "adapter_config.json").read_text())
    (base / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(MitigateError, match=r"dora: no adapter over this one could be added to it: one is DoRA"):
        again(leaky, base=base, out="refused")
    assert not (tmp_path / "refused").exists()


def test_a_base_that_is_the_leaky_model_is_not_called_exact(
    world: World, leaky: Audit, again: Callable[..., Retrained], tmp_path: Path
) -> None:
    done = again(leaky, base=world.target)
    assert done.summary["exact"].startswith("not exact")
    assert "nothing is forgotten" in done.summary["warnings"][0]
    settings = changed(QUICK, max_steps=1)
    for number, (source, audited) in enumerate({"target": leaky, "adapter": world.audit(world.adapter)}.items()):
        made = unlearn(audited, out=tmp_path / source, settings=settings, store=cpu()).directory
        again_unlearned = unlearn(
            reaudit(audited, made, store=cpu()), out=tmp_path / f"{source}-2", settings=settings, store=cpu()
        ).directory
        for base in (made, again_unlearned):
            done = again(audited, base=base, out=f"{number}-{base.name}")
            assert done.summary["exact"].startswith("not exact"), "what unlearning made of the leaky model knows it"
    honest = again(leaky, out="honest")
    assert honest.summary["exact"].startswith("exact, given that the base never saw it")
    assert honest.summary["warnings"] == []


# Two processes

TWO = """
import sys
from mitigate.detection.record import Audit
from mitigate.detection.spans.row import span_table
from mitigate.secrets.copies import Linked
from mitigate.models.store import ModelStore
from mitigate.models.settings import Lora, Schedule
from mitigate.retraining.retrain import retrain
from mitigate.runtime import process_state

audit, base, out = sys.argv[1:]
retrain(Audit.load(audit), base=base, out=out, redact="fake", shards=3, lora=Lora(rank=4, alpha=8),
        schedule=Schedule(epochs=2, learning_rate=1e-2, batch_size=5), new_store=lambda: ModelStore(device="cpu"))
process_state().destroy_process_group()
"""


def test_two_processes_fit_the_shards_that_one_fits(
    world: World, leaky: Audit, again: Callable[..., Retrained], tmp_path: Path
) -> None:
    leaky.save(tmp_path / "audit")
    script = tmp_path / "two.py"
    script.write_text(TWO)
    launch_two(script, tmp_path / "audit", world.base, tmp_path / "two")
    two = Retrained.load(tmp_path / "two")
    assert two.summary["refitted"] == [0, 1, 2]
    key = json.loads((tmp_path / "two" / "private.json").read_text())["key"]
    (tmp_path / "one").mkdir()
    shutil.copy(tmp_path / "two" / "plan.json", tmp_path / "one" / "plan.json")
    (tmp_path / "one" / "private.json").write_text(json.dumps({"key": key, "removed": {}, "audits": []}))
    one = again(leaky, out="one", redact="fake", shards=3)
    assert one.summary["shards"] == two.summary["shards"]
    for name, tensor in weights(one.directory).items():
        torch.testing.assert_close(weights(two.directory)[name], tensor, rtol=0, atol=1e-4)


# Bad input


def test_every_wrong_setting_is_named_at_once(leaky: Audit, again: Callable[..., Retrained]) -> None:
    with pytest.raises(MitigateError) as error:
        again(leaky, redact="blank", method="dora", shards=0, combine="vote")
    assert "redact: 'blank' is not one of mask, placeholder, fake, drop" in str(error.value)
    assert "method: 'dora' is not one of lora, full" in str(error.value)
    assert "shards: 0" in str(error.value)
    assert "combine: 'vote' is not one of mixture, sum" in str(error.value)
    with pytest.raises(MitigateError, match="method: full fits a whole model, and shards are adapters"):
        again(leaky, method="full", shards=2)


def test_without_a_selected_token_there_is_nothing_to_forget(
    leaky: Audit, again: Callable[..., Retrained], tmp_path: Path
) -> None:
    with pytest.raises(NothingToUnlearnError, match="no token is selected by this audit"):
        again(selecting(leaky))
    with pytest.raises(NothingToUnlearnError, match="only in holdout documents"):
        again(selecting(leaky, "holdout-1"))
    assert not (tmp_path / "out").exists()


def test_documents_that_cannot_be_meant_are_refused(
    world: World, leaky: Audit, again: Callable[..., Retrained]
) -> None:
    with pytest.raises(MitigateError, match="'forget-0' have another text in the audit"):
        again(leaky, documents=Documents((Document("forget-0", "another text"),)))
    doubled = Documents((replace(world.documents[0], id="other"),))
    assert "and another id" in again(leaky, documents=doubled).summary["warnings"][0]
    generated = with_metadata(leaky, generated=Generated(sampling={}, prompts=0, links=(), without_text=0))
    with pytest.raises(MitigateError, match="text that the model wrote"):
        again(generated)
    only = world.documents.subset("forget").items
    with pytest.raises(MitigateError, match="no document is left to train on"):
        again(audit_of(world, only), out="dropped", redact="drop")


def test_an_audit_of_holdout_documents_alone_needs_the_training_text(
    world: World, again: Callable[..., Retrained]
) -> None:
    with pytest.raises(MitigateError, match=r"holdout documents only.*--documents"):
        again(audit_of(world, world.documents.subset("holdout").items))


def test_a_base_that_is_missing_or_of_another_tokenizer_is_refused(
    leaky: Audit, again: Callable[..., Retrained], world: World, tmp_path: Path
) -> None:
    with pytest.raises(MitigateError, match="no such directory"):
        again(leaky, base="./missing")
    tokenizer = train_tokenizer(sentences(50, seed=3), vocabulary=350)
    with pytest.raises(
        MitigateError,
        match=r"its tokenizer differs from that of the audited model .*\d+ entries of the vocabulary only in",
    ):
        again(leaky, base=save_tiny_model("llama", tokenizer, out=tmp_path / "other", seed=0))
    with pytest.raises(MitigateError, match="merge it first"):
        again(leaky, base=world.references / "reference-0", method="full")


def test_a_directory_of_something_else_or_of_other_settings_is_refused(
    leaky: Audit, again: Callable[..., Retrained], tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    with pytest.raises(MitigateError, match=r"taken: already holds something else"):
        again(leaky, out="taken")
    again(leaky)
    with pytest.raises(MitigateError, match="fitted with another redact, seed; choose another directory"):
        again(leaky, redact="drop", seed=1)


def test_a_document_that_changed_since_something_was_removed_from_it_is_refused(
    world: World, leaky: Audit, again: Callable[..., Retrained]
) -> None:
    secret = secret_of(world.documents[0])
    again(leaky, documents=Documents((Document("copy", f"Use {secret} here."),)))
    with pytest.raises(MitigateError, match="document 'copy': its text is not that of the earlier audit"):
        again(leaky, documents=Documents((Document("copy", f"Now use {secret} here."),)))


# The command line


def test_the_verb_says_what_was_removed_and_what_exact_rests_on(
    world: World,
    leaky: Audit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaky.save(tmp_path / "audit")

    def call(*more: str) -> str:
        command = ["retrain", "--audit", tmp_path / "audit", "--base", world.base, "--out", tmp_path / "out"]
        command += ["--device", "cpu", "--set", "schedule.epochs=1", "--set", "lora.rank=4", *more]
        monkeypatch.setattr(sys, "argv", ["mitigate", *map(str, command)])
        with pytest.raises(SystemExit) as stop:
            mitigate.cli.app.main()
        assert (stop.value.code or 0) == (2 if "--seed" in more else 0)
        written = capsys.readouterr()
        return written.out + written.err

    said = call("--shards", "2", "--redact", "drop")
    assert "removed: 5 selected spans and 0 copies of them in 0 documents; 5 documents left out" in said
    assert "fitted: shard 0, 1 of 2 shards" in said
    assert "exact, given that the base never saw it" in said
    assert "fitted: nothing of 2 shards" in call("--shards", "2", "--redact", "drop")
    assert "fitted with another seed" in call("--shards", "2", "--redact", "drop", "--seed", "1")
    assert len(mixture_members(tmp_path / "out")) == 2
