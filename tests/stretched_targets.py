"""False discoveries where the target was fitted less or longer than its references, whose error rates they are.

    python tests/stretched_targets.py --base runs/quickstart/lab/base --out runs/stretched

Invented people, half of them trained on. Eight references are cross-fitted for 8 epochs; targets are fitted alike, but
0.5, 1, 1.5 and 2.5 times as long. Of a third of the people it is said whether they were trained on (the sets retain and
holdout), the others are not told apart. Counted among the spans of these: how many have q <= 0.05, and how many of
these are of people who were never trained on; as the references' rates stand, and as `detect.fdr` takes them.
`share` is how much less the references gained from their documents than the target, of what it gained.

    python tests/stretched_targets.py --among runs/hard-detect --seed 0 --out runs/stretched-hard

The same on a pretrained base, with the models that `mitigate bench detect --world hard` left: those of one number of
epochs judge one of another number as the target (1, 3 and 5 epochs: 0.6, 1.7 and 3 times as long). Of a third of its
documents' people it is said whether they were trained on.

Prints what it counts, and writes OUT/stretched.json. A command, not a test: the first takes about an hour on one core,
the second about twenty minutes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mitigate.detection.audit import audit
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import References, crossfit_references, load_references
from mitigate.detection.settings import Detect
from mitigate.documents import Documents, read_documents
from mitigate.lab.planting import plant
from mitigate.models.fitting.training import fine_tune
from mitigate.models.settings import Lora, Schedule
from mitigate.models.store import ModelStore

EPOCHS, STRETCHES, RATE = 8.0, (0.5, 1.0, 1.5, 2.5), 0.05
PEOPLE = {0: 60, 1: 180, 2: 30}  # documents that hold a person's secrets: people


def store() -> ModelStore:
    return ModelStore(device="cpu")


def schedule(stretch: float) -> Schedule:
    return Schedule(epochs=EPOCHS * stretch, learning_rate=1.5e-3, batch_size=8)


AMONG = ((3, 5), (5, 3), (3, 1))  # epochs of the target, of its references


def counted(audited: Audit, trained: set[str]) -> dict[str, Any]:
    """By source: spans with q up to the rate, and the share of them that are of people who were never trained on."""
    found = {}
    for source in ("known", "found"):
        rows = [row for row in audited.span_rows if row.source == source and audited.sets[row.doc_id] is None]
        chosen = [row for row in rows if row.q is not None and row.q <= RATE]
        false = sum(audited.groups[row.doc_id] not in trained for row in chosen)
        found[source] = {"spans": len(rows), "chosen": len(chosen), "false": false / len(chosen) if chosen else None}
    return found


def measure(*, base: str, out: Path, seed: int) -> dict[str, Any]:
    """All stretches of one seed."""
    people = plant(seed=f"fdr/{seed}", people_per_count=PEOPLE).documents
    groups = sorted({document.group for document in people})
    half = np.random.default_rng(seed).permutation(len(groups))[: len(groups) // 2]
    trained = {groups[number] for number in half}
    every = Documents(tuple(replace(document, set=None) for document in people))
    judged = partly_known(people, trained, seed=seed)
    references = crossfit_references(
        base,
        every,
        out=out / "references",
        count=8,
        method="full",
        schedule=schedule(1.0),
        seed=seed,
        new_store=store,
    )
    results = {}
    for stretch in STRETCHES:
        target = out / f"target-{stretch:g}"
        if not target.is_dir():
            fine_tune(
                base,
                Documents(tuple(document for document in every if document.group in trained)),
                out=target,
                method="full",
                lora=Lora(),
                schedule=schedule(stretch),
                seed=77,
                description=f"Target, {stretch:g} times as long",
                store=store(),
            )
        results[f"{stretch:g}"] = result = rates(str(target), references, judged, trained)
        print(stretch, json.dumps(result), flush=True)
    return results


def measure_among(*, worlds: Path, seed: int) -> dict[str, Any]:
    """Models of the hard world as targets of others' references."""
    results = {}
    for own, theirs in AMONG:
        target, models = (worlds / f"epochs-{epochs}" / f"seed-{seed}" / "models" for epochs in (own, theirs))
        people = read_documents(models.parent / "documents.jsonl")
        entry = json.loads((target / "references.json").read_text(encoding="utf-8"))["references"][0]
        trained = set(entry["groups"])
        judged = partly_known(people, trained, seed=seed)
        result = rates(str(target / entry["directory"]), load_references(models), judged, trained)
        results[f"{own}/{theirs}"] = result
        print(own, theirs, json.dumps(result), flush=True)
    return results


def partly_known(people: Documents, trained: set[str], *, seed: int) -> Documents:
    """The documents; of a third of the people it is said whether the target was trained on them."""
    groups = sorted({document.group for document in people})
    said = {groups[number] for number in np.random.default_rng([seed, 1]).permutation(len(groups))[: len(groups) // 3]}
    set_of = {group: ("retain" if group in trained else "holdout") if group in said else None for group in groups}
    return Documents(tuple(replace(one, set=set_of[one.group]) for one in people))


def rates(target: str, references: References, judged: Documents, trained: set[str]) -> dict[str, Any]:
    """How the references fit, and the false discoveries as their rates stand and as `detect.fdr` takes them."""
    as_they_stand = audit(target, references, documents=judged, detect=Detect(calibrate=True), store=store())
    taken = audit(target, references, documents=judged, detect=Detect(fdr=RATE), store=store())
    fit = taken.metadata.fit
    assert fit is not None
    return {
        "fit": fit.written(),
        "share": (fit.trained - fit.target) / (fit.untrained - min(fit.target, fit.trained)),
        "references": counted(as_they_stand, trained),
        "detect_fdr": counted(taken, trained),
        "corrected": any("do not hold for this target" in line for line in taken.metadata.warnings),
    }


def main() -> None:
    """All seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--base", help="a base that never saw these people, such as quickstart's")
    given.add_argument("--among", type=Path, help="what `mitigate bench detect --world hard` wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory for models and stretched.json")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.among is not None:
        results = measure_among(worlds=arguments.among, seed=arguments.seed)
    else:
        results = measure(base=arguments.base, out=arguments.out, seed=arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "stretched.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
