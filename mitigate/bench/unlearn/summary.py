"""What the runs of all seeds of `mitigate bench unlearn` amount to: the figures of results.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mitigate.bench.unlearn.evidence import UnlearnEvidence
from mitigate.bench.unlearn.figures import figures, floors, plain
from mitigate.bench.unlearn.methods import Run
from mitigate.bench.unlearn.tries import SeedRuns, Tried
from mitigate.detection.scores.token import typical
from mitigate.errors import summarize
from mitigate.models.fitting.training import lora_config
from mitigate.unlearning.settings import Unlearn

AS_MUCH = 0.1  # nats: a try forgets as much as ours if its secrets are no likelier by more than this
_OF_ORACLES = (  # an oracle's distance to the mean of itself and the other one says nothing
    *("secret_log_prob", "other_moved_nats", "holdout_gap_nats", "prose_gap_nats", "span_auc"),
    *("tpr_at_1pct_fpr", "over_forgotten", "extraction_forget", "extraction_retain"),
)

_OF_MATCHED = (
    *("secret_distance", "secret_distance_ratio", "token_oracle_distance", "token_oracle_distance_ratio"),
    *("secret_log_prob", "span_auc", "tpr_at_1pct_fpr"),
)


def summarize_seeds(done: Sequence[SeedRuns]) -> dict[str, Any]:
    """The figures of results.json.

    Returns:
        `methods.<objective>.<scope>`, `{recognised,known}_spans.default`, `retrain.<name>`: figures of
            `figures.figures`, and what the runs took, see `_of_method`;
        `before`: the same figures of the target; `oracle.{document,token}`: those of an oracle that need no other one;
        `floor`: distances between two oracles; `people`, `secrets`: how many there are on each seed, by role;
        `matched`: distances of a model that says of the secrets just what the references say on average, which is what
            those who have only references can reach;
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
        "recognised_spans": {"default": _of_method(evidence, [runs.recognised for runs in done])},
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
        "matched": matched(done),
        "equal_forgetting": equal_forgetting(done[0]),
        "adapter_share_at_1b": adapter_share(),
    }


def matched(done: Sequence[SeedRuns]) -> dict[str, Any]:
    """Distances to the oracles, on secrets, of what the references that never saw them say on average."""
    evidence = [runs.seed.evidence for runs in done]
    references = [typical(runs.seed.audits["known"].reference_log_probs) for runs in done]
    models = [
        replace(one.before, log_prob=np.where(one.secret & ~np.isnan(said), said, one.before.log_prob))
        for one, said in zip(evidence, references, strict=True)
    ]
    return {name: figure for name, figure in plain(figures(evidence, models)).items() if name in _OF_MATCHED}


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


def _of_method(evidence: Sequence[UnlearnEvidence], tried: Sequence[Tried]) -> dict[str, Any]:
    """A method's figures at its chosen rates, and all its tries.

    Returns:
        figures (none where a chosen run failed: `error` then), means of `seconds`, `steps`, shares and sizes, `stopped`
        `learning_rate` and `anchor_weight` of each seed, and `tries`: for each try and each seed that ran it, the rate,
        the weight, the criterion, and the figures of the validation and the test people (or the error).
    """
    return {**_of_runs(evidence, [one.chosen for one in tried]), "tries": _tries(tried)}


def _of_runs(evidence: Sequence[UnlearnEvidence], runs: Sequence[Run]) -> dict[str, Any]:
    measured = [run.measured for run in runs if run.measured is not None]
    records = [run.record for run in runs]
    if len(measured) < len(runs):
        return {"error": summarize(record["error"] for record in records if "error" in record)}
    averaged = ("seconds", "steps", "adapter_parameters", "selected_token_share", "selected_secret_share")
    listed = ("learning_rate", "anchor_weight", "stopped", "exact")
    return {
        **plain(figures(evidence, measured)),
        **{name: float(np.mean([r[name] for r in records])) for name in averaged if name in records[0]},
        **{name: [record[name] for record in records] for name in listed if name in records[0]},
    }


def _tries(tried: Sequence[Tried]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for which in tried[0].tries:
        for run in (one.tries[which] for one in tried if which in one.tries):
            entry: dict[str, Any] = {name: run.record[name] for name in ("learning_rate", "anchor_weight")}
            if run.measured is None:
                entry["error"] = run.record["error"]
            else:
                values = {
                    half: {name: figure["value"] for name, figure in of_half.items()}
                    for half, of_half in run.record["figures"].items()
                }
                entry |= {"criterion": run.criterion, **values}
            found.setdefault(str(which), []).append(entry)
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
