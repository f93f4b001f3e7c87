"""Plain causal language-model training: for reference models, and for the models that the lab makes.

One short loop over whole documents. Unlearning has its own loop, with masks and anchors, in `unlearning.trainer`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, get_peft_model

from mitigate.artifacts.files import new_directory, write_json
from mitigate.artifacts.temporaries import partial_of
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.mistakes import not_one_of
from mitigate.models.directory import check_layering
from mitigate.models.fitting.gradients import Gradients, document_losses, mixed_format
from mitigate.models.fitting.pace import BySchedule, Goal, Pace, ToGoal, spread
from mitigate.models.fitting.saves import Saves
from mitigate.models.model import Model
from mitigate.models.settings import Lora, Method, Schedule
from mitigate.models.store import ModelStore
from mitigate.runtime import progress, seed_everything
from mitigate.tokens.batches import Piece, cut_pieces
from mitigate.tokens.tokenization import TokenizedDocument, tokenize_documents

logger = logging.getLogger(__name__)
NEW_ADAPTER = "default"  # PEFT saves an adapter of this name into the directory itself


def add_lora(model: Model, lora: Lora, *, seed: int, dora: bool = False) -> torch.nn.Module:
    """Put a fresh LoRA (or DoRA, Liu et al., arXiv 2402.09353) adapter over the model's own; only it gets gradients.

    Raises:
        MitigateError: its target modules are not the model's.
    """
    base, config = model.base, lora_config(lora)
    config.use_dora = dora
    if base.peft is not None and NEW_ADAPTER in base.peft.peft_config:
        base.peft.delete_adapter(NEW_ADAPTER)  # of an earlier training with this store
    torch.manual_seed(seed)
    try:
        if base.peft is None:
            base.peft = get_peft_model(base.model, config, adapter_name=NEW_ADAPTER)
        else:
            base.peft.add_adapter(NEW_ADAPTER, beside_saved_modules(config, base.model))
    except ValueError as error:
        raise MitigateError(
            f"lora.target_modules: {lora.target_modules!r} does not fit this model ({error})"
        ) from error
    base.rewired()
    base.activate((*model.adapters, NEW_ADAPTER))
    for name, parameter in base.model.named_parameters():
        parameter.requires_grad_(f".{NEW_ADAPTER}." in name)
    return base.peft


def lora_config(lora: Lora) -> LoraConfig:
    """The PEFT configuration of an adapter of this shape."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )


def beside_saved_modules(config: LoraConfig, model: torch.nn.Module) -> LoraConfig:
    """Leave out the copies of whole modules (`modules_to_save`) that an adapter under the new one brought along.

    "all-linear" would take them for layers of the model; they are the lower adapter's own and are loaded with it.
    """
    if config.exclude_modules is None and any(".modules_to_save." in name for name, _ in model.named_modules()):
        config.exclude_modules = r"(.*\.)?(modules_to_save|original_module)(\..*)?"
    return config


def sort_sets(config: PeftConfig) -> None:
    """Turn what an adapter's configuration holds as sets (`target_modules`, ...) into sorted lists, before it is saved.

    The order of a set of strings differs from process to process, and with it the bytes of adapter_config.json.
    """
    for name, value in vars(config).items():
        if isinstance(value, set | frozenset):
            setattr(config, name, sorted(value, key=str))


def fine_tune(
    base: str | Path,
    documents: Documents,
    *,
    out: Path,
    method: str,
    lora: Lora,
    schedule: Schedule,
    seed: int,
    description: str,
    store: ModelStore,
    goal: Goal | None = None,
) -> None:
    """Fine-tune a base on documents and save the adapter (`method` lora) or the whole model (`full`) to `out`.

    With a goal, training ends there, however many epochs the schedule has; see `ToGoal`. Every five minutes a
    checkpoint is written to `out + ".partial"`, from which a killed training goes on when it is begun again.

    Raises:
        MitigateError: the method is unknown, the loss diverged, or `out` cannot be written.
    """
    if wrong := not_one_of(Method, method):
        raise MitigateError(f"method: {wrong}")
    check_layering(str(base), base=store.base, whole=method == "full")
    if method == "full":
        store.check_whole("method: full")
    model = store.load(base)
    tokenized = tokenize_documents(documents, model.tokenizer)
    seed_everything(seed)
    module: Any = model.base.model.requires_grad_(True) if method == "full" else add_lora(model, lora, seed=seed)
    pieces = cut_pieces(tokenized, context=model.context, stride=model.context - 1)
    steps = math.ceil(len(pieces) / schedule.batch_size)
    reach = None
    if goal is not None:

        def on_goal() -> np.ndarray:
            return document_losses(module, goal.documents, model=model)

        reach = ToGoal(goal, on_goal, steps=steps)
    plan = {
        "base": model.fingerprint,
        "documents": documents.fingerprint,
        "method": method,
        "lora": lora.model_dump() if method == "lora" else None,
        "schedule": schedule.model_dump(),
        "seed": seed,
        "goal": None if goal is None else [[one.id for one in goal.documents], goal.losses.tolist()],
    }
    saves = Saves(partial_of(out), plan)
    losses = fit(
        module,
        tokenized,
        schedule=schedule,
        context=model.context,
        seed=seed,
        description=description,
        pace=reach,
        saves=saves,
    )
    logger.info("%s: %d documents, loss %.3f -> %.3f", description, len(tokenized), losses[0], losses[-1])
    record: dict[str, Any] = {"documents": len(tokenized), "losses": [round(x, 4) for x in losses]}
    if reach is not None:
        record["goal"] = _reached(reach, steps=len(losses), per_epoch=steps, description=description)
    # transformers saves whole models on rank 0 only, but here each process has trained a model of its own
    model.base.model.should_save_on_this_rank = lambda is_main_process: is_main_process  # type: ignore[method-assign]
    if method == "lora":
        module.peft_config[NEW_ADAPTER].base_model_name_or_path = str(base)  # an adapter too, where it lies over one
        sort_sets(module.peft_config[NEW_ADAPTER])
    choice = {"selected_adapters": [NEW_ADAPTER], "save_embedding_layers": False} if model.adapters else {}
    with new_directory(out) as directory:
        module.save_pretrained(directory, **choice)
        if method == "full":
            model.tokenizer.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)  # an empty model card
        write_json(directory / "training.json", record)
    saves.forget()


def fit(
    module: torch.nn.Module,
    documents: Sequence[TokenizedDocument],
    *,
    schedule: Schedule,
    context: int,
    seed: int,
    description: str = "Training",
    pace: Pace | None = None,
    batch_tokens: int | None = None,
    saves: Saves | None = None,
) -> list[float]:
    """Minimize the mean negative log-likelihood of the documents' audited tokens.

    Documents longer than the context are cut into pieces that follow one another. A batch that does not fit in memory
    goes through the model in parts, which give the same gradient; see `Gradients`. Weights in half precision are
    trained in float32, of which the forward pass sees the rounded ones, and are rounded at the end: steps of AdamW are
    smaller than what separates two neighbours in half precision.

    Args:
        module: the model; parameters that require gradients are trained.
        documents: tokenized documents.
        schedule: epochs, rate, batch size.
        context: longest piece in tokens.
        seed: of the order of the documents.
        pace (*optional*): how fast, and when it ends; by default as the schedule says.
        batch_tokens (*optional*): padded tokens in one forward; see `default_batch_tokens`.
        saves (*optional*): checkpoints, from the newest of which it goes on.

    Returns:
        the loss of every step, nats per token.
    """
    pieces = cut_pieces(documents, context=context, stride=context - 1)
    if not pieces:
        raise MitigateError(f"{description}: no documents to train on")
    pace = pace or BySchedule(schedule, steps=math.ceil(len(pieces) / schedule.batch_size))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    formats = [parameter.dtype for parameter in parameters]
    mixed = mixed_format({parameter.dtype for parameter in module.parameters()}, trained=formats)
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(
        parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.95)
    )
    gradients = Gradients(module, device=parameters[0].device, batch_tokens=batch_tokens, mixed=mixed)
    losses = saves.restore(module, optimizer, pace) if saves is not None else []
    batches = islice(_endless(pieces, size=schedule.batch_size, seed=seed), len(losses), None)
    module.train()
    with progress(1, description, unit="step") as bar:
        bar.update(len(losses))
        while not pace.ended(len(losses)):
            bar.total = pace.expected
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate * pace.factor(len(losses))
            losses.append(gradients.add(next(batches)))
            torch.nn.utils.clip_grad_norm_(parameters, schedule.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            if not math.isfinite(losses[-1]):
                break
            if saves is not None:
                saves.offer(module, optimizer, pace, losses)
    module.eval()
    for parameter, own in zip(parameters, formats, strict=True):
        parameter.data = parameter.data.to(own)
    if not math.isfinite(losses[-1]):
        raise MitigateError(f"{description}: the loss became {losses[-1]}; lower the learning rate")
    return losses


def _endless(pieces: Sequence[Piece], *, size: int, seed: int) -> Iterator[list[Piece]]:
    """The pieces of each step, each epoch in another order."""
    order = np.random.default_rng(seed)
    while True:
        shuffled = order.permutation(len(pieces))
        for start in range(0, len(pieces), size):
            yield [pieces[i] for i in shuffled[start : start + size]]


def _reached(reach: ToGoal, *, steps: int, per_epoch: int, description: str) -> dict[str, Any]:
    """How near a fit came to its goal, for its record; said where it did not get there."""
    goal, loss = reach.goal, reach.goal.mean(reach.last)
    epochs = steps / per_epoch
    logger.info("%s: %.1f epochs, loss %.3f beside the target's %.3f", description, epochs, loss, goal.loss)
    if not reach.reached:
        logger.warning(
            "%s: after %.0f epochs its loss on documents that the target was trained on is %.3f nats a token, the "
            "target's %.3f; give the target's own schedule and shape (references.schedule, references.lora)",
            description,
            epochs,
            loss,
            goal.loss,
        )
    return {
        "documents": len(goal.documents),
        "epochs": round(epochs, 2),
        "loss": round(loss, 4),
        "target_loss": round(goal.loss, 4),
        "spread": spread(reach.last),
        "target_spread": spread(goal.losses),
        "reached": reach.reached,
    }
