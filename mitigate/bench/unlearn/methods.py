"""The runs of `mitigate bench unlearn`: objectives, scopes and rates, and the exact retraining they are compared with.

    out/seed-0/audits/{found,known}     the audit's own spans, and the known ones
    out/seed-0/runs/NAME/run.json       a finished run: settings, what it took, its figures
    out/seed-0/runs/NAME/measured.npz   its log-probabilities, from which figures over seeds are made
    out/seed-0/runs/NAME/adapter        the adapter, while it is the best of its method's tries

One run forgets the validation and the test people together. A finished run is kept as long as its settings are the
same.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import fingerprint, read_json, write_json
from mitigate.bench.unlearn.evidence import ModelLogProbs, UnlearnEvidence, measure_model
from mitigate.bench.unlearn.figures import figures, plain
from mitigate.bench.unlearn.settings import UnlearnBenchSettings
from mitigate.bench.unlearn.world import UnlearnWorld
from mitigate.detection.audit import audit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.documents import Documents, Span
from mitigate.errors import MitigateError, NothingToUnlearnError
from mitigate.models.store import ModelStore
from mitigate.recognisers.values import sensitive_values
from mitigate.retraining.retrain import retrain
from mitigate.runtime import process_state
from mitigate.unlearning.material.forgetting import scope_tokens
from mitigate.unlearning.objectives.catalogue import retain_of
from mitigate.unlearning.objectives.names import parse_objective
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainer import unlearn

logger = logging.getLogger(__name__)
FDR = 0.05
SELECTIONS = {
    "found": Detect(fdr=FDR),
    "recognised": Detect(fdr=FDR),
    "known": Detect(select="known", calibrate=True),
}
STEP = 3.0  # between two rates, and between two weights of anchors
BLIND = ("found", "recognised")
"""Selections whose audit is not told where the secrets are: known spans would shape its detector and its stretches.

`recognised` has what the recognisers know by its form, as documents have whose file marks nothing."""
RETRAINED = {"mask": ("found", "mask"), "placeholder": ("found", "placeholder"), "fake": ("found", "fake")}
RETRAINED |= {"mask_known": ("known", "mask")}
ALLOWED = {"retain_gap_nats": 0.10, "holdout_gap_nats": 0.05, "prose_gap_nats": 0.05}
"""What unlearning may cost before it counts against a try; of `retain_gap_nats` the absolute value."""


@dataclass(frozen=True)
class Seed:
    """All that the runs of one seed need.

    Attributes:
        number: the seed.
        directory: `out/seed-N`.
        world, evidence: people and models; what these say.
        audits: selection -> audit.
        settings: of the benchmark.
        device: of the models.
    """

    number: int
    directory: Path
    world: UnlearnWorld
    evidence: UnlearnEvidence
    audits: Mapping[str, Audit]
    settings: UnlearnBenchSettings
    device: str


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        record: what `run.json` holds; of a run that failed, `error`.
        measured: what the model says; None of a run that failed.
    """

    record: dict[str, Any]
    measured: ModelLogProbs | None

    @property
    def criterion(self) -> float:
        """What settings are chosen by, lower is better; infinite for a run that failed."""
        return float("inf") if self.measured is None else criterion(self.record["figures"]["validation"])


def criterion(validation: Mapping[str, Mapping[str, float | None]]) -> float:
    """The secret distance ratio, plus what the losses exceed their allowance by: nats count as much as shares.

    Args:
        validation: figures of the validation people.
    """
    values = {name: figure["value"] for name, figure in validation.items()}
    ratio = values["secret_distance_ratio"]
    excess = 0.0
    for name, allowed in ALLOWED.items():
        value = values[name]
        assert value is not None
        excess += max(0.0, (abs(value) if name == "retain_gap_nats" else value) - allowed)
    assert ratio is not None
    return ratio + excess


def factors(tries: int) -> tuple[float, ...]:
    """What the common rate is multiplied by: powers of 3 around 1."""
    return tuple(STEP ** (number - (tries - 1) / 2) for number in range(tries))


def make_audit(world: UnlearnWorld, selection: str, *, out: Path, seed: int, device: str) -> Audit:
    """Audit the target with the references, or take the audit that is there."""
    detect = SELECTIONS[selection]
    documents = world.documents
    if selection in BLIND:
        documents = Documents(
            tuple(replace(one, spans=_by_form(one.text) if selection == "recognised" else ()) for one in documents)
        )
    state = process_state(device)
    found = Audit.load(out) if out.is_dir() else None
    used = [world.target, *world.references.paths]
    if found and (
        found.metadata.detect != detect
        or found.metadata.documents != documents.fingerprint
        or [model.source for model in (found.metadata.target, *found.metadata.references)] != used
    ):
        found = None
    state.wait_for_everyone()
    if found is None:
        found = audit(
            world.target,
            world.references,
            documents=documents,
            detect=detect,
            store=ModelStore(device=device),
            seed=seed,
        )
        if state.is_main_process:
            found.save(out, replace=True)
        state.wait_for_everyone()
    return found


def _by_form(text: str) -> tuple[Span, ...]:
    return tuple(Span(value.start, value.end, value.kind) for value in sensitive_values(text))


def run_method(
    seed: Seed, objective: str, scope: str, *, factor: float, hold: float = 1.0, selection: str = "found"
) -> Run:
    """Unlearn once, and measure; where the audit leaves nothing to unlearn, the target as it is.

    Args:
        seed: people, models, audits.
        objective: a name of `METHODS`.
        scope: of `SCOPES`; token scope stops at the control, sequence scope runs all its steps.
        factor: of the common learning rate.
        hold (*optional*, defaults to 1): factor of the anchors' weight.
        selection (*optional*, defaults to `found`): whose spans are forgotten.
    """
    given = seed.settings.unlearn.model_dump()
    rate = factor * given["learning_rate"]
    own = {"objective": objective, "scope": scope, "stop_at_control": scope == "token", "learning_rate": rate}
    own |= {"keep_judges": False}  # the benchmark has judges of its own
    settings = Unlearn(**{**given, **own})
    retain = retain_of(settings.retain, parse_objective(objective))
    weight = hold * (retain.weight or 0.0)
    settings = settings.model_copy(update={"retain": retain.model_copy(update={"weight": weight})})
    mark = {"settings": settings.model_dump(), "objectives": parse_objective(objective), "selection": selection}

    def work(directory: Path) -> tuple[Path, dict[str, Any]]:
        adapter = directory / "adapter"
        shutil.rmtree(adapter, ignore_errors=True)  # of a run that was cut short while it was measured
        try:
            summary = unlearn(
                seed.audits[selection],
                out=adapter,
                retain=seed.world.anchors,
                settings=settings,
                store=ModelStore(device=seed.device),
                seed=seed.number,
            ).summary
        except NothingToUnlearnError as error:
            logger.warning("seed %d, %s: %s", seed.number, directory.name, error)
            return Path(seed.world.target), {"steps": 0, "stopped": str(error), "adapter_parameters": 0}
        return adapter, {name: summary[name] for name in ("steps", "stopped", "adapter_parameters")}

    facts = {
        "learning_rate": rate,
        "factor": factor,
        "anchor_weight": weight,
        "selected_token_share": selected_share(seed, selection, scope=scope),
        "selected_secret_share": selected_share(seed, selection, scope=scope, secret=True),
    }
    held = "" if hold == 1 else f"-{hold:.3g}"
    return _run(seed, f"{selection}-{objective}-{scope}-{factor:.3g}{held}", mark, facts, work)


def run_retrain(seed: Seed, name: str) -> Run:
    """Fit the target's data anew without what an audit selected, and measure; `name` is one of `RETRAINED`."""
    selection, redact = RETRAINED[name]
    settings = seed.settings
    mark = {"redact": redact, "selection": selection}

    def work(directory: Path) -> tuple[Path, dict[str, Any]]:
        out = directory / "model"
        shutil.rmtree(out, ignore_errors=True)
        summary = retrain(
            seed.audits[selection],
            base=seed.world.base,
            out=out,
            redact=redact,
            method=settings.method,
            lora=settings.lora,
            schedule=settings.schedule,
            seed=seed.number,
            new_store=lambda: ModelStore(device=seed.device),
        ).summary
        return out, {"exact": summary["exact"], "removed": summary["removed"]}

    facts = {
        "selected_token_share": selected_share(seed, selection),
        "selected_secret_share": selected_share(seed, selection, secret=True),
    }
    return _run(seed, f"retrain-{name}", mark, facts, work)


def choose(seed: Seed, tries: Sequence[Run]) -> Run:
    """The best of a method's tries by `criterion`; the adapters of the others are removed."""
    best = min(tries, key=lambda run: run.criterion)
    if process_state(seed.device).is_main_process:
        for run in tries:
            if run is not best:
                shutil.rmtree(seed.directory / "runs" / run.record["name"] / "adapter", ignore_errors=True)
    return best


def selected_share(seed: Seed, selection: str, *, scope: str = "token", secret: bool | None = None) -> float:
    """Share of the test people's scored tokens (or of their secrets') that is unlearned."""
    rows = seed.evidence.rows("test", secret=secret)
    return float(scope_tokens(seed.audits[selection], scope)[rows].mean())


def _run(
    seed: Seed,
    name: str,
    mark: Mapping[str, Any],
    facts: Mapping[str, Any],
    work: Callable[[Path], tuple[Path, dict[str, Any]]],
) -> Run:
    """Do a run, or take it if it is finished; one that fails (a loss that is no number) is tried again next time."""
    directory = seed.directory / "runs" / name
    path, arrays = directory / "run.json", directory / "measured.npz"
    state = process_state(seed.device)
    selection = mark["selection"]
    settled = [SELECTIONS[selection].model_dump(), mark, *(["blind"] if selection in BLIND else [])]
    plan = fingerprint([read_json(seed.directory / "plan.json"), *settled])
    kept = read_json(path) if path.is_file() else None
    mark_file = directory / "begun.json"
    begun = read_json(mark_file) if mark_file.is_file() else None
    state.wait_for_everyone()  # all have looked before one writes
    if kept and kept["fingerprint"] == plan:
        return Run(kept, ModelLogProbs.load(arrays))
    if begun != plan and state.is_main_process:  # its checkpoint would be refused
        shutil.rmtree(directory, ignore_errors=True)
        write_json(mark_file, plan)
    state.wait_for_everyone()
    started = time.monotonic()
    try:
        model, summary = work(directory)
        seconds = time.monotonic() - started
        measured = measure_model(model, seed.evidence.tokenized, seed.evidence.prose, device=seed.device)
    except MitigateError as error:
        logger.warning("seed %d, %s: %s", seed.number, name, error)
        return Run({"name": name, **facts, "error": str(error)}, None)
    record = {
        "name": name,
        "fingerprint": plan,
        **facts,
        **summary,
        "seconds": round(seconds, 1),
        "figures": {half: plain(figures([seed.evidence], [measured], half=half)) for half in ("validation", "test")},
    }
    if state.is_main_process:
        measured.save(arrays)
        write_json(path, record)
    state.wait_for_everyone()
    found = {half: values["secret_distance_ratio"]["value"] for half, values in record["figures"].items()}
    logger.info(
        "seed %d, %s: ratio %.2f on validation, %.2f on test people, holdout loss %+.2f; %.0f s",
        seed.number,
        name,
        found["validation"],
        found["test"],
        record["figures"]["test"]["holdout_gap_nats"]["value"],
        seconds,
    )
    return Run(record, measured)
