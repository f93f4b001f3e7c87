"""Which tokens of its own output a model memorized: sample it, audit what it wrote, link that to the training text.

    result = audit_generated("my-model", ["references"], prompts="prompts.txt", match="train.jsonl")
    for stretch in memorized_stretches(result): ...     # text, score, and the training document it was copied from

A model prefers what it wrote itself: a token drawn from p_θ has an expected log-ratio of KL(p_θ ‖ p̄) ≥ 0 where nothing
is memorized. A threshold or an error rate that holds for given documents is too low for generated ones; that a stretch
stands in a training document, and scores high under references that never saw that one, is the evidence.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from pydantic import Field, model_validator
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mitigate.detection.audit import audit
from mitigate.detection.metadata import CopiedFrom, Generated
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import References, load_references
from mitigate.detection.settings import Detect
from mitigate.documents import Document, Documents, read_documents
from mitigate.documents.rows.reader import Row, read_rows
from mitigate.documents.sources import DocumentSource
from mitigate.errors import MitigateError, summarize
from mitigate.generation.decoding import continuations
from mitigate.generation.overlaps import link, with_groups
from mitigate.mistakes import Section
from mitigate.models.model import Model
from mitigate.models.store import ModelStore
from mitigate.runtime import progress, share_of

logger = logging.getLogger(__name__)
_UNFINISHED = "\ufffd"  # what decoding gives for the first bytes of a character that the last token broke off


class Sampling(Section):
    """How text is drawn from the target; the defaults are those of extraction studies (Carlini et al., 2012.07805)."""

    count: int | None = Field(
        None, ge=1, description="samples of each prompt; default: 1, or 32 from the start token (greedy always 1)"
    )
    max_tokens: int = Field(128, ge=1, description="longest continuation in tokens")
    temperature: float = Field(1.0, ge=0, description="divides the logits; 0 is greedy decoding")
    top_k: int | None = Field(40, ge=1, description="draw from the k likeliest tokens, 40 as in 2012.07805; null: all")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens that make up this probability")
    batch_size: int = Field(32, ge=1, description="samples drawn at once; the samples do not depend on it")

    @model_validator(mode="after")
    def _draws_differ(self) -> Sampling:
        if self.temperature == 0 and (self.count or 1) > 1:
            raise ValueError("count: greedy decoding (temperature 0) gives the same text each time; leave count out")
        return self


def audit_generated(
    target: str | Path | Model,
    references: References | Sequence[str | Path],
    *,
    prompts: str | Path | Sequence[str] | None = None,
    match: str | Path | Documents | None = None,
    sampling: Sampling | None = None,
    detect: Detect | None = None,
    store: ModelStore | None = None,
    seed: int = 0,
) -> Audit:
    """Sample text from the target and audit it: the continuations are scored, the prompts are only read.

    With training documents, what was copied from one is judged by the references that never saw that one. Without, a
    cross-fitted reference may know the copied text and so hide that the target does.

    Args:
        target: the model under audit: hub id, directory, adapter directory, or a loaded model.
        references: as in `audit`.
        prompts (*optional*): a file of them or a list; default: sample from the start token.
        match (*optional*): training documents to link the output to; for cross-fitted references, the documents that
            they were cross-fitted on.
        sampling, detect (*optional*): settings of sampling and of the detector.
        store (*optional*): loads the models.
        seed (`int`, *optional*, defaults to 0): of the samples.

    Returns:
        The audit of the generated documents. Its metadata say how they were drawn (`generated`).

    Raises:
        MitigateError: as in `read_prompts`, `sample` and `audit`; no sample has a text.
    """
    sampling, store = sampling or Sampling(), store or ModelStore()
    references = references if isinstance(references, References) else load_references(references)
    prompts = read_prompts(prompts) if isinstance(prompts, str | Path) else prompts
    model = target if isinstance(target, Model) else store.load(target)
    if match is not None and not isinstance(match, Documents):
        match = read_documents(match, tokenizer=model.tokenizer)
    _warn_of_unknown_training(references, match)
    generated = sample(model, prompts, sampling=sampling, seed=seed)
    links = link(generated, match) if match is not None else {}
    if match is not None:
        generated = with_groups(generated, links, match)
    result = audit(model, references, documents=generated, detect=detect, store=store, seed=seed)
    drawn = Generated(
        sampling=sampling.model_dump(),
        prompts=len(prompts or ()),
        links=tuple(
            CopiedFrom(
                doc_id=doc_id,
                char_start=found.char_start,
                char_end=found.char_end,
                training_id=found.doc_id,
                training_start=found.doc_start,
            )
            for doc_id, of_document in links.items()
            for found in of_document
        ),
        without_text=len(generated.skipped),
    )
    return replace(result, metadata=result.metadata.model_copy(update={"generated": drawn}))


def memorized_stretches(audit: Audit) -> list[dict[str, Any]]:
    """The spans that an audit found, highest score first, each with the training document it was copied from.

    Returns:
        dicts of `doc_id, char_start, char_end, text, score`, the audit's `probability` and `q` where it has them, and
        `training_id`: that of the link which shares the most characters with the span, None where there is none.
    """
    links = audit.metadata.generated.links if audit.metadata.generated is not None else ()
    texts = dict(zip(audit.documents["doc_id"].to_pylist(), audit.documents["text"].to_pylist(), strict=True))
    names = ["doc_id", "char_start", "char_end", "score"]
    names += [name for name in ("probability", "q") if name in audit.spans.column_names]
    stretches = []
    for span in audit.spans.to_pylist():
        if span["source"] != "found":
            continue
        shared = {
            number: min(found.char_end, span["char_end"]) - max(found.char_start, span["char_start"])
            for number, found in enumerate(links)
            if found.doc_id == span["doc_id"]
        }
        best = max(shared, key=shared.__getitem__, default=None)
        stretches.append(
            {
                **{name: span[name] for name in names},
                "text": texts[span["doc_id"]][span["char_start"] : span["char_end"]],
                "training_id": links[best].training_id if best is not None and shared[best] > 0 else None,
            }
        )
    return sorted(stretches, key=lambda stretch: -stretch["score"])


def read_prompts(path: str | Path) -> list[str]:
    """Prompts from a text file (each line that is not blank) or from rows (JSONL, CSV, ...): `prompt`, else `text`.

    Raises:
        MitigateError: the file is missing or empty, or rows (all named) have neither field.
    """
    prompts: list[str] = []
    problems: list[str] = []
    for row in read_rows(DocumentSource(path=str(path))):
        is_text_file = row.number == 0
        if is_text_file:
            prompts += [line.strip() for line in row.values["text"].split("\n") if line.strip()]
        elif (prompt := _prompt_of(row)) is not None:
            prompts.append(prompt)
        else:
            problems.append(f"{row.where} ({row.problem or 'no text in a field prompt or text'})")
    if problems:
        raise MitigateError(
            f"{path}: rows without a prompt: {summarize(problems)}; give each row a field prompt (or text), or make it "
            "a text file (.txt) with one prompt a line"
        )
    return prompts


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


def _warn_of_unknown_training(references: References, match: Documents | None) -> None:
    seen = frozenset().union(*(groups for groups in references.trained_on if groups is not None))
    if seen and not any(document.group in seen for document in match or ()):
        given = "no training documents are given" if match is None else "none of the training documents is among those"
        logger.warning(
            "the references were cross-fitted on documents, but %s: a reference that saw what the target copied hides "
            "that it was memorized; give as match the documents that the references were made from",
            given,
        )


def _prompt_of(row: Row) -> str | None:
    values = (row.values.get("prompt"), row.values.get("text"))
    return next((value for value in values if isinstance(value, str) and value.strip()), None)


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
                processors=_processors(sampling, numbers, seed),
            )
            for number, ids in zip(numbers, batch, strict=True):
                stops = np.flatnonzero(np.isin(ids, ends))
                found.append((number, ids[: stops[0]] if stops.size else ids))
            bar.update()
    by_number = dict(gather_object(found) if state.num_processes > 1 else found)
    return [by_number[number] for number in range(len(starts))]


def _processors(sampling: Sampling, numbers: Sequence[int], seed: int) -> LogitsProcessorList:
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
