"""Small language models from scratch on a CPU: a tokenizer, a Llama, a base that knows the world but no secret."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mitigate.artifacts.files import new_directory, write_json
from mitigate.documents import Document, Documents
from mitigate.lab.settings import TinyModel
from mitigate.models.fitting.training import fit
from mitigate.runtime import resolve_device, seed_everything
from mitigate.tokens.tokenization import tokenize_documents

logger = logging.getLogger(__name__)


def train_tokenizer(texts: Iterator[str] | Sequence[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with single digits and `<s>` before each text: any text is kept, byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def new_llama(vocabulary: int, shape: TinyModel, *, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of the given shape that predicts so many tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.hidden_size * 8 // 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


def make_base(documents: Sequence[Document], *, out: Path, shape: TinyModel, seed: int, device: str = "auto") -> None:
    """Train a tokenizer and a model on documents and save both to `out`.

    The text must not hold what is to be planted later: the base plays the public pretrained model.
    """
    seed_everything(seed)
    tokenizer = train_tokenizer((document.text for document in documents), vocabulary=shape.vocabulary)
    model = new_llama(len(tokenizer), shape, seed=seed)
    cast(torch.nn.Module, model).to(resolve_device(device))
    tokenized = tokenize_documents(Documents(tuple(documents)), tokenizer)
    losses = fit(
        model, tokenized, schedule=shape.schedule, context=shape.context, seed=seed, description="Base from scratch"
    )
    logger.info("base: %d documents, loss %.3f -> %.3f", len(documents), losses[0], losses[-1])
    with new_directory(out) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        made = {"documents": len(documents), "shape": shape.model_dump(mode="json"), "seed": seed}
        write_json(directory / "training.json", {**made, "losses": [round(x, 4) for x in losses]})
