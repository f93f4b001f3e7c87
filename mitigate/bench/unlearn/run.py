"""`mitigate bench unlearn`: every way to unlearn, against models that never saw what is forgotten.

    mitigate bench unlearn --seeds 0 1 2 --out runs/unlearn

Protocol, each seed: people are dealt to forget, retain and holdout; a target is fine-tuned on forget and retain, and
audited with cross-fitted references, without a word where the secrets are. Every objective forgets the audit's tokens
(token scope) and whole documents (sequence scope: a fixed number of steps). On the first seed each runs
at the same number of learning rates, and at up to two more where the best is the lowest or the highest of them. The
best by one half of the forget people (retain, holdout and prose are the same for both halves) is taken on all seeds;
figures are of the other half. Judges that no method sees tell whether a secret looks seen. Exact retraining is measured
beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mitigate.artifacts.files import write_json
from mitigate.bench.unlearn.evidence import Evidence, gather_evidence
from mitigate.bench.unlearn.figures import figures, floors, plain
from mitigate.bench.unlearn.methods import (
    ALLOWED,
    FDR,
    RETRAINED,
    SELECTIONS,
    Run,
    Seed,
    choose,
    factors,
    make_audit,
    run_method,
    run_retrain,
)
from mitigate.bench.unlearn.settings import METHODS, SCOPES, UnlearnBenchSettings
from mitigate.bench.unlearn.world import make_unlearn_world
from mitigate.bench.world import sources
from mitigate.errors import MitigateError, summarize
from mitigate.models.training import lora_config
from mitigate.runtime import library_versions, process_state
from mitigate.unlearning.settings import Unlearn

logger = logging.getLogger(__name__)
MORE_TRIES = 2  # for a method whose best rate is the lowest or the highest of those tried
AS_MUCH = 0.1  # nats: a try forgets as much as ours if its secrets are no likelier by more than this
_CRITERION = "secret_distance_ratio of the validation people, plus what these exceed (of retain: either way): "
_OF_ORACLES = (  # an oracle's distance to the mean of itself and the other one says nothing
    *("secret_log_prob", "other_moved_nats", "holdout_gap_nats", "prose_gap_nats", "span_auc"),
    *("tpr_at_1pct_fpr", "over_forgotten", "extraction_forget", "extraction_retain"),
)


@dataclass(frozen=True)
class Tried:
    """One method on one seed.

    Attributes:
        tries: factor of the common rate -> run; on all seeds but the first only the chosen one.
        chosen: the best of the first seed's by its validation people.
        factor: of the chosen one.
    """

    tries: Mapping[float, Run]
    factor: float

    @property
    def chosen(self) -> Run:
        return self.tries[self.factor]


@dataclass(frozen=True)
class SeedRuns:
    """What one seed gave: methods by (objective, scope), the default on known spans, and retraining."""

    seed: Seed
    methods: Mapping[tuple[str, str], Tried]
    known: Tried
    retrained: Mapping[str, Run]


def bench_unlearn(
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    documents: Path | None = None,
    prose: Path | None = None,
    objectives: Sequence[str] = METHODS,
    scopes: Sequence[str] = SCOPES,
    tries: int = 3,
    retrain: bool = True,
    settings: UnlearnBenchSettings | None = None,
    base: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run the benchmark and write `out/results.json`; models and runs that are already in `out` are kept.

    The file is written after every seed, with the seeds so far.

    Args:
        out: directory of models, runs and results.
        seeds (*optional*): each has its own people, models and runs; learning rates are chosen on the first.
        documents (*optional*): JSON lines with id, text, spans and group; by default invented people.
        prose (*optional*): documents without anyone's data; by default invented prose.
        objectives, scopes (*optional*, default to all): which methods. `default` in token scope always runs: the others
            are compared with it.
        tries (`int`, *optional*, defaults to 3): learning rates that every method may choose from; see `beyond_edge`.
        retrain (`bool`, *optional*, defaults to `True`): fit anew without the secrets, too.
        settings (*optional*): people, models, schedules, and what all runs have in common.
        base (*optional*): an existing base model.
        device (`str`, *optional*, defaults to `auto`): of the models.

    Returns:
        what `results.json` holds; see `summarize_seeds`.

    Raises:
        MitigateError: an unknown method, bad settings, or models of other documents in `out`.
    """
    settings = settings or UnlearnBenchSettings()
    wanted = check_methods(objectives, scopes, tries)
    done: list[SeedRuns] = []
    results: dict[str, Any] = {}
    for number in seeds:
        world = make_unlearn_world(
            out, seed=number, settings=settings, documents=documents, prose=prose, base=base, device=device
        )
        directory = out / f"seed-{number}"
        audits = {
            name: make_audit(world, name, out=directory / "audits" / name, seed=number, device=device)
            for name in SELECTIONS
        }
        evidence = gather_evidence(world, device=device)
        seed = Seed(number, directory, world, evidence, audits, settings, device)
        done.append(run_seed(seed, wanted, tries=factors(tries), retrain=retrain, first=done[0] if done else None))
        results = {
            **summarize_seeds(done),
            "settings": {
                "seeds": list(seeds)[: len(done)],
                "tries": [factor * settings.unlearn.learning_rate for factor in factors(tries)],
                "more_tries_at_an_edge": MORE_TRIES,
                "criterion": _CRITERION + ", ".join(f"{name} {allowed}" for name, allowed in ALLOWED.items()),
                "fdr": FDR,
                **sources(documents, base),
                "prose_text": prose.name if prose else "invented prose",
                **settings.model_dump(mode="json"),
            },
            "versions": library_versions(),
        }
        if process_state(device).is_main_process:
            write_json(out / "results.json", results)
    return results


def check_methods(objectives: Sequence[str], scopes: Sequence[str], tries: int) -> list[tuple[str, str]]:
    """The (objective, scope) pairs to run, the default first.

    Raises:
        MitigateError: an unknown name, or no try.
    """
    problems = [
        f"objectives: {name!r} is not one of {', '.join(METHODS)}" for name in objectives if name not in METHODS
    ]
    problems += [f"scopes: {name!r} is not one of {', '.join(SCOPES)}" for name in scopes if name not in SCOPES]
    problems += [f"tries: {tries}; give 1 or more"] if tries < 1 else []
    if problems:
        raise MitigateError("\n".join(problems))
    return list(dict.fromkeys([("default", "token"), *((name, scope) for scope in scopes for name in objectives)]))


def run_seed(
    seed: Seed, wanted: Iterable[tuple[str, str]], *, tries: Sequence[float], retrain: bool, first: SeedRuns | None
) -> SeedRuns:
    """All runs of one seed: every try, or, after the first seed, each method at the rate chosen there."""

    def tried(objective: str, scope: str, selection: str, chosen: Tried | None) -> Tried:
        def run(factor: float) -> Run:
            return run_method(seed, objective, scope, factor=factor, selection=selection)

        if chosen:
            return Tried({chosen.factor: run(chosen.factor)}, chosen.factor)
        runs = {factor: run(factor) for factor in tries}
        while beyond := beyond_edge({f: one.criterion for f, one in runs.items()}, at_most=len(tries) + MORE_TRIES):
            runs[beyond] = run(beyond)
        best = choose(seed, list(runs.values()))
        return Tried(dict(sorted(runs.items())), next(factor for factor, one in runs.items() if one is best))

    methods = {pair: tried(*pair, "found", first.methods[pair] if first else None) for pair in wanted}
    known = tried("default", "token", "known", first.known if first else None)
    return SeedRuns(seed, methods, known, {name: run_retrain(seed, name) for name in RETRAINED if retrain})


def beyond_edge(criteria: Mapping[float, float], *, at_most: int) -> float | None:
    """The next factor to try where the best one lies at the edge of those tried; None if it lies within, or is enough.

    Args:
        criteria: factor -> criterion, infinite for a run that failed.
        at_most: tries in all.
    """
    best = min(criteria, key=lambda factor: criteria[factor])
    low, high = min(criteria), max(criteria)
    if len(criteria) == 1 or len(criteria) >= at_most or best not in (low, high) or criteria[best] == float("inf"):
        return None
    return high * 3.0 if best == high else low / 3.0


def summarize_seeds(done: Sequence[SeedRuns]) -> dict[str, Any]:
    """The figures of results.json.

    Returns:
        `methods.<objective>.<scope>`, `known_spans.default`, `retrain.<name>`: figures of `unlearn_figures.figures`,
            and what the runs took, see `_of_method`;
        `before`: the same figures of the target; `oracle.{document,token}`: those of an oracle that need no other one;
        `floor`: distances between two oracles; `people`, `secrets`: how many there are on each seed, by role;
        `equal_forgetting`: see `equal_forgetting`; `adapter_share_at_1b`: see `adapter_share`.
    """
    evidence = [runs.seed.evidence for runs in done]
    names = [name for name in done[0].methods if all(name in runs.methods for runs in done)]
    methods: dict[str, dict[str, Any]] = {}
    for objective, scope in names:
        methods.setdefault(objective, {})[scope] = _of_method(
            evidence, [runs.methods[objective, scope] for runs in done]
        )
    oracles = {
        kind: plain(figures(evidence, [getattr(one, f"{kind}_oracles")[0] for one in evidence]))
        for kind in ("document", "token")
    }
    return {
        "methods": methods,
        "known_spans": {"default": _of_method(evidence, [runs.known for runs in done])},
        "retrain": {name: _of_runs(evidence, [r.retrained[name] for r in done]) for name in done[0].retrained},
        "floor": plain(floors(evidence)),
        "before": plain(figures(evidence, [one.before for one in evidence])),
        "oracle": {kind: {name: found[name] for name in _OF_ORACLES} for kind, found in oracles.items()},
        "people": {
            role: [len({int(person) for person in one.person[one.role == role]}) for one in evidence]
            for role in ("validation", "test", "retain", "holdout")
        },
        "secrets": {
            role: [sum(secret.role == role for secret in one.secrets) for one in evidence]
            for role in ("validation", "test", "retain", "holdout")
        },
        "equal_forgetting": equal_forgetting(done[0]),
        "adapter_share_at_1b": adapter_share(),
    }


def equal_forgetting(first: SeedRuns) -> dict[str, Any]:
    """What sequence-level methods cost where they forget as much as the default in token scope, on the first seed.

    That is the one on which all tries run. Of all tries whose test secrets are on average no likelier than ours by more
    than `AS_MUCH` nats, the one that raises the holdout loss least. So the methods get their best try by the test
    people, ours its chosen one.

    Returns:
        `ours`: rise of our holdout loss, nats; `methods.<objective>`: `holdout_gap_nats`, `ratio` to ours, `in_words`;
        `best`: the objective with the least rise, with its `ratio`. Null where no try forgets enough; a ratio is null
        where ours does not rise.
    """
    own = first.methods["default", "token"].chosen
    if own.measured is None:
        return {"ours": None, "methods": {}, "best": None}
    limit, ours = _value(own, "secret_log_prob") + AS_MUCH, _value(own, "holdout_gap_nats")
    methods: dict[str, Any] = {}
    for objective in [name for name, scope in first.methods if scope == "sequence"]:
        tries = [run for run in first.methods[objective, "sequence"].tries.values() if run.measured is not None]
        rises = [_value(run, "holdout_gap_nats") for run in tries if _value(run, "secret_log_prob") <= limit]
        methods[objective] = _compared(min(rises, default=None), ours)
    enough = {name: found for name, found in methods.items() if found["holdout_gap_nats"] is not None}
    best = min(enough, key=lambda name: enough[name]["holdout_gap_nats"], default=None)
    return {
        "ours": ours,
        "methods": methods,
        "best": None if best is None else {"objective": best, **enough[best]},
    }


def adapter_share() -> dict[str, float]:
    """Size of the default adapter over a Llama of 1.2 billion parameters, computed from shapes without weights.

    The shapes are those of Llama 3.2 1B: 16 layers of width 2048, 8 key and value heads, a vocabulary of 128,256, tied.
    """
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        whole = sum(parameter.numel() for parameter in model.parameters())
        adapted = get_peft_model(model, lora_config(Unlearn().lora))
        own = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    return {"parameters": whole, "adapter_parameters": own, "share": own / whole}


def _of_method(evidence: Sequence[Evidence], tried: Sequence[Tried]) -> dict[str, Any]:
    """A method's figures at its chosen rates, and all its tries.

    Returns:
        figures (none where a chosen run failed: `error` then), means of `seconds`, `steps`, shares and sizes, `stopped`
        and `learning_rate` of each seed, and `tries`: for each factor of the common rate and each seed that ran it, the
        rate, the criterion, and the figures of the validation and the test people (or the error).
    """
    return {**_of_runs(evidence, [one.chosen for one in tried]), "tries": _tries(tried)}


def _of_runs(evidence: Sequence[Evidence], runs: Sequence[Run]) -> dict[str, Any]:
    measured = [run.measured for run in runs if run.measured is not None]
    records = [run.record for run in runs]
    if len(measured) < len(runs):
        return {"error": summarize(record["error"] for record in records if "error" in record)}
    averaged = ("seconds", "steps", "adapter_parameters", "selected_token_share", "selected_secret_share")
    listed = ("learning_rate", "stopped", "exact")
    return {
        **plain(figures(evidence, measured)),
        **{name: float(np.mean([r[name] for r in records])) for name in averaged if name in records[0]},
        **{name: [record[name] for record in records] for name in listed if name in records[0]},
    }


def _tries(tried: Sequence[Tried]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for factor in tried[0].tries:
        for run in (one.tries[factor] for one in tried if factor in one.tries):
            entry: dict[str, Any] = {"learning_rate": run.record["learning_rate"]}
            if run.measured is None:
                entry["error"] = run.record["error"]
            else:
                values = {
                    half: {name: figure["value"] for name, figure in of_half.items()}
                    for half, of_half in run.record["figures"].items()
                }
                entry |= {"criterion": run.criterion, **values}
            found.setdefault(f"{factor:.3g}", []).append(entry)
    return found


def _value(run: Run, name: str) -> float:
    return float(run.record["figures"]["test"][name]["value"])


def _compared(rise: float | None, ours: float) -> dict[str, Any]:
    if rise is None:
        return {"holdout_gap_nats": None, "ratio": None, "in_words": "no try forgets as much"}
    words = f"holdout loss {rise:+.3f} nats, ours {ours:+.3f}"
    return {
        "holdout_gap_nats": rise,
        "ratio": rise / ours if ours > 0 else None,
        "in_words": words if ours > 0 else f"{words}: ours does not rise, so there is no ratio",
    }
