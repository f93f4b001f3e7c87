"""`mitigate bench detect`: every detector against models whose training documents are known.

    mitigate bench detect --seeds 0 1 2 --out runs/detect

Protocol: M models are fine-tuned on random halves of the documents; each is a target in turn, K OUT references judge
every document, the other models are shadows. A detector never sees which documents trained the target. Two truths:
membership (is this span's document a member?), and the counterfactual (is this token likelier by more than a nat than
under truth models, which no detector sees?). Intervals are from people resampled, figures are means over targets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from mitigate.artifacts.files import write_json
from mitigate.bench.detect.target import TargetScores, measure
from mitigate.bench.evidence import gather
from mitigate.bench.rates import Units, rates
from mitigate.bench.settings import WorldSettings
from mitigate.bench.world import World, make_world, sources
from mitigate.detection.calibration.attack import expected_calibration_error, reliability
from mitigate.models.store import ModelStore
from mitigate.runtime import library_versions, process_state
from mitigate.statistics.roc import Scored, average_precision, over_targets, weighted_auc, weighted_tpr

DETECTORS = (
    *("loss", "zlib", "min_k", "min_k_pp", "log_ratio", "log_ratio_clipped", "informia", "informia_no_kl"),
    *("informia_z", "rmia", "lira", "window_votes", "ez", "calibrated"),
)


def bench_detect(
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    documents: Path | None = None,
    references: int = 3,
    fdr: float = 0.05,
    settings: WorldSettings | None = None,
    base: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run the benchmark and write `out/results.json`; models that are already in `out` are kept.

    Args:
        out: directory of the models and the results.
        seeds (*optional*): each has its own people, halves and initializations.
        documents (*optional*): JSON lines with id, text and spans; by default invented people.
        references (`int`, *optional*, defaults to 3): K, how many OUT references judge a document.
        fdr (`float`, *optional*, defaults to 0.05): false discovery rate at which spans are selected.
        settings (*optional*): models, people, schedules.
        base (*optional*): an existing base model.
        device (`str`, *optional*, defaults to `auto`): of the models.

    Returns:
        what `results.json` holds.

    Raises:
        MitigateError: bad settings, documents that cannot be read, or models of other documents in `out`.
    """
    settings = settings or WorldSettings()
    settings.check_references(references)
    state = process_state(device)
    measured: list[list[TargetScores]] = []
    seconds: dict[str, float] = {"models": 0.0, "judging": 0.0}
    worlds: list[World] = []
    for seed in seeds:
        started = time.monotonic()
        world = make_world(out, seed=seed, settings=settings, documents=documents, base=base, device=device)
        worlds.append(world)
        seconds["models"] += time.monotonic() - started
        started = time.monotonic()
        kept = out / f"seed-{seed}" / f"judged-by-{references}.npz"
        evidence = gather(world, references=references, store=ModelStore(device=device), kept=kept)
        seconds["judging"] += time.monotonic() - started
        if state.is_main_process:
            measured.append(measure(evidence, copies=world.copies, fdr=fdr, description=f"Seed {seed}"))
    state.wait_for_everyone()
    if not state.is_main_process:
        return {}
    results = {
        **figures(measured, fdr=fdr),
        "settings": {
            "seeds": list(seeds),
            "references": references,
            "fdr": fdr,
            **sources(documents, base),
            **settings.model_dump(mode="json"),
        },
        "documents_per_seed": [len(world.documents) for world in worlds],
        "versions": library_versions(),
    }
    results["seconds"] |= {name: round(value, 1) for name, value in seconds.items()}
    write_json(out / "results.json", results)
    return results


def figures(measured: Sequence[Sequence[TargetScores]], *, fdr: float) -> dict[str, Any]:
    """The figures of results.json from all targets of all seeds."""
    every = [target for of_seed in measured for target in of_seed]

    def per_detector(kind: str, figures_of: Callable[[Units], dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            name: figures_of([[getattr(target, kind)[name] for target in of_seed] for of_seed in measured])
            for name in DETECTORS
            if name in getattr(every[0], kind)
        }

    results: dict[str, Any] = {
        "span": per_detector("spans", rates),
        "token": per_detector("tokens", rates),
        "document": per_detector("documents", rates),
        "localisation": per_detector("localisation", _localisation),
    }
    for units in ("spans", "documents"):
        fewest = min(int((~getattr(target, units)["calibrated"].labels).sum()) for target in every)
        results[f"non_member_{units}"] = fewest
    probability = np.concatenate([expit(target.spans["calibrated"].scores) for target in every])
    labels = np.concatenate([target.spans["calibrated"].labels for target in every])
    selected = np.concatenate([target.q for target in every]) <= fdr
    results["calibration"] = {
        "ece": expected_calibration_error(probability, labels),
        "realised_fdr": float((~labels[selected]).mean()) if selected.any() else 0.0,
        "selected": float(selected.mean()),
        "recall": float(selected[labels].mean()),
        "reliability": reliability(probability, labels),
        "attack_models": sorted({str(target.quality["attack_model"]) for target in every}),
    }
    results["unaided"] = _unaided([target.unaided for target in every])
    results["controls"] = {
        name: over_targets([[t.controls[name] for t in of_seed] for of_seed in measured], weighted_auc)._asdict()
        for name in every[0].controls
    }
    grid = np.geomspace(1e-3, 1.0, 40)
    results["roc"] = {"fpr": [round(float(fpr), 5) for fpr in grid]} | {
        name: [round(float(np.mean([_tpr_of(target.spans[name], fpr) for target in every])), 4) for fpr in grid]
        for name in results["span"]
    }
    results["by_copies"] = _by_copies(every)
    results["by_guess"] = _by_guess(every)
    results["excess_correlation"] = {
        name: float(np.mean([target.excess[name] for target in every])) for name in every[0].excess
    }
    results["seconds"] = {name: round(sum(target.seconds[name] for target in every), 2) for name in every[0].seconds}
    return results


def _localisation(scored: Units) -> dict[str, Any]:
    statistics = {"auc": weighted_auc, "ap": average_precision}
    return {name: over_targets(scored, statistic)._asdict() for name, statistic in statistics.items()}


def _unaided(counts: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    total = {name: sum(target[name] for target in counts) for name in counts[0]}

    def rate(part: str, whole: str) -> float | None:
        return total[part] / total[whole] if total[whole] else None

    return {
        "precision": rate("right", "said"),
        "recall": rate("right", "memorized"),
        "f1": 2 * total["right"] / (total["said"] + total["memorized"]) if total["said"] + total["memorized"] else None,
        "secret_recall": rate("secret_found", "secret"),
        "span_precision": rate("inside_memorized", "inside"),
        "span_recall": rate("inside_memorized", "memorized"),
        "non_member_share": rate("false_tokens", "tokens"),
        "realised_fdr": rate("false_spans", "spans"),
    }


def _by_copies(every: Sequence[TargetScores]) -> dict[str, dict[str, float]]:
    """Share of member spans above the score that 1 % of non-members exceed, by documents that hold the secret."""
    found: dict[int, list[np.ndarray]] = {}
    for target in every:
        spans = target.spans["calibrated"]
        limit = np.quantile(spans.scores[~spans.labels], 0.99)
        for number in np.unique(target.copies[spans.labels]):
            found.setdefault(int(number), []).append((spans.scores > limit)[spans.labels & (target.copies == number)])
    return {
        str(number): {"tpr_at_1pct_fpr": float(np.concatenate(parts).mean()), "spans": sum(map(len, parts))}
        for number, parts in sorted(found.items())
    }


def _by_guess(every: Sequence[TargetScores]) -> dict[str, dict[str, float]]:
    """The calibrated detector on spans that models which never saw them can guess, and on the others.

    Each kind has its own limit, which 1 % of its non-members exceed.
    """
    found: dict[str, dict[str, float]] = {}
    for name, wanted in (("guessable", True), ("random", False)):
        hits, members, non_members = 0, 0, 0
        for target in every:
            own, spans = target.guessable == wanted, target.spans["calibrated"]
            others = spans.scores[own & ~spans.labels]
            non_members += len(others)
            if len(others):
                hits += int((spans.scores[own & spans.labels] > np.quantile(others, 0.99)).sum())
                members += int((own & spans.labels).sum())
        if members:
            found[name] = {"tpr_at_1pct_fpr": hits / members, "spans": members, "non_members": non_members}
    return found


def _tpr_of(scored: Scored, fpr: float) -> float:
    counts = scored.counts(np.ones((1, int(scored.clusters.max()) + 1)))
    return float(weighted_tpr(*counts, fpr=fpr)[0])
