"""Load targets, bases and references, and switch between adapters that share one base in memory.

store = ModelStore()
target = store.load("my-model")                  # hub id, directory, or directory of a PEFT adapter
reference = store.load("references/reference-0") # an adapter on the same base: no second copy of the base
with target.active() as module: ...              # the shared weights compute the target's logits inside
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mitigate.errors import MitigateError, first_line, summarize
from mitigate.mistakes import not_one_of
from mitigate.models.adapters import (
    adapter_config,
    own_base,
    read_object,
    to_be_merged,
)
from mitigate.models.directory import (
    check_weights,
    exists,
    is_served,
    load_tokenizer,
    mixture_members,
    model_fingerprint,
    place_of,
    resolve,
)
from mitigate.models.mixture import Mixture
from mitigate.models.model import Model
from mitigate.models.probes import check_probe, longest_text, probe_logits
from mitigate.models.served import served
from mitigate.models.settings import Dtype, LoadIn
from mitigate.models.shared_base import SharedBase
from mitigate.models.weights import check_loaded, check_size, stored_shapes, weight_files
from mitigate.runtime import process_state, resolve_device

_NO_MEMORY = (MemoryError, torch.OutOfMemoryError)  # says nothing of the model's files
_TOO_LARGE = "does not fit in memory; free some, take another models.device, or set models.dtype: bfloat16"


class ModelStore:
    """Loads models and keeps each base once.

    Args:
        device (`str`, *optional*, defaults to `auto`): `auto`, `cpu`, `cuda`, `cuda:N`.
        dtype (`str`, *optional*, defaults to `auto`): float32 on a CPU, the checkpoint's own on an accelerator.
        trust_remote_code (`bool`, *optional*, defaults to `False`): run Python code that comes with a checkpoint.
        allow_pickle (`bool`, *optional*, defaults to `False`): accept weights that are not safetensors.
        base (`str`, *optional*): base to use for adapters instead of the one in their adapter_config.json.
        load_in (`str`, *optional*): `4bit` or `8bit`: linear layers quantized by bitsandbytes (Dettmers et al., arXiv
            2305.14314, 2208.07339), which must be installed. They are not trained; adapters over them are.
        attention (`str`, *optional*): implementation of attention, as transformers calls it.
        device_map (*optional*): how accelerate deals the weights of one model out over devices: a name, or module ->
            device; they are not trained, adapters over them are.

    Raises:
        MitigateError: a name that is none, a package that is missing, or weights dealt out in several processes.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        base: str | None = None,
        load_in: str | None = None,
        attention: str | None = None,
        device_map: str | Mapping[str, int | str] | None = None,
    ) -> None:
        for what, kind, value in (("dtype", Dtype, dtype), ("load_in", LoadIn, load_in)):
            if value is not None and (wrong := not_one_of(kind, value)):
                raise MitigateError(f"{what}: {wrong}")
        if load_in is not None and find_spec("bitsandbytes") is None:
            raise MitigateError(f"models.load_in: {load_in} needs bitsandbytes: pip install bitsandbytes")
        if load_in == "4bit" and resolve_device(device).type == "cpu":
            raise MitigateError("models.load_in: 4bit: its kernels for CPUs take few models; take 8bit, or a GPU")
        self.device = resolve_device(device)
        if device_map is not None and process_state(device).num_processes > 1:
            raise MitigateError("models.device_map: one process has all devices; start it without a launcher")
        self.dtype = dtype
        self.trust_remote_code = trust_remote_code
        self.allow_pickle = allow_pickle
        self.base = base
        self.load_in, self.attention, self.device_map = load_in, attention, device_map
        self._bases: dict[str, SharedBase] = {}

    def fresh(self, *, device: str | None = None, quantized: bool = True) -> ModelStore:
        """A store with these settings that holds nothing; perhaps all on one device, or with no weights quantized."""
        return ModelStore(
            device=device or str(self.device),
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
            base=self.base,
            load_in=self.load_in if quantized else None,
            attention=self.attention,
            device_map=self.device_map if device is None else None,
        )

    def holds(self, source: str | Path) -> bool:
        """Whether a model's base is in memory, so that loading the model costs an adapter at most."""
        stack, base_source = self.check(str(source))
        if mixture_members(source):
            return _key(base_source) in self._bases
        return _key(base_source, *stack[: own_base(stack)]) in self._bases

    def load(self, source: str | Path, *, name: str | None = None) -> Model:
        """Load a model, or attach an adapter to its base.

        An adapter that changes the base, or that is no LoRA adapter, gets a base of its own.

        Args:
            source: hub id, model directory or PEFT adapter directory.
            name (`str`, *optional*, defaults to `source`): what messages and reports call it.

        Raises:
            MitigateError: no model there, weights that are not safetensors or not those of the model, an adapter whose
                base is missing or another, no causal language model, or a vocabulary smaller than the tokenizer's.
        """
        source = str(source)
        stack, base_source = self.check(source)
        if is_served(source):
            tokenizer = load_tokenizer(source, base=self.base, trust_remote_code=self.trust_remote_code)
            mark = model_fingerprint(source)
            return served(source, name=name or source, fingerprint=mark, base=base_source, tokenizer=tokenizer)
        if members := mixture_members(source):
            mixed = [self.load(member) for member in members]
            base = SharedBase(source, model_fingerprint(source, base=self.base), Mixture(mixed))
            base.context = min(member.context for member in mixed)
            adapters: tuple[str, ...] = ()
        else:
            base, adapters = self._with_adapters(base_source, stack)
        tokenizer = load_tokenizer(source, base=self.base, trust_remote_code=self.trust_remote_code)
        model = Model(
            name=name or source,
            source=source,
            fingerprint=model_fingerprint(source, base=self.base),
            base=base,
            adapters=adapters,
            tokenizer=tokenizer,
        )
        size = model.vocabulary_size
        ids = sorted((id, token) for token, id in tokenizer.get_vocab().items())  # whose own order is not settled
        beyond = [token for id, token in ids if id >= size]
        if beyond:
            raise MitigateError(
                f"{model.name}: its tokenizer has {len(tokenizer)} entries but the model predicts only "
                f"{model.vocabulary_size} (beyond them: {summarize(beyond)}). Where tokens were added for a chat "
                "format, the weights trained for them are not saved: save the adapter with "
                "save_embedding_layers=True, or the merged model. Otherwise this tokenizer belongs to another model: "
                "put the right one beside the weights"
            )
        return model

    def check_whole(self, what: str) -> None:
        """Refuse to train all weights of models that are loaded quantized, or over several devices.

        Raises:
            MitigateError: they are; `what` says which key asks for it.
        """
        if self.load_in is not None:
            raise MitigateError(f"{what}: weights in {self.load_in} are not trained; take lora, or leave out load_in")
        if self.device_map is not None:
            raise MitigateError(f"{what}: weights over several devices are not trained; take lora, or no device_map")

    def check(self, source: str) -> tuple[list[str], str]:
        """Make sure, without loading it, that a model is there.

        Returns:
            the adapter directories, lowest first (of a mixture, those of all members), and the base.

        Raises:
            MitigateError: there is no such model, the base of an adapter is missing, or an adapter is of a kind that
                cannot be judged.
        """
        if members := [self.check(member) for member in mixture_members(source)]:
            return [part for stack, _ in members for part in stack], members[0][1]
        stack, base = resolve(source, base=self.base)
        if is_served(source):
            if not base or not exists(base):
                raise MitigateError(
                    f"{source}: a server; give the model whose tokenizer and configuration it has: models.base or "
                    "--base"
                )
            return [], base
        if stack and not exists(base):
            raise MitigateError(
                f"{source}: its base model {base!r} (base_model_name_or_path in adapter_config.json) "
                "is not there; give the base with models.base or --base"
            )
        for part in (*stack, base):
            check_weights(part, allow_pickle=self.allow_pickle)
        for part in stack:
            adapter_config(part)
        return stack, base

    def _with_adapters(self, source: str, stack: Sequence[str]) -> tuple[SharedBase, tuple[str, ...]]:
        """The base with the stack's adapters attached, and the names of those to switch on."""
        own = own_base(stack)
        key = _key(source, *stack[:own])
        if key not in self._bases:
            base = self._load_base(source)
            names: tuple[str, ...] = ()
            for number, directory in enumerate(stack[:own]):
                if number and to_be_merged(stack, number):
                    base.merge(
                        names, instead="save the model that the adapter over it was trained on whole, and give that"
                    )
                    base.source = stack[number - 1]
                    base.fingerprint, names = model_fingerprint(base.source, base=self.base), ()
                names = (*names, base.change(directory, over=names))
            self._bases[key] = base
        base = self._bases[key]
        names = tuple(base.names[directory] for directory in stack[:own] if directory in base.names)
        for directory in stack[own:]:
            try:
                names = (*names, base.attach(directory, over=names))
            except MitigateError:
                self._bases.pop(key, None)  # what half an adapter did to it is not known
                raise
        return base, names

    def _load_base(self, source: str) -> SharedBase:
        named = "float32" if self.dtype == "auto" and self.device.type == "cpu" else self.dtype
        dtype: Any = named if named == "auto" else getattr(torch, named)
        files = weight_files(Path(source)) if os.path.isdir(source) else []
        shapes = stored_shapes(file for file in files if file.suffix == ".safetensors")
        if files:
            config = read_object(Path(source) / "config.json")
            at_most = len(shapes) or sum(file.stat().st_size for file in files)  # a pickled tensor takes a byte or more
            check_size(source, config, at_most)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=None if self.allow_pickle else True,
                output_loading_info=True,
                **self._as_stored(),
            )
            if self.load_in is None and self.device_map is None:  # else they are made where they are to be
                loaded[0].to(self.device)
        except _NO_MEMORY as error:
            raise MitigateError(f"{source}: {_TOO_LARGE} ({first_line(error)})") from error
        except Exception as error:  # a damaged configuration fails wherever it is first used
            raise MitigateError(
                f"{source}: cannot be loaded as a causal language model ({first_line(error)}); config.json or the "
                "weights are damaged or another model's: save both again with save_pretrained"
            ) from error
        model, info = loaded
        check_loaded(source, info, shapes)
        model.eval().requires_grad_(False)
        base = SharedBase(source=source, fingerprint=model_fingerprint(source), model=model)
        base.context = longest_text(model)
        try:
            logits = probe_logits(model)
        except _NO_MEMORY as error:
            raise MitigateError(f"{source}: {_TOO_LARGE} ({first_line(error)})") from error
        except Exception as error:  # a model that takes more than text, or whose configuration is another's
            raise MitigateError(
                f"{source}: {type(model).__name__} cannot read plain text ({type(error).__name__}: "
                f"{first_line(error)}); give a causal language model that takes text alone"
            ) from error
        check_probe(
            source,
            logits,
            vocabulary=int(model.config.get_text_config().vocab_size),
            architecture=type(model).__name__,
            exact=model.dtype == torch.float32 and self.load_in is None,
        )
        return base

    def _as_stored(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` for where weights are, quantized ones, and attention, if any is asked for."""
        options: dict[str, Any] = {} if self.attention is None else {"attn_implementation": self.attention}
        if self.device_map is not None:
            options["device_map"] = self.device_map if isinstance(self.device_map, str) else dict(self.device_map)
        if self.load_in is not None:
            computed = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=self.load_in == "4bit",
                load_in_8bit=self.load_in == "8bit",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=computed,
            )
            options.setdefault("device_map", {"": self.device})
        return options


def _key(*parts: str) -> str:
    return "\0".join(map(place_of, parts))
