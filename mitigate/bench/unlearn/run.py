"""`mitigate bench unlearn`: every way to unlearn, against models that never saw what is forgotten.

    mitigate bench unlearn --seeds 0 1 2 --out runs/unlearn

Protocol, each seed: people are dealt to forget, retain and holdout; a target is fine-tuned on forget and retain, and
audited with cross-fitted references, without a word where the secrets are. Every objective forgets the audit's tokens
(token scope) and whole documents (sequence scope: a fixed number of steps); the default also what an audit selects that
has recognised values, or the secrets themselves, as known spans. On the first seed each runs
at the same number of learning rates, at up to two more where the best is the lowest or the highest of them, and at the
best of them with a third and three times the weight of its anchors (methods without anchors: at two more rates). The
best by one half of the forget people (retain, holdout and prose are the same for both halves) is taken on all seeds;
figures are of the other half. Judges that no method sees tell whether a secret looks seen. Exact retraining is measured
beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import write_json
from mitigate.bench.unlearn.evidence import gather_evidence
from mitigate.bench.unlearn.methods import ALLOWED, FDR, SELECTIONS, Seed, factors, make_audit
from mitigate.bench.unlearn.settings import METHODS, SCOPES, UnlearnBenchSettings
from mitigate.bench.unlearn.summary import summarize_seeds
from mitigate.bench.unlearn.tries import MORE_TRIES, WEIGHTS, SeedRuns, run_seed
from mitigate.bench.unlearn.world import make_unlearn_world
from mitigate.bench.world import sources
from mitigate.errors import MitigateError
from mitigate.runtime import library_versions, process_state

_CRITERION = "secret_distance_ratio of the validation people, plus what these exceed (of retain: either way): "


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
    as_shipped: bool = False,
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
        as_shipped (`bool`, *optional*, defaults to `False`): the default runs at its own rate and weight alone.

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
        first = done[0] if done else None
        done.append(run_seed(seed, wanted, tries=factors(tries), retrain=retrain, first=first, as_shipped=as_shipped))
        results = {
            **summarize_seeds(done),
            "settings": {
                "seeds": list(seeds)[: len(done)],
                "tries": [factor * settings.unlearn.learning_rate for factor in factors(tries)],
                "more_tries_at_an_edge": MORE_TRIES,
                "default_as_shipped": as_shipped,
                "anchor_weights_at_the_best_rate": list(WEIGHTS) if tries > 1 else [],
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
