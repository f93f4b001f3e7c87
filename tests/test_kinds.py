"""Every kind of model and adapter works or is refused in words; none is wrong, alone or beside the others."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
import torch
from kinds import CONTEXT, TABLE, TOLERANCE, Row, judge_adapters, judge_models, our_logits, table, text_of
from transformers import PreTrainedTokenizerFast

from mitigate.models import ModelStore


@pytest.fixture(scope="module")
def models(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return judge_models(tmp_path_factory.mktemp("architectures"), tokenizer)


@pytest.fixture(scope="module")
def adapters(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Row], ModelStore]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, on how tiny these are
        return judge_adapters(tmp_path_factory.mktemp("adapters"), tokenizer)


def test_no_kind_is_wrong(models: list[Row], adapters: tuple[list[Row], ModelStore]) -> None:
    assert not [(row.name, row.words) for row in (*models, *adapters[0]) if row.verdict == "WRONG"]
    assert sum(row.verdict == "works" for row in models) >= 40
    assert all(row.words for row in (*models, *adapters[0]) if row.verdict == "refused")


def test_the_table_in_docs_is_what_mitigate_does(models: list[Row], adapters: tuple[list[Row], ModelStore]) -> None:
    assert TABLE.read_text(encoding="utf-8") == table(models, adapters[0]), "run `python -m tests.kinds`"


def test_no_adapter_changes_another_or_the_base_in_whatever_order_they_are_used(
    adapters: tuple[list[Row], ModelStore],
) -> None:
    rows, store = adapters
    texts = [text_of(CONTEXT)]
    working = [row for row in rows if row.logits is not None and row.directory is not None]
    assert len(working) > 40
    draw = random.Random(0)
    loaded = {row.name: store.load(str(row.directory)) for row in working}
    for _ in range(2):
        draw.shuffle(working)
        for row in working:
            [given] = our_logits(loaded[row.name], texts)
            torch.testing.assert_close(given, row.logits, rtol=0, atol=TOLERANCE, msg=row.name)


def test_the_order_of_loading_does_not_matter(adapters: tuple[list[Row], ModelStore]) -> None:
    """A fresh store, the other way round and the base last, over the kinds that were found to change a shared base."""
    rows = [row for row in adapters[0] if row.logits is not None and row.name.startswith(("LoRA", "PiSSA", "DoRA"))]
    rows.reverse()
    store, texts = ModelStore(device="cpu"), [text_of(CONTEXT)]
    assert rows[0].directory is not None
    base: Path = rows[0].directory.parent / "base"
    [alone] = our_logits(ModelStore(device="cpu").load(base), texts)
    for row in rows:
        [given] = our_logits(store.load(str(row.directory)), texts)
        torch.testing.assert_close(given, row.logits, rtol=0, atol=TOLERANCE, msg=row.name)
    torch.testing.assert_close(our_logits(store.load(base), texts)[0], alone, rtol=0, atol=TOLERANCE)
