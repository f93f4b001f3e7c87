"""Shards: documents dealt to models of their own, and the shards' adapters as one model.

What a document taught is in one shard's adapter and nowhere else, so forgetting it means fitting that one anew
(Bourtoule et al., "Machine Unlearning", arXiv 1912.03817; here the shards' predictions are mixed, not voted on).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from peft import get_peft_model_state_dict
from transformers import PreTrainedTokenizerBase

from mitigate.adapters.addition import add, read_part
from mitigate.adapters.card import CARD
from mitigate.adapters.trained import lower_parts, save_adapter, write_adapter
from mitigate.artifacts.files import (
    DIGESTS,
    check_version,
    damage,
    fingerprint,
    new_directory,
    read_json,
    read_record,
    write_digests,
    write_json,
)
from mitigate.artifacts.provenance import RETRAIN_RECORD, SCHEMA
from mitigate.artifacts.temporaries import partial_of, sweep
from mitigate.documents import Document
from mitigate.errors import MitigateError
from mitigate.models.adapters import OVERLAY_FILE
from mitigate.models.directory import MIXTURE_FILE, adapter_stack
from mitigate.models.fitting.saves import Saves
from mitigate.models.fitting.training import NEW_ADAPTER, add_lora, fit
from mitigate.models.settings import Lora, Schedule
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state, seed_everything, share_of, together
from mitigate.tokens.tokenization import tokenize_documents

logger = logging.getLogger(__name__)
_SHARD = "shard.json"
_WEIGHTS = "adapter_model.safetensors"
_FILES = "files.json"  # names of the files of the result, to be removed with it


@dataclass(frozen=True)
class Shard:
    """What one shard is fitted on.

    Attributes:
        number: from 0.
        documents: as the model will see them, in the order of their ids.
        unscored: document id -> positions of the tokens that get no loss.
    """

    number: int
    documents: tuple[Document, ...]
    unscored: Mapping[str, Sequence[int]]

    def fingerprint(self, fitting: Fitting) -> str:
        """Of everything that decides the shard's weights: not of sets, known spans or the other shards."""
        seen = [[d.id, d.text, d.audited, d.special_tokens, self.unscored.get(d.id, ())] for d in self.documents]
        return fingerprint([fitting.plan, seen])


@dataclass(frozen=True)
class Fitting:
    """How every shard is fitted. `plan` is what of it must stay the same for shards to be kept."""

    base: str
    method: str
    lora: Lora
    schedule: Schedule
    seed: int
    plan: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase | None = None  # saved beside the result in the place of the base's


def shard_of(group: str, *, shards: int, seed: int) -> int:
    """The shard of a group of documents: a hash of the group and the seed, and of nothing else.

    If it depended on the other documents (their number, their order), forgetting one could move others, and every shard
    that one left or entered would have to be fitted anew.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:8]) % shards


def deal(
    documents: Sequence[Document], unscored: Mapping[str, Sequence[int]], *, shards: int, seed: int
) -> list[Shard]:
    """Deal documents to shards by group; a shard may be empty."""
    dealt: list[list[Document]] = [[] for _ in range(shards)]
    for document in sorted(documents, key=lambda document: document.id):
        dealt[shard_of(document.group, shards=shards, seed=seed)].append(document)
    return [
        Shard(number, tuple(chosen), {one.id: unscored[one.id] for one in chosen if one.id in unscored})
        for number, chosen in enumerate(dealt)
    ]


def fit_shards(
    shards: Sequence[Shard], *, fitting: Fitting, combine: str, out: Path, new_store: Callable[[], ModelStore]
) -> tuple[list[dict[str, Any]], list[int]]:
    """Fit the shards that are not there yet or whose documents changed, and make one model of them in `out`.

    Each is saved as soon as it is done; one that was killed goes on from its checkpoint, if its documents are the same.
    Under several processes each fits a share. With one shard, its files are the result. A `mixture` (see
    `mitigate.models.mixture`) keeps nearly all that the shards learned, at as many forward passes as there are shards;
    their `sum`, or rather mean, is a plain adapter, but scales down what stands in one document alone. Loss on the
    retained text (nats a token) of a model fitted at once, of 3 shards mixed, summed, and of the base, 80 documents
    over a tiny model: 1.92, 1.98, 3.66, 3.83; fitted at a fifth of the rate 2.90, 2.90, 3.70, 3.83.

    What `out` held before is removed before the first fit: weights that know what is being forgotten do not
    outlive an interruption.

    Args:
        shards: of `deal`.
        fitting: base and settings.
        combine: `mixture` or `sum`.
        out: directory that holds `shard-N` and, if it was finished, the result and its `retrain.json`.
        new_store: loads the base.

    Returns:
        the shards that hold documents (`number`, `documents`, `tokens`, `loss` at the first and the last step,
        `fingerprint`), and the numbers of those fitted now.
    """
    state = process_state()
    before = _published(out)
    wanted = {shard.number: shard.fingerprint(fitting) for shard in shards if shard.documents}
    kept = {}
    for shard in shards:
        record = _record(out / f"shard-{shard.number}")
        if record is None and len(shards) == 1 and before["shards"]:
            [record] = before["shards"]
        if record and record["fingerprint"] == wanted.get(shard.number):
            kept[shard.number] = record
    missing = [number for number in wanted if number not in kept]
    combined = len(shards) == 1 or before["combine"] == combine  # one shard is the result, however it is combined
    unchanged = not missing and combined and before["shards"] == list(kept.values())
    state.wait_for_everyone()  # all know what is there before one removes it
    with together(state):
        if state.is_main_process and not unchanged:
            begun = [place for n in missing if _saves(place := out / f"shard-{n}", wanted[n]).newest() is not None]
            _unpublish(out, folders={f"shard-{n}" for n in kept} | {partial_of(place).name for place in begun})
    with together(state):
        for number in share_of(missing, state):
            place = out / f"shard-{number}"
            _fit(shards[number], fitting, out=place, mark=wanted[number], store=new_store(), alone=len(shards) == 1)
    records = [kept.get(number) or _record(out / f"shard-{number}") for number in wanted]
    state.wait_for_everyone()
    with together(state):
        if state.is_main_process and not unchanged:
            folders = [out / f"shard-{number}" for number in wanted]
            _, base = new_store().check(fitting.base)
            _publish(folders, combine=combine, shards=len(shards), out=out, base=base)
    return [record for record in records if record], missing


def _publish(folders: Sequence[Path], *, combine: str, shards: int, out: Path, base: str) -> None:
    """Make one model of the shards that hold documents."""
    if shards == 1:
        _move_files(folders[0], out)
    elif combine == "mixture":
        write_json(out / MIXTURE_FILE, {"members": [folder.name for folder in folders]})
        write_digests(out, [MIXTURE_FILE])
    else:
        with new_directory(out / "sum", replace=True) as directory:
            combine_adapters(folders, weight=1 / shards, out=directory, base=base)
        _move_files(out / "sum", out)


def _move_files(source: Path, out: Path) -> None:
    files = sorted(source.iterdir(), key=lambda file: file.name != _SHARD)  # cut short: no shard there
    write_json(out / _FILES, [file.name for file in files])
    for file in files:
        file.replace(out / file.name)
    source.rmdir()


def combine_adapters(directories: Sequence[Path], *, weight: float, out: Path, base: str | None = None) -> None:
    """Write the weighted sum of LoRA updates as one LoRA adapter, without loading the model, see `addition.add`.

    Args:
        directories: PEFT adapter directories over one base; over the same adapters too, which then count once.
        weight: factor of every update.
        out: an existing directory.
        base (*optional*): the base's name, where it is not what the adapters say.

    Raises:
        MitigateError: the adapters hold more than can be added.
    """
    *below, _ = adapter_stack(str(directories[0]))
    own = [read_part(adapter_stack(str(directory))[-1], weight=weight) for directory in directories]
    config, tensors = add([*(read_part(lower) for lower in below), *own])
    config.base_model_name_or_path = base or config.base_model_name_or_path
    write_adapter(config, tensors, out)
    for file in directories[0].iterdir():  # the tokenizer's
        if file.is_file() and file.name not in (_SHARD, OVERLAY_FILE, _WEIGHTS, DIGESTS, "adapter_config.json"):
            shutil.copy(file, out / file.name)


def _fit(shard: Shard, fitting: Fitting, *, out: Path, mark: str, store: ModelStore, alone: bool) -> None:
    """Fit a shard. Over an adapter it is one with it if it is the result; else the sum or the mixture takes that in."""
    model = store.load(fitting.base)
    tokenized = tokenize_documents(shard.documents, model.tokenizer)
    model = replace(model, tokenizer=fitting.tokenizer or model.tokenizer)
    for place, document in enumerate(tokenized):
        audited = document.audited.copy()
        audited[np.array(shard.unscored.get(document.id, ()), dtype=int)] = False
        tokenized[place] = replace(document, audited=audited)
    seed_everything(fitting.seed)  # one initialization for all: their sum keeps more
    if fitting.method == "lora":
        add_lora(model, fitting.lora, seed=fitting.seed)
    else:
        model.base.model.requires_grad_(True)
    saves = _saves(out, mark)
    losses = fit(
        model.base.model,
        tokenized,
        schedule=fitting.schedule,
        context=model.context,
        seed=fitting.seed,
        description=f"Shard {shard.number + 1}",
        saves=saves,
    )
    record = {
        "number": shard.number,
        "documents": len(tokenized),
        "tokens": int(sum(document.audited.sum() for document in tokenized)),
        "loss": [round(losses[0], 4), round(losses[-1], 4)],
        "fingerprint": mark,
    }
    with new_directory(out) as directory:
        if fitting.method == "lora":
            assert model.base.peft is not None
            weights = get_peft_model_state_dict(model.base.peft, adapter_name=NEW_ADAPTER)
            if not any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name):
                raise MitigateError(f"shard {shard.number}: fitting changed nothing; raise schedule.learning_rate")
            own = {name: tensor.detach().cpu() for name, tensor in weights.items()}
            save_adapter(model, own, directory, below=lower_parts(model), difference=not alone)
        else:
            model.base.model.save_pretrained(directory)
            model.tokenizer.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)  # an empty model card
        write_json(directory / _SHARD, record)
    saves.forget()


def _saves(shard: Path, mark: str) -> Saves:
    return Saves(partial_of(shard), {"shard": mark})


def _published(out: Path) -> dict[str, Any]:
    """The record of the result that is there and undamaged; one without shards if there is none."""
    none: dict[str, Any] = {"shards": [], "combine": None}
    if not (out / RETRAIN_RECORD).is_file():
        return none
    try:
        record = read_record(out / RETRAIN_RECORD)
    except MitigateError as error:
        logger.warning("%s; the result is made again", str(error).split(";", maxsplit=1)[0])
        return none
    remedy = "choose another directory, or remove this one"
    check_version(out / RETRAIN_RECORD, record, expected=SCHEMA, unsaid=SCHEMA, remedy=remedy)
    if wrong := damage(out):
        logger.warning("%s: %s; the result is made again", out, wrong[0])
        return none
    return record


def _record(directory: Path) -> dict[str, Any] | None:
    """The record of a shard that is there and undamaged."""
    if not (directory / _SHARD).is_file():
        return None
    if wrong := damage(directory):
        logger.warning("%s: %s; fitted again", directory, wrong[0])
        return None
    record: dict[str, Any] = read_json(directory / _SHARD)
    return record


def _unpublish(out: Path, *, folders: set[str]) -> None:
    """Remove the result (`retrain.json` first) and all shards but those in `folders`; what else lies there stays."""
    (out / RETRAIN_RECORD).unlink(missing_ok=True)
    sweep(out)  # of a fit that was cut short
    for pattern in ("shard-*", "sum"):
        for path in out.glob(pattern):
            if path.name not in folders:
                shutil.rmtree(path)
    moved = read_json(out / _FILES) if (out / _FILES).is_file() else []
    for name in (*moved, MIXTURE_FILE, DIGESTS, _FILES, CARD):
        (out / name).unlink(missing_ok=True)
