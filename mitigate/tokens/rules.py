"""What of a tokenizer decides which ids a text becomes, and nothing else.

Not the chat template (a rendered text is a text), nor padding, truncation, decoding, or the names of special tokens:
two tokenizers that differ in these alone give equal ids, so an audit made with one holds for the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mitigate.artifacts.files import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADDED = ("content", "single_word", "lstrip", "rstrip", "normalized")  # of an added token: how it is found in a text
_PARTS = ("normalizers", "pretokenizers", "processors")  # of a sequence of rules
_NO_EFFECT = {"trim_offsets"}  # moves offsets, not ids
_TEXT = "text"


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The rules in a form that can be compared: tokenizers with equal rules give each text equal ids.

    Of a slow tokenizer, whose rules are code, its class and vocabulary.

    Returns:
        `vocabulary`: entry -> id (with its score in a unigram model), `merges`, `model` (its kind and options),
        `normalizer`, `pre_tokenizer`, `added tokens`: id -> how it is found, `special tokens added`: the ids around a
        text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"vocabulary": tokenizer.get_vocab(), "model": type(tokenizer).__name__}
    stated = json.loads(backend.to_str())
    model = stated["model"]
    entries = model.pop("vocab")
    if isinstance(entries, list):  # unigram: the id is the place
        entries = {entry: [place, score] for place, (entry, score) in enumerate(entries)}
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.pop("merges", None) or []]
    return {
        "vocabulary": entries,
        "merges": merges,
        "model": {name: value for name, value in model.items() if not _is_off(value)},
        "normalizer": list(_flat(stated["normalizer"])),
        "pre_tokenizer": list(_flat(stated["pre_tokenizer"])),
        "added tokens": {str(one["id"]): [one[name] for name in _ADDED] for one in stated["added_tokens"]},
        "special tokens added": _around(stated["post_processor"]),
    }


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of what decides the ids of a text, see `tokenizer_rules`: not of the chat template."""
    return fingerprint(tokenizer_rules(tokenizer))


def rule_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between two tokenizers' rules, in words: how many entries, which kinds of rule."""
    found = []
    first, second = one["vocabulary"], other["vocabulary"]
    for words, count in {
        "only in the first": len(first.keys() - second.keys()),
        "only in the second": len(second.keys() - first.keys()),
        "in both with another id or score": sum(first[entry] != second[entry] for entry in first.keys() & second),
    }.items():
        if count:
            found.append(f"{count} {'entry' if count == 1 else 'entries'} of the vocabulary {words}")
    for name in dict.fromkeys((*one, *other)):
        if name == "vocabulary" or one.get(name) == other.get(name):
            continue
        if name == "added tokens":
            mine, others = one.get(name, {}), other.get(name, {})
            differing = [id for id in dict.fromkeys((*mine, *others)) if mine.get(id) != others.get(id)]
            shown = ", ".join(repr((mine.get(id) or others[id])[0]) for id in differing[:5])
            found.append(f"{len(differing)} added tokens ({shown}{', ...' if len(differing) > 5 else ''})")
        elif name == "special tokens added":
            found.append(f"the special tokens added to a text (ids {one.get(name)} and {other.get(name)})")
        else:
            found.append({"merges": "the merges", "model": "the kind of model or its options"}.get(name, f"the {name}"))
    return found


def _is_off(value: Any) -> bool:
    """Whether an option is as if it were not there: versions of the library differ in which ones they write."""
    return value is None or value is False or value == "" or (isinstance(value, float) and value == 0)


def _flat(rule: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a rule, sequences within sequences unrolled."""
    if rule is None:
        return
    if rule["type"] == "Sequence":
        for part in next(rule[name] for name in _PARTS if name in rule):
            yield from _flat(part)
        return
    yield {name: value for name, value in rule.items() if name not in _NO_EFFECT}


def _around(rule: Mapping[str, Any] | None) -> list[Any]:
    """The ids before and after a text, `text` in its place; empty where nothing is added."""
    result: list[Any] = [_TEXT]
    for step in _flat(rule):
        if step["type"] == "ByteLevel":
            continue
        if step["type"] == "TemplateProcessing":
            inner: list[Any] = []
            for piece in step["single"]:
                inner += (
                    step["special_tokens"][piece["SpecialToken"]["id"]]["ids"] if "SpecialToken" in piece else result
                )
            result = inner
        elif {"cls", "sep"} <= step.keys():  # BertProcessing, RobertaProcessing
            result = [step["cls"][1], *result, step["sep"][1]]
        else:
            result = [*result, step]
    return result if result != [_TEXT] else []
