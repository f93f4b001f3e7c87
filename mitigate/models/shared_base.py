"""One set of base weights and the adapters over it: attached, switched, and checked to be what PEFT makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftModel
from peft.peft_model import PeftModelForCausalLM
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from mitigate.errors import MitigateError, one_line, summarize
from mitigate.models.adapters import MERGE_FIRST, adapter_config, adapter_shapes, vocabulary_of
from mitigate.models.probes import depends_on_company, device_of, probe_logits, reads_ahead

_MERGE_TOLERANCE = 0.01  # nats, of weights in float32: their rounding moves log-probabilities by some 1e-5


@dataclass
class SharedBase:
    """Base weights and the adapters attached to them.

    Attributes:
        source: what an adapter that is trained over these weights names as its base.
        fingerprint: of that.
        model: the weights; adapters become part of it.
        peft: what switches the adapters, if any was attached.
        names: adapter directory -> adapter name.
        context: longest text, in tokens; None for a mixture.
    """

    source: str
    fingerprint: str
    model: PreTrainedModel
    peft: PeftModel | None = None
    names: dict[str, str] = field(default_factory=dict)
    context: int | None = None
    _attached: int = 0
    _switches: dict[tuple[str, ...], _Switch] = field(default_factory=dict)
    _evaluating: bool = False

    def activate(self, adapters: tuple[str, ...]) -> None:
        """Let exactly `adapters` take part in the forward pass, none of them trainable."""
        if self.peft is None:
            return
        tuner = cast(BaseTuner, self.peft.base_model)
        if adapters in self._switches:
            self._switches[adapters].throw(tuner)
            return
        if adapters:
            tuner.enable_adapter_layers()
            tuner.set_adapter(list(adapters) if len(adapters) > 1 else adapters[0], inference_mode=True)
        else:
            tuner.disable_adapter_layers()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        if (switch := _switch(tuner, self.model)) is not None:
            self._switches[adapters] = switch

    def evaluate(self) -> None:
        """Put the model in evaluation mode, which walks through all its modules, unless it is."""
        if self.model.training or not self._evaluating:
            self.model.eval()
            self._evaluating = True

    def rewired(self) -> None:
        """To be called once adapters were put on or taken off by others."""
        self._switches.clear()
        self._evaluating = False

    def attach(self, directory: str, *, over: tuple[str, ...]) -> str:
        """Attach a saved adapter that leaves the base as it is, and return its name.

        Args:
            directory: of the adapter, or its hub id.
            over: names of the adapters that are active under it.

        Raises:
            MitigateError: it does not fit, or changes what the base says.
        """
        if directory not in self.names:
            self.activate(())
            before = probe_logits(self.model)
            name = self._load(directory)
            self.activate(())
            if not torch.allclose(probe_logits(self.model), before, rtol=0, atol=_tolerance(before)):
                raise MitigateError(
                    f"{directory}: attaching this adapter changes the base under it, which other models use; "
                    f"{MERGE_FIRST}"
                )
            self._check(directory, (*over, name))
            self.names[directory] = name
        return self.names[directory]

    def change(self, directory: str, *, over: tuple[str, ...] = ()) -> str:
        """Attach a saved adapter that may change the base for good, and return its name.

        For weights that no other model uses. Embeddings that the adapter brings along decide the vocabulary.

        Raises:
            MitigateError: it does not fit, or works in another way than by modules in the model.
        """
        self._resize(directory)
        name = self._load(directory)
        self.names[directory] = name
        self._check(directory, (*over, name))
        return name

    def merge(self, adapters: tuple[str, ...], *, instead: str, rounded: bool = True) -> None:
        """Make `adapters` part of the weights, after which no adapter is attached.

        Weights in half precision are merged in float32 and then rounded once; what was in another number format
        (rotary frequencies, which are in float32 everywhere) is in that again.

        Args:
            adapters: their names.
            instead: what else can be done, for the message.
            rounded (`bool`, *optional*, defaults to `True`): else all weights stay in float32.

        Raises:
            MitigateError: that kind cannot be merged, or merging changes what the model says.
        """
        assert self.peft is not None
        self.rewired()
        merged = summarize(path for path, name in self.names.items() if name in adapters)
        formats, dtype = {name: tensor.dtype for name, tensor in _tensors(self.model)}, self.model.dtype
        cast(torch.nn.Module, self.model).float()
        self.activate(adapters)
        before = probe_logits(self.model).log_softmax(-1)
        try:
            self.model = cast(Any, self.peft).merge_and_unload(adapter_names=list(adapters), safe_merge=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each kind says in its own way that it cannot
            raise MitigateError(f"{merged}: cannot be merged into its base ({_named(error)}); {instead}") from error
        self.peft, self.names = None, {}
        self.rewired()
        off = float((probe_logits(self.model).log_softmax(-1) - before).abs().max())
        if not off <= _MERGE_TOLERANCE:  # nor NaN
            raise MitigateError(
                f"{merged}: merged into its base it says something else (log-probabilities are off by {off:.2g} nats), "
                f"for the installed PEFT merges this kind wrongly: upgrade PEFT, or {instead}"
            )
        if rounded:
            for name, tensor in _tensors(self.model):
                tensor.data = tensor.data.to(formats.get(name, dtype if tensor.is_floating_point() else tensor.dtype))

    def _load(self, directory: str) -> str:
        """Put an adapter on with its weights; every weight that it needs is in its file, and no other."""
        config = adapter_config(directory)
        adapter_shapes(directory)  # a damaged file is to blame itself, not the base
        if any(weight.is_meta for weight in self.model.parameters()):
            raise MitigateError(
                f"{directory}: its base {self.source} does not fit on the devices, and part of it was put aside "
                "(models.device_map); an adapter needs all of it there: set models.load_in: 8bit, or models.dtype: "
                "bfloat16"
            )
        name = f"adapter_{self._attached}"
        self._attached += 1
        self.rewired()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they say is checked here
                if self.peft is None:
                    wrapper = PeftModelForCausalLM if config.task_type == "CAUSAL_LM" else PeftModel
                    self.peft = wrapper(self.model, config, adapter_name=name)
                else:
                    self.peft.add_adapter(name, config)
                found: Any = self.peft.load_adapter(
                    directory,
                    name,
                    torch_device=str(device_of(self.model)),
                    key_mapping=getattr(self.model, "_checkpoint_conversion_mapping", None),
                )
            self.peft.eval()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # PEFT and each of its kinds have exceptions of their own
            raise self._misfit(directory, _named(error)) from error
        problems = [
            f"{len(keys)} weights that it {what} ({summarize(sorted(keys), most=3)})"
            for what, keys in (
                (
                    "needs are not in its file: missing adapter keys",
                    [k for k in found.missing_keys if not _is_shared(k)],
                ),
                ("has are not in the base: unexpected adapter keys", found.unexpected_keys),
            )
            if keys
        ]
        if problems:
            raise self._misfit(directory, ", ".join(problems))
        return name

    def _misfit(self, directory: str, problem: str) -> MitigateError:
        layers = getattr(cast(Any, self.model).config.get_text_config(), "num_hidden_layers", "unknown")
        return MitigateError(
            f"{directory}: this adapter does not fit its base {self.source}, which has {layers} layers ({problem}); "
            "point base_model_name_or_path in its adapter_config.json to the base it was trained on, or save the "
            f"adapter again if its file is not whole; if this kind cannot be loaded at all, {MERGE_FIRST}"
        )

    def _check(self, directory: str, active: tuple[str, ...]) -> None:
        """Refuse an adapter that gives NaN, or under which the model alone does not say what PEFT's model says."""
        try:
            self.activate(active)
            logits = probe_logits(self.model)
            whole = probe_logits(cast(torch.nn.Module, self.peft))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each kind has its own way to ask for what it is not given
            raise MitigateError(
                f"{directory}: this kind of adapter cannot be run on plain text ({_named(error)}); {MERGE_FIRST}"
            ) from error
        if not torch.isfinite(logits).all():
            raise MitigateError(
                f"{directory}: with this adapter the logits are not finite on plain text; its weights are damaged "
                "(NaN or infinite), or overflow the number format: save it again, or try models.dtype: float32"
            )
        exact = self.model.dtype == torch.float32
        if reads_ahead(logits, exact=exact) or (exact and depends_on_company(self.model, logits)):
            raise MitigateError(
                f"{directory}: with this kind of adapter a token's probability depends on later tokens or on other "
                "texts of the batch, so that there is no one number to judge; train a LoRA adapter instead"
            )
        if whole.shape != logits.shape or not torch.allclose(whole, logits, rtol=0, atol=_tolerance(logits)):
            raise MitigateError(
                f"{directory}: an adapter of a kind that works in PEFT's wrapper and not in the model's modules; "
                f"{MERGE_FIRST}"
            )

    def _resize(self, directory: str) -> None:
        """Give the base as many tokens as the embeddings that an adapter brings along."""
        model = cast(Any, self.model)
        rows, head = vocabulary_of(adapter_shapes(directory))
        size = model.get_input_embeddings().weight.shape[0]
        wanted = rows if rows is not None else head
        if wanted is None or wanted == size:
            return
        tied = bool(model.config.get_text_config().tie_word_embeddings)
        if not tied and (rows is None or head is None):
            raise MitigateError(
                f"{directory}: brings {'embeddings' if head is None else 'a head'} for {wanted} tokens over a base of "
                f"{size}, but no {'head' if head is None else 'embeddings'}; save the adapter with "
                "save_embedding_layers=True from the model that it was trained on, or merge it there"
            )
        model.resize_token_embeddings(wanted, mean_resizing=False)


@dataclass(frozen=True)
class _Switch:
    """Which adapters PEFT had switched on in every layer, to be so again.

    PEFT walks through all modules and all adapters of each, tens of milliseconds where many adapters share a base.

    Attributes:
        active: of the tuner.
        layers: each with its active adapters, and whether they are off.
        parameters: of the model.
    """

    active: Any
    layers: tuple[tuple[LoraLayer, Any, bool], ...]
    parameters: tuple[torch.nn.Parameter, ...]

    def throw(self, tuner: BaseTuner) -> None:
        tuner.active_adapter = self.active
        for layer, active, off in self.layers:
            layer._active_adapter, layer._disable_adapters = active, off
        for parameter in self.parameters:
            if parameter.requires_grad:
                parameter.requires_grad_(False)


def _switch(tuner: BaseTuner, model: PreTrainedModel) -> _Switch | None:
    """How the tuner is switched now; None where other layers than LoRA's have states of their own."""
    modules = list(cast(torch.nn.Module, model).modules())
    others = [
        one
        for one in modules
        if isinstance(one, AuxiliaryTrainingWrapper)
        or (isinstance(one, BaseTunerLayer) and not isinstance(one, LoraLayer))
    ]
    if others:
        return None
    layers = [(one, one._active_adapter, one._disable_adapters) for one in modules if isinstance(one, LoraLayer)]
    return _Switch(tuner.active_adapter, tuple(layers), tuple(cast(torch.nn.Module, model).parameters()))


def _is_shared(key: str) -> bool:
    """Whether a weight is one that all layers share, which is stored once (VB-LoRA)."""
    return ".vblora_vector_bank." in key and not key.startswith("base_model.vblora_vector_bank.")


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by the names that they have where no adapter lies over them."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name.replace(".base_layer", "").replace(".original_module", ""), tensor


def _tolerance(logits: torch.Tensor) -> float:
    """How far equal computations may lie apart: more in half precision, which the caller has turned into float32."""
    return 1e-4 * float(logits.abs().max() + 1)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, most=300)}"
