"""The logit lens (nostalgebraist 2020): what the final norm and the output head make of a middle layer's output.

    lens = Lens.of(module)
    with lens.reading(keep, targets) as said:
        module(...)
    said.log_probs  # (N, depths)

A model whose last layers hide something still says it in the middle ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from mitigate.errors import MitigateError
from mitigate.models.inside.layers import decoder_layers

DEPTHS: Mapping[str, float] = {"half": 1 / 2, "three_quarters": 3 / 4}
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "embedding_norm")
_NEAR = 0.05  # nats, of the head's own log-probabilities to the model's
_STEP = 2.0**-7  # between neighbours in bfloat16, as a share of the number
_LOGIT = 16.0  # a logit may be as large though the log-probability is small


class NoLensError(MitigateError):
    """A model of which it is not known how its head reads its layers."""


@dataclass
class Said:
    """What was read.

    Attributes:
        log_probs: (N, depths) log-probability of the target tokens, with gradient where the model has one.
        last: (N,) the same from the last layer, which is the model's own where the lens fits it; without gradient.
        exact: whether the head says so in float32; in half precision a logit may round to its neighbour.
    """

    log_probs: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    last: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    exact: bool = True

    def check(self, log_prob: torch.Tensor, *, name: str) -> None:
        """Refuse a model whose head does more than one matrix product, such as to cap its logits.

        Args:
            log_prob: (N,) what the model itself says of the target tokens.
            name: of the model, for the message.

        Raises:
            NoLensError: the last layer's log-probabilities are others.
        """
        near = _NEAR if self.exact else _NEAR + _STEP * log_prob.to(self.last).abs().clamp_min(_LOGIT)
        if len(self.last) and not ((self.last - log_prob.to(self.last)).abs() < near).all():
            raise NoLensError(f"{name}: its logits are not what its head makes of the last layer")


@dataclass(frozen=True)
class Lens:
    """The layers that are read, and what reads them.

    Attributes:
        layers: whose outputs are read, one for each of `DEPTHS`.
        norm, head: the model's final norm and output head.
    """

    layers: tuple[torch.nn.Module, ...]
    norm: torch.nn.Module
    head: torch.nn.Module

    @classmethod
    def of(cls, module: torch.nn.Module) -> Lens:
        """The lens of a causal language model.

        Raises:
            NoLensError: its layers, its final norm or its head are not found.
        """
        model: Any = module
        try:
            layers = decoder_layers(model)
        except MitigateError as error:
            raise NoLensError(str(error)) from None
        head = model.get_output_embeddings()
        above = next(part for part in model.modules() if any(child is layers for child in part.children()))
        norms = [part for name, part in above.named_children() if name.endswith(_NORMS)]
        if head is None or len(norms) != 1:
            raise NoLensError(f"{type(model).__name__}: where its final norm is, is not known here")
        chosen = tuple(layers[max(0, round(share * len(layers)) - 1)] for share in DEPTHS.values())
        return cls(chosen, norms[0], head)

    @contextmanager
    def reading(self, places: torch.Tensor, targets: torch.Tensor) -> Iterator[Said]:
        """Read the layers while the model computes.

        They are read when the final norm is reached: by then sharded weights are together, and no layer is recomputed
        with what is read from it.

        Args:
            places: (B, T) bool, the positions that predict the targets.
            targets: (N,) token ids, row-major.

        Yields:
            what was read, once the model has computed.
        """
        said, outputs = Said(), dict[int, torch.Tensor]()

        def keep(number: int) -> Any:
            def hook(module: torch.nn.Module, arguments: Any, output: Any) -> None:
                outputs[number] = output[0] if isinstance(output, tuple) else output

            return hook

        def read(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            found = [self._log_probs(outputs[number][places], targets) for number in range(len(self.layers))]
            said.log_probs = torch.stack(found, dim=1)
            mixed = torch.is_autocast_enabled(arguments[0].device.type)
            said.exact = arguments[0].dtype == torch.float32 and not mixed
            with torch.no_grad():
                said.last = self._log_probs(arguments[0][places], targets)

        hooks = [layer.register_forward_hook(keep(number)) for number, layer in enumerate(self.layers)]
        hooks.append(self.norm.register_forward_pre_hook(read))
        try:
            yield said
        finally:
            for hook in hooks:
                hook.remove()

    def _log_probs(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(N,) from (N, D)."""
        logits = self.head(self.norm.forward(states)).float()
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
