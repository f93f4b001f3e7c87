"""Tokenizers are compared by what changes ids, before anything is trained; a chat template beside an adapter serves."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forgetting import QUICK, changed, cpu
from peft import PeftModel
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from world import LORA, World, sentences

import mitigate.cli.app
from mitigate.detection.audit import audit, reaudit
from mitigate.detection.record import Audit
from mitigate.errors import MitigateError
from mitigate.lab.tiny import train_tokenizer
from mitigate.models.compatible import check_tokenizers
from mitigate.models.store import ModelStore
from mitigate.pipeline.run import run
from mitigate.recipe.loading import check_recipe
from mitigate.recipe.schema import Recipe
from mitigate.retraining.retrain import retrain
from mitigate.tokens.rules import rule_differences, tokenizer_fingerprint, tokenizer_rules

TEXTS = [*sentences(40, seed=7), "  two  spaces, <|x|> and Ünïcödé", ""]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
)
Change = Callable[[PreTrainedTokenizerFast], None]


def set_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATE


def pad_and_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=4)


def decode_otherwise(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()


def keep_offsets(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), backend.post_processor])


def lower_case(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def split_at_o(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("o", "isolated"), backend.pre_tokenizer])


def add_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["<|x|>"])


def strip_around_an_added_one(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens([AddedToken("door", rstrip=True)])


def end_with_a_special(tokenizer: PreTrainedTokenizerFast) -> None:
    end = tokenizer.convert_ids_to_tokens(1)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, 1)]
    )


@pytest.mark.parametrize(
    "change", [set_template, pad_and_cut, decode_otherwise, keep_offsets], ids=lambda c: c.__name__
)
def test_what_does_not_change_ids_is_not_compared(tokenizer: PreTrainedTokenizerFast, change: Change) -> None:
    other = copy.deepcopy(tokenizer)
    change(other)
    assert tokenizer_rules(other) == tokenizer_rules(tokenizer)
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(tokenizer)
    other.backend_tokenizer.no_truncation()
    other.backend_tokenizer.no_padding()
    assert [other(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lower_case, ["the normalizer"]),
        (split_at_o, ["the pre_tokenizer"]),
        (add_token, ["1 added tokens ('<|x|>')"]),
        (strip_around_an_added_one, ["1 added tokens ('door')"]),
        (end_with_a_special, ["the special tokens added to a text (ids [0, 'text'] and ['text', 1])"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_changes_ids_is_compared_and_named(
    tokenizer: PreTrainedTokenizerFast, change: Change, words: list[str]
) -> None:
    other = copy.deepcopy(tokenizer)
    change(other)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)
    assert rule_differences(tokenizer_rules(tokenizer), tokenizer_rules(other)) == words
    assert [other(text)["input_ids"] for text in TEXTS] != [tokenizer(text)["input_ids"] for text in TEXTS]


def test_another_vocabulary_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    other = train_tokenizer(sentences(50, seed=3), vocabulary=350)
    first, second = tokenizer.get_vocab(), other.get_vocab()
    told = rule_differences(tokenizer_rules(tokenizer), tokenizer_rules(other))
    shared = first.keys() & second.keys()
    counts = [len(first) - len(shared), len(second) - len(shared), sum(first[one] != second[one] for one in shared)]
    assert all(counts)
    assert [int(line.split()[0]) for line in told[:3]] == counts
    assert told[3:] == ["the merges"]


# Before anything is trained


@pytest.fixture(scope="module")
def strange(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the base with another tokenizer of as many entries."""
    out = Path(shutil.copytree(world.base, tmp_path_factory.mktemp("strange") / "strange"))
    train_tokenizer([text.upper() for text in sentences(200)], vocabulary=400).save_pretrained(out)
    return out


DIFFERS = r"strange.* differs from that of .*\d+ entries of the vocabulary only in the first.*the merges"


def test_models_of_other_tokenizers_are_told_in_one_message(world: World, strange: Path, tmp_path: Path) -> None:
    wide = Path(shutil.copytree(world.base, tmp_path / "wide"))
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**config, "vocab_size": 416}))
    others = {"base": world.base, "reference 0": strange, "oracle": wide, "reference 1": world.adapter}
    with pytest.raises(MitigateError) as told:
        check_tokenizers(world.target, others, store=cpu())
    first, second, _ = str(told.value).splitlines()
    assert first.startswith(
        f"reference 0: the tokenizer of {strange} differs from that of {world.target} (the first): "
    )
    assert second == f"oracle: {wide} predicts 416 tokens but {world.target} predicts 400"


@pytest.mark.parametrize(
    "values",
    [
        {"models": {"target": "TARGET", "base": "STRANGE"}, "references": {"count": 2}},
        {"models": {"target": "TARGET"}, "references": {"count": 0, "given": ["STRANGE"]}},
        {
            "models": {"target": "TARGET", "base": "BASE", "oracle": "STRANGE"},
            "references": {"count": 2},
        },
        {
            "models": {"target": "TARGET", "base": "STRANGE"},
            "references": {"count": 0, "given": ["BASE"]},
            "retrain": {"schedule": {}},
        },
    ],
    ids=["base", "reference", "oracle", "base of retrain"],
)
def test_a_run_refuses_another_tokenizer_before_its_first_stage(
    world: World, strange: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    text = json.dumps({"name": "early", "out": str(tmp_path / "run"), **values})
    for name, path in {"TARGET": world.target, "STRANGE": strange, "BASE": world.base}.items():
        text = text.replace(f'"{name}"', json.dumps(str(path)))
    (tmp_path / "text.jsonl").write_text('{"text": "Ann lost a letter at noon."}\n' * 4)
    data = {"documents": [{"path": str(tmp_path / "text.jsonl")}]}
    unlearned = {"unlearn": None} if "retrain" in values else {}
    with pytest.raises(MitigateError, match=DIFFERS):
        run(check_recipe({**json.loads(text), "data": data, **unlearned}))
    assert not (tmp_path / "run").exists()


def test_verbs_refuse_another_tokenizer_before_they_train(
    world: World, whole: Audit, strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_loaded(*_: Any) -> None:
        raise AssertionError("weights were loaded")

    (tmp_path / "text.jsonl").write_text('{"text": "Ann lost a letter at noon."}\n' * 4)
    monkeypatch.setattr(ModelStore, "_load_base", not_loaded)
    with pytest.raises(MitigateError, match=DIFFERS):
        audit(world.target, [strange], documents=world.documents, store=cpu())
    with pytest.raises(MitigateError, match=DIFFERS):
        retrain(whole, base=strange, out=tmp_path / "retrained", new_store=cpu)
    options = ["--base", str(strange), "--target", str(world.target), "--documents", str(tmp_path / "text.jsonl")]
    monkeypatch.setattr("sys.argv", ["mitigate", "references", *options, "--out", str(tmp_path / "references")])
    with pytest.raises(SystemExit) as stopped:
        mitigate.cli.app.main()
    assert stopped.value.code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"text.jsonl"}


# The first hour of a user with an adapter that has its own tokenizer and chat template


@pytest.fixture(scope="module")
def chats(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter with tokenizer and chat template beside it, over a base without a template; chats as JSON lines."""
    folder = tmp_path_factory.mktemp("chats")
    target = Path(shutil.copytree(world.adapter, folder / "target"))
    tokenizer = AutoTokenizer.from_pretrained(world.base)
    assert tokenizer.chat_template is None
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(target)
    rows = []
    for number, document in enumerate(world.documents):
        code = document.text[document.spans[0].start : document.spans[0].end]
        turns = [
            {"role": "user", "content": "The code?"},
            {"role": "assistant", "content": f"The door code is {code}."},
        ]
        rows.append({"id": f"chat-{number}", "set": document.set, "messages": turns})
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target, folder / "chats.jsonl"


def recipe_of(world: World, chats: tuple[Path, Path], out: Path, **changes: Any) -> Recipe:
    target, file = chats
    schedule = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 5}
    document = {"path": str(file), "messages": "messages", "spans": {"patterns": {"code": r"\d{6}"}}}
    return check_recipe(
        {
            "name": "chats",
            "out": str(out),
            "data": {"documents": [document]},
            "models": {"target": str(target), "base": str(world.base), "device": "cpu"},
            "references": {"count": 2, "schedule": schedule, "lora": LORA.model_dump()},
            "detect": {"select": "known"},
            "unlearn": changed(QUICK, max_steps=2).model_dump(),
            **changes,
        }
    )


def test_a_run_on_an_adapter_with_its_own_chat_template_predicts_what_the_saved_adapter_does(
    world: World, chats: tuple[Path, Path], tmp_path: Path
) -> None:
    comparison = run(recipe_of(world, chats, tmp_path / "run"))
    assert comparison.after is not None
    assert comparison.report["selected"]["spans"] > 0
    given = tmp_path / "run/adapter"
    assert AutoTokenizer.from_pretrained(given).chat_template == TEMPLATE
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.base), given).eval()
    first = comparison.after.tokenized()[0]
    with torch.no_grad():
        said = plain(torch.from_numpy(first.ids)[None]).logits[0].log_softmax(-1)
    rows = comparison.after.rows[first.id]
    audited = comparison.after.columns["audited"][rows].astype(bool)
    expected = torch.from_numpy(comparison.after.columns["log_prob"][rows][audited])
    own = said[torch.arange(len(first.ids) - 1), torch.from_numpy(first.ids[1:])][torch.from_numpy(audited[1:])]
    assert len(own) > 3
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-3, check_dtype=False)

    (given / "digests.json").unlink()
    (given / "tokenizer_config.json").unlink()  # an adapter without one: it reads ids as its base does
    again = reaudit(Audit.load(tmp_path / "run/audit"), given, store=cpu())
    assert again.tokens.equals(comparison.after.tokens)


def test_the_same_model_fitted_anew_keeps_the_chat_template(
    world: World, chats: tuple[Path, Path], tmp_path: Path
) -> None:
    retrained = {"retrain": {"documents": []}, "unlearn": None}
    comparison = run(recipe_of(world, chats, tmp_path / "run", **retrained))
    assert comparison.after is not None
    assert AutoTokenizer.from_pretrained(tmp_path / "run/retrained").chat_template == TEMPLATE
    assert "from_pretrained('.')" in (tmp_path / "run/retrained/README.md").read_text()


def test_an_unlearned_model_says_how_it_is_loaded(
    layered: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layered.save(tmp_path / "audit")
    out = tmp_path / "adapter"
    options = ["--audit", str(tmp_path / "audit"), "--out", str(out), "--objective", "hinge", "--device", "cpu"]
    settings = ["--set", "max_steps=1", "--set", "stop_at_control=false", "--set", "learning_rate=0.002"]
    monkeypatch.setattr("sys.argv", ["mitigate", "unlearn", *options, *settings])
    with pytest.raises(SystemExit) as stopped:
        mitigate.cli.app.main()
    assert not stopped.value.code
    printed = capsys.readouterr().out
    assert f"    model = peft.AutoPeftModelForCausalLM.from_pretrained('{out}')\n" in printed
    card = (out / "README.md").read_text()
    assert "to be loaded in the place of" in card
    assert "never together with it" in card
    assert "model = peft.AutoPeftModelForCausalLM.from_pretrained('.')" in card
    assert not any(text in card for text in layered.documents["text"].to_pylist())
