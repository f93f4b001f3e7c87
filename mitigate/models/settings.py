"""Settings of models: which ones, how they are loaded and fine-tuned, and the shape of an adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mitigate.mistakes import Section

Method = Literal["lora", "full"]
"""How a model is fine-tuned: an adapter over it, or all of its weights."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
LoadIn = Literal["4bit", "8bit"]
Attention = Literal["eager", "sdpa", "flash_attention_2"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]


class Models(Section):
    """Which models, and how they are loaded."""

    target: str | None = Field(None, description="the leaky model: hub id, directory or PEFT adapter directory")
    base: str | None = Field(None, description="the model that the target was fine-tuned from")
    oracle: str | None = Field(None, description="a model retrained without the forget documents, if there is one")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    dtype: Dtype = Field(
        "auto", description="auto (float32 on a CPU, else the checkpoint's), float32, bfloat16, float16"
    )
    load_in: LoadIn | None = Field(
        None,
        description="8bit, or on a GPU 4bit (NF4): frozen weights quantized by bitsandbytes; adapters are as ever",
    )
    attention: Attention | None = Field(
        None, description="eager, sdpa or flash_attention_2 (which has a package of its own); default: the model's"
    )
    device_map: DeviceMap | dict[str, int | str] | None = Field(
        None,
        description="one model's weights over several GPUs, or partly on the host, as accelerate deals them out: auto, "
        "balanced, balanced_low_0, sequential, or module: device; default: all on `device`",
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with a checkpoint")
    allow_pickle: bool = Field(False, description="accept weights that are not safetensors")


class Lora(Section):
    """Shape of a LoRA adapter (Hu et al., arXiv 2106.09685)."""

    rank: int = Field(16, ge=1, description="rank of the update")
    alpha: int = Field(32, gt=0, description="scale: the update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: str | list[str] = Field("all-linear", description="modules to adapt, in PEFT's terms")


class Schedule(Section):
    """How long and how fast to train."""

    epochs: float = Field(3.0, gt=0, description="passes over the documents")
    learning_rate: float = Field(2e-4, gt=0, description="peak of a linear warm-up and cosine decay to a tenth")
    batch_size: int = Field(8, ge=1, description="documents in a step")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps that warm up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")


class FitSettings(Section):
    """Adapters and schedule of models that are fitted to documents, where all else is said by options of their own."""

    lora: Lora = Field(default_factory=Lora, description="shape of the adapters")
    schedule: Schedule = Field(default_factory=Schedule, description="as the target's, where that is known")
