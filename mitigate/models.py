"""Load targets, bases and references, and switch between adapters that share one base in memory.

store = ModelStore()
target = store.load("my-model")                  # hub id, directory, or directory of a PEFT adapter
reference = store.load("references/reference-0") # an adapter on the same base: no second copy of the base
with target.active() as module: ...              # the shared weights compute the target's logits inside
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import transformers.modeling_utils
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mitigate.errors import MitigateError
from mitigate.mixture import Mixture
from mitigate.runtime import resolve_device
from mitigate.sources import (
    adapter_stack,
    base_of,
    check_weights,
    exists,
    first_line,
    load_tokenizer,
    mixture_members,
    model_fingerprint,
)
from mitigate.tokens.rules import rule_differences, tokenizer_rules

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MASKED_HEAD = hasattr(transformers.modeling_utils, "slice_logits_to_keep")  # logits_to_keep takes a (B, T) bool mask


@dataclass
class SharedBase:
    """One set of base weights and the adapters attached to it."""

    source: str
    fingerprint: str
    model: PreTrainedModel
    peft: PeftModel | None = None
    names: dict[str, str] = field(default_factory=dict)  # adapter directory -> adapter name

    def activate(self, adapters: tuple[str, ...]) -> None:
        """Let exactly `adapters` take part in the forward pass, none of them trainable."""
        if self.peft is None:
            return
        tuner = cast(BaseTuner, self.peft.base_model)
        if adapters:
            tuner.enable_adapter_layers()
            tuner.set_adapter(list(adapters), inference_mode=True)
        else:
            tuner.disable_adapter_layers()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def attach(self, directory: str) -> str:
        """Attach a saved adapter and return its name."""
        if directory not in self.names:
            name = f"adapter_{len(self.names)}"
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", "Found missing adapter keys")  # an adapter that would do nothing
                    if self.peft is None:
                        self.peft = PeftModel.from_pretrained(self.model, directory, adapter_name=name)
                    else:
                        self.peft.load_adapter(directory, adapter_name=name)
            except (OSError, RuntimeError, ValueError, KeyError, UserWarning, SafetensorError) as error:
                raise MitigateError(
                    f"{directory}: this adapter does not fit its base {self.source} ({_shortened(error)}); "
                    "point base_model_name_or_path in its adapter_config.json to the base it was trained on"
                ) from error
            self.names[directory] = name
        return self.names[directory]


@dataclass(frozen=True)
class Model:
    """A language model: base weights, and the adapters that are active over them (none for the base itself)."""

    name: str
    source: str
    fingerprint: str
    base: SharedBase
    adapters: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase

    @contextmanager
    def active(self) -> Iterator[PreTrainedModel]:
        """The module with exactly this model's adapters switched on, in evaluation mode."""
        self.base.activate(self.adapters)
        self.base.model.eval()
        yield self.base.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.base.model.device

    @property
    def vocabulary_size(self) -> int:
        """Number of logits at a position."""
        return int(self.base.model.config.get_text_config().vocab_size)

    @property
    def context(self) -> int:
        """Longest sequence the model takes, in tokens."""
        return int(getattr(self.base.model.config.get_text_config(), "max_position_embeddings", None) or 2048)


class ModelStore:
    """Loads models and keeps each base once.

    Args:
        device (`str`, *optional*, defaults to `auto`): `auto`, `cpu`, `cuda`, `cuda:N`.
        dtype (`str`, *optional*, defaults to `auto`): float32 on a CPU, the checkpoint's own on an accelerator.
        trust_remote_code (`bool`, *optional*, defaults to `False`): run Python code that comes with a checkpoint.
        allow_pickle (`bool`, *optional*, defaults to `False`): accept weights that are not safetensors.
        base (`str`, *optional*): base to use for adapters instead of the one in their adapter_config.json.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        base: str | None = None,
    ) -> None:
        if dtype != "auto" and dtype not in DTYPES:
            raise MitigateError(f"dtype: {dtype!r} is not one of auto, {', '.join(DTYPES)}")
        self.device = resolve_device(device)
        self.dtype = dtype
        self.trust_remote_code = trust_remote_code
        self.allow_pickle = allow_pickle
        self.base = base
        self._bases: dict[str, SharedBase] = {}

    def fresh(self, *, device: str | None = None) -> ModelStore:
        """A store with these settings (but perhaps another device) that holds nothing."""
        return ModelStore(
            device=device or str(self.device),
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
            base=self.base,
        )

    def holds(self, source: str | Path) -> bool:
        """Whether a model's base is in memory, so that loading the model costs an adapter at most."""
        return _key(self.check(str(source))[1]) in self._bases

    def load(self, source: str | Path, *, name: str | None = None) -> Model:
        """Load a model, or attach an adapter to its base.

        Args:
            source: hub id, model directory or PEFT adapter directory.
            name (`str`, *optional*, defaults to `source`): what messages and reports call it.

        Raises:
            MitigateError: no model there, weights that are not safetensors, an adapter whose base is missing, or a
                vocabulary smaller than the tokenizer's.
        """
        source = str(source)
        stack, base_source = self.check(source)
        if members := mixture_members(source):
            mixture = Mixture([self.load(member) for member in members])
            base = SharedBase(source, model_fingerprint(source, base=self.base), mixture)
            adapters: tuple[str, ...] = ()
        else:
            key = _key(base_source)
            if key not in self._bases:
                self._bases[key] = self._load_base(base_source)
            base = self._bases[key]
            adapters = tuple(base.attach(directory) for directory in stack)
        tokenizer = load_tokenizer(source, base=base_source, trust_remote_code=self.trust_remote_code)
        model = Model(
            name=name or source,
            source=source,
            fingerprint=model_fingerprint(source, base=self.base),
            base=base,
            adapters=adapters,
            tokenizer=tokenizer,
        )
        if len(tokenizer) > model.vocabulary_size:
            raise MitigateError(
                f"{model.name}: its tokenizer has {len(tokenizer)} entries but the model predicts only "
                f"{model.vocabulary_size}; this tokenizer belongs to another model"
            )
        return model

    def check(self, source: str) -> tuple[list[str], str]:
        """Make sure, without loading it, that a model is there.

        Returns:
            the adapter directories, lowest first (of a mixture, those of all members), and the base.

        Raises:
            MitigateError: there is no such model, or the base of an adapter is missing.
        """
        if members := [self.check(member) for member in mixture_members(source)]:
            return [part for stack, _ in members for part in stack], members[0][1]
        stack = adapter_stack(source)
        base = (self.base or base_of(stack[0])) if stack else source
        if stack and not self.base and not exists(base):
            raise MitigateError(
                f"{source}: its base model {base!r} (base_model_name_or_path in adapter_config.json) "
                "is not there; give the base with models.base or --base"
            )
        for part in (*stack, base):
            check_weights(part, allow_pickle=self.allow_pickle)
        return stack, base

    def _load_base(self, source: str) -> SharedBase:
        dtype: Any = DTYPES.get(self.dtype, torch.float32 if self.device.type == "cpu" else "auto")
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=None if self.allow_pickle else True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise MitigateError(
                f"{source}: cannot be loaded as a causal language model ({first_line(error)})"
            ) from error
        cast(torch.nn.Module, model).to(self.device).eval().requires_grad_(False)
        return SharedBase(source=source, fingerprint=model_fingerprint(source), model=model)


def check_same_tokenizer(target: Model, reference: Model) -> None:
    """Refuse a reference whose token ids mean something else than the target's.

    Raises:
        MitigateError: the tokenizers' rules, or the numbers of logits, differ.
    """
    if target.vocabulary_size != reference.vocabulary_size:
        raise MitigateError(
            f"{reference.name} predicts {reference.vocabulary_size} tokens but {target.name} predicts "
            f"{target.vocabulary_size}; a reference needs the target's vocabulary"
        )
    if differing := rule_differences(tokenizer_rules(target.tokenizer), tokenizer_rules(reference.tokenizer)):
        raise MitigateError(
            f"the tokenizer of {reference.name} differs from that of {target.name} (the first): "
            f"{'; '.join(differing)}; a reference must share the target's tokenizer: take one of its family"
        )


def kept_logits(
    module: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: torch.Tensor
) -> torch.Tensor:
    """Logits at the kept positions only; the output head sees nothing else.

    Position t of `keep` asks for the prediction of token t + 1.

    Args:
        module: a causal language model, or a wrapper whose `.module` is one.
        input_ids: (B, T).
        attention_mask: (B, T).
        keep: (B, T) bool.

    Returns:
        (N, V) in the model's own number format, N = number of kept positions, row-major.
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if not _has_sparse_head(module):
        return module(**inputs).logits[keep]
    if _MASKED_HEAD:
        return module(**inputs, logits_to_keep=keep).logits
    positions = keep.any(0).nonzero().squeeze(1)
    return module(**inputs, logits_to_keep=positions).logits[keep[:, positions]]


def _has_sparse_head(module: torch.nn.Module) -> bool:
    inner = getattr(module, "module", module)
    inner = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    return "logits_to_keep" in inspect.signature(type(inner).forward).parameters


def _key(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
