"""Attack a mitigated model, each attack beside the same one on its control, and write down what held.

    evidence = prove("audit", "adapter", out="evidence")
    evidence.status

An attack's readings are kept as soon as it is done, so a verification that was cut short goes on with the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from mitigate import __version__
from mitigate.artifacts.digests import file_digest
from mitigate.artifacts.files import (
    DIGESTS,
    new_file,
    read_json,
    read_table,
    write_digests,
    write_record,
    write_table,
)
from mitigate.artifacts.plans import PLAN, planned
from mitigate.artifacts.signatures import signature_of
from mitigate.detection.audit import check_audited, load_audited
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import References
from mitigate.documents import read_documents
from mitigate.errors import MitigateError
from mitigate.models.directory import place_of
from mitigate.models.store import ModelStore
from mitigate.proof.attacks.prompts import own_prompts
from mitigate.proof.battery import read
from mitigate.proof.case import Case, make_case
from mitigate.proof.certificate import certificate
from mitigate.proof.elsewhere import left_elsewhere, left_unselected
from mitigate.proof.evidence import CERTIFICATE, EVIDENCE, READINGS, SCHEMA, Evidence
from mitigate.proof.findings import findings_of, verdict_of
from mitigate.proof.settings import ATTACKS, Proof
from mitigate.proof.subject import NotApplicableError, NotPossibleError, Subject
from mitigate.proof.utility.losses import utility_of
from mitigate.proof.utility.tasks import check_tasks, task_figures
from mitigate.runtime import library_versions, process_state

logger = logging.getLogger(__name__)
_NO_READING = {"attacks", "margin", "samples", "tasks", "task_files", "task_limit"}  # settings that change no reading


def prove(
    before: Audit | str | Path,
    mitigated: str | Path,
    *,
    out: str | Path,
    oracle: str | Path | None = None,
    judges: References | str | Path | None = None,
    settings: Proof | None = None,
    store: ModelStore | None = None,
    request: Mapping[str, str] | None = None,
    name: str = "",
    seed: int = 0,
) -> Evidence:
    """Attack a model that was made to forget, and write the evidence.

    Args:
        before: the audit of the model as it was, or its directory. Documents of the set holdout are the never-seen
            ones; references that judge are those that unlearning did not use, where the audit has eight.
        mitigated: the model under attack: a directory, or that of an adapter.
        out: directory of the evidence; readings that are in it already are kept.
        oracle (*optional*): a model trained without the documents to forget, as the control; else one of the audit's
            references is.
        judges (*optional*): references that judge in the place of the audit's, such as those of `mitigate references
            --judges`: none of them may have taught.
        settings (*optional*): which attacks, how hard.
        store (*optional*): loads the models.
        request (*optional*): what the certificate says of the request, such as its reference, date and deadline.
        name (*optional*): a title.
        seed (`int`, *optional*, defaults to 0): of what is trained and drawn.

    Raises:
        MitigateError: no never-seen documents, a model that changed since the audit, prompts that ask for nothing, or
            `out` holds something else.
    """
    out, settings, store = Path(out), settings or Proof(), store or ModelStore()
    audit = before if isinstance(before, Audit) else Audit.load(before)
    check_audited(audit.metadata.references, store=store)
    [target] = load_audited([audit.metadata.target], store=store)
    case = make_case(audit, mitigated, oracle=oracle, judges=judges, store=store)
    state = process_state()
    _check_files(case, settings)
    plan = _plan(case, audit, settings, seed)
    with planned(out, plan, state, others="evidence of other models, documents or settings"):
        tables, not_made, seconds = _read_all(case, out, settings, seed)
        findings = findings_of(tables, margin=settings.margin, samples=settings.samples)
        elsewhere = left_elsewhere(case)
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": dict(request or {}),
            "asked": _asked(case),
            "models": _models(case),
            "kept_out": case.kept_out,
            "compared": case.compared,
            "origin": _origin(case),
            "copies": _copies(case, audit),
            "findings": findings,
            "not_made": not_made,
            "elsewhere": elsewhere,
            "verdict": verdict_of(
                findings,
                kept_out=case.kept_out,
                elsewhere=elsewhere["places"],
                not_applicable=[one["attack"] for one in not_made if not one["applies"]],
            ),
            "utility": utility_of(case, target),
            "tasks": task_figures(target, case.mitigated.load(), settings, seed=seed) if state.is_main_process else [],
            "coverage": audit.metadata.coverage.written(),
            "skipped": len(audit.metadata.skipped),
            "settings": settings.model_dump(mode="json"),
            "seed": seed,
            "seconds": seconds,
            "code": __version__,
            "versions": library_versions(),
            "readings": {},
        }
        if state.is_main_process:
            record["readings"] = {attack: file_digest(out / READINGS / f"{attack}.parquet") for attack in tables}
            write_record(out / EVIDENCE, record)
            with new_file(out / CERTIFICATE) as temporary:
                temporary.write_text(certificate(record), encoding="utf-8")
            names = [EVIDENCE, CERTIFICATE, PLAN, *(f"{READINGS}/{attack}.parquet" for attack in tables)]
            signature_of(out / DIGESTS).unlink(missing_ok=True)  # of what stood here before
            write_digests(out, names)
        state.wait_for_everyone()
        return Evidence(record, tables)


def _read_all(
    case: Case, out: Path, settings: Proof, seed: int
) -> tuple[dict[str, pa.Table], list[dict[str, Any]], dict[str, float]]:
    """Each attack's readings, those that could not be made with the reason, and how long each took."""
    state = process_state()
    tables: dict[str, pa.Table] = {}
    not_made: list[dict[str, Any]] = []
    seconds = _seconds_before(out)
    for number, attack in enumerate(settings.attacks):
        path = out / READINGS / f"{attack}.parquet"
        kept = path.is_file()
        state.wait_for_everyone()  # all have looked before one writes
        if kept:
            tables[attack] = read_table(path)
            continue
        logger.info("attack %d of %d: %s", number + 1, len(settings.attacks), attack.replace("_", " "))
        started = time.monotonic()
        try:
            tables[attack] = read(case, attack, settings=settings, seed=seed)
        except NotPossibleError as reason:
            applies = not isinstance(reason, NotApplicableError)
            logger.log(logging.WARNING if applies else logging.INFO, "%s: not made: %s", attack, reason)
            not_made.append({"attack": attack, "reason": str(reason), "applies": applies})
            continue
        seconds[attack] = round(time.monotonic() - started, 1)
        if state.is_main_process:
            write_table(path, tables[attack])
        state.wait_for_everyone()
    left_out = [attack for attack in ATTACKS if attack not in settings.attacks]
    not_made += [{"attack": attack, "reason": "not asked for", "applies": True} for attack in left_out]
    return tables, not_made, seconds


def _seconds_before(out: Path) -> dict[str, float]:
    """What the readings that are kept took when they were made, as far as evidence says so."""
    try:
        return dict(read_json(out / EVIDENCE).get("seconds", {}))
    except MitigateError:  # none there, or damaged: it is written anew
        return {}


def _check_files(case: Case, settings: Proof) -> None:
    """Read the user's files before anything is spent.

    Raises:
        MitigateError: a file is missing or holds no prompts or documents; tasks that there are not.
    """
    if settings.prompts is not None:
        own_prompts(settings.prompts, case)
    if settings.plain is not None:
        read_documents(settings.plain)
    check_tasks(settings)


def _plan(case: Case, audit: Audit, settings: Proof, seed: int) -> dict[str, Any]:
    return {
        "audit": audit.fingerprint,
        "mitigated": case.mitigated.fingerprint,
        "control": case.control.fingerprint if case.control is not None else None,
        "judges": list(case.judges),
        "settings": settings.model_dump(mode="json", exclude=_NO_READING),
        "files": {path: file_digest(Path(path)) for path in (settings.prompts, settings.plain) if path is not None},
        "seed": seed,
        "code": __version__,
    }


def _asked(case: Case) -> dict[str, Any]:
    """What was to be forgotten: numbers alone."""
    forget = case.documents("forget")
    groups = list(case.before.groups.values())
    rows = [row for row in case.view.spans if case.view.is_forget(row.doc_id)]
    erasure = case.before.metadata.erasure
    return {
        "documents": len(forget),
        "people": len({groups[number] for number in forget}),
        "known_spans": sum(row.source == "known" for row in rows),
        "selected_spans": sum(row.selected for row in rows),
        "selected_tokens": int(case.view.selected.sum()),
        "unselected_values": left_unselected(case),
        "erasure": None
        if erasure is None
        else {
            "criteria": erasure.criteria,
            "documents": len(erasure.documents),
            "linked_places": len(erasure.linked),
            "linked_selected": sum(place.selected for place in erasure.linked),
        },
    }


def _models(case: Case) -> dict[str, Any]:
    audited = case.before.metadata
    return {
        "before": audited.target.fingerprint,
        "mitigated": case.mitigated.fingerprint,
        "control": case.control.fingerprint if case.control is not None else None,
        "control_is": None if case.control is None else "oracle" if case.control_is_oracle else "reference",
        "references": [one.fingerprint for one in audited.references],
        "judges": list(case.judges),
        "documents": audited.documents,
        "tokenizer": audited.tokenizer,
    }


def _origin(case: Case) -> dict[str, Any] | None:
    """How the mitigated model was made, as far as it says so."""
    if case.origin is None:
        return None
    record = case.origin.record
    keys = ("objective", "method", "scope", "steps", "stopped", "exact", "redact")
    return {"by": case.origin.by, **{key: record[key] for key in keys if key in record}}


def _copies(case: Case, audit: Audit) -> dict[str, Any]:
    """What else holds the text that was to be forgotten: fingerprints and numbers, no paths."""
    forget = set(case.documents("forget"))
    trained = audit.documents["in_references"].to_pylist()
    taught = sorted({number for place in forget for number in trained[place]})
    return {
        "model_before": audit.metadata.target.fingerprint,
        "references": [
            *(audit.metadata.references[number].fingerprint for number in taught),
            *(name for name, trained in case.judges.items() if trained),
        ],
        "mitigated_needs_model_before": _lies_over(case.mitigated, audit.metadata.target.source),
    }


def _lies_over(subject: Subject, other: str) -> bool:
    """Whether a model is made of adapters over another one, which is needed to run it."""
    stack, base = subject.store.check(subject.source)
    below, lowest = subject.store.check(other)
    if below:
        return below[-1] in stack
    return bool(stack) and place_of(base) == place_of(lowest)
