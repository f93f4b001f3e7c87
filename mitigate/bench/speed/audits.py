"""What an audit costs beside the forward passes that it cannot do without, and beside what public tools do.

*Bare*: every model's logits of the very batches that an audit makes, and nothing else. *One by one*: each document
alone through each model, log-softmax over the whole table, the tokens' entries, their difference: written here on its
own. *Compiled*, on a GPU: an audit by compiled kernels from its first batch on, as audits of much text are.
*Again*: a re-audit, which takes what the references said from the audit. *Calibrated*: an audit in which eight
cross-fitted references stand in the target's place as well. Weights and tokens are random, which costs the same. The
ways take turns, so that a ratio compares like with like: seconds of the processor on a CPU, of the clock on a GPU,
after a first turn that is not measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from peft import get_peft_model

from mitigate.bench.settings import SpeedSettings
from mitigate.detection.signals.compiled import signals_of_rows
from mitigate.detection.signals.compute import compute_signals, token_log_probs, token_signals
from mitigate.detection.signals.pairings import Pairing
from mitigate.detection.spans.by_shadows import plan_shadows
from mitigate.detection.spans.scored import ReferenceMembership
from mitigate.documents import Document, Documents
from mitigate.lab.tiny import new_llama
from mitigate.models.fitting.training import lora_config
from mitigate.models.model import Model, kept_logits
from mitigate.models.shared_base import SharedBase
from mitigate.runtime import process_state, progress
from mitigate.tokens.batches import cut_pieces, default_batch_tokens, make_batches
from mitigate.tokens.tokenization import TokenizedDocument

LENGTHS = {"long": (16, 512), "short": (8, 32)}  # tokens of a document, drawn evenly
_FEWER = {"long": 1, "short": 5, "calibrated": 3}  # so many times fewer tokens, where a token takes longest
SWITCHED = 9  # adapters: a target and eight references
Way = Callable[[Sequence[Model], Sequence[TokenizedDocument]], Any]
_SWITCHES = 20  # rounds


def measure_audits(settings: SpeedSettings, *, device: str) -> dict[str, Any]:
    """Time every case.

    Returns:
        `cases.<name>`: `tokens`, `tokens_per_second` of the audit, `seconds` of every turn of `bare`, `audit`,
        `one_by_one`, `again` (the calibrated case has the first two) and, on a GPU where compiling works, `compiled`,
        and `ratios` of their medians: `audit_of_bare`, `compiled_of_bare`, `one_by_one_of_audit`, `again_of_audit`;
        `switching`: `adapters` and the `milliseconds` that switching to one takes.
    """
    where = process_state(device).device
    whole = [random_model(settings, seed=seed, device=where) for seed in range(2)]
    adapted = random_adapters(settings, count=SWITCHED, device=where)
    cases = {
        "1 reference": (whole, "long"),
        "1 reference, short": (whole, "short"),
        "4 adapters": (adapted[:5], "long"),
    }
    ways: dict[str, Way] = {"bare": bare, "audit": audited, "one_by_one": one_by_one, "again": audited_again}
    if where.type in signals_of_rows.devices:
        ways["compiled"] = audited_compiled
    found = {}
    with progress(len(cases) + 1, "Audits", unit="case") as bar:
        for name, (models, lengths) in cases.items():
            tokens = settings.tokens // _FEWER[lengths]
            documents = random_documents(settings, LENGTHS[lengths], tokens=tokens, seed=0)
            found[name] = _measured(ways, models, documents, turns=settings.turns)
            bar.update()
        documents = random_documents(settings, LENGTHS["long"], tokens=settings.tokens // _FEWER["calibrated"], seed=0)
        ways = {"bare": bare, "audit": calibrated}
        found["8 references, calibrated"] = _measured(ways, adapted, documents, turns=settings.turns)
        bar.update()
    return {"cases": found, "switching": {"adapters": SWITCHED, "milliseconds": _switching(adapted)}}


def random_model(settings: SpeedSettings, *, seed: int, device: torch.device) -> Model:
    """A model of random weights: the shape of the settings, half precision on a GPU."""
    shape = settings.model.model_copy(update={"context": max(settings.model.context, LENGTHS["long"][1])})
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = cast(Any, new_llama(shape.vocabulary, shape, seed=seed))
    module = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return _named(f"random {seed}", SharedBase(f"random {seed}", str(seed), module))


def random_adapters(settings: SpeedSettings, *, count: int, device: torch.device) -> list[Model]:
    """Adapters of random weights over one base."""
    base = random_model(settings, seed=count, device=device).base
    config = lora_config(settings.lora)
    names = [f"adapter_{number}" for number in range(count)]
    base.peft = get_peft_model(base.model, config, adapter_name=names[0])
    for name in names[1:]:
        base.peft.add_adapter(name, config)
    base.rewired()
    for name, parameter in cast(torch.nn.Module, base.model).named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return [_named(name, base, (name,)) for name in names]


def _named(name: str, base: SharedBase, adapters: tuple[str, ...] = ()) -> Model:
    return Model(name, name, name, base, adapters, cast(Any, None))  # ids are given, so nothing is tokenized


def random_documents(
    settings: SpeedSettings, lengths: tuple[int, int], *, tokens: int, seed: int
) -> list[TokenizedDocument]:
    """Documents of random tokens, until there are so many tokens."""
    rng = np.random.default_rng(seed)
    documents: list[TokenizedDocument] = []
    made = 0
    while made < tokens:
        length = int(rng.integers(lengths[0], lengths[1] + 1))
        audited = np.arange(length) > 0
        ids = rng.integers(settings.model.vocabulary, size=length)
        offsets = np.stack([np.arange(length), np.arange(1, length + 1)], axis=1)
        documents.append(TokenizedDocument(str(len(documents)), ids, offsets, audited))
        made += length
    return documents


def bare(models: Sequence[Model], documents: Sequence[TokenizedDocument]) -> None:
    """Every model's logits of the audit's batches."""
    first = models[0]
    size = default_batch_tokens(first.vocabulary_size, device=first.device, tables=len(models))
    for batch in make_batches(cut_pieces(documents, context=first.context), batch_tokens=size):
        there = batch.to(first.device)
        for model in models:
            with torch.inference_mode(), model.active() as module:
                kept_logits(module, there.input_ids, there.attention_mask, there.keep)


def audited(models: Sequence[Model], documents: Sequence[TokenizedDocument]) -> np.ndarray:
    """The log-ratio of every token, with all other signals of an audit."""
    return token_signals(models[0], models[1:], documents=documents)["log_ratio"]


def audited_compiled(models: Sequence[Model], documents: Sequence[TokenizedDocument]) -> np.ndarray:
    """As `audited`, compiled from the first row on."""
    before, signals_of_rows.after = signals_of_rows.after, 0
    try:
        return audited(models, documents)
    finally:
        signals_of_rows.after = before


def audited_again(models: Sequence[Model], documents: Sequence[TokenizedDocument]) -> np.ndarray:
    """The log-probability of every token under the target alone, which is all that a re-audit asks of models."""
    return token_log_probs(models[0], documents)


def calibrated(models: Sequence[Model], documents: Sequence[TokenizedDocument]) -> dict[str, np.ndarray]:
    """All signals of an audit that shadows calibrate: the first model's, and every other one's in its place."""
    references = tuple(range(len(models) - 1))
    names = Documents(tuple(Document(own.id, own.id) for own in documents))
    drawn = [np.random.default_rng(number).permutation(references).tolist() for number in range(len(documents))]
    half = len(references) // 2
    out, trained = ([tuple(sorted(order[part])) for order in drawn] for part in (slice(half), slice(half, None)))
    plan = plan_shadows(names, ReferenceMembership(out=out, trained=trained, crossfitted=references), len(models))
    pairings = [Pairing(number, 0, tuple(k + 1 for k in own)) for number, own in enumerate(out)]
    return compute_signals(models, [*pairings, *plan.pairings], documents=documents)


def one_by_one(models: Sequence[Model], documents: Sequence[TokenizedDocument]) -> np.ndarray:
    """The log-ratio of every token, each document alone."""
    found = []
    for document in documents:
        ids = torch.from_numpy(document.ids).unsqueeze(0).to(models[0].device)
        own = []
        for model in models:
            with torch.inference_mode(), model.active() as module:
                table = torch.log_softmax(module(input_ids=ids, use_cache=False).logits[0, :-1].float(), dim=-1)
            own.append(table.gather(1, ids[0, 1:, None])[:, 0])
        mean = torch.logsumexp(torch.stack(own[1:]), dim=0) - np.log(len(own) - 1)
        found.append(np.concatenate([[np.nan], (own[0] - mean).cpu().numpy()]))
    return np.concatenate(found)


def _measured(
    kinds: Mapping[str, Way], models: Sequence[Model], documents: Sequence[TokenizedDocument], *, turns: int
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(turns + 1):
        for name, work in kinds.items():
            took = _seconds(lambda work=work: work(models, documents), models[0].device)  # type: ignore[misc]
            if turn:
                seconds[name].append(took)
    if signals_of_rows.failed:
        seconds.pop("compiled", None)
    typical = {name: median(values) for name, values in seconds.items()}
    tokens = sum(len(document.ids) for document in documents)
    return {
        "documents": len(documents),
        "tokens": tokens,
        "tokens_per_second": tokens / typical["audit"],
        "seconds": seconds,
        "ratios": {
            f"{name}_of_{of}": typical[name] / typical[of]
            for name, of in (("audit", "bare"), ("compiled", "bare"), ("one_by_one", "audit"), ("again", "audit"))
            if name in typical
        },
    }


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of the processor, all threads together, on a CPU; of the clock on a GPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def _switching(models: Sequence[Model]) -> float:
    """Milliseconds that switching from one adapter to the next takes, once each has been on."""
    for model in models:
        with model.active():
            pass
    started = time.process_time()
    for _ in range(_SWITCHES):
        for model in models:
            with model.active():
                pass
    return 1000 * (time.process_time() - started) / (_SWITCHES * len(models))
