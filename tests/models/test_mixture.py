"""The mixture of models that were fitted on disjoint documents, against the sum over whole texts that it stands for."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgetting import SHORT, SMALL
from world import World

from mitigate.detection.audit import audit
from mitigate.detection.settings import Detect
from mitigate.detection.signals.compute import token_log_probs
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.generation.decoding import continuations
from mitigate.models.directory import model_fingerprint
from mitigate.models.fitting.training import fine_tune
from mitigate.models.model import Model
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.retraining.retrain import retrain
from mitigate.tokens.tokenization import TokenizedDocument, tokenize_documents
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainer import unlearn


@pytest.fixture(scope="module")
def mixture(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models that know different texts well: two references and the leaky adapter."""
    out = tmp_path_factory.mktemp("mixture") / "mixed"
    out.mkdir()
    for number, source in enumerate(
        (world.references / "reference-0", world.references / "reference-1", world.adapter)
    ):
        shutil.copytree(source, out / f"shard-{number}")
    (out / "mixture.json").write_text(json.dumps({"members": [f"shard-{number}" for number in range(3)]}))
    return out


@pytest.fixture
def mixed(mixture: Path, store: ModelStore) -> Model:
    return store.load(mixture)


def members(mixture: Path, store: ModelStore) -> list[Model]:
    return [store.load(mixture / f"shard-{number}") for number in range(3)]


def text_log_probs(model: Model, ids: np.ndarray) -> torch.Tensor:
    """(T - 1,) of each token but the first, one forward pass of the member alone, in float64."""
    tokens = torch.from_numpy(ids)[None]
    with model.active() as module, torch.no_grad():
        logits = module(input_ids=tokens, use_cache=False).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).squeeze(1)


def test_a_texts_probability_is_the_mean_of_the_members(world: World, mixture: Path, store: ModelStore) -> None:
    tokenized = tokenize_documents(world.documents, store.load(world.base).tokenizer)
    found = token_log_probs(store.load(mixture), tokenized)
    at = 0
    for document in tokenized:
        own = torch.stack([text_log_probs(model, document.ids) for model in members(mixture, store)])
        whole = own.cumsum(1).logsumexp(0) - math.log(3)  # log p(x_1..x_t), x_1 given
        expected = whole.diff(prepend=torch.zeros(1, dtype=whole.dtype))
        np.testing.assert_allclose(found[at + 1 : at + len(document.ids)], expected, atol=1e-4)
        assert -whole[-1] <= -own.sum(1).max() + math.log(3) + 1e-9, "log 3 nats in all above the best member"
        at += len(document.ids)


def test_neither_padding_nor_company_changes_what_it_says(world: World, mixed: Model) -> None:
    tokenized = tokenize_documents(world.documents.items[:4], mixed.tokenizer)
    together = token_log_probs(mixed, [shortened(one, 5 + 6 * n) for n, one in enumerate(tokenized)], batch_tokens=400)
    alone = [token_log_probs(mixed, [shortened(one, 5 + 6 * n)]) for n, one in enumerate(tokenized)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-4)


def shortened(document: TokenizedDocument, length: int) -> TokenizedDocument:
    return TokenizedDocument(document.id, document.ids[:length], document.offsets[:length], document.audited[:length])


def test_it_writes_what_the_likeliest_next_tokens_are(world: World, mixed: Model) -> None:
    tokenized = tokenize_documents(world.documents.items[:3], mixed.tokenizer)
    prefixes = [one.ids[: 4 + 3 * number] for number, one in enumerate(tokenized)]
    with mixed.active() as module, torch.inference_mode():
        written = continuations(module, prefixes, new_tokens=6)
        for prefix, own in zip(prefixes, written, strict=True):
            ids = torch.from_numpy(prefix)[None]
            for _ in range(6):
                ids = torch.cat([ids, module(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
            assert own.tolist() == ids[0, len(prefix) :].tolist()


def test_logits_to_keep_are_the_same_positions_of_all(mixed: Model) -> None:
    ids = torch.arange(10, 22).reshape(2, 6)
    keep = torch.tensor([[0, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    with mixed.active() as module, torch.no_grad():
        every = module(input_ids=ids).logits
        torch.testing.assert_close(every.logsumexp(-1), torch.zeros(2, 6), atol=1e-4, rtol=0)
        for kept, expected in ((keep, every[keep]), (2, every[:, -2:]), (torch.tensor([0, 3]), every[:, [0, 3]])):
            assert torch.equal(module(input_ids=ids, logits_to_keep=kept).logits, expected)


def test_the_members_stay_as_they_are(world: World, mixture: Path, store: ModelStore) -> None:
    ids = tokenize_documents(world.documents.items[:1], store.load(world.base).tokenizer)[0].ids
    before = [text_log_probs(model, ids) for model in members(mixture, store)]
    text_log_probs(store.load(mixture), ids)
    for model, expected in zip(members(mixture, store), before, strict=True):
        assert torch.equal(text_log_probs(model, ids), expected)


def test_its_fingerprint_is_that_of_its_members(mixture: Path, tmp_path: Path) -> None:
    shutil.copytree(mixture, tmp_path / "copy")
    assert model_fingerprint(tmp_path / "copy") == model_fingerprint(mixture)
    shutil.copytree(mixture / "shard-0", tmp_path / "copy" / "shard-1", dirs_exist_ok=True)
    assert model_fingerprint(tmp_path / "copy") != model_fingerprint(mixture)


def test_shards_keep_in_a_mixture_what_their_sum_loses(world: World, tmp_path: Path) -> None:
    nll = {}
    choices: dict[str, dict[str, Any]] = {"one": {}, "mixture": {"shards": 3}, "sum": {"shards": 3, "combine": "sum"}}
    texts = world.documents.subset("retain")
    for name, settings in choices.items():
        made = retrain(
            world.audit(),
            base=world.base,
            out=tmp_path / ("one" if name == "one" else "shards"),
            redact="drop",
            lora=SMALL,
            schedule=Schedule(epochs=40, learning_rate=1e-2, batch_size=5),
            new_store=lambda: ModelStore(device="cpu"),
            **settings,
        )
        store = ModelStore(device="cpu")
        model = store.load(made.directory)
        nll[name] = -float(np.nanmean(token_log_probs(model, tokenize_documents(texts, model.tokenizer))))
    assert nll["mixture"] < nll["sum"] - 0.2
    assert nll["mixture"] < nll["one"] + 0.2


def test_nothing_is_trained_over_a_mixture(world: World, mixture: Path, store: ModelStore, tmp_path: Path) -> None:
    found = audit(mixture, [world.references], documents=world.documents, detect=Detect(select="known"), store=store)
    with pytest.raises(MitigateError, match="a mixture of shards is for inference; to forget more, retrain"):
        unlearn(found, out=tmp_path / "adapter", settings=Unlearn(max_steps=1), store=store)
    with pytest.raises(MitigateError, match="a mixture of shards; give the base that they were fitted on"):
        retrain(found, base=mixture, out=tmp_path / "retrained")
    with pytest.raises(MitigateError, match="for inference"):
        fine_tune(
            mixture,
            Documents((Document("one", "A map of the harbour."),)),
            out=tmp_path / "tuned",
            method="lora",
            lora=SMALL,
            schedule=SHORT,
            seed=0,
            description="",
            store=store,
        )


def test_a_member_that_is_gone_is_named(mixture: Path, tmp_path: Path, store: ModelStore) -> None:
    shutil.copytree(mixture, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "shard-1")
    with pytest.raises(MitigateError, match="shard-1: no such directory"):
        store.load(tmp_path / "copy")
