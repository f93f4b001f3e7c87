"""What `mitigate bench unlearn` measures on: people to forget, a leaky target, and the models that say what is right.

    out/base                        a base from scratch that saw none of the people
    out/seed-0/documents.jsonl      the people's documents: set forget, retain or holdout
    out/seed-0/plan.json            what all of it was made from; with other settings another directory is needed
    out/seed-0/models/target        fine-tuned on forget and retain: the model that leaks
    out/seed-0/models/document-oracle-{0,1}   fine-tuned on retain alone, in two orders: what forgetting people means
    out/seed-0/models/token-oracle-{0,1}      as the target, but without a loss on the secrets of the forget people
    out/seed-0/references/          cross-fitted on halves of all documents: for audits and unlearning
    out/seed-0/judges/              further ones, with other halves: for figures only, unlearning never sees them

Everything is seeded, resumable model by model, and shared between processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mitigate.artifacts.files import fingerprint, read_json, write_json
from mitigate.bench.unlearn.settings import UnlearnWorldSettings
from mitigate.bench.world import make_bench_base
from mitigate.detection.references.crossfit import References, crossfit_references
from mitigate.documents import Document, Documents, read_documents
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError, summarize
from mitigate.lab.planting import plant
from mitigate.lab.writing import general_text
from mitigate.models.directory import load_tokenizer, model_fingerprint
from mitigate.models.fitting.training import fine_tune
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state, share_of
from mitigate.tokens.tokenization import TokenizedDocument, span_tokens, tokenize_documents

ORACLES = 2  # of each kind: their distance is the floor, which no method can be expected to go below


@dataclass(frozen=True)
class UnlearnWorld:
    """People, models, and who may see what.

    Attributes:
        base: path of the base.
        documents: of the sets forget, retain and holdout.
        test: half of the forget people (groups), of whom figures are; settings are chosen on the other half.
        target: path of the leaky model.
        document_oracles: paths of models that never saw the forget documents.
        token_oracles: paths of models that saw them without a loss on the secrets.
        references: for audits and unlearning.
        judges: for figures.
        anchors: prose that unlearning may hold still.
        prose: prose for figures.
    """

    base: str
    documents: Documents
    test: frozenset[str]
    target: str
    document_oracles: tuple[str, ...]
    token_oracles: tuple[str, ...]
    references: References
    judges: References
    anchors: Documents
    prose: Documents


def make_unlearn_world(
    out: Path,
    *,
    seed: int,
    settings: UnlearnWorldSettings,
    documents: Path | None = None,
    prose: Path | None = None,
    base: str | None = None,
    device: str = "auto",
) -> UnlearnWorld:
    """Documents and models of one seed; what is already there is kept.

    Args:
        out: directory of the benchmark.
        seed: of the people, who is forgotten, the references' halves and the order of training.
        settings: sizes and schedules.
        documents (*optional*): JSON lines with id, text, spans and group instead of invented people.
        prose (*optional*): documents without anyone's data instead of invented prose.
        base (*optional*): an existing base model instead of one from scratch.
        device (`str`, *optional*, defaults to `auto`): where the models are trained.

    Raises:
        MitigateError: too few people, `out` holds models of other documents or settings, or a file cannot be read.
    """
    people, validation, test = deal_people(find_people(documents, settings, seed=seed), settings, seed=seed)
    anchors, measured = _prose(prose, settings, seed=seed)
    base = base or str(make_bench_base(out, settings=settings, device=device))
    directory = out / f"seed-{seed}"
    _check_plan(
        directory,
        {
            "base": model_fingerprint(base),
            "documents": people.fingerprint,
            "forget": fingerprint([sorted(validation), sorted(test)]),
            "prose": fingerprint([anchors.fingerprint, measured.fingerprint]),
            "method": settings.method,
            "lora": settings.lora.model_dump() if settings.method == "lora" else None,
            "schedule": settings.schedule.model_dump(),
            "references": settings.references,
            "judges": settings.judges,
        },
        people,
    )
    seen = people.subset(("forget", "retain"))
    retained = people.subset("retain")
    forgotten = {document.id for document in people.subset("forget")}
    tokenized = tokenize_documents(seen, load_tokenizer(base))
    secrets_masked = [
        without_secrets(document, own) if document.id in forgotten else document
        for document, own in zip(seen, tokenized, strict=True)
    ]
    masked = Documents(tuple(document for document in secrets_masked if document is not None))
    jobs = {"target": seen}
    jobs |= {f"document-oracle-{number}": retained for number in range(ORACLES)}
    jobs |= {f"token-oracle-{number}": masked for number in range(ORACLES)}
    _train(jobs, base, directory / "models", settings, seed=seed, device=device)

    def crossfit(name: str, count: int, *, seed: int) -> References:
        return crossfit_references(
            base,
            people,
            out=directory / name,
            count=count,
            method=settings.method,
            lora=settings.lora,
            schedule=settings.schedule,
            seed=seed,
            new_store=lambda: ModelStore(device=device),
        )

    references = crossfit("references", settings.references, seed=2 * seed)
    judges = crossfit("judges", settings.judges, seed=2 * seed + 1)
    path = directory / "models"
    return UnlearnWorld(
        base=base,
        documents=people,
        test=test,
        target=str(path / "target"),
        document_oracles=tuple(str(path / f"document-oracle-{number}") for number in range(ORACLES)),
        token_oracles=tuple(str(path / f"token-oracle-{number}") for number in range(ORACLES)),
        references=references,
        judges=judges,
        anchors=anchors,
        prose=measured,
    )


def deal_people(
    documents: Documents, settings: UnlearnWorldSettings, *, seed: int
) -> tuple[Documents, frozenset[str], frozenset[str]]:
    """Deal people to the sets at random, whatever set they had; people that are not needed are left out.

    Returns:
        the documents of the chosen people with their new sets, and the groups of the two halves of the forget people:
        validation, test.

    Raises:
        MitigateError: fewer people than the settings ask for, or no known span to forget.
    """
    groups = sorted({document.group for document in documents})
    sizes = {"validation": settings.forget // 2, "test": settings.forget - settings.forget // 2}
    sizes |= {"retain": settings.retain, "holdout": settings.holdout}
    if (needed := sum(sizes.values())) > len(groups):
        raise MitigateError(
            f"{len(groups)} people, but forget + retain + holdout is {needed}; give more documents, or smaller sizes "
            "(--set forget=N --set retain=N --set holdout=N)"
        )
    order = iter(np.random.default_rng([seed, 4]).permutation(len(groups)))
    role = {groups[next(order)]: name for name, size in sizes.items() for _ in range(size)}
    chosen = Documents(
        tuple(
            replace(document, set="forget" if role[document.group] in ("validation", "test") else role[document.group])
            for document in documents
            if document.group in role
        )
    )
    halves = [frozenset(group for group, name in role.items() if name == half) for half in ("validation", "test")]
    for name, half in zip(("validation", "test"), halves, strict=True):
        if not any(document.spans for document in chosen if document.group in half):
            raise MitigateError(
                f"no known span in the documents of the {name} people: secrets are what is measured; "
                "give documents with spans"
            )
    return chosen, halves[0], halves[1]


def without_secrets(document: Document, own: TokenizedDocument) -> Document | None:
    """The document with a loss on every token but those of its known spans; None if there is no other token.

    Args:
        document: its spans are the secrets.
        own: its tokens.
    """
    audited = own.audited.copy()
    for span in document.spans:
        audited[span_tokens(own.offsets, span.start, span.end)] = False
    ranges = tuple((int(start), int(end)) for start, end in own.offsets[audited])
    return replace(document, audited=ranges) if ranges else None


def find_people(path: Path | None, settings: UnlearnWorldSettings, *, seed: int) -> Documents:
    """All people that may be dealt to sets: a file's, or invented ones, most of them with one document."""
    if path is not None:
        return Documents(read_documents(path).items)
    needed = settings.forget + settings.retain + settings.holdout
    people = {copies: round(share * needed) for copies, share in settings.copies.items()}
    people[1] = needed - sum(number for copies, number in people.items() if copies != 1)
    planting = plant(seed=f"unlearn/{seed}", people_per_count=people)
    return planting.documents.subset(("forget", "retain"))  # a twin has its person's template: too near to be held out


def _prose(path: Path | None, settings: UnlearnWorldSettings, *, seed: int) -> tuple[Documents, Documents]:
    """Anchors and measured prose, disjoint; a file that is too short for both is halved."""
    if path is None:
        anchors = general_text(settings.anchors, seed=f"unlearn-anchors/{seed}", people_share=0.0)
        return Documents(tuple(anchors)), Documents(
            tuple(general_text(settings.prose, seed=f"unlearn-prose/{seed}", people_share=0.0))
        )
    found = read_documents(path)
    if len(found) < 2:
        raise MitigateError(f"{path}: {len(found)} documents; give 2 or more, for anchors and for figures")
    order = np.random.default_rng([seed, 5]).permutation(len(found)).tolist()
    count = min(settings.anchors, len(found) // 2)
    anchors, measured = order[:count], order[count : count + settings.prose]
    return Documents(tuple(found[n] for n in anchors)), Documents(tuple(found[n] for n in measured))


def _train(
    jobs: dict[str, Documents], base: str, out: Path, settings: UnlearnWorldSettings, *, seed: int, device: str
) -> None:
    """Fine-tune the models that are not there yet; each process its share."""
    state = process_state(device)
    missing = [(number, name) for number, name in enumerate(jobs) if not (out / name).is_dir()]
    state.wait_for_everyone()  # all know what is missing before anyone adds to it
    for number, name in share_of(missing, state):
        fine_tune(
            base,
            jobs[name],
            out=out / name,
            method=settings.method,
            lora=settings.lora,
            schedule=settings.schedule,
            seed=1000 * seed + 500 + number,
            description=f"Seed {seed}, {name}",
            store=ModelStore(device=device),
        )
    state.wait_for_everyone()


def _check_plan(directory: Path, plan: dict[str, object], documents: Documents) -> None:
    """Record what the models are made from, and refuse to go on with something else."""
    state, path = process_state(), directory / "plan.json"
    if path.is_file():
        if differing := [name for name, value in read_json(path).items() if plan.get(name) != value]:
            raise MitigateError(
                f"{path}: models of another {summarize(differing)}; choose another --out or remove that directory"
            )
    elif state.is_main_process:
        write_jsonl(documents, directory / "documents.jsonl")
        write_json(path, plan)
    state.wait_for_everyone()
