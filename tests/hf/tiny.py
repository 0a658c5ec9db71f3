"""Tiny models of many architectures, with random weights, converted in the ways that the tests go through."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import zoo.hf

VOCABULARY = 48
PAD = 0
_SHARED = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None}
LLAMA = _SHARED | {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Qwen3": LLAMA | {"head_dim": 8},
    "Mistral": LLAMA | {"sliding_window": 6},
    "GPT2": _SHARED | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "Gemma2": LLAMA | {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "layer_types": _KINDS},
    "Gemma3": LLAMA | {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "layer_types": _KINDS},
    "GPTNeoX": LLAMA | {"num_key_value_heads": None},
    "Phi": LLAMA | {"num_key_value_heads": None},
    "SmolLM3": LLAMA,
}
for _name in ("GPTNeoX", "Phi"):
    ARCHITECTURES[_name] = {k: v for k, v in ARCHITECTURES[_name].items() if v is not None or k == "eos_token_id"}

OTHERS: dict[str, dict[str, Any]] = dict.fromkeys(("Phi3", "Olmo", "Starcoder2", "Granite"), LLAMA)
OTHERS |= dict.fromkeys(("Olmo2", "Arcee", "StableLm"), LLAMA) | {"Gemma": LLAMA | {"head_dim": 8}}
OTHERS["Mamba2"] = _SHARED | {
    "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 2
}  # fmt: skip
"""Of which weights are read and written; nothing of converting them is their own."""

_CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3": "Gemma3ForCausalLM"}
_CONFIGS = {"Gemma3": "Gemma3TextConfig"}

KINDS: dict[str, dict[str, Any]] = {
    "power": {"mixer": "power", "offset": 0},
    "gated": {"mixer": "gated-power"},
    "linear": {"mixer": "gated-power", "p": 1},
    "first": {"mixer": "gated-power", "layers": [0]},
    "middle": {"mixer": "gated-power", "layers": [1]},
}
"""Options of `convert`: p = 2 without gates and offset, and with both; p = 1; hybrids with one converted layer."""


def tiny(architecture: str, **changes: Any) -> PreTrainedModel:
    """Return a fresh model whose weights are large enough that its attention matters."""
    torch.manual_seed(0)
    config = getattr(transformers, _CONFIGS.get(architecture, f"{architecture}Config"))
    model = getattr(transformers, _CLASSES.get(architecture, f"{architecture}ForCausalLM"))
    made: PreTrainedModel = model(config(**(ARCHITECTURES | OTHERS)[architecture] | changes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return made


@functools.cache
def converted(architecture: str, kind: str) -> PreTrainedModel:
    """Return a converted model, which tests share: whoever changes it makes their own."""
    return fresh(architecture, **KINDS[kind])


def fresh(architecture: str = "Llama", **options: Any) -> PreTrainedModel:
    """Return a converted model of one's own."""
    model = tiny(architecture)
    zoo.hf.convert(model, **options)
    return model


def tokens(rows: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    """Return token ids without padding or special ones."""
    return torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(ids: Tensor, amounts: list[int]) -> tuple[Tensor, Tensor]:
    """Return rows with so much padding on the left, cut on the right to the same length, and their mask."""
    length = ids.shape[1] + max(amounts)
    rows, mask = torch.full((len(ids), length), PAD), torch.zeros(len(ids), length, dtype=torch.long)
    for row, amount in enumerate(amounts):
        rows[row, amount : amount + ids.shape[1]] = ids[row]
        mask[row, amount : amount + ids.shape[1]] = 1
    return rows, mask


def greedy(model: PreTrainedModel, ids: Tensor, count: int = 6, **options: Any) -> Tensor:
    return model.generate(ids, max_new_tokens=count, do_sample=False, **options)[:, ids.shape[1] :]


def greedy_by_forward(forward: Callable[[Tensor], Tensor], ids: Tensor, count: int = 6) -> Tensor:
    """Return what greedy decoding gives where every token's logits are computed from the whole sequence."""
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat((ids, forward(ids)[:, -1:].argmax(-1)), 1)
    return ids[:, -count:]
