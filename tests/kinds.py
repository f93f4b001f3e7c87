"""Every kind of model and adapter that mitigate may be given, tiny, and what it does with each.

    python -m tests.kinds        # writes docs/kinds.md anew

"works" means that the logits are those of plain transformers and PEFT at every position of a text as long as the model
takes; "refused" comes with the words that the user reads; anything else is "WRONG".
"""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerBase

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from world import sentences

from mitigate.errors import MitigateError
from mitigate.lab.tiny import train_tokenizer
from mitigate.models.directory import check_layering
from mitigate.models.model import Model, kept_logits
from mitigate.models.store import ModelStore
from mitigate.runtime import quiet_libraries

TABLE = Path(__file__).parents[1] / "docs" / "kinds.md"
CONTEXT = 32
VOCABULARY = 416  # more than the tokenizer's 400, as in many checkpoints
TOLERANCE = 1e-4  # of logits of up to 10

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {
    **_EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1, "num_key_value_heads": 2,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bamba": {
        "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 8, "attn_layer_indices": [1], "num_key_value_heads": 2,
    },
    "bart": {
        "d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "encoder_layers": 1,
        "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "init_std": 0.2,
    },
    "bert": {},
    "biogpt": {},
    "bloom": {"n_head": 2, "n_layer": 2},
    "codegen": {"n_ctx": CONTEXT, "num_attention_heads": 4, "rotary_dim": 4},
    "cohere": {"num_key_value_heads": 1},
    "ctrl": {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, "dff": 32},
    "deepseek_v3": _LATENT,
    "electra": {"embedding_size": 16},
    "falcon": {"alibi": False},
    "gemma": {"head_dim": 8, "num_key_value_heads": 1},
    "gemma2": {"head_dim": 8, "num_key_value_heads": 1, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 1, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "glm": {"head_dim": 8, "num_key_value_heads": 1},
    "gpt2": {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_bigcode": {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox": {},
    "gpt_oss": {**_EXPERTS, "head_dim": 8, "num_key_value_heads": 1, "sliding_window": 8},
    "gptj": {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "granite": {"num_key_value_heads": 1, "logits_scaling": 2.0},
    "llama": {"num_key_value_heads": 1},
    "mamba": {"state_size": 4},
    "mistral": {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8},
    "mixtral": {**_EXPERTS, "num_key_value_heads": 1},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": CONTEXT, "expansion_ratio": 2},
    "nemotron": {"num_key_value_heads": 1},
    "olmo2": {"num_key_value_heads": 1},
    "olmoe": {**_EXPERTS, "num_key_value_heads": 1},
    "openai-gpt": {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.2},
    "persimmon": {},
    "phi": {},
    "phi3": {"num_key_value_heads": 1, "pad_token_id": 1},
    "qwen2": {"num_key_value_heads": 1},
    "qwen2_moe": {**_EXPERTS, "num_key_value_heads": 1, "shared_expert_intermediate_size": 16},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "qwen3_moe": {**_EXPERTS, "num_key_value_heads": 1, "head_dim": 8},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": {"is_decoder": True},
    "rwkv": {"attention_hidden_size": 16, "context_length": CONTEXT},
    "smollm3": {"num_key_value_heads": 1},
    "stablelm": {"num_key_value_heads": 1},
    "starcoder2": {"num_key_value_heads": 1},
    "xglm": {"d_model": 16, "ffn_dim": 32, "num_layers": 2, "attention_heads": 2, "init_std": 0.2},
    "xlm-roberta": {},
}  # fmt: skip

_TARGETS = ["q_proj", "v_proj", "down_proj"]
_LORA = {"r": 4, "lora_alpha": 8, "target_modules": _TARGETS}
LORA_KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA, rank-stabilized": {"use_rslora": True},
    "LoRA, all linear layers": {"target_modules": "all-linear"},
    "LoRA on embeddings and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "LoRA on some layers, ranks by pattern": {"layers_to_transform": [1], "rank_pattern": {"v_proj": 2}},
    "LoRA on fused parameters": {"target_modules": ["v_proj"], "target_parameters": ["mlp.up_proj.weight"]},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "LoRA, bias: all": {"bias": "all"},
    "LoRA, bias: lora_only": {"bias": "lora_only"},
    "LoRA with a bias of its own (lora_bias)": {"lora_bias": True},
    "LoRA, layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "LoRA, modules_to_save": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "LoRA, trainable_token_indices": {"trainable_token_indices": [11, 22, 33]},
    "LoRA, activated (aLoRA)": {"alora_invocation_tokens": [5, 6]},
}


def _other_kinds() -> dict[str, Callable[[], peft.PeftConfig]]:
    """Kinds other than LoRA, by name."""
    targets, tokens = {"target_modules": _TARGETS}, {"num_virtual_tokens": 4}
    return {
        "AdaLoRA": lambda: peft.AdaLoraConfig(**targets, init_r=4, target_r=2, total_step=10, tinit=1, tfinal=1),
        "AdaMSS": lambda: peft.AdamssConfig(**targets, r=8),
        "Adaption prompt (LLaMA-Adapter)": lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1),
        "BEFT": lambda: peft.BeftConfig(target_modules=["v_proj"]),
        "BOFT": lambda: peft.BOFTConfig(**targets, boft_block_size=4),
        "C3A": lambda: peft.C3AConfig(target_modules=["q_proj"], block_size=8),
        "Cartridge": lambda: peft.CartridgeConfig(**tokens),
        "CPT": lambda: peft.CPTConfig(
            task_type="CAUSAL_LM", cpt_token_ids=[5, 6], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2]
        ),
        "DEFT": lambda: peft.DeftConfig(**targets, r=4),
        "DeLoRA": lambda: peft.DeloraConfig(**targets, r=4),
        "FourierFT": lambda: peft.FourierFTConfig(**targets, n_frequency=8),
        "FRoD": lambda: peft.FrodConfig(**targets),
        "GLoRA": lambda: peft.GloraConfig(**targets, r=4),
        "GraLoRA": lambda: peft.GraloraConfig(**targets, r=4, gralora_k=2),
        "HiRA": lambda: peft.HiraConfig(**targets, r=4),
        "HRA": lambda: peft.HRAConfig(**targets, r=4),
        "IA3": lambda: peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "Lily": lambda: peft.LilyConfig(**targets, r=4),
        "LN tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
        "LoHa": lambda: peft.LoHaConfig(**targets, r=4),
        "LoKr": lambda: peft.LoKrConfig(**targets, r=4),
        "MiSS": lambda: peft.MissConfig(**targets, r=4),
        "Multitask prompt tuning": lambda: peft.MultitaskPromptTuningConfig(**tokens, num_tasks=2),
        "OFT": lambda: peft.OFTConfig(**targets, oft_block_size=4),
        "OSF": lambda: peft.OSFConfig(**targets),
        "P-tuning": lambda: peft.PromptEncoderConfig(**tokens, encoder_hidden_size=8),
        "PEANuT": lambda: peft.PeanutConfig(**targets, r=4),
        "Poly": lambda: peft.PolyConfig(**targets, r=4, n_tasks=2, n_skills=2),
        "Prefix tuning": lambda: peft.PrefixTuningConfig(**tokens),
        "Prompt tuning": lambda: peft.PromptTuningConfig(**tokens),
        "PSOFT": lambda: peft.PsoftConfig(**targets, r=4),
        "PVeRA": lambda: peft.PveraConfig(**targets, r=4),
        "RandLoRA": lambda: peft.RandLoraConfig(**targets, r=4),
        "RoAd": lambda: peft.RoadConfig(**targets, group_size=4),
        "SHiRA": lambda: peft.ShiraConfig(**targets, r=2),
        "Supertuning": lambda: peft.SupertuningConfig(**targets, r=4),
        "TinyLoRA": lambda: peft.TinyLoraConfig(**targets, r=2),
        "Trainable tokens": lambda: peft.TrainableTokensConfig(
            token_indices=[11, 22, 33], target_modules=["embed_tokens"]
        ),
        "UniLoRA": lambda: peft.UniLoraConfig(**targets, r=4),
        "VB-LoRA": lambda: peft.VBLoRAConfig(**targets, r=4, num_vectors=8, vector_length=8, topk=2),
        "VeRA": lambda: peft.VeraConfig(target_modules=["q_proj", "o_proj"], r=4),
        "WaveFT": lambda: peft.WaveFTConfig(**targets, n_frequency=8),
    }


def adapter_configs() -> dict[str, Callable[[], peft.PeftConfig]]:
    """Every kind of adapter that is made here, by name."""
    lora = {
        name: (lambda changes=changes: peft.LoraConfig(**{**_LORA, **changes})) for name, changes in LORA_KINDS.items()
    }
    return {**lora, **_other_kinds()}


def tiny_architecture(name: str, **changes: Any) -> Any:
    """An untrained model of an architecture."""
    config = CONFIG_MAPPING[name](**{**_SIZES, **ARCHITECTURES[name], **changes})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def save_adapter(
    base: Path | torch.nn.Module,
    make: Callable[[], peft.PeftConfig],
    out: Path,
    *,
    source: Path | None = None,
    seed: int = 0,
) -> None:
    """An adapter as if trained: every weight that training would change is moved by noise.

    Args:
        base: a directory, or a model that is copied and said to lie at `source`.
    """
    torch.manual_seed(seed)
    config = make()
    config.task_type = "CAUSAL_LM"
    whole = copy.deepcopy(base) if isinstance(base, torch.nn.Module) else AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(whole, config)
    model.peft_config["default"].base_model_name_or_path = str(source or base)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.create_or_update_model_card = lambda _: None  # a page of text, slow to make
    model.save_pretrained(out)


def text_of(length: int, *, beyond: int = 400) -> torch.Tensor:
    """(T,) token ids; the last ones of a vocabulary that is longer than 400 are among them."""
    ids = torch.arange(length).mul(11).remainder(400)
    ids[length - (beyond - 400) :] = torch.arange(400, beyond)
    return ids


def plain_model(base: Path | torch.nn.Module, adapter: Path | None) -> Any:
    """What transformers and PEFT load from a base (a directory, or a model that is copied) and an adapter."""
    model: Any = (
        copy.deepcopy(base) if isinstance(base, torch.nn.Module) else AutoModelForCausalLM.from_pretrained(base)
    )
    return PeftModel.from_pretrained(model, adapter) if adapter else model


def plain_logits(base: Path | torch.nn.Module, adapter: Path | None, ids: torch.Tensor) -> torch.Tensor:
    """(T, V) of a `plain_model`."""
    return module_logits(plain_model(base, adapter), ids)


def merged_logits(base: Path, adapters: Sequence[Path], ids: torch.Tensor) -> torch.Tensor:
    """(T, V) of adapters over each other, each merged by PEFT before the next one is loaded."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return module_logits(model, ids)


def module_logits(module: Any, ids: torch.Tensor) -> torch.Tensor:
    """(T, V) of a module, for one text."""
    mask = torch.ones_like(ids)[None]
    with torch.inference_mode():
        logits: torch.Tensor = module.eval()(input_ids=ids[None], attention_mask=mask, use_cache=False).logits[0]
    return logits


def our_logits(model: Model, texts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What mitigate computes for texts of several lengths in one padded batch: all positions but each text's last."""
    longest = max(map(len, texts))
    ids = torch.stack([torch.nn.functional.pad(text, (0, longest - len(text)), value=1) for text in texts])
    mask = torch.stack([torch.arange(longest) < len(text) for text in texts]).long()
    keep = torch.stack([torch.arange(longest) < len(text) - 1 for text in texts])
    with model.active() as module, torch.inference_mode():
        return list(kept_logits(module, ids, mask, keep).split([len(text) - 1 for text in texts]))


@dataclass(frozen=True)
class Row:
    """What mitigate does with one kind.

    Attributes:
        name: of the kind.
        verdict: `works`, `refused` or `WRONG`.
        words: the message of a refusal, or how far the logits are off.
        over: whether a new LoRA adapter can be trained over it: `works` or `merge first`.
        base: `shared` or `own`, of an adapter that works.
        directory: where it lies.
        logits: of an adapter that works, computed plainly: (T, V).
    """

    name: str
    verdict: str
    words: str = ""
    over: str = ""
    base: str = ""
    directory: Path | None = None
    logits: torch.Tensor | None = None


def judged(
    name: str, directory: Path, store: ModelStore, plain: Callable[[], Any], *, base: Model | None = None
) -> Row:
    """What a store makes of a directory, against a plain computation of texts' logits.

    Args:
        plain: loads the model with transformers and PEFT alone.
        base (*optional*): of an adapter, from the same store.
    """
    try:
        model = store.load(directory)
        longest = min(model.context, CONTEXT)
        texts = [text_of(longest), text_of(longest // 2)]
        given = our_logits(model, texts)
    except MitigateError as error:
        words = str(error).replace(str(directory), "DIR").replace(str(directory.parent), "...").replace("\n", " ")
        return Row(name, "refused", words, directory=directory)
    module = plain()
    expected = [module_logits(module, text)[:-1] for text in texts]
    off = max(float((one - two).abs().max()) for one, two in zip(given, expected, strict=True))
    if CONTEXT < model.context < 2048 or not off <= TOLERANCE:
        return Row(name, "WRONG", f"logits off by {off:.2g}, context {model.context}", directory=directory)
    shared = "" if base is None else "shared" if model.base is base.base else "own"
    return Row(name, "works", base=shared, directory=directory, logits=expected[0])


def judge_models(root: Path, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Every architecture, untrained."""
    rows = []
    tokenizer.save_pretrained(root / "tokenizer")
    for name in ARCHITECTURES:
        model = tiny_architecture(name)
        model.save_pretrained(root / name)
        shutil.copytree(root / "tokenizer", root / name, dirs_exist_ok=True)
        rows.append(judged(name, root / name, ModelStore(device="cpu"), lambda model=model: model))  # type: ignore[misc]
    return rows


def judge_adapters(root: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Row], ModelStore]:
    """Every kind of adapter over one base, all of them in one store.

    Raises:
        AssertionError: an adapter says what the base says, so that nothing would show.
    """
    base = tiny_architecture("llama", attention_bias=True, mlp_bias=True)
    base.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    store, rows = ModelStore(device="cpu"), []
    loaded = store.load(root / "base")
    alone = module_logits(base, text_of(CONTEXT))[:-1]
    for number, (name, make) in enumerate(adapter_configs().items()):
        directory = root / f"{number}"
        save_adapter(base, make, directory, source=root / "base")
        plain = partial(plain_model, base, directory)
        row = judged(name, directory, store, plain, base=loaded)
        if row.logits is not None:
            assert float((row.logits - alone).abs().max()) > 1e-2, f"{name} does nothing"
            row = replace(row, over=_over(directory))
        rows.append(row)
    return rows, store


def _over(directory: Path) -> str:
    try:
        check_layering(str(directory))
    except MitigateError:
        return "merge first"
    return "works"


def table(models: Sequence[Row], adapters: Sequence[Row]) -> str:
    """The rows as Markdown."""
    works = [f"`{row.name}`" for row in models if row.verdict == "works"]
    lines = [
        "# Models and adapters that can be audited",
        "",
        "Written by `python -m tests.kinds`, checked by tests/models/test_kinds.py: each kind is made tiny, loaded by "
        "mitigate, and",
        "compared with what plain transformers and PEFT compute, up to the longest text that it takes. Nothing here is",
        "wrong; what cannot be right is refused, in the words given.",
        "",
        "## Models",
        "",
        f"{len(works)} of {len(models)} architectures work:",
        *(f"{line}" for line in textwrap.wrap(", ".join(works) + ".", width=120, break_on_hyphens=False)),
        "",
        "| refused | words |",
        "|---|---|",
        *(f"| `{row.name}` | {row.words} |" for row in models if row.verdict != "works"),
        "",
        "## Adapters",
        "",
        "*Base*: `shared` adapters lie over one copy of the base in memory; an `own` copy is loaded for those that "
        "change the",
        "base when they attach, or that cannot be switched beside others. *Over it*: whether a new LoRA adapter "
        "(unlearning,",
        "references, retraining) can be trained over it as it is, or only when it is merged.",
        "",
        "| kind | audit | base | over it | words |",
        "|---|---|---|---|---|",
        *(f"| {row.name} | {row.verdict} | {row.base} | {row.over} | {row.words} |" for row in adapters),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        words = train_tokenizer(sentences(300), vocabulary=400)
        found = judge_models(Path(folder) / "models", words), judge_adapters(Path(folder) / "adapters", words)[0]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(*found))
    sys.exit(any(row.verdict == "WRONG" for rows in found for row in rows))
