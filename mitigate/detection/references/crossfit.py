"""Reference models: given ones, or cross-fitted on halves of the audited documents.

The owner of a fine-tuned model has its training text. Each group of documents (a person, a duplicate set) is dealt to
half of the references, at random, so that every document has OUT references from the target's own distribution. With R
references each document, member or not, is judged by R / 2: the count gives nothing away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mitigate.artifacts.files import check_digests, check_version, damage, fingerprint, read_record
from mitigate.artifacts.plans import planned
from mitigate.artifacts.temporaries import discard
from mitigate.detection.references.dealing import deal_halves, draw
from mitigate.detection.references.goals import Goals, check_goals
from mitigate.documents import Documents
from mitigate.errors import MitigateError, summarize
from mitigate.mistakes import not_one_of
from mitigate.models.directory import check_layering, is_served, model_fingerprint
from mitigate.models.fitting.training import fine_tune
from mitigate.models.settings import Lora, Method, Schedule
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state, share_of, together

logger = logging.getLogger(__name__)
INDEX = "references.json"
SCHEMA = 1  # of this index, which does not say it
_REMEDY = "run `mitigate references` (or the run that made them) again"


@dataclass(frozen=True)
class References:
    """Paths of reference models and, if they were cross-fitted, the groups each was trained on.

    `trained_on` is None for a model that is taken to have seen none of the documents.
    """

    paths: tuple[str, ...]
    trained_on: tuple[frozenset[str] | None, ...]

    @property
    def kind(self) -> str:
        """`crossfit` if any reference was trained on some of the documents, else `given`."""
        return "given" if all(groups is None for groups in self.trained_on) else "crossfit"

    @property
    def crossfitted(self) -> list[int]:
        """The references that were trained on some of the documents."""
        return [number for number, groups in enumerate(self.trained_on) if groups is not None]

    def trained_for(self, documents: Documents) -> list[tuple[int, ...]]:
        """For each document, the references that were trained on it; for a tail, on the text before the cut."""
        return [
            tuple(number for number, groups in enumerate(self.trained_on) if document.group in (groups or ()))
            for document in documents
        ]

    def out_for(self, documents: Documents) -> list[tuple[int, ...]]:
        """For each document, the references that never saw it: the same number for every document.

        A document unknown to all cross-fitted references could be judged by all of them; it gets half, drawn by a hash
        of its group, since a larger number of references would mark it as a non-member.

        Raises:
            MitigateError: a document has no OUT reference.
        """
        crossfitted = self.crossfitted
        seen = frozenset().union(*(self.trained_on[number] or frozenset() for number in crossfitted))
        given = [number for number, groups in enumerate(self.trained_on) if groups is None]
        result, without = [], []
        for document in documents:
            if document.group in seen:
                out = [number for number in crossfitted if document.group not in (self.trained_on[number] or ())]
            else:
                out = draw(crossfitted, (len(crossfitted) + 1) // 2, key=document.group)
            result.append(tuple(sorted(given + out)))
            if not result[-1]:
                without.append(document.id)
        if without:
            raise MitigateError(
                f"no OUT reference for {len(without)} documents ({summarize(without)}): every reference was trained on "
                "them; give a reference that was not, or cross-fit references with `mitigate references`"
            )
        return result


def load_references(paths: str | Path | Sequence[str | Path]) -> References:
    """Reference models from model or adapter paths, or from directories that `mitigate references` made.

    Args:
        paths: one, or several.

    Raises:
        MitigateError: the list is empty, or a cross-fitted set is damaged or not complete.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    found: list[str] = []
    trained_on: list[frozenset[str] | None] = []
    for source in map(str, paths):
        path = Path(source)
        index = path / INDEX
        if index.is_file():
            for entry in _entries(index):
                found.append(str(path / entry["directory"]))
                trained_on.append(frozenset(entry["groups"]))
                if not (path / entry["directory"]).is_dir():
                    raise MitigateError(f"{found[-1]}: this reference is missing; {_REMEDY}")
                check_digests(path / entry["directory"])
        else:
            found.append(source if is_served(source) else str(path))
            trained_on.append(None)
    if not found:
        raise MitigateError(
            "no reference: memorization is measured against models that never saw the text; give --reference DIR "
            "(the base model is the weakest one that serves), or make some with `mitigate references`"
        )
    return References(tuple(found), tuple(trained_on))


def _entries(index: Path) -> list[dict[str, Any]]:
    """The references that an index lists.

    Raises:
        MitigateError: it has another shape, or is of another version.
    """
    values = read_record(index, remedy=_REMEDY)
    entries = values.get("references") if isinstance(values, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("directory"), str) and isinstance(entry.get("groups"), list)
        for entry in entries
    ):
        raise MitigateError(f"{index}: not an index of references, or a damaged one; run `mitigate references` again")
    check_version(index, values, expected=SCHEMA, unsaid=SCHEMA, remedy=_REMEDY)
    return entries


def crossfit_references(
    base: str | Path,
    documents: Documents,
    *,
    out: str | Path,
    count: int = 8,
    method: str = "lora",
    lora: Lora | None = None,
    schedule: Schedule | Literal["auto"] = "auto",
    target: str | Path | None = None,
    seed: int = 0,
    new_store: Callable[[], ModelStore] = ModelStore,
) -> References:
    """Train references on halves of `documents`, each saved as soon as it is done; finished, undamaged ones are kept.

    Under several processes each trains a share of the references.

    Args:
        base: the model that the target was fine-tuned from.
        documents: what the audit will judge; members and non-members alike.
        out: directory for the references and their index.
        count (`int`, *optional*, defaults to 8): even; every document is judged by half of them. Of fewer than
            8 none is left to judge what unlearning made of the others.
        method (`str`, *optional*, defaults to `lora`): `lora` trains adapters that share the base; `full` whole models.
        lora (*optional*): shape of the adapters, as the target's where it is one.
        schedule (*optional*, defaults to `auto`): how the target was trained, where that is known. `auto`: each
            reference is trained until its loss on documents of its half is the target's on them; see `ToGoal`.
        target (*optional*): the model that the audit will judge, which `auto` needs.
        seed (`int`, *optional*, defaults to 0): of the halves, the initialization and the order.

    Raises:
        MitigateError: `out` holds references of other documents or settings, or another job works there; `auto`
            without a target, or without documents that it was trained on.
    """
    out, lora = Path(out), lora or Lora()
    if wrong := not_one_of(Method, method):
        raise MitigateError(f"references.method: {wrong}")
    check_layering(str(base), whole=method == "full")
    halves = deal_halves(documents, count, seed=seed)
    if schedule == "auto":
        check_goals(documents, halves, target)
    plan = {
        "base": model_fingerprint(base),
        "documents": documents.fingerprint,
        "method": method,
        "lora": lora.model_dump() if method == "lora" else None,
        **({"schedule": schedule.model_dump()} if schedule != "auto" else _auto(target)),
        "seed": seed,
    }
    entries = [{"directory": f"reference-{number}", "groups": sorted(half)} for number, half in enumerate(halves)]
    index = {"plan": plan, "fingerprint": fingerprint(plan), "references": entries}
    state = process_state()
    with planned(
        out,
        index,
        state,
        others="references of other documents, base or settings",
        record=INDEX,
        remedy="remove the directory and make the references again",
    ):
        with together(state):
            if state.is_main_process:
                _discard_damaged([out / f"reference-{number}" for number in range(count)])
        missing = [number for number in range(count) if not (out / f"reference-{number}").is_dir()]
        if len(missing) < count:
            logger.info("%d of %d references are already there", count - len(missing), count)
        state.wait_for_everyone()  # all know what is missing before anyone adds to it
        goals = Goals(target, documents, store=new_store()) if schedule == "auto" and target and missing else None
        for number in share_of(missing, state):
            chosen = Documents(tuple(one for one in documents if one.group in halves[number] and not one.is_tail))
            fine_tune(
                base,
                chosen,
                out=out / f"reference-{number}",
                method=method,
                lora=lora,
                schedule=Schedule() if schedule == "auto" else schedule,
                seed=seed * 1000 + number,
                description=f"Reference {number + 1} of {count}",
                store=new_store(),
                goal=goals.of(halves[number], key=f"goal {number}") if goals is not None else None,
            )
        state.wait_for_everyone()
        return load_references([out])


def _auto(target: str | Path | None) -> dict[str, str]:
    return {"schedule": "auto", "target": model_fingerprint(str(target))}


def _discard_damaged(directories: Sequence[Path]) -> None:
    for directory in directories:
        if wrong := damage(directory):
            logger.warning("%s: %s; trained again", directory, wrong[0])
            discard(directory)
