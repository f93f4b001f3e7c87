"""Time and memory of an unlearning step, against the computation without its savings.

What is saved: the output head sees only tokens to forget and anchors, sequences end after the last of them, p_0 and the
references' distributions are computed once and kept by their likeliest entries, and there is no second copy of the
model. The dense computation does what many trainers do: logits of every position for the model and for a frozen copy of
it, and the references' distributions kept whole for every token. Both see the same documents and the same tokens.

Weights are random, which costs the same, with output embeddings so large that predictions are as peaked as a trained
model's. Each variant runs in a process of its own, whose peak memory is
measured: on a GPU what torch allocated, else the process's resident set.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from mitigate.bench.settings import SpeedSettings
from mitigate.detection.audit import audit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.lab.planting import plant
from mitigate.lab.tiny import new_llama, train_tokenizer
from mitigate.lab.writing import general_text
from mitigate.models.fitting.pace import rate_factor
from mitigate.models.fitting.training import add_lora
from mitigate.models.store import ModelStore
from mitigate.runtime import peak_memory, process_state, progress, quiet_libraries
from mitigate.tokens.batches import collate, cut_pieces
from mitigate.unlearning.objectives.catalogue import Retention
from mitigate.unlearning.preparation import prepare
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.training.loop import Loop

REFERENCES = 2
OBJECTIVE = {"hinge": 1.0, "distill": 0.5}
PEAKED = 8.0
VARIANTS = ("sparse", "sparse_checkpointed", "dense")


def measure_steps(out: Path, *, steps: int, settings: SpeedSettings, device: str) -> dict[str, Any]:
    """Measure every variant, each in a process of its own.

    Args:
        out: directory of the models.
        steps: measured ones, after one that is not.
        settings: sizes.
        device: of the models.

    Returns:
        `variants.<name>` with `seconds_per_step` (median), `peak_bytes`, `loss` of the first step; `ratios.<name>` of
        the first two to the dense computation; `loss_difference` of sparse and dense, relative.
    """
    make_speed_world(out, settings, device=device)
    order = document_order(out, settings, steps, device=device)
    variants: dict[str, Any] = {}
    with progress(len(VARIANTS), "Unlearning steps", unit="variant") as bar:
        for name in VARIANTS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                variants[name] = pool.apply(measure_variant, (out, name, settings, order, device))
            bar.update()
    dense = variants["dense"]
    keys = ("seconds_per_step", "peak_bytes")
    return {
        "variants": variants,
        "ratios": {name: {key: found[key] / dense[key] for key in keys} for name, found in variants.items()},
        "loss_difference": abs(variants["sparse"]["loss"] - dense["loss"]) / abs(dense["loss"]),
    }


def make_speed_world(out: Path, settings: SpeedSettings, *, device: str) -> None:
    """Random models with one tokenizer, invented people, and an audit of them; what is there is kept."""
    if (out / "audit").is_dir():
        return
    people = plant(seed="speed", people_per_count={1: settings.forget + settings.retain}, forget_share=0.5).documents
    text = [*people, *general_text(2000, seed="speed")]
    tokenizer = train_tokenizer((document.text for document in text), vocabulary=settings.model.vocabulary)
    for number in range(1 + REFERENCES):
        model = new_llama(len(tokenizer), settings.model, seed=number)
        model.resize_token_embeddings(settings.model.vocabulary)  # a small corpus has fewer words than a vocabulary
        model.get_output_embeddings().weight.data.mul_(PEAKED)
        model.save_pretrained(out / f"model-{number}")
        tokenizer.save_pretrained(out / f"model-{number}")
    chosen = {name: people.subset(name)[: getattr(settings, name)] for name in ("forget", "retain")}
    logging.disable(logging.WARNING)  # that random models know nothing is no news here
    try:
        found = audit(
            out / "model-0",
            [out / f"model-{number + 1}" for number in range(REFERENCES)],
            documents=Documents((*chosen["forget"], *chosen["retain"])),
            detect=Detect(select="known"),
            store=ModelStore(device=device),
        )
    finally:
        logging.disable(logging.NOTSET)
    found.save(out / "audit")


def document_order(out: Path, settings: SpeedSettings, steps: int, *, device: str) -> list[list[str]]:
    """The documents that each step of `unlearn` sees, the first step not measured.

    Raises:
        MitigateError: a document is longer than the model's context.
    """
    found = Audit.load(out / "audit")
    loop = speed_loop(found, settings, device=device, checkpointed=False, out=out)
    longest = max(len(own.ids) for own in found.tokenized())
    if longest > loop.trainable.model.context:
        raise MitigateError(
            f"model.context: {loop.trainable.model.context} is less than the longest document's {longest} tokens, and "
            f"the dense computation takes whole documents; set it to {longest} or more"
        )
    return [[task.doc_id for task in loop.tasks(number)] for number in range(steps + 1)]


def measure_variant(
    out: Path, name: str, settings: SpeedSettings, order: Sequence[Sequence[str]], device: str
) -> dict[str, Any]:
    """Time and peak memory of one variant, in this process."""
    quiet_libraries()
    found = Audit.load(out / "audit")
    if name == "dense":
        step = dense_steps(found, settings, order, device=device)
    else:
        step = speed_loop(found, settings, device=device, checkpointed=name == "sparse_checkpointed", out=out).step
    on_gpu = process_state(device).device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    loss, seconds = step(0), []
    for number in range(len(order) - 1):
        started = time.perf_counter()
        step(1 + number)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = peak_memory(process_state(device).device)
    return {"seconds_per_step": median(seconds), "seconds": seconds, "peak_bytes": int(peak), "loss": loss}


def speed_loop(found: Audit, settings: SpeedSettings, *, device: str, checkpointed: bool, out: Path) -> Loop:
    """A loop that never stops by itself."""
    return prepare(
        found,
        settings=Unlearn(
            objective=OBJECTIVE,
            lora=settings.lora,
            batch_size=settings.batch_size,
            retain_batch_size=settings.batch_size,
            batch_tokens=10**9,
            kept_entries=settings.kept_entries,
            gradient_checkpointing=checkpointed,
            stop_at_control=False,
        ),
        partial=out / "never-written",
        store=ModelStore(device=device),
    ).loop()


def dense_steps(
    found: Audit, settings: SpeedSettings, order: Sequence[Sequence[str]], *, device: str
) -> Callable[[int], float]:
    """The same objective, computed without savings: whole logits, a frozen copy, whole distributions for all tokens.

    Steps see the documents that `unlearn` sees. The loss of a step is the same but for what keeping only the likeliest
    entries leaves out.
    """
    store = ModelStore(device=device)
    model = store.load(found.metadata.target.source)
    frozen = copy.deepcopy(model.base.model)
    references = [store.load(reference.source).base.model for reference in found.metadata.references]
    tokenized = found.tokenized()
    number_of = {tokens.id: number for number, tokens in enumerate(tokenized)}
    pieces = cut_pieces(tokenized, context=model.context)
    selected = found.columns["selected"].astype(bool)
    out_columns = found.columns["log_prob_out"]
    add_lora(model, settings.lora, seed=0)
    module: Any = model.base.model.eval()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=Unlearn().learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
    kept: dict[int, torch.Tensor] = {}

    def whole_logits(of: Any, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(of(input_ids=inputs, attention_mask=mask, use_cache=False).logits.float(), dim=-1)

    def step(number: int) -> float:
        chosen = [number_of[doc_id] for doc_id in order[number]]
        batch = collate([pieces[place] for place in chosen]).to(model.device)
        rows = [found.rows[tokenized[place].id] for place in chosen]
        with torch.no_grad():
            before = whole_logits(frozen, batch.input_ids, batch.attention_mask)
            if missing := [place for place in chosen if place not in kept]:
                some = collate([pieces[place] for place in missing]).to(model.device)
                several = [whole_logits(of, some.input_ids, some.attention_mask) for of in references]
                mean = torch.logsumexp(torch.stack(several), 0) - np.log(len(several))
                kept.update({place: mean[row].cpu() for row, place in enumerate(missing)})
        log_probs = whole_logits(module, batch.input_ids, batch.attention_mask)
        forgetting, anchors = [], []
        for row, place in enumerate(chosen):
            length = len(pieces[place].ids)
            is_secret = torch.from_numpy(selected[rows[row]][1:length]).to(model.device)
            own, was = log_probs[row, : length - 1], before[row, : length - 1]
            mean = kept[place][: length - 1].to(model.device)
            targets = batch.input_ids[row, 1:length].unsqueeze(1)
            excess = own.gather(1, targets).squeeze(1) - torch.from_numpy(out_columns[rows[row]][1:length]).to(own)
            loss = OBJECTIVE["hinge"] * torch.relu(excess) + OBJECTIVE["distill"] * (mean.exp() * (mean - own)).sum(1)
            forgetting.append(loss[is_secret])
            anchors.append((was.exp() * (was - own)).sum(1)[~is_secret])
        total = torch.cat(forgetting).mean() + Retention().weight * torch.cat(anchors).mean()
        factor = rate_factor(number, Unlearn().max_steps, warmup_share=0.05)
        optimizer.param_groups[0]["lr"] = Unlearn().learning_rate * factor
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(total.detach())

    return step
