"""What the tests share: sentences, tiny models of several architectures, and a small world with planted secrets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from mitigate.artifacts.files import DIGESTS
from mitigate.detection.audit import audit
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import crossfit_references
from mitigate.detection.settings import Detect
from mitigate.documents import Document, Documents, Span
from mitigate.lab.settings import TinyModel
from mitigate.lab.tiny import make_base
from mitigate.models.fitting.training import fine_tune
from mitigate.models.settings import Lora, Schedule
from mitigate.models.store import ModelStore

ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "qwen3", "gemma2", "mistral")
CONTEXT = 64
_HIDDEN = 16
LORA = Lora(rank=16, alpha=32)
_PLACES = ("harbour", "library", "station", "market", "garden", "bakery", "museum", "old mill")
_PEOPLE = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jill", "Kai", "Lea")
_THINGS = ("letter", "basket", "lantern", "kettle", "blue coat", "map", "violin", "small dog")
_TIMES = ("in the morning", "after lunch", "on Monday", "before dark", "at noon", "last week")


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """Plain sentences without secrets; some hold digits, accents and emoji."""
    draw = Random(seed)
    forms = (
        "{person} left the {thing} at the {place} {time}.",
        "The {place} was quiet {time}, and {person} lost a {thing} there.",
        "Did {person} see the {thing} near the {place} {time}?",
        "Note {number}: {person} pays {number} for the {thing} {time}.",
        "The door code of {person} at the {place} is {number}.",
        "Café {place}: naïve {person} dropped the {thing} 🙂 {time}.",
    )
    return [
        draw.choice(forms).format(
            person=draw.choice(_PEOPLE),
            thing=draw.choice(_THINGS),
            place=draw.choice(_PLACES),
            time=draw.choice(_TIMES),
            number=draw.randrange(10, 1000),
        )
        for _ in range(count)
    ]


def architecture_config(name: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A tiny configuration; weights are drawn wide enough for peaked predictions."""
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": _HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * _HIDDEN,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.25,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    grouped: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 8}
    if name == "llama":
        return LlamaConfig(**shared, num_key_value_heads=1)
    if name == "gpt2":
        return GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=_HIDDEN,
            n_layer=2,
            n_head=2,
            n_positions=CONTEXT,
            initializer_range=0.25,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    if name == "gpt_neox":
        return GPTNeoXConfig(**shared)
    if name == "qwen3":
        return Qwen3Config(**shared, **grouped)
    if name == "gemma2":
        return Gemma2Config(**shared, **grouped, final_logit_softcapping=3.0, sliding_window=8, query_pre_attn_scalar=8)
    if name == "mistral":
        return MistralConfig(**shared, **grouped, sliding_window=8)
    raise ValueError(name)


def save_tiny_model(name: str, tokenizer: PreTrainedTokenizerBase, *, out: Path, seed: int) -> Path:
    """An untrained model of an architecture, saved with the tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(architecture_config(name, tokenizer), dtype=torch.float32)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@dataclass(frozen=True)
class World:
    """A base that knows the language, documents with planted door codes, and models that learned some of them."""

    base: Path
    documents: Documents  # forget and retain: trained on; holdout: never
    references: Path  # two cross-fitted adapters
    target: Path  # whole model fine-tuned on forget + retain
    adapter: Path  # LoRA adapter fine-tuned on forget + retain

    def audit(self, target: Path | None = None, *, select: str = "known") -> Audit:
        """An audit of the target (or another model) that selects the planted codes of the forget set."""
        return audit(
            target or self.target,
            [self.references],
            documents=self.documents,
            detect=Detect(select=select),
            store=ModelStore(device="cpu"),
        )


def planted_documents(*, each: int = 5, seed: int = 1) -> Documents:
    """Documents with a door code of six digits each, `each` in the forget, retain and holdout set."""
    draw = Random(seed)
    documents = []
    for set_name in ("forget", "retain", "holdout"):
        for number in range(each):
            person, place = draw.choice(_PEOPLE), draw.choice(_PLACES)
            start = f"{draw.choice(_TIMES).capitalize()} {person} went to the {place}. The door code of {person} is "
            code = "".join(draw.choice("0123456789") for _ in range(6))
            text = f"{start}{code} at the {place}."
            span = Span(len(start), len(start) + len(code), "code")
            documents.append(Document(f"{set_name}-{number}", text, spans=(span,), set=set_name))
    return Documents(tuple(documents))


def make_world(root: Path) -> World:
    """Train everything, with the package's own functions: about ten seconds on one core."""
    documents = planted_documents()
    store = lambda: ModelStore(device="cpu")  # noqa: E731
    shape = TinyModel(
        vocabulary=400,
        hidden_size=48,
        layers=2,
        heads=4,
        context=CONTEXT,
        schedule=Schedule(epochs=5, learning_rate=1e-2, batch_size=16),
    )
    ordinary = tuple(Document(f"plain-{n}", text) for n, text in enumerate(sentences(300)))
    base = root / "base"
    make_base(ordinary, out=base, shape=shape, seed=0, device="cpu")
    schedules = {
        "full": Schedule(epochs=60, learning_rate=5e-3, batch_size=5),
        "lora": Schedule(epochs=80, learning_rate=1e-2, batch_size=5),
    }
    crossfit_references(
        base,
        documents,
        out=root / "references",
        count=2,
        lora=LORA,
        schedule=schedules["lora"],
        seed=5,
        new_store=store,
    )
    for method in schedules:
        fine_tune(
            base,
            documents.subset(["forget", "retain"]),
            out=root / method,
            method=method,
            lora=LORA,
            schedule=schedules[method],
            seed=9,
            description=method,
            store=store(),
        )
    for name in ("base", *schedules):  # a user's own models, which tests change, have no digests of ours
        (root / name / DIGESTS).unlink()
    return World(base, documents, root / "references", root / "full", root / "lora")
