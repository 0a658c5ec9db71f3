"""A tiny model of every kind whose weights are read and written."""

from pathlib import Path
from typing import Any

import torch

from .tiny import tiny

__all__ = ["KINDS", "ORIGINAL", "ROPE", "saved"]

ROPE: dict[str, Any] = {"rope_theta": 100.0}
ORIGINAL: dict[str, Any] = {"original_max_position_embeddings": 16}
FREQUENCIES = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 2.0], "long_factor": [2.0, 4.0, 8.0, 16.0]}
SHARED_FACTORS = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 4.0, 8.0]}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, with biases, wide heads": (
        "Llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ),
    "mistral": ("Mistral", {}),
    "mistral, without a window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "llama, linear": ("Llama", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}}),
    "llama, llama3": ("Llama", {"rope_parameters": ROPE | {"rope_type": "llama3"} | FREQUENCIES | ORIGINAL}),
    "qwen2, yarn": ("Qwen2", {"rope_parameters": ROPE | {"rope_type": "yarn", "factor": 4.0} | ORIGINAL}),
    "qwen3, longrope": ("Qwen3", {"rope_parameters": ROPE | {"rope_type": "longrope"} | FACTORS | ORIGINAL}),
    "mistral, dynamic": ("Mistral", {"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 4.0}}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": True, "attention_bias": True}),
    "phi3": ("Phi3", {"sliding_window": 6}),
    "phi3, longrope of a part": (
        "Phi3",
        {"rope_parameters": ROPE | {"rope_type": "longrope", "partial_rotary_factor": 0.75} | SHARED_FACTORS}
        | {"original_max_position_embeddings": 16},
    ),
    "olmo": ("Olmo", {}),
    "olmo, with biases": ("Olmo", {"attention_bias": True}),
    "starcoder2": ("Starcoder2", {"tie_word_embeddings": True}),
    "starcoder2, without biases, with a window": ("Starcoder2", {"use_bias": False, "sliding_window": 6}),
    "granite": (
        "Granite",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.22, "logits_scaling": 7.0},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2, with biases": ("Olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
    "arcee": ("Arcee", {}),
    "arcee, with biases": ("Arcee", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.5}),
    "gemma2, without caps": ("Gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3_text": ("Gemma3", {}),
    "gemma3_text, scaled, all full": (
        "Gemma3",
        {
            "layer_types": ["full_attention"] * 3,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": ROPE | {"rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
    "gemma3_text, scaled, untied": (
        "Gemma3",
        {
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": ROPE | {"rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "stablelm": ("StableLm", {}),
    "stablelm, with biases": ("StableLm", {"use_qkv_bias": True}),
    "gpt_neox": ("GPTNeoX", {}),
    "gpt_neox, one after the other, without biases": (
        "GPTNeoX",
        {"use_parallel_residual": False, "attention_bias": False},
    ),
    "phi": ("Phi", {}),
    "phi, grouped": ("Phi", {"num_key_value_heads": 2}),
    "mamba2": ("Mamba2", {}),
    "mamba2, tied, with biases and limits": (
        "Mamba2",
        {"tie_word_embeddings": True, "use_bias": True, "use_conv_bias": False, "time_step_limit": (0.01, 0.5)},
    ),
    "gpt2": ("GPT2", {}),
    "gpt2, untied": ("GPT2", {"tie_word_embeddings": False, "n_inner": 48}),
}


def saved(kind: str, folder: Path) -> Any:
    architecture, changes = KINDS[kind]
    model = tiny(architecture, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) / 4)
    model.save_pretrained(folder)
    return model
