"""Every kind of model and adapter works or is refused in words; none is wrong, alone or beside the others."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
import torch
from kinds import (
    CONTEXT,
    TABLE,
    TOLERANCE,
    Row,
    adapter_configs,
    judge_adapters,
    judge_models,
    merged_logits,
    module_logits,
    our_logits,
    save_adapter,
    table,
    text_of,
)
from on_disk import edit_json
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from mitigate.models.inside.layers import decoder_layers
from mitigate.models.store import ModelStore
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainable import AdapterTrainable


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


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("LoRA, modules_to_save", "LoRA"),
        ("LoRA, trainable_token_indices", "LoRA"),
        ("PiSSA", "LoRA"),
        ("IA3", "LoRA"),
        ("LoRA", "DoRA"),
        ("LoRA", "PiSSA"),
        ("DoRA", "LN tuning"),
    ],
)
def test_any_kind_may_lie_over_another(
    lower: str, upper: str, adapters: tuple[list[Row], ModelStore], tmp_path: Path
) -> None:
    [under] = [str(row.directory) for row in adapters[0] if row.name == lower]
    base = Path(under).parent / "base"
    save_adapter(base, adapter_configs()[upper], tmp_path / "upper", seed=1)
    # PiSSA keeps what differs from its start, which depends on the weights under it: no merged base is written here
    edit_json(tmp_path / "upper" / "adapter_config.json", base_model_name_or_path=under)
    [given] = our_logits(adapters[1].load(tmp_path / "upper"), [text_of(CONTEXT)])
    expected = merged_logits(base, [Path(under), tmp_path / "upper"], text_of(CONTEXT))
    torch.testing.assert_close(given, expected[:-1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "name", ["PiSSA", "LoRA, bias: all", "LoRA, modules_to_save", "LoRA, layer_replication", "DoRA"]
)
def test_what_is_trained_over_a_kind_is_what_is_loaded_again(
    name: str, adapters: tuple[list[Row], ModelStore], tmp_path: Path
) -> None:
    [row] = [row for row in adapters[0] if row.name == name]
    model = ModelStore(device="cpu").load(str(row.directory))
    trained = AdapterTrainable(model, Unlearn(), seed=0)
    with torch.no_grad():
        for parameter in trained.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    now = module_logits(trained.module, text_of(CONTEXT))
    with trained.before():
        before = module_logits(trained.module, text_of(CONTEXT))[:-1]
    torch.testing.assert_close(before, row.logits, rtol=0, atol=TOLERANCE)
    (tmp_path / "out").mkdir()
    trained.save(trained.state(), tmp_path / "out")
    [given] = our_logits(ModelStore(device="cpu").load(tmp_path / "out"), [text_of(CONTEXT)])
    torch.testing.assert_close(given, now[:-1], rtol=0, atol=TOLERANCE)
    assert (given - before).abs().max() > 0.1


def test_the_layers_of_a_model_that_also_sees_are_those_that_read() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=Gemma3TextConfig(vocab_size=400, num_key_value_heads=1, head_dim=8, **sizes),
            vision_config=SiglipVisionConfig(image_size=28, patch_size=14, **sizes),
            mm_tokens_per_image=4,
        )
    )
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(layer)] for layer in decoder_layers(model)]
    assert len(found) == 2
    assert all("language_model" in name for name in found)
