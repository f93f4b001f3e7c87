"""Whether models read token ids alike, asked before any of them is trained or run: no weights are loaded for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig

from mitigate.artifacts.files import fingerprint
from mitigate.errors import MitigateError, first_line
from mitigate.models.adapters import adapter_shapes, vocabulary_of
from mitigate.models.directory import load_tokenizer
from mitigate.tokens.rules import rule_differences, tokenizer_rules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mitigate.models.store import ModelStore

_REMEDY = (
    "take models of one family; where only added tokens differ that no document holds, save one tokenizer beside all"
)


def check_tokenizers(target: str | Path, others: Mapping[str, str | Path], *, store: ModelStore) -> None:
    """Refuse models to which token ids mean something else than to the target.

    Args:
        target: the model whose tokenizer the documents are read with.
        others: what each model is (`reference`, `oracle`, `base`) with a number where there are several -> the model.
        store: settles permissions and the base of adapters; nothing is loaded into it.

    Raises:
        MitigateError: with every model that does not fit and what differs, a line each.
    """
    rules, size = tokenizer_rules(_tokenizer(target, store)), _vocabulary(target, store)
    problems = []
    for what, source in others.items():
        if str(source) == str(target):
            continue
        if differing := rule_differences(rules, tokenizer_rules(_tokenizer(source, store))):
            words = "; ".join(differing)
            problems.append(f"{what}: the tokenizer of {source} differs from that of {target} (the first): {words}")
        elif (found := _vocabulary(source, store)) != size:
            problems.append(f"{what}: {source} predicts {found} tokens but {target} predicts {size}")
    if problems:
        raise MitigateError("\n".join([*problems, _REMEDY]))


def check_audited_tokenizer(
    tokenizer: PreTrainedTokenizerBase, audited: str, *, source: str, name: str, store: ModelStore
) -> None:
    """Refuse a model to which an audit's token ids mean something else than to the audited one.

    Args:
        tokenizer: the model's.
        audited: the fingerprint of the audited model's tokenizer.
        source: where the audited model is.
        name: the model, for the message.
        store: as for `check_tokenizers`.

    Raises:
        MitigateError: with what differs, as far as the audited model's tokenizer is still there.
    """
    rules = tokenizer_rules(tokenizer)
    if fingerprint(rules) == audited:
        return
    try:
        differing = rule_differences(tokenizer_rules(_tokenizer(source, store)), rules)
    except MitigateError:
        differing = []
    words = "; ".join(differing) or "how cannot be said, for that model's tokenizer is no longer what it was"
    raise MitigateError(
        f"{name}: its tokenizer differs from that of the audited model {source} (the first): {words}; {_REMEDY}"
    )


def _tokenizer(source: str | Path, store: ModelStore) -> PreTrainedTokenizerBase:
    store.check(str(source))
    return load_tokenizer(source, base=store.base, trust_remote_code=store.trust_remote_code)


def _vocabulary(source: str | Path, store: ModelStore) -> int:
    """Number of logits at a position: by the base's configuration, or by embeddings that an adapter brings along."""
    stack, base = store.check(str(source))
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=store.trust_remote_code)
    except (OSError, ValueError) as error:
        raise MitigateError(f"{base}: its config.json cannot be read ({first_line(error)})") from error
    size = int(config.get_text_config().vocab_size)
    for part in stack:
        embeddings, head = vocabulary_of(adapter_shapes(part))
        size = embeddings or head or size
    return size
