"""What unlearning trains: an adapter over the model (LoRA, DoRA), all of its weights, or its last layers.

An adapter can be switched off, which gives the model before unlearning at any time, and leaves the base untouched.
Weights cannot: what the model said before is then computed before the first step.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch

from mitigate.adapters.addition import Part, obstacle
from mitigate.adapters.merging import MERGED
from mitigate.adapters.trained import (
    adapter_state,
    as_before,
    base_checksum,
    bytes_of,
    fill,
    is_sharded,
    lower_parts,
    only_shards,
    restore_adapter,
    save_adapter,
    whole_of,
)
from mitigate.errors import MitigateError
from mitigate.models.adapters import is_adapter
from mitigate.models.fitting.gradients import recompute_activations
from mitigate.models.fitting.training import NEW_ADAPTER, add_lora
from mitigate.models.inside.layers import decoder_layers
from mitigate.models.model import Model
from mitigate.unlearning.settings import Unlearn

logger = logging.getLogger(__name__)
State = dict[str, torch.Tensor]


class AdapterTrainable:
    """A fresh adapter over the model's own; the base is frozen.

    Attributes:
        model: the model.
        can_step_back: `before` gives the model before unlearning at any time.
        difference: the result is written as the new adapter alone, also where it lies over others.
        to_merge: why the result cannot be one adapter and is to be merged into a plain model; None where it can.
    """

    can_step_back = True

    def __init__(self, model: Model, settings: Unlearn, *, seed: int) -> None:
        self.model = model
        add_lora(model, settings.lora, seed=seed, dora=settings.method == "dora")
        assert model.base.peft is not None
        self.below = lower_parts(model)
        new = Part(model.base.peft.peft_config[NEW_ADAPTER], {})
        self.difference, self.to_merge = settings.give == "difference", None
        reason = obstacle([*self.below, new]) if self.below else None
        if is_adapter(model.base.source):
            reason = f"its base is {model.base.source}, merged into what that lies over"
        if reason is not None and not self.difference:
            self.difference, self.to_merge = True, reason
            given = "a plain model with both merged in; for the new one alone set unlearn.give: difference"
            if settings.merge:
                given = (
                    f"the new one alone, which only mitigate loads over the other, and {MERGED}/ with both merged in"
                )
            logger.warning(
                "%s: its adapter and the new one cannot be one adapter: %s; the result is %s", model.name, reason, given
            )

    @property
    def module(self) -> torch.nn.Module:
        """What a forward pass goes through."""
        return self.model.base.model

    def before(self) -> AbstractContextManager[None]:
        """The model as it was before unlearning, inside the block."""
        return as_before(self.model)

    def state(self) -> State:
        """The trained weights on the CPU; every process must call it."""
        return adapter_state(self.model.base)

    def restore(self, state: State) -> None:
        """Go back to an earlier state; every process must call it."""
        restore_adapter(self.model.base, state)

    def frozen_checksum(self) -> str:
        """Fingerprint of every weight that must stay as it is."""
        return base_checksum(self.model.base)

    def reached(self, state: State) -> dict[str, bool]:
        """Which parts of the adapter training reached."""
        return {name: bool(tensor.any()) for name, tensor in state.items() if "lora_B" in name}

    def gather(self) -> None:
        """Have at hand what `save` writes besides: nothing."""

    def save(self, state: State, directory: Path) -> None:
        """Write a PEFT adapter directory, see `save_adapter`."""
        save_adapter(self.model, state, directory, below=self.below, difference=self.difference)


class WeightsTrainable:
    """The model's own weights: all of them, or those of its last layers.

    Adapters of the model are merged into it. Weights in half precision are trained in float32.
    """

    can_step_back = False

    def __init__(self, model: Model, settings: Unlearn, *, seed: int) -> None:
        base = model.base
        if model.adapters:
            base.merge(model.adapters, instead="train a LoRA adapter (unlearn.method: lora)")
            model = replace(model, adapters=())
        self.model = model
        self.formats = {name: parameter.dtype for name, parameter in base.model.named_parameters()}
        chosen = set(base.model.parameters())
        if settings.method == "last_layers":
            layers = list(decoder_layers(base.model))
            if settings.layers > len(layers):
                raise MitigateError(f"unlearn.layers: {settings.layers}, but this model has {len(layers)}")
            chosen = {parameter for layer in layers[-settings.layers :] for parameter in layer.parameters()}
        for parameter in base.model.parameters():
            parameter.requires_grad_(parameter in chosen)
            if parameter in chosen:
                parameter.data = parameter.data.float()
        self._whole: State | None = None
        self._unchanged = {name: p.detach().cpu().clone() for name, p in self._trained()}

    @property
    def module(self) -> torch.nn.Module:
        """What a forward pass goes through."""
        return self.model.base.model

    @contextlib.contextmanager
    def before(self) -> Iterator[None]:
        """Nothing to switch: to be used before the first step."""
        yield

    def state(self) -> State:
        """The trained weights on the CPU; every process must call it."""
        return {name: whole_of(parameter).cpu().clone() for name, parameter in self._trained()}

    def restore(self, state: State) -> None:
        """Go back to an earlier state; every process must call it."""
        for name, parameter in self._trained():
            fill(parameter, state[name])

    def frozen_checksum(self) -> str:
        """Fingerprint of every weight that must stay as it is."""
        digest = hashlib.sha256()
        only_shards(self.model.base.model)
        for _, parameter in sorted(self.model.base.model.named_parameters(), key=lambda item: item[0]):
            if not parameter.requires_grad:
                digest.update(bytes_of(parameter))
        return digest.hexdigest()

    def reached(self, state: State) -> dict[str, bool]:
        """Which weights training changed."""
        return {name: not torch.equal(tensor, self._unchanged[name]) for name, tensor in state.items()}

    def gather(self) -> None:
        """Have at hand what `save` writes: whole weights, where they are sharded; every process must call it."""
        model = self.model.base.model
        if is_sharded(model):
            only_shards(model)
            self._whole = {name: whole_of(one).to("cpu", self.formats[name]) for name, one in model.named_parameters()}

    def save(self, state: State, directory: Path) -> None:
        """Write a plain model directory with its tokenizer."""
        model = self.model.base.model
        if self._whole is None:
            for name, parameter in self._trained():
                parameter.data = parameter.data.to(self.formats[name])
        model.save_pretrained(directory, state_dict=self._whole)
        self.model.tokenizer.save_pretrained(directory)

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        only_shards(self.model.base.model)
        return [(name, p) for name, p in self.model.base.model.named_parameters() if p.requires_grad]


Trainable = AdapterTrainable | WeightsTrainable


def make_trainable(model: Model, settings: Unlearn, *, seed: int) -> Trainable:
    """What `settings.method` trains over a model; weights that are trained are changed in place."""
    kind = AdapterTrainable if settings.method in ("lora", "dora") else WeightsTrainable
    return kind(model, settings, seed=seed)


def checkpoint_activations(trainable: Trainable) -> None:
    """Recompute activations in the backward pass instead of keeping them, once `keep_recomputing` was called.

    An architecture that reads `training` itself to drop out in the part that checkpoints
    drops out: set its rates to 0 in its configuration.

    Raises:
        MitigateError: the architecture cannot.
    """
    model = trainable.model.base.model
    try:
        recompute_activations(model)
    except MitigateError as error:
        raise MitigateError(f"unlearn.gradient_checkpointing: {error}; set it to false") from error


def keep_recomputing(trainable: Trainable) -> None:
    """Have parts that checkpoint activations do so, as they do in training only; dropout modules stay off.

    To be called once references were run: where these share the model's base, all of it is put into evaluation mode.
    """
    base = trainable.model.base
    base.evaluate()  # what asks for it later finds that it is
    for part in base.model.modules():
        if hasattr(part, "gradient_checkpointing") and part is not base.model:
            part.training = True  # of this module alone: dropout stays off
