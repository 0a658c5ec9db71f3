"""Where norms stand and what layers read, against equations in float64, and under the law of the whole model."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.blocks.norms import OffsetRMSNorm, make_norm
from zoo.errors import ConfigError
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig

TINY: dict[str, Any] = {"vocab_size": 37, "width": 32, "layers": 2, "heads": 4, "key_value_heads": 2}
STYLES: dict[str, dict[str, Any]] = {
    "neox": {"feed_forward": "erf-gelu", "parallel": True, "rotary_share": 0.25},
    "phi": {"parallel": True, "tie_embeddings": False, "head_bias": True},
    "olmo2": {"norm": "rmsnorm", "norm_placement": "after", "bias": False, "feed_forward": "swiglu"},
    "gemma3": {"norm": "offset-rmsnorm", "norm_placement": "both", "bias": False, "feed_forward": "geglu"},
    "gemma2": {"norm": "offset-rmsnorm", "feed_forward": "geglu", "logits_cap": 2.0, "tie_embeddings": False},
    "mamba2": {"norm": "rmsnorm", "norm_placement": "after", "feed_forward": "none"},
}
every_style = pytest.mark.parametrize("style", STYLES)


def build(style: str, *names: str, **options: Any) -> Decoder:
    """Return a decoder in float64 whose norms, biases and weights all matter."""
    torch.manual_seed(0)
    config = DecoderConfig(**TINY | {"initializer_range": 0.2, "positions": "rotary"} | STYLES[style])
    model = Decoder(config, [mixers[name].config(**options) for name in names or ("softmax", "softmax")]).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) / 4)
    return model


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Return a norm's output by its definition; what is none leaves its input as it is."""
    if isinstance(norm, nn.Identity):
        return x
    centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    divided = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    scaled = divided * (norm.weight + isinstance(norm, OffsetRMSNorm))
    return scaled + norm.bias if isinstance(norm, nn.LayerNorm) else scaled


@every_style
@torch.no_grad()
def test_blocks_follow_their_equation(style: str) -> None:
    model, tokens = build(style, query_key_norm=True), torch.randint(37, (2, 9))
    x = model.token_embedding.weight[tokens]
    for block in model.blocks:
        entered = x
        x = x + normed(block.mixer_after_norm, block.mixer(normed(block.mixer_norm, x)).y)
        if block.feed_forward is not None:
            read = normed(block.feed_forward_norm, entered if model.config.parallel else x)
            y, _ = block.feed_forward(read, (), window=None)
            x = x + normed(block.feed_forward_after_norm, y)
    weight = model.token_embedding.weight if model.head is None else model.head.weight
    logits = normed(model.norm, x) @ weight.T
    if model.config.head_bias:
        logits = logits + model.head.bias
    cap = model.config.logits_cap
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    torch.testing.assert_close(model(tokens).logits, logits)


@every_style
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=5)
@torch.no_grad()
def test_splitting_changes_nothing(style: str, pieces: list[int], seed: int) -> None:
    model = build(style, "sliding-window", "gated-power", query_key_norm="whole", rotary_base=100.0)
    tokens = torch.randint(37, (2, sum(pieces) + 2), generator=torch.Generator().manual_seed(seed))
    whole = model(tokens).logits
    state, start = model.init_state(2, max_len=tokens.shape[1]), 0
    for piece in pieces:
        logits, state = model(tokens[:, start : start + piece], state, True)
        torch.testing.assert_close(logits, whole[:, start : start + piece], rtol=1e-6, atol=1e-9)
        start += piece
    for t in (start, start + 1):
        torch.testing.assert_close(model.step(tokens[:, t], state), whole[:, t], rtol=1e-6, atol=1e-9)


@every_style
def test_losses_and_gradients_are_those_of_the_logits(style: str) -> None:
    model = build(style)
    tokens, targets = torch.randint(37, (2, 2, 9))
    expected = nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(tokens, targets).double(), expected, rtol=1e-5, atol=1e-5)
    model.loss(tokens, targets).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@every_style
def test_models_start_with_factors_of_one(style: str) -> None:
    model = Decoder(DecoderConfig(**TINY | STYLES[style]), [mixers["softmax"].config(query_key_norm=True)] * 2)
    x = torch.randn(2, 4, 32)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            torch.testing.assert_close(module(x).square().mean(-1), torch.ones(2, 4), rtol=1e-3, atol=1e-3)
    fresh = make_norm("offset-rmsnorm", 32, 1e-5, False)
    fresh.reset_parameters()
    torch.testing.assert_close(fresh(x), make_norm("rmsnorm", 32, 1e-5, False)(x))


@pytest.mark.parametrize("names", [("softmax", "sliding-window"), ("sliding-window", "softmax")])
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=5)
@torch.no_grad()
def test_caps_are_kept_in_pieces_documents_and_steps(names: tuple[str, str], pieces: list[int], seed: int) -> None:
    torch.manual_seed(0)
    options: dict[str, dict[str, Any]] = {"softmax": {}, "sliding-window": {"window": 4}}
    config = DecoderConfig(**TINY, positions="rotary", initializer_range=0.5, logits_cap=3.0)
    model = Decoder(config, [mixers[name].config(score_cap=0.5, **options[name]) for name in names]).double()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(37, (2, sum(pieces) + 1), generator=generator)
    resets = torch.rand(2, sum(pieces) + 1, generator=generator) < 0.2
    whole = model(tokens, resets=resets).logits
    state, start = model.init_state(2, max_len=tokens.shape[1]), 0
    for piece in pieces:
        part = slice(start, start + piece)
        logits, state = model(tokens[:, part], state, True, resets=resets[:, part])
        torch.testing.assert_close(logits, whole[:, part], rtol=1e-6, atol=1e-9)
        start += piece
    alone = model(tokens).logits
    state = model.init_state(2, max_len=tokens.shape[1])
    for t in range(tokens.shape[1]):
        torch.testing.assert_close(model.step(tokens[:, t], state), alone[:, t], rtol=1e-6, atol=1e-9)
    model.config = config.replace(logits_cap=None)
    assert not torch.allclose(model(tokens).logits, alone)


def test_caps_and_sinks_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"score_cap: must be null beside sinks, got 2\.0"):
        mixers["sliding-window"].config(sinks=True, score_cap=2.0)


def test_whole_norms_are_over_all_heads_together() -> None:
    model = build("olmo2", query_key_norm="whole")
    norm, x = model.blocks[0].mixer.input.key_norm, torch.randn(2, 5, 2, 8, dtype=torch.float64)
    joined = x.flatten(-2)
    expected = joined / (joined.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.flatten()
    torch.testing.assert_close(norm(x), expected.unflatten(-1, (2, 8)))


@torch.no_grad()
def test_a_base_of_a_layer_is_not_scaled() -> None:
    scaling = {"kind": "linear", "factor": 8.0}
    config = DecoderConfig.from_mapping(TINY | {"positions": "rotary", "rotary_scaling": scaling}, "config")
    model = Decoder(config, [mixers["softmax"].config(rotary_base=100.0), mixers["softmax"].config()])
    first, second = (block.mixer.input.rotation for block in model.blocks)
    assert (first.base, first.scaling) == (100.0, None)
    assert (second.base, second.scaling) == (10_000.0, config.rotary_scaling)


def test_a_tied_head_has_no_bias() -> None:
    with pytest.raises(ConfigError, match="head_bias: must be false where tie_embeddings is true"):
        DecoderConfig(**TINY, head_bias=True)
