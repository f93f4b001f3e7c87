"""Does `mitigate verify` catch what only looks like forgetting, and does it spare what is honest?

out/seed-0/...                  models, as `bench unlearn` makes them; those in the directory are kept
out/seed-0/cheats/NAME          models that only look as if they had forgotten
out/seed-0/evidence/NAME        what `prove` says of them
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import write_digests, write_json, write_record
from mitigate.bench.unlearn.methods import make_audit
from mitigate.bench.unlearn.world import make_unlearn_world
from mitigate.bench.verify.cheats import CANDIDATES, Candidate, Made
from mitigate.bench.verify.settings import HardVerifyBenchSettings, VerifyBenchSettings
from mitigate.bench.world import sources
from mitigate.errors import MitigateError, summarize
from mitigate.proof.battery import ATTACKS
from mitigate.proof.certificate import certificate
from mitigate.proof.evidence import CERTIFICATE, EVIDENCE, Evidence, check_evidence
from mitigate.proof.prove import prove
from mitigate.runtime import library_versions, process_state

logger = logging.getLogger(__name__)
NEITHER = ("default", "lens")  # no cheats, and no models that nothing may catch


def bench_verify(
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    documents: Path | None = None,
    prose: Path | None = None,
    candidates: Sequence[str] = tuple(CANDIDATES),
    settings: VerifyBenchSettings | None = None,
    base: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Verify every candidate on every seed and write `out/results.json`; what is already in `out` is kept.

    Args:
        out: directory of models, evidence and results; that of `bench unlearn` with the same sizes serves, too.
        seeds (*optional*): each has its own people and models.
        documents, prose, base, device (*optional*): as for `bench_unlearn`.
        candidates (*optional*, defaults to all): names of `CANDIDATES`.
        settings (*optional*): people, models, schedule, attacks.

    Returns:
        `candidates`: name -> `what`, `meant`, and of each seed in turn `caught_by` (checks that spoke up, with the
            attack's gap), `status`;
        `cheats`, `caught`: how many there were, over all seeds, and how many of them a check meant for it caught;
        `honest`, `spared`: how many honest models, and how many of them nothing caught.

    Raises:
        MitigateError: an unknown candidate, or as `make_unlearn_world` says.
    """
    settings = settings or VerifyBenchSettings()
    if unknown := [name for name in candidates if name not in CANDIDATES]:
        raise MitigateError(f"candidates: {summarize(unknown)}: not one of {', '.join(CANDIDATES)}")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in candidates}
    for seed in seeds:
        world = make_unlearn_world(
            out, seed=seed, settings=settings, documents=documents, prose=prose, base=base, device=device
        )
        folder = out / f"seed-{seed}"
        audit = make_audit(world, "known", out=folder / "audits" / "known", seed=seed, device=device)
        made = Made(world, audit, settings.unlearn, device, seed)
        for name in candidates:
            logger.info("seed %d: %s", seed, name.replace("_", " "))
            found[name].append(_verified(name, made, folder, settings))
    results = {
        "candidates": {
            name: {"what": CANDIDATES[name].what, "meant": sorted(CANDIDATES[name].meant), "seeds": rows}
            for name, rows in found.items()
        },
        **_counts(found),
        "settings": {"seeds": list(seeds), **sources(documents, base), **settings.model_dump(mode="json")},
        "versions": library_versions(),
    }
    if process_state(device).is_main_process:
        write_json(out / "verify.json", results)
    return results


def bench_verify_hard(
    out: Path, *, settings: HardVerifyBenchSettings | None = None, base: str | None = None, **options: Any
) -> dict[str, Any]:
    """`bench_verify` for each number of epochs; write `out/verify.json`.

    Raises:
        MitigateError: no base, or as `bench_verify` says.
    """
    settings = settings or HardVerifyBenchSettings()
    if base is None:
        raise MitigateError("--base: missing; the hard world is adapters over a pretrained model: give its directory")
    found = {
        f"{epochs:g}": bench_verify(
            out / f"epochs-{epochs:g}", settings=settings.of(VerifyBenchSettings, epochs), base=base, **options
        )
        for epochs in settings.epochs
    }
    results = {"world": "hard", "epochs": found}
    if process_state(options.get("device", "auto")).is_main_process:
        write_json(out / "verify.json", results)
    return results


def verify_table(results: dict[str, Any]) -> str:
    """The results as lines of text."""
    lines = [f"{'model':<18}{'caught':>8}  by (seeds)"]
    for name, row in results["candidates"].items():
        counts: dict[str, int] = {}
        for seed in row["seeds"]:
            for check in seed["caught_by"]:
                counts[check] = counts.get(check, 0) + 1
        times = sum(bool(seed["caught_by"]) for seed in row["seeds"])
        by = ", ".join(f"{'*' if check in row['meant'] else ''}{check} {n}" for check, n in counts.items())
        lines.append(f"{name:<18}{times:>4} of {len(row['seeds'])}  {by or '-'}")
    lines += [
        "",
        f"cheats caught by a check that is meant for them (*): {results['caught']} of {results['cheats']}",
        f"honest models that nothing caught: {results['spared']} of {results['honest']}",
    ]
    return "\n".join(lines)


def _verified(name: str, made: Made, folder: Path, settings: VerifyBenchSettings) -> dict[str, Any]:
    """What speaks up against a candidate."""
    candidate = CANDIDATES[name]
    model, out = folder / "cheats" / name, folder / "evidence" / name
    path = str(model) if model.is_dir() else candidate.make(made, model)
    proof = settings.proof.model_copy(update={"attacks": list(candidate.attacks)} if candidate.attacks else {})
    evidence = prove(
        candidate.audit(made) if candidate.audit is not None else made.audit,
        path,
        out=out,
        oracle=made.world.document_oracles[0],
        settings=proof,
        store=made.store(),
        name=name,
        seed=made.seed,
    )
    caught = {
        one["attack"]: one["gap"]
        for one in evidence.record["findings"]
        if one["state"] in ("fell", "over_forgotten") and ATTACKS[one["attack"]].scope == "model"
    }
    if evidence.record["kept_out"] is False and evidence.record["origin"] is not None:  # it says who taught
        caught["kept_out"] = None
    if evidence.record["elsewhere"]["places"]:
        caught["elsewhere"] = evidence.record["elsewhere"]["places"]
    if name == "edited" and (wrong := _edited(evidence, out)):
        caught = {"evidence": len(wrong)}
    return {"caught_by": caught, "status": evidence.status}


def _edited(evidence: Evidence, out: Path) -> list[str]:
    """What `check_evidence` says once a figure is edited, with everything beside it made to fit; then put back."""
    original = json.loads(json.dumps(evidence.record))
    record = json.loads(json.dumps(evidence.record))
    for one in record["findings"]:
        one |= {"value": one["control"], "gap": 0.0, "gap_interval": [-0.01, 0.01], "state": "withstood"}
    record["verdict"] |= {"status": "withstood", "fell": []}
    _put(record, out)
    wrong = check_evidence(out)
    _put(original, out)
    return wrong


def _put(record: dict[str, Any], out: Path) -> None:
    write_record(out / EVIDENCE, record)
    (out / CERTIFICATE).write_text(certificate(record), encoding="utf-8")
    write_digests(out, [EVIDENCE, CERTIFICATE, *(f"readings/{name}.parquet" for name in record["readings"])])


def _counts(found: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    def rows(wanted: bool) -> list[tuple[Candidate, dict[str, Any]]]:
        chosen = [name for name in found if name not in NEITHER and bool(CANDIDATES[name].meant) == wanted]
        return [(CANDIDATES[name], row) for name in chosen for row in found[name]]

    return {
        "cheats": len(rows(True)),
        "caught": sum(not candidate.meant.isdisjoint(row["caught_by"]) for candidate, row in rows(True)),
        "honest": len(rows(False)),
        "spared": sum(not row["caught_by"] for _, row in rows(False)),
    }
