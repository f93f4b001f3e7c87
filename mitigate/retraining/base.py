"""What a model is fitted anew from: whether the leaky model lies in it, and whether an adapter may lie over it."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mitigate.adapters.addition import Part, obstacle, read_part
from mitigate.artifacts.provenance import origin_of
from mitigate.detection.record import Audit
from mitigate.errors import MitigateError
from mitigate.models.directory import load_tokenizer, mixture_members, model_fingerprint
from mitigate.models.fitting.training import lora_config
from mitigate.models.settings import Lora
from mitigate.models.store import ModelStore


def is_target(audit: Audit, base: str, base_print: str, store: ModelStore) -> bool:
    """Whether the base is, or lies over, the model that was found leaking."""
    target = audit.metadata.target
    stack, plain = store.check(base)
    parts = {Path(part).resolve() for part in (*stack, plain)}
    ancestors = {base_print}
    for part in (base, *stack, plain):  # what unlearning made of the target is its descendant, whatever lies there now
        record = origin_of(part, fingerprint=base_print if part == base else model_fingerprint(part, base=store.base))
        ancestors |= set(record.made_from if record is not None else ())
    return target.fingerprint in ancestors or Path(target.source).resolve() in parts


def tokenizer_of_target(audit: Audit, store: ModelStore) -> PreTrainedTokenizerBase | None:
    """The audited model's tokenizer, whose chat template its base may lack; None where it is no longer what it was."""
    source = audit.metadata.target.source
    try:
        store.check(source)
        tokenizer = load_tokenizer(source, base=store.base, trust_remote_code=store.trust_remote_code)
        audit.check_tokenizer(tokenizer, name=source, store=store)
    except MitigateError:
        return None
    return tokenizer


def check_base(base: str, store: ModelStore, *, method: str, leaky: bool) -> list[str]:
    """What speaks against exactness, as far as it can be seen.

    Raises:
        MitigateError: a mixture; or an adapter, where a whole model is to be trained.
    """
    if mixture_members(base):
        raise MitigateError(f"{base}: a mixture of shards; give the base that they were fitted on")
    stack, _ = store.check(base)
    if stack and method == "full":
        raise MitigateError(f"{base}: an adapter; method full trains a whole model: merge it first, or use lora")
    if leaky:
        return [f"{base}: the base is, or lies over, the audited model, which saw all of it: nothing is forgotten"]
    if stack:
        return [f"{base}: the base lies over an adapter; make sure that this never saw the training documents"]
    return []


def check_addable(base: str, store: ModelStore, *, lora: Lora) -> None:
    """Refuse adapters, before one is fitted over them, that could not become one adapter with it.

    Raises:
        MitigateError: with what stands in the way.
    """
    stack, _ = store.check(base)
    if stack and (reason := obstacle([*map(read_part, stack), Part(lora_config(lora), {})])):
        raise MitigateError(
            f"{base}: no adapter over this one could be added to it: {reason}; merge it into its base and give that "
            "model, or use several shards as a mixture"
        )
