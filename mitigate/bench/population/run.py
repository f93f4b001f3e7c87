"""`mitigate bench population`: how many population documents RMIA needs, and how few sequence InfoRMIA does.

    mitigate bench population --seeds 0 1 2 --out runs/detect

The claim measured: InfoRMIA is as good as RMIA or better, with a fraction of the population (Tao & Shokri,
arXiv 2510.05582). Document level: every model is a target in turn, K OUT references judge every document, the
population is documents that trained no model and are written like the others. Two readings of every score:

- per target: a threshold for each target, figures averaged over targets. InfoRMIA's KL is one constant for a target, so
  here it is the log-ratio to the references, whatever the population.
- pooled: the documents of all targets of a seed under one threshold. Here the constant counts.

RMIA is a share of Z population documents: it has Z + 1 values, and its highest is shared by about 1/(Z + 1) of the
non-members. Where that is above a false positive rate, no threshold meets the rate and the true positive rate is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import write_json
from mitigate.bench.population.evidence import (
    SIZES,
    fresh_people,
    read_sequences,
    set_aside,
    with_non_members,
)
from mitigate.bench.population.figures import population_results
from mitigate.bench.settings import WorldSettings
from mitigate.bench.world import World, make_world, sources
from mitigate.documents import Documents
from mitigate.models.store import ModelStore
from mitigate.runtime import library_versions, process_state

NON_MEMBERS = 600  # fresh people's documents that are judged besides, so that a target has 1,000 non-members


def bench_population(
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    documents: Path | None = None,
    references: int = 3,
    sizes: Sequence[int] = SIZES,
    settings: WorldSettings | None = None,
    base: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run the study and write `out/population.json`; models that are already in `out` are kept.

    Args:
        out: directory of the models and the results; that of `bench_detect` serves for invented people.
        seeds (*optional*): each has its own people, halves and initializations.
        documents (*optional*): a file of documents; a third of its groups, at most 1,000 documents, are the population
            and train no model. The rest is written to `out/documents-trained.jsonl`, so `out` must be of this study's
            own. By default invented people, whose population is fresh people.
        references (`int`, *optional*, defaults to 3): K, how many OUT references judge a document.
        sizes (*optional*, defaults to 10, 100, 1000): numbers of population documents.
        settings (*optional*): models, people, schedules.
        base (*optional*): an existing base model.
        device (`str`, *optional*, defaults to `auto`): of the models.

    Returns:
        what `population.json` holds; see `study_population`.

    Raises:
        MitigateError: bad settings, documents that cannot be read, or models of other documents in `out`.
    """
    settings = settings or WorldSettings()
    settings.check_references(references)
    state = process_state(device)
    trained, aside = (None, None) if documents is None else set_aside(documents, out)
    worlds, populations = [], []
    for seed in seeds:
        world = make_world(out, seed=seed, settings=settings, documents=trained, base=base, device=device)
        if aside is None:
            fresh = fresh_people(max(sizes) + NON_MEMBERS, seed=seed)
            worlds.append(with_non_members(world, fresh[max(sizes) :]))
            populations.append(fresh[: max(sizes)])
        else:
            worlds.append(world)
            populations.append(aside)
    results = study_population(
        worlds, populations=populations, references=references, sizes=sizes, store=ModelStore(device=device)
    )
    state.wait_for_everyone()
    if not state.is_main_process:
        return {}
    results |= {
        "settings": {
            "seeds": list(seeds),
            "references": references,
            **sources(documents, base),
            "non_members_added": 0 if documents else NON_MEMBERS,
            **settings.model_dump(mode="json"),
        },
        "versions": library_versions(),
    }
    write_json(out / "population.json", results)
    return results


def study_population(
    worlds: Sequence[World],
    *,
    populations: Sequence[Documents],
    references: int,
    sizes: Sequence[int],
    store: ModelStore,
) -> dict[str, Any]:
    """RMIA and sequence InfoRMIA by population size, and scores from tokens that ask no population.

    Args:
        worlds: one for each seed.
        populations: for each world, documents that trained none of its models.
        references: K, how many OUT references judge a document.
        sizes: of the population; cut to what there is. Of each below the largest, `DRAWS` populations are drawn.
        store: loads the models.

    Returns:
        `rows`: one for each score (`informia` as published, `informia_mean` with every z weighted alike, `rmia`, and,
        with a population of 0, `log_ratio_sequence`, InfoRMIA without its KL, and `TOKEN_BASED`), statistic of a
        document (`mean` or `sum` of token log-probabilities), a, γ and population size, with figures `per_target` and
        `pooled`, `values` (distinct scores for a target), `top_fpr` (share of non-members that have a target's highest
        score) and `seconds` (scoring, all targets of all seeds, one population); `forward_seconds`: by population size;
        `documents`, `non_members`: for a target; `findings`: sentences made from the figures.
    """
    count = min(max(sizes), *map(len, populations))
    every = [
        read_sequences(world, population[:count], references=references, sizes=sizes, store=store)
        for world, population in zip(worlds, populations, strict=True)
    ]
    return population_results(every, sizes=sizes)
