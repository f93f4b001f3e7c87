"""`mitigate bench ablation`: what each part of token InfoRMIA and of its references is worth.

    mitigate bench ablation --seeds 0 1 2 --out runs/detect

One part is changed at a time, from K OUT references, temperature 1 and no offline correction: the temperature, the KL,
the unit variance, the offline correction, K, what the references are (the base alone; LoRA adapters for targets that
are whole models), and how token scores become a span's. Figures are over known spans (labels: membership) and over the
tokens of member documents (localisation; labels: memorized by the counterfactual of the truth models). No shadows are
judged: there is nothing to calibrate here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mitigate.artifacts.files import write_json
from mitigate.bench.ablation.evidence import (
    AGGREGATED,
    AGGREGATIONS,
    SCORES,
    Seed,
    Variant,
    lora_references,
    measure_seed,
)
from mitigate.bench.rates import RATES, Units, compare, rates
from mitigate.bench.settings import WorldSettings
from mitigate.bench.world import make_bench_base, make_world, sources
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.runtime import library_versions, process_state
from mitigate.statistics.roc import Scored, over_targets, weighted_auc

LORA_RATE = 1e-2  # a small model's adapters need a larger rate than its weights; 3e-3 fits their documents less well
_OF_INFORMIA = ("informia", "informia_no_kl", "informia_z")  # what temperature and offline correction change
_OF_REFERENCES = ("informia", "log_ratio", "log_ratio_clipped", "log_ratio_half_kl")
RIVALS = {"log_ratio": "the log-ratio", "log_ratio_clipped": "the clipped log-ratio", "loss": "LOSS"}


def bench_ablation(
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    documents: Path | None = None,
    references: int = 3,
    targets: int | None = None,
    lora: bool = True,
    settings: WorldSettings | None = None,
    base: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run the ablation and write `out/ablation.json`; models that are already in `out` are kept.

    Args:
        out: directory of the models and the results; that of `bench_detect` serves.
        seeds (*optional*): each has its own people, halves and initializations.
        documents (*optional*): JSON lines with id, text and spans; by default invented people.
        references (`int`, *optional*, defaults to 3): K of every comparison but that of K.
        targets (`int`, *optional*, defaults to all): how many of the models are targets; fewer take less time.
        lora (`bool`, *optional*, defaults to `True`): train adapters on the models' halves (in `out/seed-N/lora`) and
            compare them as references with whole models. Nothing to do where the models are adapters.
        settings (*optional*): models, people, schedules.
        base (*optional*): an existing base model.
        device (`str`, *optional*, defaults to `auto`): of the models.

    Returns:
        what `ablation.json` holds; see `ablation_results`.

    Raises:
        MitigateError: bad settings, documents that cannot be read or have no spans, or models of other documents in
            `out`.
    """
    settings = settings or WorldSettings()
    settings.check_references(references)
    state = process_state(device)
    base = base or str(make_bench_base(out, settings=settings, device=device))
    every: list[Seed] = []
    for seed in seeds:
        world = make_world(out, seed=seed, settings=settings, documents=documents, base=base, device=device)
        adapters = None
        if lora and settings.method == "full":
            adapters = lora_references(
                world,
                base,
                out=out / f"seed-{seed}" / "lora",
                seed=seed,
                schedule=lora_schedule(settings, copies=documents is None),
                device=device,
            )
        every.append(
            measure_seed(
                world,
                base=base,
                lora=adapters,
                references=references,
                targets=range(settings.models if targets is None else min(targets, settings.models)),
                store=ModelStore(device=device),
            )
        )
    state.wait_for_everyone()
    if not state.is_main_process:
        return {}
    results = ablation_results(every, references=references)
    results |= {
        "settings": {
            "seeds": list(seeds),
            "references": references,
            "targets": targets or settings.models,
            **sources(documents, base),
            **settings.model_dump(mode="json"),
        },
        "versions": library_versions(),
    }
    write_json(out / "ablation.json", results)
    return results


def lora_schedule(settings: WorldSettings, *, copies: bool) -> Schedule:
    """The world's schedule at the adapters' rate: 10 epochs where some secrets have copies, else 20."""
    own = settings.schedule or Schedule(epochs=10 if copies else 20, batch_size=8)
    return own.model_copy(update={"learning_rate": LORA_RATE})


def ablation_results(every: Sequence[Seed], *, references: int) -> dict[str, Any]:
    """The tables of `ablation.json` from the seeds' targets.

    Args:
        every: of each seed.
        references: K of every comparison but that of K.

    Returns:
        `temperature`, `offline_a`, `references` (by K), `base` (the base as the only reference), `lora` (`full` and
        `lora` references of the seeds that have both): tables of scores with figures of `span` (AUC, TPR at 1 % and
        0.1 % FPR) and `localisation` (AUC); `aggregation`: span figures by score and aggregation; `copies`: share of
        member spans found at 1 % FPR, by documents that hold the secret; `spans`, `non_member_spans`: of a target;
        `findings`: sentences made from the figures.
    """
    central = Variant("K", references)
    known = list(every[0])
    with_lora = [seed for seed in every if Variant("lora", references) in seed]

    def table(variant: Variant, names: Sequence[str], of: Sequence[Seed] = every) -> dict[str, Any]:
        return {
            name: {
                "span": rates(_spans(of, variant, name)),
                "localisation": {"auc": over_targets(_localisation(of, variant, name), weighted_auc)._asdict()},
            }
            for name in names
        }

    def tables(choice: Callable[[Variant], float | None], names: Sequence[str]) -> dict[str, Any]:
        """By what `choice` says of a variant; None leaves it out."""
        chosen = sorted((at, v) for v in known if v.references == "K" and (at := choice(v)) is not None)
        return {f"{at:g}": table(variant, names) for at, variant in chosen}

    spans = [target.spans["informia", "mean"].labels for seed in every for target in seed[central]]
    return {
        "all": table(central, list(SCORES)),
        "temperature": tables(
            lambda v: v.temperature if v == Variant("K", references, temperature=v.temperature) else None, _OF_INFORMIA
        ),
        "offline_a": tables(
            lambda v: v.offline_a if v == Variant("K", references, offline_a=v.offline_a) else None, _OF_INFORMIA
        ),
        "references": tables(lambda v: v.count if v == Variant("K", v.count) else None, _OF_REFERENCES),
        "base": table(Variant("base", 1), _OF_REFERENCES) if Variant("base", 1) in known else None,
        "lora": {
            "full": table(central, _OF_REFERENCES, with_lora),
            "lora": table(Variant("lora", references), _OF_REFERENCES, with_lora),
            "seeds": len(with_lora),
        }
        if with_lora
        else None,
        "aggregation": {
            name: {
                how: rates(_spans(every, central, name, how))
                for how in (AGGREGATIONS if name in AGGREGATED else ("mean",))
            }
            for name in (*AGGREGATED, "log_ratio_half_kl")
        },
        "copies": {
            name: {
                str(number): rates(_spans(every, central, name, copies=number))["tpr_at_1pct_fpr"]
                for number in _copies(every, central)
            }
            for name in ("informia", "log_ratio_clipped", "loss")
        },
        "spans": min(map(len, spans)),
        "non_member_spans": min(int((~labels).sum()) for labels in spans),
        "findings": _findings(every, with_lora, references=references),
    }


def _findings(every: Sequence[Seed], with_lora: Sequence[Seed], *, references: int) -> list[str]:
    """What the figures say. A win or a loss is a paired difference whose interval excludes 0."""
    central, rate = Variant("K", references), "tpr_at_1pct_fpr"
    known = list(every[0])
    found = []
    for name, rival in RIVALS.items():
        ours, theirs = _spans(every, central, "informia"), _spans(every, central, name)
        found += [
            f"Spans, K={references}, {words}: published InfoRMIA against {rival} {compare(ours, theirs, key)}."
            for key, words in RATES.items()
        ]
        ours, theirs = (_localisation(every, central, score) for score in ("informia", name))
        found.append(
            f"Tokens of member documents, K={references}, AUC: published InfoRMIA against {rival} "
            f"{compare(ours, theirs, 'auc')}."
        )

    def add(what: str, one: Units, other: Units) -> None:
        found.append(f"Spans, {RATES[rate]}: {what} {compare(one, other, rate)}.")

    ours = _spans(every, central, "informia")
    for variant in known:
        own = _spans(every, variant, "informia")
        if variant.temperature != 1.0:
            add(f"InfoRMIA at temperature {variant.temperature:g} against 1", own, ours)
        if variant.offline_a != 1.0:
            add(f"InfoRMIA with offline a={variant.offline_a:g} against 1", own, ours)
        if variant.references == "K" and variant.count != references:
            add(f"InfoRMIA with K={variant.count} against K={references}", own, ours)
        if variant.references == "base":
            add(f"InfoRMIA with the base as the only reference against K={references} OUT references", own, ours)
        if variant.references != "lora":
            words = _words(variant)
            add(f"{words}: InfoRMIA with the KL against without it", own, _spans(every, variant, "informia_no_kl"))
            if variant != central and (variant.temperature, variant.offline_a) == (1.0, 1.0):
                for name, rival in RIVALS.items():
                    add(f"{words}: InfoRMIA against {rival}", own, _spans(every, variant, name))
    add("InfoRMIA of unit variance against as published", _spans(every, central, "informia_z"), ours)
    for how in [how for how in AGGREGATIONS if how != "mean"]:
        for name in AGGREGATED:
            add(
                f"{name} aggregated by {how} against by its mean",
                _spans(every, central, name, how),
                _spans(every, central, name),
            )
    for name, rival in RIVALS.items():
        if name != "log_ratio":
            add(
                f"log-ratio − ½ KL against {rival}",
                _spans(every, central, "log_ratio_half_kl"),
                _spans(every, central, name),
            )
    if with_lora:
        for name in _OF_REFERENCES:
            one, other = (_spans(with_lora, Variant(kind, references), name) for kind in ("lora", "K"))
            add(f"{name} with {references} LoRA references against {references} whole models", one, other)
    for number in _copies(every, central):
        for name in ("log_ratio_clipped", "loss"):
            one, other = (_spans(every, central, score, copies=number) for score in ("informia", name))
            add(f"secrets in {number} documents: InfoRMIA against {RIVALS[name]}", one, other)
    return found


def _words(variant: Variant) -> str:
    words = "base only" if variant.references == "base" else f"K={variant.count}"
    words += f", T={variant.temperature:g}" if variant.temperature != 1.0 else ""
    return words + (f", a={variant.offline_a:g}" if variant.offline_a != 1.0 else "")


def _spans(
    every: Sequence[Seed], variant: Variant, name: str, how: str = "mean", *, copies: int | None = None
) -> list[list[Scored]]:
    """For each seed, the targets' spans; of members only those with so many copies, if given."""
    found = []
    for seed in every:
        of_seed = []
        for target in seed[variant]:
            scored = target.spans[name, how]
            if copies is not None:
                kept = ~scored.labels | (target.copies == copies)
                scored = Scored(scored.scores[kept], scored.labels[kept], scored.clusters[kept])
            of_seed.append(scored)
        found.append(of_seed)
    return found


def _localisation(every: Sequence[Seed], variant: Variant, name: str) -> list[list[Scored]]:
    return [[target.localisation[name] for target in seed[variant]] for seed in every]


def _copies(every: Sequence[Seed], variant: Variant) -> list[int]:
    """The numbers of copies that members' secrets have; none where copies are not known."""
    found = {
        int(number)
        for seed in every
        for target in seed[variant]
        for number in np.unique(target.copies[target.spans["informia", "mean"].labels])
    }
    return sorted(found - {0})
