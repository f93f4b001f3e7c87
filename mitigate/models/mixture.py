"""Adapters that were fitted on disjoint documents, as one language model: the one that predicts the text best leads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from mitigate.errors import MitigateError
from mitigate.models.model import Model

FOR_INFERENCE = (
    "a mixture of shards is for inference; to forget more, retrain into the same directory with another audit: that "
    "fits only the shards concerned"
)


class Mixture(PreTrainedModel, GenerationMixin):
    """The Bayesian mixture of S models, each weighted by how well it predicted the text so far.

        p(x_t | x_<t) = Σ_s w_s(x_<t) p_s(x_t | x_<t)        w_s(x_<t) ∝ Π_{u<t} p_s(x_u | x_<u)

    So p(x) = 1/S Σ_s p_s(x): on no document is it worse than its best member by more than log S nats in all. Costs S
    forward passes, and a pass over the whole text for every token that it writes. For inference only.

    Args:
        members: models over one base.
    """

    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # the members attend, as they were loaded

    def __init__(self, members: Sequence[Model]) -> None:
        shared = members[0].base.model
        super().__init__(copy.deepcopy(shared.config))
        self.members = tuple(members)
        self.shared = shared  # for parameters, device and number format
        self.generation_config = shared.generation_config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **_: Any,
    ) -> CausalLMOutput:
        """Log-probabilities of the next token.

        Args:
            input_ids: (B, T).
            attention_mask (*optional*): (B, T), 0 for padding on either side.
            position_ids (*optional*): (B, T), as the base takes them.
            logits_to_keep (*optional*): as in other models; also a (B, T) mask. All by default.

        Returns:
            `logits`, float32: (B, K, V), or (N, V) for a mask.

        Raises:
            MitigateError: it is being trained.
        """
        if torch.is_grad_enabled():
            raise MitigateError(FOR_INFERENCE)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
        inputs |= {"position_ids": position_ids} if position_ids is not None else {}
        mixed, weights, first = (torch.zeros(()) for _ in range(3))
        for number, member in enumerate(self.members):
            with member.active() as module:
                logits = module(**inputs).logits.float()
            evidence = _evidence(logits, input_ids, mask)
            first = evidence if number == 0 else first
            lead = _kept((evidence - first).float().unsqueeze(-1), logits_to_keep)  # small numbers keep their digits
            own = lead + _kept(logits, logits_to_keep).log_softmax(-1)
            mixed = torch.logaddexp(mixed, own) if number else own
            weights = torch.logaddexp(weights, lead) if number else lead
        return CausalLMOutput(logits=mixed - weights)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """The whole text at every step, for its tokens weigh the members; positions count from the first token."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}


def _evidence(logits: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, T) log-probability of the tokens up to each position, the first of a text excepted, in float64."""
    before, targets = logits[:, :-1], input_ids[:, 1:, None]
    log_probs = before.gather(-1, targets).squeeze(-1) - before.logsumexp(-1)
    counted = (mask[:, 1:] * mask[:, :-1]).bool()
    total = torch.where(counted, log_probs, 0.0).double().cumsum(-1)
    return torch.cat([total.new_zeros(len(total), 1), total], dim=-1)


def _kept(values: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
    """The positions of (B, T, ...) that are asked for."""
    if isinstance(keep, int):
        return values[:, -keep:] if keep else values
    return values[keep] if keep.dtype == torch.bool else values[:, keep]
