"""Architectures beyond the matrix: found by what their attention calls, and not by their names."""

from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import zoo.hf
from zoo.errors import InputError

from .tiny import LLAMA, greedy, greedy_by_forward, padded, tokens

_EXPERTS = {"num_experts_per_tok": 1, "moe_intermediate_size": 16}
_LATENT = {
    **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    **{"n_group": 1, "topk_group": 1, "n_routed_experts": 2, "first_k_dense_replace": 1},
}
CONVERTED: dict[str, dict[str, Any]] = {
    "Arcee": {},
    "Cohere": {},
    "Cohere2": {},
    "DeepseekV3": _EXPERTS | _LATENT,
    "Exaone4": {"sliding_window": 6},
    "GPTJ": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
    "Glm4": {"head_dim": 8},
    "GptOss": {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "sliding_window": 6},
    "Granite": {},
    "Helium": {"head_dim": 8},
    "Mixtral": {"num_local_experts": 2},
    "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 32},
    "Olmo2": {},
    "Phi3": {},
    "Qwen2Moe": _EXPERTS | {"num_experts": 2, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": _EXPERTS | {"num_experts": 2, "head_dim": 8},
    "SeedOss": {"head_dim": 8},
    "Starcoder2": {},
}
REFUSED = {
    "Bloom": "has no attention that calls transformers' attention interface",
    "Falcon": "has no attention that calls transformers' attention interface",
    "Nemotron": "does not pass keyword arguments on",
    "StableLm": "does not pass keyword arguments on",
}


def build(name: str, changes: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**LLAMA | changes)
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config)
    return model.eval()


@pytest.mark.parametrize("name", CONVERTED)
def test_decodes_what_the_full_forward_says_padded_or_not(name: str) -> None:
    model, ids = build(name, CONVERTED[name]), tokens()
    report = zoo.hf.convert(model)
    expected = greedy_by_forward(lambda x: model(x, use_cache=False).logits, ids, 4)
    rows, mask = padded(ids, [3, 3])
    assert torch.equal(greedy(model, ids, 4), expected)
    assert torch.equal(greedy(model, rows, 4, attention_mask=mask), expected)
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(greedy(model, rows, 4, attention_mask=mask, **static), expected)
    assert ("sinks" in report.dropped) == (name == "GptOss")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_reached_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"model: {name}ForCausalLM {REFUSED[name]}"):
        zoo.hf.convert(build(name, {}))
