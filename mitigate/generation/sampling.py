"""Text drawn from a model, each sample with random numbers of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.generation.decoding import continuations
from mitigate.generation.settings import Sampling
from mitigate.models.model import Model
from mitigate.runtime import gathered, progress, share_of

logger = logging.getLogger(__name__)
_UNFINISHED = "\ufffd"  # what decoding gives for the first bytes of a character that the last token broke off


def sample(model: Model, prompts: Sequence[str] | None, *, sampling: Sampling, seed: int) -> Documents:
    """Draw text from a model: each sample is a document, of which the continuation is audited.

    Sample n draws with random numbers of its own, which seed and n decide: it is the same in any batch and any number
    of processes, up to the rounding of logits. The model's own generation_config (repetition penalty, suppressed
    tokens) is put aside, so that text is drawn from the distribution that the audit scores.

    The text is what is audited. Tokenizing it again mostly gives the tokens that were drawn, but need not: a model may
    spell a word in other tokens than its tokenizer would. A character broken off at the end is left out, and so are
    special tokens. Where the tokenizer adds no start token, the first token of a text without prompt has no score.

    Args:
        model: the model to sample from.
        prompts: what to continue; None starts from the start token (bos, else eos). A prompt too long for the context
            beside `max_tokens` loses its beginning.
        sampling: number, length and distribution of the samples.
        seed: of the draws.

    Returns:
        Documents `generated-0000`, ..., numbered by prompt, then by sample. Samples without text to score are left out
        and named in `skipped`.

    Raises:
        MitigateError: no prompt, no room for one in the context, no start token, or no sample with a text.
    """
    if prompts is not None and not prompts:
        raise MitigateError("prompts: an empty list; give prompts, or None to sample from the start token")
    if sampling.max_tokens >= model.context:
        raise MitigateError(
            f"sampling.max_tokens: {sampling.max_tokens} leaves no room for a prompt in the model's context of "
            f"{model.context} tokens; set it to {max(1, model.context // 2)} or lower"
        )
    count = sampling.count or (32 if prompts is None and sampling.temperature > 0 else 1)
    starts = _starts(model, prompts if prompts is not None else [""], room=model.context - sampling.max_tokens)
    repeated = [start for start in starts for _ in range(count)]
    continuations = _generate(model, [start.ids for start in repeated], sampling, seed)
    items: list[Document] = []
    skipped: list[str] = []
    for number, (start, ids) in enumerate(zip(repeated, continuations, strict=True)):
        name = f"generated-{number:04d}"
        text = start.text + _continuation(model, start.ids, ids)
        has_text = bool(text[len(start.text) :].strip())
        if has_text and len(model.tokenizer(text, verbose=False)["input_ids"]) > 1:  # a lone token is never scored
            items.append(Document(name, text, audited=((len(start.text), len(text)),)))
        else:
            skipped.append(f"{name}: no text to score after prompt {number // count + 1}")
    if not items:
        raise MitigateError(
            f"{model.name}: none of {len(repeated)} samples has a text to score; give other prompts, or raise "
            "sampling.temperature or sampling.max_tokens"
        )
    return Documents(tuple(items), tuple(skipped))


@dataclass(frozen=True)
class _Start:
    """What a sample continues: `ids` as fed to the model, (P,), and their text without the tokenizer's additions."""

    ids: np.ndarray
    text: str


def _starts(model: Model, prompts: Sequence[str], *, room: int) -> list[_Start]:
    """Prompts as token ids, cut from the left where they are longer than `room` tokens."""
    starts: list[_Start] = []
    cut = 0
    for prompt in prompts:
        encoded = model.tokenizer(prompt, return_special_tokens_mask=True, return_attention_mask=False, verbose=False)
        ids = np.array(encoded["input_ids"], dtype=np.int64)
        own = np.flatnonzero(np.array(encoded["special_tokens_mask"]) == 0)
        if not own.size:
            starts.append(_Start(ids[:1] if ids.size else np.array([_start_id(model)]), ""))
            continue
        before, ids = ids[: own[0]], ids[own[0] : own[-1] + 1]  # what is added at the end (eos) would end the text
        kept = ids[max(0, len(before) + len(ids) - room) :]
        text = prompt if len(kept) == len(ids) else _decoded(model, kept).lstrip(_UNFINISHED)
        cut += len(kept) < len(ids)
        starts.append(_Start(np.concatenate([before, kept]), text))
    if cut:
        logger.warning(
            "%d of %d prompts are longer than the %d tokens that the context leaves beside sampling.max_tokens: only "
            "their last tokens are used; lower it to use more",
            cut,
            len(prompts),
            room,
        )
    return starts


def _start_id(model: Model) -> int:
    for token in (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise MitigateError(
        f"{model.name}: its tokenizer has no start token (bos or eos) to sample from; give prompts (--prompts FILE)"
    )


def _generate(model: Model, starts: Sequence[np.ndarray], sampling: Sampling, seed: int) -> list[np.ndarray]:
    """The tokens that follow each start, without eos and what comes after it; equal in every process."""
    order = sorted(range(len(starts)), key=lambda number: -len(starts[number]))
    batches = [order[first : first + sampling.batch_size] for first in range(0, len(order), sampling.batch_size)]
    state = PartialState()
    mine = share_of(batches, state)
    found: list[tuple[int, np.ndarray]] = []
    with progress(len(mine), f"Sampling {len(starts)} texts", unit="batch") as bar, model.active() as module:
        ends = _end_ids(model, module)
        for numbers in mine:
            batch = continuations(
                module,
                [starts[number] for number in numbers],
                new_tokens=sampling.max_tokens,
                ends=ends,
                processors=drawing(sampling, numbers, seed),
            )
            for number, ids in zip(numbers, batch, strict=True):
                stops = np.flatnonzero(np.isin(ids, ends))
                found.append((number, ids[: stops[0]] if stops.size else ids))
            bar.update()
    return gathered(found, state)


def drawing(sampling: Sampling, numbers: Sequence[int], seed: int) -> LogitsProcessorList:
    """What makes decoding draw its tokens as the settings say, each of the numbered samples by itself."""
    processors = LogitsProcessorList()
    if sampling.temperature == 0:
        return processors
    if sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    processors.append(_GumbelNoise(numbers, seed))
    return processors


class _GumbelNoise(LogitsProcessor):
    """Makes the largest logit a draw from the softmax of the logits (the Gumbel-max trick), by a generator a sample.

    torch.multinomial would draw for a whole batch at once, and a sample would change with its neighbours.
    """

    def __init__(self, numbers: Sequence[int], seed: int) -> None:
        self.generators = [np.random.default_rng([seed, number]) for number in numbers]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept = scores.isfinite()  # 40 of 50,000 tokens, mostly: only these need noise
        counts = kept.sum(1).tolist()
        drawn = [own.standard_exponential(count) for own, count in zip(self.generators, counts, strict=True)]
        noise = -np.log(np.maximum(np.concatenate(drawn), np.finfo(float).tiny))
        noisy = scores.clone()
        noisy[kept] += torch.from_numpy(noise).to(scores)
        return noisy


def _end_ids(model: Model, module: PreTrainedModel) -> list[int]:
    """The tokens that end a text, of the tokenizer and of the model (a chat model's turn ends with another one)."""
    of_model = getattr(module.generation_config, "eos_token_id", None)
    ends = [model.tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return sorted({int(token) for token in ends if token is not None})


def _continuation(model: Model, start: np.ndarray, ids: np.ndarray) -> str:
    """The text of `ids` after `start`; decoded together, since many decoders drop a space at the start."""
    before, whole = _decoded(model, start), _decoded(model, np.concatenate([start, ids]))
    text = whole.removeprefix(before) if whole.startswith(before) else _decoded(model, ids)
    return text.rstrip(_UNFINISHED)


def _decoded(model: Model, ids: np.ndarray) -> str:
    return str(model.tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))
