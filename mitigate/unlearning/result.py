"""Write what unlearning made: the adapter or the model, the record of how it went, and a card."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mitigate import __version__
from mitigate.adapters.card import write_card
from mitigate.adapters.merging import MERGED, merge_adapters
from mitigate.artifacts.files import new_directory, write_json
from mitigate.artifacts.provenance import UNLEARN_RECORD
from mitigate.errors import MitigateError, summarize
from mitigate.models.store import ModelStore
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainable import AdapterTrainable, State, Trainable
from mitigate.unlearning.training.loop import Loop

logger = logging.getLogger(__name__)


def write_result(loop: Loop, state: State, rounds: Sequence[dict[str, Any]], *, out: Path, store: ModelStore) -> None:
    """Write the trained weights and the record, and remove the checkpoint.

    Args:
        loop: that trained them.
        state: the weights.
        rounds: records of the rounds, the last one that of the loop.
        out: the result's directory.
        store: loads models to merge.

    Raises:
        MitigateError: training changed nothing, or `out` cannot be written.
    """
    trainable, settings = loop.trainable, loop.settings
    reached = trainable.reached(state)
    if not any(reached.values()):
        raise MitigateError("unlearning changed nothing; raise unlearn.learning_rate")
    if untrained := [name for name, changed in reached.items() if not changed]:
        logger.warning("unlearning left %d weights as they were: %s", len(untrained), summarize(untrained))
    kept = [one for one in rounds if not one["undone"]]
    ends = next(look for look in kept[-1]["history"] if look["step"] == kept[-1]["kept_step"])
    summary = {
        "objective": loop.losses.weights,
        "scope": settings.scope,
        "method": settings.method,
        "anchor": loop.losses.anchor,
        "steps": sum(one["steps"] for one in kept),
        "stopped": kept[-1]["stopped"],
        "history": [{"round": 1 + number, **look} for number, one in enumerate(rounds) for look in one["history"]],
        "rounds": [{name: value for name, value in one.items() if name != "history"} for one in rounds],
        "control": loop.control.log_ratio,
        "control_distance": loop.control.distance,
        "over_forgotten": ends["over_forgotten"],
        "exposed": ends["exposed"],
        "adapter_parameters": sum(tensor.numel() for tensor in state.values()),
        "model_parameters": sum(p.numel() for n, p in trainable.module.named_parameters() if "lora_" not in n),
        "processes": loop.accelerator.num_processes,
        **loop.plan,
    }
    refused = None
    with new_directory(out) as directory:
        _save_model(trainable, state, directory, settings=settings, store=store)
        made = [directory]
        if settings.merge and isinstance(trainable, AdapterTrainable):
            try:
                merge_adapters(directory, out=directory / MERGED, store=store)
                made.append(directory / MERGED)
            except MitigateError as error:  # the adapter is right all the same, and took long
                refused = error
        for model in made:
            write_json(model / UNLEARN_RECORD, summary)
            write_card(model, target=summary["target"], how=_what_was_done(summary))
    loop.forget_checkpoint()
    if refused is not None:
        raise MitigateError(f"{out}: is written, but without {MERGED}/: {refused}") from refused


def _save_model(trainable: Trainable, state: State, directory: Path, *, settings: Unlearn, store: ModelStore) -> None:
    """Write the model into an existing directory: merged where its adapters cannot be one (and are not merged besides).

    Where they cannot be merged either, the new adapter is written alone.
    """
    if not isinstance(trainable, AdapterTrainable) or trainable.to_merge is None or settings.merge:
        trainable.save(state, directory)
        return
    stack, whole = directory / "stack", directory / "whole"
    stack.mkdir()
    trainable.save(state, stack)
    chosen = whole
    try:
        merge_adapters(stack, out=whole, store=store)
    except MitigateError as error:
        logger.warning("%s; the new adapter is given alone, to be loaded over the target's by mitigate", error)
        chosen = stack
    for path in list(chosen.iterdir()):
        path.replace(directory / path.name)
    for left in (stack, whole):
        shutil.rmtree(left, ignore_errors=True)


def _what_was_done(summary: Mapping[str, Any]) -> str:
    """A sentence for the model card."""
    terms = ", ".join(f"{name} {weight:g}" for name, weight in summary["objective"].items())
    return (
        f"Made by mitigate {__version__} from `{summary['target']['source']}`: {summary['steps']} steps of unlearning "
        f"({terms}; scope {summary['scope']}; {summary['method']}) on the tokens that the audit {summary['audit']} "
        "selected. unlearn.json says how it went; an audit says what it still knows."
    )
