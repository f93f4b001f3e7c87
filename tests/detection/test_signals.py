"""The scoring forward: equal to a naive computation, whatever the batch, the padding, the order and the window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from world import ARCHITECTURES, sentences

import mitigate.models.model
from mitigate.detection.scores.token import token_scores
from mitigate.detection.signals.compute import compute_signals, token_signals
from mitigate.detection.signals.pairings import Pairing, by_model
from mitigate.detection.signals.vocabulary import offline_mixture, row_signals
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.models.model import Model, kept_logits
from mitigate.models.store import ModelStore
from mitigate.tokens.batches import TRAINED, collate, cut_pieces, default_batch_tokens, make_batches
from mitigate.tokens.tokenization import TokenizedDocument, tokenize_documents

OUT_REFERENCES = [(0,), (1,), (0, 1), (1,)]  # of four documents
MODELS = 3  # a target and two references


@pytest.fixture(scope="module")
def tokenized(tokenizer: PreTrainedTokenizerFast) -> list[TokenizedDocument]:
    texts = ["Café Ünïcode 🙂", *sentences(3, seed=11)]
    return tokenize_documents(Documents(tuple(Document(str(n), text) for n, text in enumerate(texts))), tokenizer)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def paths(architecture: str, tiny_model: Callable[..., Path]) -> list[Path]:
    return [tiny_model(architecture, seed=seed) for seed in range(MODELS)]


@pytest.fixture(scope="module")
def models(paths: list[Path]) -> list[Model]:
    store = ModelStore(device="cpu")
    return [store.load(path) for path in paths]


@pytest.fixture(scope="module")
def naive(paths: list[Path], tokenized: list[TokenizedDocument]) -> list[list[np.ndarray]]:
    """For each model and document: (T - 1, V) float64 logits, each from a forward of the prefix alone."""
    return [naive_logits(path, [document.ids for document in tokenized]) for path in paths]


def naive_logits(path: Path, documents: Sequence[np.ndarray]) -> list[np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    with torch.no_grad():
        return [
            np.stack([model(torch.tensor([ids[:end].tolist()])).logits[0, -1].numpy() for end in range(1, len(ids))])
            for ids in documents
        ]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def naive_signals(
    logits: list[list[np.ndarray]], documents: Sequence[TokenizedDocument], *, temperature: float
) -> dict[str, np.ndarray]:
    """Every signal by its definition, one token at a time."""
    rows: list[dict[str, object]] = []
    for number, document in enumerate(documents):
        rows.append({"log_prob_references": [np.nan] * (MODELS - 1)})
        for position in range(1, len(document.ids)):
            token, out = document.ids[position], OUT_REFERENCES[number]
            p = softmax(logits[0][number][position - 1])
            p_out = np.mean([softmax(logits[1 + k][number][position - 1]) for k in out], axis=0)
            p_t = softmax(logits[0][number][position - 1] / temperature)
            p_out_t = np.mean([softmax(logits[1 + k][number][position - 1] / temperature) for k in out], axis=0)
            ratio = np.log(p_t) - np.log(p_out_t)
            mean = (p * np.log(p)).sum()
            rows.append(
                {
                    "log_prob": np.log(p[token]),
                    "rank": 1 + (p > p[token]).sum(),
                    "top_log_prob": np.log(p.max()),
                    "entropy": -mean,
                    "log_prob_std": np.sqrt((p * (np.log(p) - mean) ** 2).sum()),
                    "log_prob_out": np.log(p_out[token]),
                    "entropy_out": -(p_out_t * np.log(p_out_t)).sum(),
                    "log_ratio": ratio[token],
                    "kl": (p_out_t * np.log(p_out_t / p_t)).sum(),
                    "log_ratio_variance": (p_out_t * ratio**2).sum() - (p_out_t * ratio).sum() ** 2,
                    "log_prob_references": [
                        np.log(softmax(logits[1 + k][number][position - 1])[token]) if k in out else np.nan
                        for k in range(MODELS - 1)
                    ],
                }
            )
    names = rows[1].keys()
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}


def assert_equal_signals(
    got: dict[str, np.ndarray], expected: dict[str, np.ndarray], *, tolerance: float = 1e-5
) -> None:
    assert got.keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_allclose(got[name], column, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_signals_equal_a_naive_computation_in_float64(
    models: list[Model], naive: list[list[np.ndarray]], tokenized: list[TokenizedDocument], temperature: float
) -> None:
    got = token_signals(
        models[0], models[1:], documents=tokenized, out_references=OUT_REFERENCES, temperature=temperature
    )
    assert_equal_signals(got, naive_signals(naive, tokenized, temperature=temperature), tolerance=1e-4)
    assert np.ptp(got["log_prob"][~np.isnan(got["log_prob"])]) > 1, "the models' predictions are not all alike"


# rows of logits -------------------------------------------------------------------------------------------------------


def tables(count: int, rows: int, size: int, *, scale: float) -> dict[int, torch.Tensor]:
    """Logits of models, some rows all but certain of one token, some even."""
    draw = torch.Generator().manual_seed(5)
    made = {number: scale * torch.randn(rows, size, generator=draw) + 30 for number in range(count)}
    for table in made.values():
        table[0, 3] = table[0].max() + 60
        table[1] = 7.0
    return made


def naive_rows(
    logits: dict[int, np.ndarray], token: int, target: int, out: tuple[int, ...], *, temperature: float, a: float
) -> dict[str, object]:
    """Every signal of one row by its definition; 0 log 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p, p_t = softmax(logits[target]), softmax(logits[target] / temperature)
        mean = np.nansum(p * np.log(p))
        own = {
            "log_prob": np.log(p[token]),
            "rank": 1 + (logits[target] > logits[target][token]).sum(),
            "top_log_prob": np.log(p.max()),
            "entropy": -mean,
            "log_prob_std": np.sqrt(np.nansum(p * (np.log(p) - mean) ** 2)),
        }
        if not out:
            return own
        q = np.mean([softmax(logits[k] / temperature) for k in out], axis=0)
        q = (1 + a) / 2 * q + (1 - a) / 2 / len(q)
        ratio = np.log(p_t) - np.log(q)
        return own | {
            "log_prob_out": np.log(np.mean([softmax(logits[k])[token] for k in out])),
            "entropy_out": -np.nansum(q * np.log(q)),
            "log_ratio": ratio[token],
            "kl": -np.nansum(q * ratio),
            "log_ratio_variance": np.nansum(q * ratio**2) - np.nansum(q * ratio) ** 2,
            "log_prob_references": [np.log(softmax(logits[k])[token]) for k in out],
        }


@pytest.mark.parametrize(("temperature", "a"), [(1.0, 1.0), (2.0, 1.0), (1.0, 0.3), (0.5, 0.8)])
@pytest.mark.parametrize("chunk", [4, 1 << 9, 1 << 30])
def test_signals_of_rows_equal_their_definitions_in_chunks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, chunk: int, temperature: float, a: float
) -> None:
    monkeypatch.setattr("mitigate.detection.signals.vocabulary._CPU_CHUNK", chunk)
    logits = tables(4, 9, 40, scale=4.0)
    targets = torch.tensor([3, 0, 39, 7, 7, 1, 20, 11, 30])
    compared = [(0, (1,)), (0, (1, 2, 3)), (2, ()), (3, (0, 1))]
    found = row_signals(logits, targets, compared, temperature=temperature, offline_a=a)
    doubles = {number: table.double().numpy() for number, table in logits.items()}
    for (target, out), columns in zip(compared, found, strict=True):
        for row, token in enumerate(targets.tolist()):
            own = {number: table[row] for number, table in doubles.items()}
            expected = naive_rows(own, token, target, out, temperature=temperature, a=a)
            assert columns.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_allclose(
                    columns[name][row].numpy(), value, rtol=2e-5, atol=1e-4, err_msg=f"{name} of row {row}"
                )


def test_tokens_that_a_model_never_says_have_no_part_in_the_sums() -> None:
    logits = tables(2, 4, 12, scale=2.0)
    for table in logits.values():
        table[:, 5] = -torch.inf
    logits[0][:, 6] = -torch.inf
    targets = torch.tensor([3, 0, 11, 6])
    [columns] = row_signals(logits, targets, [(0, (1,))])
    doubles = {number: table.double().numpy() for number, table in logits.items()}
    for row, token in enumerate(targets.tolist()):
        own = {number: table[row] for number, table in doubles.items()}
        expected = naive_rows(own, token, 0, (1,), temperature=1.0, a=1.0)
        for name in ("log_prob", "rank", "top_log_prob", "entropy", "log_prob_std", "entropy_out", "log_prob_out"):
            np.testing.assert_allclose(columns[name][row].numpy(), expected[name], rtol=2e-5, atol=1e-4, err_msg=name)
    assert columns["log_prob"][3] == -torch.inf
    assert (columns["kl"][1:] > 10).all(), "the reference says it and the target never does"


def test_half_precision_is_read_as_it_is() -> None:
    logits = {number: table.bfloat16() for number, table in tables(2, 5, 30, scale=3.0).items()}
    targets = torch.arange(5)
    [half] = row_signals(logits, targets, [(0, (1,))])
    [single] = row_signals({number: table.float() for number, table in logits.items()}, targets, [(0, (1,))])
    for name, column in single.items():
        assert torch.equal(half[name], column), name


def test_a_batch_that_does_not_fit_in_memory_is_halved_until_it_does(
    models: list[Model],
    tokenized: list[TokenizedDocument],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = token_signals(models[0], models[1:], documents=tokenized, out_references=OUT_REFERENCES)
    sizes: list[int] = []

    def short(module: torch.nn.Module, input_ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        sizes.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return kept_logits(module, input_ids, *rest)

    monkeypatch.setattr("mitigate.detection.signals.compute.kept_logits", short)
    most = 1
    got = token_signals(models[0], models[1:], documents=tokenized, out_references=OUT_REFERENCES)
    assert max(sizes) > 1
    assert_equal_signals(got, expected)
    assert "windows does not fit in memory: going on with" in caplog.text
    most = 0
    with pytest.raises(MitigateError, match=r"a window of \d+ tokens does not fit .*detect.context"):
        token_signals(models[0], models[1:], documents=tokenized, out_references=OUT_REFERENCES)


# models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked_head", [True, False])
def test_kept_logits_equal_dense_logits(
    models: list[Model], tokenized: list[TokenizedDocument], monkeypatch: pytest.MonkeyPatch, masked_head: bool
) -> None:
    monkeypatch.setattr(mitigate.models.model, "_MASKED_HEAD", masked_head and mitigate.models.model._MASKED_HEAD)
    batch = collate(cut_pieces(tokenized, context=64))
    keep = batch.keep & (torch.arange(batch.keep.shape[1]) % 3 == 1)
    with models[0].active() as module, torch.no_grad():
        dense = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        kept = kept_logits(module, batch.input_ids, batch.attention_mask, keep)
    assert 0 < len(kept) < keep.numel()
    torch.testing.assert_close(kept, dense[keep], rtol=0, atol=1e-5)


def test_kept_logits_of_a_model_that_cannot_skip_positions_equal_dense_logits() -> None:
    class Dense(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> object:
            logits = torch.nn.functional.one_hot(input_ids, 7).float()
            return type("Output", (), {"logits": logits})

    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    keep = torch.tensor([[True, False, True], [False, True, False]])
    assert kept_logits(Dense(), ids, torch.ones_like(ids), keep).argmax(-1).tolist() == [1, 3, 5]


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_signals_do_not_depend_on_the_batch(
    models: list[Model], tokenized: list[TokenizedDocument], batch_tokens: int
) -> None:
    def measured(size: int) -> dict[str, np.ndarray]:
        return token_signals(
            models[0], models[1:], documents=tokenized, out_references=OUT_REFERENCES, batch_tokens=size
        )

    assert_equal_signals(measured(batch_tokens), measured(200))


def test_signals_do_not_depend_on_the_order_of_documents(
    models: list[Model], tokenized: list[TokenizedDocument]
) -> None:
    expected = token_signals(models[0], models[1:], documents=tokenized, out_references=OUT_REFERENCES)
    bounds = np.cumsum([0, *(len(document.ids) for document in tokenized)])
    order = [2, 0, 3, 1]
    got = token_signals(
        models[0],
        models[1:],
        documents=[tokenized[number] for number in order],
        out_references=[OUT_REFERENCES[number] for number in order],
    )
    rows = np.concatenate([np.arange(bounds[number], bounds[number + 1]) for number in order])
    assert_equal_signals(got, {name: column[rows] for name, column in expected.items()})


def test_signals_do_not_depend_on_the_tokenizers_padding_side(
    tiny_model: Callable[..., Path], store: ModelStore
) -> None:
    model = store.load(tiny_model("llama"))
    documents = Documents(tuple(Document(str(n), text) for n, text in enumerate(sentences(5, seed=3))))
    measured = []
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        measured.append(token_signals(model, [model], documents=tokenize_documents(documents, model.tokenizer)))
    assert_equal_signals(*measured, tolerance=0)


def test_padding_that_is_a_token_of_the_text_changes_nothing(
    tiny_model: Callable[..., Path], store: ModelStore
) -> None:
    model = store.load(tiny_model("llama"))
    short = whole_document("short", np.array([0, 0, 1, 0, 9]))  # ids that padding uses too
    long = whole_document("long", np.arange(40))
    alone = token_signals(model, [], documents=[short])["log_prob"]
    together = token_signals(model, [], documents=[long, short], batch_tokens=10_000)["log_prob"]
    np.testing.assert_allclose(together[40:], alone, rtol=0, atol=1e-5)


def whole_document(name: str, ids: np.ndarray) -> TokenizedDocument:
    """Token ids without a text; every token but the first is audited."""
    return TokenizedDocument(name, ids.astype(np.int64), np.zeros((len(ids), 2), np.int32), np.arange(len(ids)) > 0)


def test_a_long_document_is_scored_as_its_windows_are_one_by_one(
    tiny_model: Callable[..., Path], store: ModelStore
) -> None:
    ids = np.random.default_rng(0).integers(2, 400, size=150)
    model = store.load(tiny_model("gpt2"))
    got = token_signals(model, [], documents=[whole_document("long", ids)], context=20, stride=6)["log_prob"]
    expected = np.full(150, np.nan)
    start, scored = 0, 1
    while scored < 150:
        end = min(start + 20, 150)
        [logits] = naive_logits(tiny_model("gpt2"), [ids[start:end]])
        for position in range(scored, end):
            expected[position] = np.log(softmax(logits[position - start - 1])[ids[position]])
        scored = end
        start = min(end + 6, 150) - 20
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_a_document_longer_than_the_models_context_is_scored_whole(
    tiny_model: Callable[..., Path], store: ModelStore
) -> None:
    model = store.load(tiny_model("gpt2"))  # has 64 learned positions: longer input fails
    ids = np.random.default_rng(1).integers(2, 400, size=200)
    got = token_signals(model, [model], documents=[whole_document("long", ids)])
    assert np.isnan(got["log_prob"][0])
    assert not np.isnan(got["log_prob"][1:]).any()


def test_only_audited_tokens_have_signals(tiny_model: Callable[..., Path], store: ModelStore) -> None:
    model = store.load(tiny_model("llama"))
    document = whole_document("part", np.arange(5, 25))
    everywhere = token_signals(model, [], documents=[document])["log_prob"]
    audited = document.audited & np.isin(np.arange(20), [3, 4, 11])
    part = TokenizedDocument("part", document.ids, document.offsets, audited)
    signals = token_signals(model, [], documents=[part])
    for column in signals.values():
        assert np.flatnonzero(~np.isnan(column)).tolist() == [3, 4, 11]
    np.testing.assert_allclose(signals["log_prob"][audited], everywhere[audited], rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_informia_has_zero_mean_when_the_token_comes_from_the_references(
    tiny_model: Callable[..., Path], store: ModelStore, temperature: float
) -> None:
    models = [store.load(tiny_model("llama", seed=seed)) for seed in range(MODELS)]
    prefix = np.random.default_rng(5).integers(2, 400, size=12)
    for position in (1, 4, 12):
        variants = [whole_document(str(v), np.append(prefix[:position], v)) for v in range(400)]
        signals = token_signals(models[0], models[1:], documents=variants, temperature=temperature)
        score = token_scores(signals, "informia").reshape(400, position + 1)[:, -1]
        logits = [
            naive_logits(tiny_model("llama", seed=seed), [np.append(prefix[:position], 0)])[0][-1] for seed in (1, 2)
        ]
        p_out = np.mean([softmax(row / temperature) for row in logits], axis=0)
        assert np.abs(score).max() > 0.5
        assert abs((p_out * score).sum()) < 1e-5


def test_a_target_that_is_its_own_reference_scores_zero(
    models: list[Model], tokenized: list[TokenizedDocument]
) -> None:
    signals = token_signals(models[0], [models[0]], documents=tokenized)
    audited = np.concatenate([document.audited for document in tokenized])
    for name in ("informia", "log_ratio", "log_ratio_clipped", "informia_no_kl"):
        score = token_scores(signals, name)
        assert np.abs(score[audited]).max() < 1e-5
        assert np.isnan(score[~audited]).all()
    assert np.abs(signals["kl"][audited]).max() < 1e-5


@pytest.mark.parametrize(("broken", "culprit"), [(0, "the target"), (1, "the reference")])
def test_nan_logits_are_refused_naming_the_model(
    tiny_model: Callable[..., Path], store: ModelStore, broken: int, culprit: str
) -> None:
    models = [
        store.load(tiny_model("llama", seed=seed), name=name)
        for seed, name in enumerate(("the target", "the reference"))
    ]
    with torch.no_grad():
        models[broken].base.model.get_output_embeddings().weight[7].fill_(float("nan"))
    with pytest.raises(MitigateError, match=f"{culprit}: its logits are NaN.*float32"):
        token_signals(models[0], models[1:], documents=[whole_document("d", np.arange(9))])


def test_a_batch_is_as_large_as_its_device_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    gpu, cpu, other = (torch.device(name) for name in ("cuda", "cpu", "meta"))
    tokens = default_batch_tokens(128_256, device=gpu, tables=2)
    assert 10_000 < tokens < 16_384
    assert 0.14 < tokens * 2 * 4 * 128_256 / memory.total_memory <= 0.15
    assert default_batch_tokens(8192, device=gpu) == 16_384
    assert default_batch_tokens(128_256, device=gpu, tables=2 * TRAINED) < tokens / 7
    assert default_batch_tokens(8192, device=cpu) == 2048
    assert default_batch_tokens(8192, device=other) == 2**28 // (4 * 8192)
    assert default_batch_tokens(2**28, device=cpu) == 64


def test_batches_hold_every_piece_once_and_keep_to_their_bound(tokenized: list[TokenizedDocument]) -> None:
    pieces = cut_pieces(tokenized, context=16)
    batches = make_batches(pieces, batch_tokens=40)
    assert sorted(map(id, pieces)) == sorted(id(piece) for batch in batches for piece in batch.pieces)
    assert all(batch.input_ids.numel() <= 40 for batch in batches)
    assert sum(len(batch.targets) for batch in batches) == sum(document.audited.sum() for document in tokenized)


LONG = whole_document("long", np.random.default_rng(2).integers(2, 400, size=50))
PAIRINGS = (
    Pairing(2, 0, (1, 2)),
    Pairing(4, 1, (3,)),
    Pairing(0, 3),
    Pairing(2, 1, (0, 3, 2)),
    Pairing(2, 1, (3,)),
    Pairing(1, 0, (1, 2, 3)),
    Pairing(4, 0, (1, 2)),
    Pairing(2, 2),
    Pairing(3, 2, (0,)),
)  # documents, targets and references in no order, some documents many times


@pytest.fixture(scope="module")
def four(tiny_model: Callable[..., Path]) -> list[Model]:
    store = ModelStore(device="cpu")
    return [store.load(tiny_model("llama", seed=seed), name=f"model {seed}") for seed in range(4)]


@pytest.fixture(scope="module")
def judged_documents(tokenized: list[TokenizedDocument]) -> list[TokenizedDocument]:
    return [*tokenized, LONG]


@pytest.mark.parametrize(("temperature", "offline_a"), [(1.0, 1.0), (2.0, 0.6)])
def test_many_judgements_equal_each_scored_alone(
    four: list[Model], judged_documents: list[TokenizedDocument], temperature: float, offline_a: float
) -> None:
    options = {"temperature": temperature, "offline_a": offline_a, "context": 20, "stride": 6}
    got = compute_signals(four, PAIRINGS, documents=judged_documents, **options)
    assert got["log_prob_references"].shape[1] == 3, "as many columns as the longest `out`"
    end = 0
    for pairing in PAIRINGS:
        document = judged_documents[pairing.document]
        start, end = end, end + len(document.ids)
        alone = token_signals(four[pairing.target], [four[k] for k in pairing.out], documents=[document], **options)
        references = alone.pop("log_prob_references", np.zeros((len(document.ids), 0)))
        for name, column in got.items():
            if name == "log_prob_references":
                used = len(pairing.out)
                np.testing.assert_allclose(column[start:end, :used], references, rtol=0, atol=1e-5)
                assert np.isnan(column[start:end, used:]).all()
            elif name in alone:
                np.testing.assert_allclose(column[start:end], alone[name], rtol=0, atol=1e-4, err_msg=name)
            else:
                assert np.isnan(column[start:end]).all(), f"{name}: a pairing without references has none"
    assert end == len(got["log_prob"])


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_judgements_do_not_depend_on_the_batch(
    four: list[Model], judged_documents: list[TokenizedDocument], batch_tokens: int
) -> None:
    expected = compute_signals(four, PAIRINGS, documents=judged_documents)
    got = compute_signals(four, PAIRINGS, documents=judged_documents, batch_tokens=batch_tokens)
    assert_equal_signals(got, expected, tolerance=1e-4)


def test_judgements_do_not_depend_on_their_order(four: list[Model], judged_documents: list[TokenizedDocument]) -> None:
    expected = compute_signals(four, PAIRINGS, documents=judged_documents)
    bounds = np.cumsum([0, *(len(judged_documents[pairing.document].ids) for pairing in PAIRINGS)])
    order = np.random.default_rng(0).permutation(len(PAIRINGS))
    got = compute_signals(four, [PAIRINGS[number] for number in order], documents=judged_documents)
    rows = np.concatenate([np.arange(bounds[number], bounds[number + 1]) for number in order])
    assert_equal_signals(got, {name: column[rows] for name, column in expected.items()}, tolerance=1e-4)


def test_judgements_of_a_document_share_one_forward_of_each_model_they_need(
    four: list[Model], judged_documents: list[TokenizedDocument]
) -> None:
    seen = [0] * len(four)
    hooks = []
    for number, model in enumerate(four):

        def count(_module: object, arguments: object, named: dict[str, torch.Tensor], number: int = number) -> None:
            seen[number] += int(named["attention_mask"].sum())

        hooks.append(model.base.model.register_forward_pre_hook(count, with_kwargs=True))
    pairings = [Pairing(1, 0, (1,)), Pairing(1, 1, (0,)), Pairing(1, 0, (1, 2)), Pairing(2, 0)]
    compute_signals(four, pairings, documents=judged_documents)
    for hook in hooks:
        hook.remove()
    first, second = (len(judged_documents[number].ids) for number in (1, 2))
    assert seen == [first + second, first, first, 0]


def test_signals_by_model_stand_in_the_models_columns() -> None:
    documents = [whole_document("a", np.arange(2)), whole_document("b", np.arange(3))]
    pairings = [Pairing(1, 0, (3, 1)), Pairing(0, 2), Pairing(0, 1, (0,))]
    log_probs = np.arange(14.0).reshape(7, 2)
    log_probs[3:5] = np.nan
    log_probs[5:, 1] = np.nan
    got = by_model(log_probs, pairings, documents=documents, models=4)
    nan = np.nan
    expected = [
        *([nan, 1, nan, 0], [nan, 3, nan, 2], [nan, 5, nan, 4]),
        *([nan] * 4, [nan] * 4),
        *([10, nan, nan, nan], [12, nan, nan, nan]),
    ]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("a", [0.0, 0.3, 0.99])
def test_the_offline_mixture_is_a_distribution_between_the_mean_and_an_even_one(a: float) -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.full(7, 0.3), size=5)
    mixed = offline_mixture(torch.tensor(probabilities).log(), a, size=7).exp().numpy()
    np.testing.assert_allclose(mixed, (1 + a) / 2 * probabilities + (1 - a) / 2 / 7, rtol=1e-10)
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-10)


def test_an_offline_mixture_with_a_one_changes_nothing() -> None:
    log_mean = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert torch.equal(offline_mixture(log_mean, 1.0, size=3), log_mean)
    nearly = offline_mixture(log_mean, 1 - 1e-12, size=3).exp()
    torch.testing.assert_close(nearly, log_mean.exp(), rtol=0, atol=1e-9)


def test_the_offline_mixture_stands_for_the_references_in_the_joint_signals(
    four: list[Model], tokenized: list[TokenizedDocument]
) -> None:
    a, number = 0.4, 1
    signals = compute_signals(four, [Pairing(number, 0, (1, 2))], documents=tokenized, offline_a=a)
    plain = compute_signals(four, [Pairing(number, 0, (1, 2))], documents=tokenized)
    size = four[0].vocabulary_size
    mixed = np.log((1 + a) / 2 * np.exp(plain["log_prob_out"].astype(float)) + (1 - a) / 2 / size)
    np.testing.assert_allclose(signals["log_ratio"], plain["log_prob"] - mixed, rtol=0, atol=1e-4)
    for name in ("log_prob", "log_prob_out", "log_prob_references"):
        np.testing.assert_array_equal(signals[name], plain[name], err_msg=f"{name} is not corrected")
    assert (signals["entropy_out"][1:] > plain["entropy_out"][1:]).all()


@pytest.mark.parametrize("chunk", [4 * 50, 1 << 19])
def test_log_probabilities_alone_are_those_of_all_signals(
    four: list[Model], judged_documents: list[TokenizedDocument], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("mitigate.detection.signals.vocabulary._CPU_CHUNK", chunk)
    whole = compute_signals(four, PAIRINGS, documents=judged_documents)
    alone = compute_signals(four, PAIRINGS, documents=judged_documents, log_probs_only=True)
    assert alone.keys() == whole.keys()
    for name in ("log_prob", "log_prob_out", "log_ratio", "log_prob_references"):
        np.testing.assert_allclose(alone[name], whole[name], rtol=0, atol=1e-5, err_msg=name)
    for name in ("rank", "entropy", "kl", "log_ratio_variance", "entropy_out", "top_log_prob", "log_prob_std"):
        assert np.isnan(alone[name]).all(), name
