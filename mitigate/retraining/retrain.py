"""Exact unlearning: the model fitted anew from its base, on the training text without what is to be forgotten.

    result = retrain("audit", base="my-base", out="retrained", redact="placeholder", shards=4)

With shards, documents are dealt to adapters of their own, which are mixed or summed. Forgetting more later, into the
same directory, fits only the shards concerned; what was removed there once stays removed.

    out/adapter_config.json, adapter_model.safetensors   the result: a PEFT adapter (with method full a whole model)
    out/mixture.json     or this: the shards' adapters, to be loaded as one model with `ModelStore().load(out)`
    out/retrain.json     what was removed (counts only), and what the result is conditional on
    out/shard-N/         the shards' adapters, to go on from
    out/files.json       names of the result's files where they were moved here, to be removed with it
    out/plan.json        base and settings; with others another directory is needed
    out/private.json     which characters were removed, for which audits, and the key of the fakes: not to be given away
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitigate import __version__
from mitigate.adapters.card import write_card
from mitigate.artifacts.files import read_record, write_record
from mitigate.artifacts.locks import sole_worker
from mitigate.artifacts.provenance import RETRAIN_RECORD, read_made
from mitigate.artifacts.temporaries import holds_something
from mitigate.detection.record import Audit
from mitigate.documents import Documents, read_documents
from mitigate.errors import MitigateError, summarize
from mitigate.mistakes import not_one_of
from mitigate.models.directory import load_tokenizer, model_fingerprint
from mitigate.models.settings import Lora, Method, Schedule
from mitigate.models.store import ModelStore
from mitigate.retraining.base import check_addable, check_base, is_target, tokenizer_of_target
from mitigate.retraining.removals import (
    Removal,
    as_json,
    doubled_texts,
    earlier_removals,
    redacted,
    selected_removals,
    training_documents,
    with_copies,
)
from mitigate.retraining.settings import Combination, Redaction, sharding_mistake
from mitigate.retraining.shards import Fitting, deal, fit_shards
from mitigate.runtime import library_versions, process_state, together
from mitigate.secrets.copies import Linked

logger = logging.getLogger(__name__)
_PLAN, _PRIVATE = "plan.json", "private.json"
_LOST = (
    "it belongs to what says which text earlier requests removed, and without that it would be learned again: restore "
    "it from a backup, or remove the directory and retrain for every request anew"
)


@dataclass(frozen=True)
class Retrained:
    """The model that was fitted anew.

    Attributes:
        directory: PEFT adapter directory (or whole model, or mixture of shards); its path serves wherever `mitigate`
            takes a model to audit or to write with.
        summary: `exact`: what the result is and is conditional on, in words, and `is_exact`; `warnings`; `audits`: the
            fingerprints of all whose selected spans were removed; `removed`: counts; `shards`; `refitted`: the numbers
            of the shards that this call fitted; settings, fingerprints (`fingerprint`: the result's), versions.
    """

    directory: Path
    summary: dict[str, Any]

    @classmethod
    def load(cls, directory: str | Path) -> Retrained:
        """Read a finished directory.

        Raises:
            MitigateError: `retrain` did not finish there, or another version did.
        """
        return cls(Path(directory), read_made(Path(directory) / RETRAIN_RECORD))


def retrain(
    audit: Audit | str | Path,
    *,
    base: str | Path,
    out: str | Path,
    redact: str = "mask",
    documents: Documents | str | Path | None = None,
    copies: bool | None = None,
    method: str = "lora",
    lora: Lora | None = None,
    schedule: Schedule | None = None,
    shards: int = 1,
    combine: str = "mixture",
    seed: int = 0,
    new_store: Callable[[], ModelStore] = ModelStore,
) -> Retrained:
    """Fit the model anew on the training documents without the audit's selected spans.

    Training documents are the audit's (of the sets forget and retain, and of none; never holdout) and `documents`.
    Interrupted, it goes on shard by shard; under several processes each fits a share of the shards.

    Args:
        audit: the audit that selected what is to be forgotten, or its directory.
        base: the model that the target was fine-tuned from. The result is exact if it never saw what is removed.
        out: a new directory, or that of an earlier `retrain` with this base and these settings: shards whose documents
            are unchanged are kept.
        redact (`str`, *optional*, defaults to `mask`): `mask` takes no loss on the selected tokens, which are still
            read as the context of what follows them; `placeholder` and `fake` replace the selected spans' characters,
            see `redact_document`; `drop` leaves out the documents of the forget set, and whichever else hold selected
            spans. Where the model learned to expect a placeholder, a secret is less probable than if it had never been
            there, and that can be seen; with a fake it is as probable as any other string of its format.
        documents (*optional*): more text that the target was trained on; documents that the audit has count once.
        copies (`bool`, *optional*, defaults to `True`, but to `False` after an erasure request with `linked: false`):
            remove the selected spans' text wherever else it stands in the training documents as well, see
            `find_linked`; with `mask`, all tokens of these places.
        method (`str`, *optional*, defaults to `lora`): `lora`, or `full` for a whole model (one shard).
        lora, schedule (*optional*): as the target was trained, where that is known.
        shards (`int`, *optional*, defaults to 1): adapters that the documents are dealt to, by group.
        combine (`str`, *optional*, defaults to `mixture`): how shards are one model: `mixture`, or `sum` for a plain
            adapter, poor in what stands in one document alone; see `fit_shards`.
        seed (`int`, *optional*, defaults to 0): of the shards, the initialization and the order.
        new_store (*optional*): makes a store for each shard; settles device and number format.

    Raises:
        NothingToUnlearnError: no training document has a selected token.
        MitigateError: base, settings or documents that cannot be used together, or `out` holds something else.
    """
    audit = audit if isinstance(audit, Audit) else Audit.load(audit)
    out, lora, schedule = Path(out), lora or Lora(), schedule or Schedule()
    _check_choices(redact, method=method, shards=shards, combine=combine)
    store = new_store()
    store.check(str(base))
    base_print = model_fingerprint(base)
    leaky = is_target(audit, str(base), base_print, store)
    doubts = check_base(str(base), store, method=method, leaky=leaky)
    if shards == 1 or combine == "sum":
        check_addable(str(base), store, lora=lora)
    own = load_tokenizer(base, base=store.base, trust_remote_code=store.trust_remote_code)
    audit.check_tokenizer(own, name=str(base), store=store)
    tokenizer = tokenizer_of_target(audit, store) or own
    more = read_documents(documents, tokenizer=tokenizer) if isinstance(documents, str | Path) else documents
    training = training_documents(audit, more)
    if copies is None:
        copies = audit.metadata.erasure is None or audit.metadata.erasure.select_linked
    selected = selected_removals(audit, training, whole=redact == "drop")
    doubts += doubled_texts(audit, training)

    plan = {
        "base": base_print,
        "tokenizer": audit.metadata.tokenizer,
        "redact": redact,
        "method": method,
        "lora": lora.model_dump() if method == "lora" else None,
        "schedule": schedule.model_dump(),
        "shards": shards,
        "seed": seed,
    }
    state = process_state()
    with sole_worker(out, state):
        private = _open(out, plan)
        earlier = earlier_removals(private["removed"], training)
        removals = {id: earlier.get(id, Removal()) | selected.get(id, Removal()) for id in {**earlier, **selected}}
        linked = None
        if copies:
            removals, linked = with_copies(removals, training, tokenizer, mask=redact == "mask")
        texts, unscored = redacted(training, removals, tokenizer, redact=redact, key=private["key"])
        if not texts:
            raise MitigateError(
                "no document is left to train on: all hold selected text; replace it (--redact placeholder)"
            )
        for warning in doubts:
            logger.warning("%s", warning)

        removed = {**private["removed"], **as_json(removals, training)}
        audits = sorted({*private["audits"], audit.fingerprint})
        with together(state):
            if state.is_main_process:
                write_record(out / _PRIVATE, {**private, "removed": removed, "audits": audits})
        fitting = Fitting(str(base), method, lora, schedule, seed, plan, tokenizer)
        dealt = deal(texts, unscored, shards=shards, seed=seed)
        records, refitted = fit_shards(dealt, fitting=fitting, combine=combine, out=out, new_store=new_store)
        masked = sum(len(removal.tokens) for removal in removals.values())
        with together(state):
            if state.is_main_process:
                summary = {
                    "exact": _statement(redact, exact=not leaky, linked=linked),
                    "is_exact": not leaky,
                    "fingerprint": model_fingerprint(out, base=store.base),
                    "audits": audits,
                    "warnings": doubts,
                    "removed": {
                        "documents": len(removals),
                        "documents_left_out": len(training) - len(texts),
                        "spans": sum(len(removal.spans) for removal in removals.values()),
                        "copies": sum(len(removal.copies) for removal in removals.values()),
                        "copies_documents": sum(bool(removal.copies) for removal in removals.values()),
                        "too_short_to_seek": linked.too_short if linked else None,
                        "too_common_to_seek": linked.too_common if linked else None,
                        "tokens": masked if redact == "mask" else None,
                    },
                    "shards": records,
                    "combine": combine,
                    "refitted": refitted,
                    "target": audit.metadata.target.written(),
                    "base_source": str(base),
                    "plan": plan,
                    "versions": library_versions(),
                }
                how = f"Made by mitigate {__version__}: {summary['exact']}. retrain.json says more."
                write_card(out, target=audit.metadata.target.written(), how=how)
                write_record(out / RETRAIN_RECORD, summary)
    return Retrained.load(out)


def _check_choices(redact: str, *, method: str, shards: int, combine: str) -> None:
    """Refuse what no recipe checked.

    Raises:
        MitigateError: with every mistake, a line each.
    """
    choices = {"redact": (Redaction, redact), "method": (Method, method), "combine": (Combination, combine)}
    problems = [f"{name}: {wrong}" for name, (known, given) in choices.items() if (wrong := not_one_of(known, given))]
    problems += [f"shards: {shards} is not a number from 1"] if shards < 1 else []
    problems += [mistake] if (mistake := sharding_mistake(method, shards)) else []
    if problems:
        raise MitigateError("\n".join(problems))


def _open(out: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Make the directory or find it to be of this plan; returns what is private to it.

    Raises:
        MitigateError: it holds something else.
    """
    state = process_state()
    if (out / _PLAN).is_file():
        before = read_record(out / _PLAN, remedy=_LOST)
        if differing := [name for name, value in before.items() if plan.get(name) != value]:
            raise MitigateError(
                f"{out}: holds a model that was fitted with another {summarize(differing)}; choose another directory "
                "or remove it"
            )
    elif holds_something(out, but=(_PRIVATE,)):
        raise MitigateError(f"{out}: already holds something else (no {_PLAN}); choose another directory")
    state.wait_for_everyone()  # all have looked before one writes
    with together(state):
        if state.is_main_process and not (out / _PLAN).is_file():
            write_record(out / _PRIVATE, {"key": secrets.token_hex(16), "removed": {}, "audits": []})
            write_record(out / _PLAN, plan)
    private = read_record(out / _PRIVATE, remedy=_LOST)
    state.wait_for_everyone()  # all have read before one adds to it
    return private


def _statement(redact: str, *, exact: bool, linked: Linked | None) -> str:
    if not exact:
        return "not exact: the base is, or lies over, the audited model itself"
    how = {
        "mask": "no loss was taken on the removed tokens, which were read only as the context of those after them",
        "placeholder": "the removed text was replaced by placeholders before training",
        "fake": "the removed text was replaced by fakes before training",
        "drop": "the documents to forget, and all in which the audit selected text, were left out",
    }
    sought = "so was what repeats it elsewhere" if redact != "drop" else "so were those that repeat it"
    if redact == "mask":
        sought = "nor on what repeats them elsewhere"
    if linked is None:
        sought = "copies elsewhere were not looked for"
    elif unsought := linked.too_short + linked.too_common:
        sought += f", but for {unsought} strings that are too short or too common to look for"
    return f"exact, given that the base never saw it: fitted anew from the base; {how[redact]}; {sought}"
