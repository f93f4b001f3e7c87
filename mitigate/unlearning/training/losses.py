"""The loss of a batch: the objective over what is to be forgotten, the anchors over everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mitigate.errors import MitigateError
from mitigate.models.fitting.gradients import mixed_format
from mitigate.models.inside.layers import decoder_layers
from mitigate.models.inside.lens import Lens, Said
from mitigate.models.model import kept_logits
from mitigate.tokens.batches import TRAINED, Batch, default_batch_tokens
from mitigate.unlearning.material.tasks import Facts, Task, facts
from mitigate.unlearning.material.teachers import BeforeTerms, OutTerms
from mitigate.unlearning.objectives.catalogue import OBJECTIVES, Parameters, Selected, arrived, needs_of
from mitigate.unlearning.objectives.distributions import divergence
from mitigate.unlearning.objectives.formulas import hidden_anchor
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainable import AdapterTrainable, Trainable


class Losses:
    """Computes losses of batches of tasks, and what they need of the model before.

    Args:
        trainable: the model.
        settings: of unlearning.
        weights: objective -> weight.
        out_terms: p̄ at the tokens to forget, if an objective needs it.
        device: of the model.
        seed: of rmu's direction.

    Raises:
        MitigateError: a layer that is not there, or layers that cannot be read.
    """

    def __init__(
        self,
        trainable: Trainable,
        settings: Unlearn,
        weights: Mapping[str, float],
        *,
        out_terms: OutTerms | None,
        device: torch.device,
        seed: int,
    ) -> None:
        self.trainable, self.weights, self.out_terms = trainable, weights, out_terms
        self.anchor = settings.retain.anchor
        self.rest_on_arrival = settings.stop_at_control
        self.needs = needs_of(weights)
        self.layer = self._layer(settings.layer) if "hidden" in self.needs or self.anchor == "hidden" else None
        self.lens = Lens.of(trainable.module) if "lens" in self.needs else None
        self.lens_fits = False  # its head was seen to give the model's own logits from the last layer
        self.module: torch.nn.Module = trainable.module  # the loop puts the wrapped one here
        self.mixed = mixed_dtype(trainable)
        self.batch_tokens = settings.batch_tokens or default_batch_tokens(
            trainable.model.vocabulary_size, device=device, tables=TRAINED if device.type == "cuda" else 1
        )
        self.before = BeforeTerms(
            self.forward,
            trainable.before,
            needs=self._needs_before(),
            entries=settings.kept_entries,
            batch_tokens=self.batch_tokens,
            device=device,
        )
        width = trainable.model.base.model.config.get_text_config().hidden_size
        direction = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        self.parameters = Parameters(
            beta=settings.beta,
            beta_2=settings.beta_2,
            delta=settings.delta,
            steering=settings.steering,
            direction=(direction / direction.norm()).to(device),
        )

    @property
    def tilt(self) -> float:
        """Nats that are added to a token's logit where it is to end; see `Steering`."""
        return self.parameters.tilt

    @tilt.setter
    def tilt(self, value: float) -> None:
        self.parameters = replace(self.parameters, tilt=value)

    def of(self, batch: Batch, totals: Mapping[str, float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A batch's part of the step's mean objective, of its mean anchor, and of its tokens' mean log-ratio.

        The latter, of the tokens to forget to p̄, clipped to ±3 nats, is where they are and has no gradient.
        """
        known = facts(batch)
        with self._reading(batch, known.selected) as said:
            logits, hidden = self.forward(batch)
        log_probs = torch.log_softmax(logits, dim=-1)
        log_prob = log_probs.gather(1, batch.targets.unsqueeze(1)).squeeze(1)
        if said is not None and not self.lens_fits:
            said.check(log_prob[known.selected].detach(), name=self.trainable.model.name)
            self.lens_fits = bool(known.selected.any())
        before = self.before.of(batch)
        chosen, held = known.selected, ~known.selected & ~known.substitute
        selected = Selected(
            tokens=batch.targets[chosen],
            log_prob=log_prob[chosen],
            log_prob_before=known.before[chosen],
            log_prob_out=known.out[chosen],
            log_prob_typical=known.typical[chosen],
            margin=known.margin[chosen],
            log_probs=log_probs[chosen],
            spans=known.span[chosen],
            span_count=known.span_count,
            before=before.distribution.rows(chosen) if "before" in self.needs and before.distribution else None,
            out=self.out_terms.of(batch, "out") if self.out_terms is not None else None,
            typical=self.out_terms.of(batch, "typical") if self.out_terms is not None else None,
            hidden=hidden[chosen] if hidden is not None else None,
            hidden_before=before.hidden[chosen] if before.hidden is not None else None,
            lens=said.log_probs if said is not None else None,
            lens_typical=self.out_terms.lens(batch) if self.out_terms is not None else None,
            substitute_log_prob=log_prob[known.substitute],
            substitute_log_prob_before=before.log_prob[known.substitute] if before.log_prob is not None else None,
            substitute_spans=known.span[known.substitute],
        )
        ratio = (selected.log_prob - selected.log_prob_out).detach().clamp(-3.0, 3.0).sum() / totals["tokens"]
        forgetting = 0.0 * log_probs.sum()  # every process needs a graph
        for name, weight in self.weights.items():
            forgetting = forgetting + weight * self._objective(name, selected, known, totals)
        anchors = 0.0 * log_probs.sum()
        if self.anchor == "kl":
            assert before.distribution is not None
            drift = divergence(before.distribution.rows(held), log_probs[held])
        elif self.anchor == "nll":
            drift = -log_prob[held]
        elif self.anchor == "hidden":
            assert hidden is not None
            assert before.hidden is not None
            drift = hidden_anchor(hidden[held], before.hidden[held])
        else:
            return forgetting, anchors, ratio
        return forgetting, anchors + (known.weight[held] * drift).sum() / totals["held"], ratio

    def _objective(self, name: str, selected: Selected, known: Facts, totals: Mapping[str, float]) -> torch.Tensor:
        """A batch's part of one objective's mean over the step; what has arrived counts nothing."""
        objective = OBJECTIVES[name]
        if not len(selected.log_prob):
            return torch.zeros((), device=selected.log_prob.device)
        losses = objective.loss(selected, self.parameters)
        if self.rest_on_arrival:
            losses = losses.masked_fill(arrived(selected, objective), 0.0)
        if objective.over == "selected":
            losses = losses * known.weight[known.selected]
        return losses.sum() / totals[objective.over]

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float32 logits (N, V) at the kept tokens, and the watched layer's output (N, D) where it is asked for."""
        captured: list[torch.Tensor] = []

        def capture(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            captured.append(output[0] if isinstance(output, tuple) else output)

        hook = self.layer.register_forward_hook(capture) if self.layer is not None else None
        try:
            with torch.autocast(batch.targets.device.type, dtype=self.mixed, enabled=self.mixed is not None):
                logits = kept_logits(self.module, batch.input_ids, batch.attention_mask, batch.keep)
        finally:
            if hook is not None:
                hook.remove()
        return logits.float(), captured[0][batch.keep].float() if captured else None

    def _reading(self, batch: Batch, chosen: torch.Tensor) -> AbstractContextManager[Said | None]:
        """Read the middle layers at some of a batch's kept tokens, where an objective needs it."""
        if self.lens is None:
            return nullcontext()
        places = batch.keep.clone()
        places[batch.keep] = chosen
        return self.lens.reading(places, batch.targets[chosen])

    def _layer(self, number: int | None) -> torch.nn.Module:
        """The layer to watch: by default a third of the way up, or the lowest that is trained if that lies higher."""
        layers = decoder_layers(self.trainable.module)
        trained = [place for place, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())]
        lowest = min(trained, default=0)
        number = max(len(layers) // 3, lowest) if number is None else number
        if not lowest <= number < len(layers):
            raise MitigateError(
                f"unlearn.layer: {number}, but what is trained can move the output of this model's layers {lowest} to "
                f"{len(layers) - 1} only"
            )
        return layers[number]

    def _needs_before(self) -> frozenset[str]:
        needs = {"distribution"} if self.anchor == "kl" or "before" in self.needs else set()
        needs |= {"hidden"} if self.layer is not None else set()
        needs |= {"log_prob"} if {"dpo", "dpo_token"} & set(self.weights) else set()
        return frozenset(needs)


def mixed_dtype(trainable: Trainable) -> torch.dtype | None:
    """The half precision that weights trained in float32 must meet others in; None where there is one precision."""
    if isinstance(trainable, AdapterTrainable):
        return None  # PEFT casts between an adapter and its base
    trained = [trainable.formats[name] for name, p in trainable.module.named_parameters() if p.requires_grad]
    return mixed_format(trainable.formats.values(), trained=trained)


def step_totals(tasks: Sequence[Task]) -> dict[str, float]:
    """What sums over a step are divided by: weights of tokens to forget, their number, substitutes', spans, anchors."""
    chosen = [task for task in tasks if task.selected.any()]
    partners = {id(one): one for task in tasks for one in task.partners}.values()
    spans = {int(number) for task in chosen for number in np.unique(task.span[task.selected])}
    totals = {
        "selected": float(sum(task.weight[task.selected].sum() for task in chosen)),
        "tokens": float(sum(task.selected.sum() for task in chosen)),
        "substitutes": float(sum(len(task.scored) for task in partners)),
        "spans": float(len(spans)),
        "held": float(sum(task.weight[~task.selected].sum() for task in tasks)),
    }
    return {name: total or 1.0 for name, total in totals.items()}
