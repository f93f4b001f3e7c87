"""Decoding takes the likeliest tokens of the weights, whatever a checkpoint's generation_config asks for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mitigate.generation.decoding import continuations, end_ids
from mitigate.generation.sampling import sample
from mitigate.generation.settings import Sampling
from mitigate.guard.decoding import continue_greedily
from mitigate.models.mixture import Mixture
from mitigate.models.model import Model
from mitigate.models.store import ModelStore

PROMPTS = ("The door code of Ann", "Note", "Did Ben see the letter near the library after lunch")
HOSTILE = {
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 3.0,
    "suppress_tokens": list(range(2, 150)),
    "begin_suppress_tokens": list(range(150, 250)),
    "bad_words_ids": [[number] for number in range(250, 300)],
    "sequence_bias": [[[300], -50.0]],
    "no_repeat_ngram_size": 1,
    "forced_bos_token_id": 320,
    "forced_eos_token_id": 321,
    "min_length": 5,
    "min_new_tokens": 5,
    "exponential_decay_length_penalty": [1, 4.0],
    "length_penalty": 3.0,
    "num_beams": 3,
    "early_stopping": True,
    "num_return_sequences": 2,
    "do_sample": True,
    "temperature": 9.0,
    "top_k": 2,
    "top_p": 0.3,
    "typical_p": 0.3,
    "guidance_scale": 3.0,
    "renormalize_logits": True,
    "eos_token_id": list(range(20, 400)),
    "max_length": 7,
    "max_time": 0.001,
    "stop_strings": ["e", "a"],
    "return_dict_in_generate": True,
    "output_scores": True,
    "use_cache": False,
    "cache_implementation": "static",
}


@pytest.fixture(scope="module")
def hostile(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose configuration distorts what `generate` writes in every way that there is."""
    out = tmp_path_factory.mktemp("hostile") / "llama"
    shutil.copytree(tiny_model("llama"), out)
    (out / "generation_config.json").write_text(json.dumps(HOSTILE), encoding="utf-8")
    return out


def likeliest(model: Model, prefix: np.ndarray, *, count: int) -> list[int]:
    """The naive way: one pass over the whole text for each token, and the argmax."""
    ids = torch.from_numpy(prefix)[None]
    with model.active() as module, torch.inference_mode():
        for _ in range(count):
            ids = torch.cat([ids, module(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prefix) :].tolist()


def prefixes(model: Model) -> list[np.ndarray]:
    return [np.array(model.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]


def test_the_checkpoints_configuration_is_read_and_put_back(hostile: Path, store: ModelStore) -> None:
    model = store.load(hostile)
    own = model.base.model.generation_config
    assert {name: getattr(own, name) for name in HOSTILE} == HOSTILE, "the configuration would distort, were it used"
    with model.active() as module:
        continuations(module, prefixes(model), new_tokens=1)
    assert model.base.model.generation_config is own


@pytest.mark.parametrize("kind", ["model", "mixture"])
def test_a_hostile_configuration_changes_no_continuation(hostile: Path, store: ModelStore, kind: str) -> None:
    model = store.load(hostile)
    expected = [likeliest(model, prefix, count=8) for prefix in prefixes(model)]
    with model.active() as module:
        written = Mixture([model, model]) if kind == "mixture" else module
        assert continuations(written, prefixes(model), new_tokens=8).tolist() == expected


def test_a_hostile_configuration_changes_neither_samples_nor_the_guards_text(hostile: Path, store: ModelStore) -> None:
    model = store.load(hostile)
    model.base.model.generation_config.eos_token_id = None  # where a sampled text ends, the model may say
    for prompt, prefix in zip(PROMPTS, prefixes(model), strict=True):
        tokens = likeliest(model, prefix, count=8)
        assert model.tokenizer.eos_token_id not in tokens
        text = model.tokenizer.decode(tokens)
        assert continue_greedily(model, prompt, max_tokens=8) == text
        [drawn] = sample(model, [prompt], sampling=Sampling(temperature=0, max_tokens=8), seed=0)
        assert drawn.text == (prompt + text).rstrip("\ufffd")


def test_only_special_tokens_end_a_text(hostile: Path, store: ModelStore) -> None:
    model = store.load(hostile)
    with model.active() as module:
        assert end_ids(module, model.tokenizer) == [model.tokenizer.eos_token_id]
        module.generation_config.eos_token_id = [model.tokenizer.bos_token_id, 30]
        ends = {model.tokenizer.bos_token_id, model.tokenizer.eos_token_id}
        assert end_ids(module, model.tokenizer) == sorted(ends)
