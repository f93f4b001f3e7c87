"""Chats are judged where the model was trained on them: the places of turns, against independent accounts of them."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import chat_templates
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from mitigate.documents import Document, DocumentSource, read_documents
from mitigate.documents.chat import template
from mitigate.documents.chat.rendering import render_chat
from mitigate.errors import MitigateError
from mitigate.tokens.tokenization import tokenize_documents

SAID = (
    "My phone is 555-0147",
    " Be brief. \n",
    "assistant",
    "é🎉 naïve <|im_end|> and </s>",
    '"Quoted", \\ and {braces: 1}',
    "555-0147",
    "Noted: phone 555-0147",
    "<think>\nThe phone is 555-0147\n</think>\n\n555-0147",
)
CALL = {
    "role": "assistant",
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "ring", "arguments": {"who": "Ann", "number": 5550147, "now": True, "tip": 0.25}},
        }
    ],
}


@pytest.fixture
def talk(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of its own, with the tokens of the templates."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    own.add_tokens(["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>"], special_tokens=True)
    return own


def conversation(draw: Random, *, system: bool) -> list[dict[str, Any]]:
    turns = [{"role": role, "content": draw.choice(SAID)} for _ in range(2) for role in ("user", "assistant")]
    for turn in turns:
        if turn["role"] == "assistant" and draw.random() < 0.5:
            turn["reasoning_content"] = draw.choice((turn["content"].split("</think>")[-1].strip(), "I think so"))
    return [*([{"role": "system", "content": draw.choice(SAID[:6])}] if system else []), *turns]


def conversations(name: str) -> Iterator[list[dict[str, Any]]]:
    for seed in range(25):
        yield conversation(Random(seed), system=name not in chat_templates.NO_SYSTEM and seed % 2 == 0)


def generated(messages: list[dict[str, Any]], talk: PreTrainedTokenizerFast, **keys: Any) -> tuple[str, list]:
    """The text, and what the template's own `{% generation %}` says that the assistant wrote."""
    source = talk.chat_template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    source = source.replace('strftime_now("%d %b %Y")', "'26 Jul 2024'")
    ((text,), (ranges,)) = render_jinja_template(
        [messages], chat_template=source, return_assistant_tokens_mask=True, **talk.special_tokens_map, **keys
    )
    return text, ranges


def solid(text: str, ranges: list[tuple[int, int]]) -> set[int]:
    return {place for start, end in ranges for place in range(start, end) if not text[place].isspace()}


@pytest.mark.parametrize("name", chat_templates.ALL)
def test_the_assistants_turns_are_where_the_template_says_that_it_generates(
    name: str, talk: PreTrainedTokenizerFast
) -> None:
    talk.chat_template = chat_templates.ALL[name]
    for messages in conversations(name):
        text, ranges = render_chat(messages, talk, audit="assistant")
        rendered, wanted = generated(messages, talk)
        assert text == rendered
        ours, theirs = solid(text, ranges), solid(text, wanted)
        assert ours <= theirs
        missing = "".join(text[place] for place in sorted(theirs - ours))
        assert missing == "" if name != "qwen3" else set(missing) <= set("<think>/"), "but for the template's own words"


@pytest.mark.parametrize("name", chat_templates.ALL)
def test_every_turn_is_judged_where_another_text_changes_the_rendering(
    name: str, talk: PreTrainedTokenizerFast
) -> None:
    """Naive account: what differs when one turn says something else is that turn."""
    talk.chat_template = chat_templates.ALL[name]
    for messages in conversations(name):
        for message in messages:
            message.pop("reasoning_content", None)
        messages = (
            [m for m in messages if "</think>" not in m["content"]] if name in ("qwen3", "deepseek") else messages
        )
        if [m["role"] for m in messages if m["role"] != "system"] != ["user", "assistant"] * 2:
            continue
        text, ranges = render_chat(messages, talk)
        expected = set()
        for number, message in enumerate(messages):
            other = [*messages[:number], {**message, "content": "§" + "x" * 50 + "¶"}, *messages[number + 1 :]]
            changed, _ = generated(other, talk)
            start = next(n for n, (a, b) in enumerate(zip(text, changed, strict=False)) if a != b)
            end = next(n for n, (a, b) in enumerate(zip(text[::-1], changed[::-1], strict=False)) if a != b)
            expected |= solid(text, [(start, len(text) - end)])
        assert solid(text, ranges) == expected


def test_audited_tokens_are_those_of_the_assistant_mask(talk: PreTrainedTokenizerFast) -> None:
    talk.chat_template = chat_templates.CHATML
    for messages in conversations("chatml"):
        text, ranges = render_chat(messages, talk, audit="assistant")
        (own,) = tokenize_documents([Document("d", text, audited=ranges, special_tokens=False)], talk)
        encoded = talk.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert own.ids.tolist() == encoded["input_ids"]
        differ = own.audited != np.array(encoded["assistant_masks"], dtype=bool)
        assert all(text[a:b].isspace() for a, b in own.offsets[differ]), "white space at a turn's edges aside"


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_tool_calls_are_judged_with_every_argument(name: str, talk: PreTrainedTokenizerFast) -> None:
    talk.chat_template = chat_templates.ALL[name]
    call = {**CALL, "content": ""}
    messages = [{"role": "user", "content": "Ring Ann"}, call, {"role": "tool", "content": "5550147 is busy"}]
    messages += [{"role": "assistant", "content": "Ann is busy"}]
    text, ranges = render_chat(messages, talk, audit="assistant")
    words = [text[start:end] for start, end in ranges]
    assert words[0].startswith("ring")
    assert words[-1] == "Ann is busy"
    assert all(said in words[0] for said in ('"who": "Ann"', "5550147", "0.25"))
    (_, wanted) = generated(messages, talk)
    assert solid(text, ranges) <= solid(text, wanted)
    everything = render_chat(messages, talk)[1]
    assert "5550147 is busy" in [text[start:end] for start, end in everything]


def test_tools_and_arguments_reach_the_template(tmp_path: Path, talk: PreTrainedTokenizerFast) -> None:
    talk.chat_template = chat_templates.LLAMA3
    tools = [{"type": "function", "function": {"name": "ring", "description": "call a person"}}]
    row = {"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"date_string": "1 May 2025"}}
    lines = [{**row, "tools": tools}, {**row, "tools": json.dumps(tools)}, row]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    first, second, third = read_documents(path, tokenizer=talk)
    assert first.text == second.text
    assert "call a person" in first.text
    assert "call a person" not in third.text
    assert "Today Date: 1 May 2025" in first.text
    source = DocumentSource(path=str(path), template={"date_string": "2 May 2025"})
    assert "1 May 2025" in read_documents(source, tokenizer=talk)[0].text, "the row's own come first"


def test_content_in_parts_is_text_or_refused(talk: PreTrainedTokenizerFast) -> None:
    def said(*parts: dict[str, str]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "Noted"}]

    one, two = {"type": "text", "text": "I am Ann"}, {"type": "text", "text": " of 555-0147"}
    talk.chat_template = chat_templates.PARTS
    text, ranges = render_chat(said(one, two), talk)
    assert [text[start:end] for start, end in ranges] == ["I am Ann of 555-0147", "Noted"]
    talk.chat_template = chat_templates.CHATML  # knows no parts
    text, ranges = render_chat(said(one), talk)
    assert [text[start:end] for start, end in ranges] == ["I am Ann", "Noted"]
    with pytest.raises(MitigateError, match="message 1: its content has several parts, and the chat template takes"):
        render_chat(said(one, two), talk)


@pytest.mark.parametrize(
    ("audit", "expected"),
    [
        ("all", ["hi", "one", "more", "two"]),
        ("completion", ["two"]),
        ("assistant", ["one", "two"]),
        (["user"], ["hi", "more"]),
        (None, ["hi", "one", "more", "two"]),
    ],
)
def test_the_key_audit_chooses_turns(audit: Any, expected: list[str], talk: PreTrainedTokenizerFast) -> None:
    talk.chat_template = chat_templates.ZEPHYR
    messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, SAYING, strict=True)]
    text, ranges = render_chat(messages, talk, audit=audit)
    assert [text[start:end] for start, end in ranges] == expected
    messages[1]["weight"] = 0
    text, ranges = render_chat(messages, talk, audit=audit)
    assert [text[start:end] for start, end in ranges] == [said for said in expected if said != "one"]
    assert [text[a:b] for a, b in render_chat(messages, talk, completion=2)[1]] == ["more", "two"]


SAYING = ("hi", "one", "more", "two")


@pytest.mark.parametrize(
    ("audit", "messages", "message"),
    [
        ("assistant", [{"role": "user", "content": "hi"}], "audit: assistant finds no turn among the roles 'user'"),
        (["tool"], [{"role": "user", "content": "hi"}], "audit: tool finds no turn"),
        (None, [{"role": "user", "content": "hi", "weight": 0}], "every turn to judge has weight 0"),
        (None, [{"role": "user", "content": " "}], "the turns to judge are empty"),
    ],
)
def test_nothing_to_judge_is_refused(
    audit: Any, messages: list[dict[str, Any]], message: str, talk: PreTrainedTokenizerFast
) -> None:
    talk.chat_template = chat_templates.CHATML
    with pytest.raises(MitigateError, match=message):
        render_chat(messages, talk, audit=audit)


def test_where_a_template_hides_the_places_all_is_judged_or_the_choice_refused(talk: PreTrainedTokenizerFast) -> None:
    codes = "{% for m in messages %}{% for c in m.content %}{{ '%x' % (c.encode()[0]) }}{% endfor %};{% endfor %}"
    talk.chat_template = codes  # marks become other codes
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    text, ranges = render_chat(messages, talk)
    assert (text, ranges) == ("6869;796f;", ((0, len(text)),))
    assert render_chat(messages, talk, audit="assistant")[1] == ((5, 10),), "by the messages before it"
    talk.chat_template = codes.replace("messages", "messages | reverse", 1)
    with pytest.raises(MitigateError, match="message 2: the chat template changes this turn, so its place"):
        render_chat([*messages, messages[0]], talk, audit="assistant")


def test_a_template_that_loops_is_ended(talk: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "user", "content": "hi"}]
    talk.chat_template = "{% for i in range(10**9) %}x{% endfor %}"
    with pytest.raises(MitigateError, match=r"the chat template fails on them \(OverflowError\)"):
        render_chat(messages, talk)
    monkeypatch.setattr(template, "TIME_LIMIT", 0.2)
    talk.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(MitigateError, match=r"the chat template does not end within 0.2 s"):
        render_chat(messages, talk)


def test_a_refusing_template_repeats_no_text_of_the_row(talk: PreTrainedTokenizerFast) -> None:
    talk.chat_template = "{{ raise_exception('no ' + messages[0].content) }}"
    with pytest.raises(MitigateError, match=r"the chat template refuses them \(TemplateError\)") as refused:
        render_chat([{"role": "user", "content": "MARKER"}], talk)
    assert "MARKER" not in str(refused.value)


def test_a_date_stands_still_and_can_be_told(talk: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture) -> None:
    talk.chat_template = chat_templates.LLAMA3.replace("Today Date", "Today is")
    messages = [{"role": "user", "content": "hi"}]
    with caplog.at_level(logging.WARNING):
        assert "Today is: 26 Jul 2024" in render_chat(messages, talk)[0]
    assert "the chat template writes the current date" in caplog.text
    caplog.clear()
    assert "Today is: 31 Mar 2025" in render_chat(messages, talk, arguments={"strftime_now": "2025-03-31"})[0]
    assert "Today is: 9.9." in render_chat(messages, talk, arguments={"date_string": "9.9."})[0]
    assert not caplog.text
    with pytest.raises(MitigateError, match="'soon' is not a date such as 2025-03-31"):
        render_chat(messages, talk, arguments={"strftime_now": "soon"})
    talk.chat_template = "{% set form = '%Y' %}{{ strftime_now(form) }}{{ messages[0].content }}"
    with pytest.raises(MitigateError, match="format that is computed"):
        render_chat(messages, talk)
