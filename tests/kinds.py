"""Every kind of model and adapter that mitigate may be given, tiny, and what it does with each.

    python -m tests.kinds        # writes docs/kinds.md anew

"works" means that the logits are those of plain transformers and PEFT at every position of a text as long as the model
takes; "refused" comes with the words that the user reads; anything else is "WRONG".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

TABLE = Path(__file__).parents[1] / "docs" / "kinds.md"
CONTEXT = 32
VOCABULARY = 416  # more than the tokenizer's 400, as in many checkpoints
_TOLERANCE = 1e-4  # nats, of logits of about 10

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
    "bamba": {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 8, "attn_layer_indices": [1]},
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


def tiny_architecture(name: str) -> torch.nn.Module:
    """An untrained model of an architecture."""
    kind = CONFIG_MAPPING[name]
    config = kind(**{**_SIZES, **ARCHITECTURES[name]})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def save_adapter(base: Path, make: Callable[[], peft.PeftConfig], out: Path, *, seed: int = 0) -> None:
    """An adapter as if trained: every weight that training would change is moved by noise."""
    torch.manual_seed(seed)
    config = make()
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(out)


def plain_logits(base: Path, adapter: Path | None, ids: torch.Tensor) -> torch.Tensor:
    """(T, V) of what transformers and PEFT load, one text at a time."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    with torch.no_grad():
        return model.eval()(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]
