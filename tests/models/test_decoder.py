"""The decoder: sizes, styles, initialisation, documents, and the split law of the whole model."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree

from zoo.errors import ConfigError, InputError
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig, DecoderState

GPT2 = {"vocab_size": 50257, "width": 768, "layers": 12, "heads": 12}
LLAMA: dict[str, Any] = {"feed_forward": "swiglu", "norm": "rmsnorm", "bias": False, "positions": "rotary"}
TINY = {"vocab_size": 37, "width": 32, "layers": 2, "heads": 4, "key_value_heads": 2, "max_positions": 64}
HYBRID = ("gated-power", "softmax")

every_mixer = pytest.mark.parametrize("names", [*((name, name) for name in mixers), HYBRID], ids="-".join)
every_position = pytest.mark.parametrize("positions", ["learned", "rotary", "none"])
law = settings(deadline=None, max_examples=8)


def build(names: Sequence[str], dtype: torch.dtype = torch.float64, **options: Any) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(**TINY | {"initializer_range": 0.2} | options)
    return Decoder(config, [mixers[name].config() for name in names]).to(dtype)


def on_meta(config: DecoderConfig, name: str = "softmax") -> Decoder:
    with torch.device("meta"):
        return Decoder(config, [mixers[name].config()] * config.layers)


def test_gpt2_has_exactly_its_parameters() -> None:
    assert on_meta(DecoderConfig(**GPT2)).num_parameters() == 124_439_808
    longer = on_meta(DecoderConfig(**GPT2, positions="rotary"))
    assert longer.num_parameters() == 124_439_808 - 1024 * 768
    untied = on_meta(DecoderConfig(**GPT2, tie_embeddings=False))
    assert untied.num_parameters() == 124_439_808 + 50257 * 768


def test_llama_style_has_the_parameters_of_its_formula() -> None:
    config = DecoderConfig(vocab_size=1000, width=64, layers=3, heads=8, key_value_heads=2, **LLAMA)
    hidden = 192  # 8/3 * 64 = 170.7, up to a multiple of 64
    block = 64 * (64 + 2 * 16) + 64 * 64 + 3 * 64 * hidden + 2 * 64
    model = on_meta(config)
    assert model.num_parameters() == 1000 * 64 + 3 * block + 64
    assert not any("bias" in name for name, _ in model.named_parameters())


def test_head_width_is_free_of_the_width() -> None:
    model = build(("softmax", "softmax"), head_width=12)
    assert model(torch.zeros(1, 3, dtype=torch.int64)).logits.shape == (1, 3, 37)


def test_initialisation() -> None:
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=500, width=128, layers=8, heads=4)
    model = Decoder(config, [mixers["gated-power"].config()] * 8)
    for name, parameter in model.named_parameters():
        std = float(parameter.detach().std())
        if name.endswith("norm.weight") or "_norm.weight" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith("gate.bias"):
            assert parameter.min() > 2, name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif "output.projection" in name or "contract" in name:
            assert std == pytest.approx(0.02 / 4, rel=0.05), name
        else:
            assert std == pytest.approx(0.02, rel=0.1), name


def test_a_model_built_on_meta_starts_like_any_other() -> None:
    config = DecoderConfig(**TINY)
    torch.manual_seed(7)
    model = on_meta(config, "gated-linear").to_empty(device="cpu")
    torch.manual_seed(7)
    model.reset_parameters()
    torch.manual_seed(7)
    direct = Decoder(config, model.mixer_configs)
    torch.manual_seed(7)
    direct.reset_parameters()
    for (name, a), (_, b) in zip(model.named_parameters(), direct.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_no_buffers_and_no_shared_tensors_in_the_state_dict() -> None:
    for tied in (True, False):
        model = build(HYBRID, tie_embeddings=tied)
        names = [name for name, _ in model.named_parameters()]
        assert list(model.state_dict()) == names


@every_mixer
@every_position
@law
@given(pieces=st.lists(st.sampled_from([1, 1, 2, 5, 9]), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_splitting_changes_nothing(names: Sequence[str], positions: str, pieces: list[int], seed: int) -> None:
    model, T = build(names, positions=positions), sum(pieces)
    torch.manual_seed(seed)
    tokens, resets = torch.randint(0, 37, (2, T)), torch.rand(2, T) < 0.2
    whole = model(tokens, resets=resets).logits

    state, outputs, start = model.init_state(2, max_len=T), [], 0
    for length in pieces:
        at = slice(start, start + length)
        if length == 1 and not resets[:, at].any():
            with torch.no_grad():
                outputs.append(model.step(tokens[:, start], state)[:, None])
        else:
            logits, state = model(tokens[:, at], state, True, resets=resets[:, at])
            outputs.append(logits)
        start += length
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole)


@every_mixer
@every_position
def test_documents_packed_together_are_documents_apart(names: Sequence[str], positions: str) -> None:
    model = build(names, positions=positions)
    documents = [torch.randint(0, 37, (1, length)) for length in (5, 1, 9)]
    tokens = torch.cat(documents, dim=1)
    resets = torch.zeros_like(tokens, dtype=torch.bool)
    resets[:, [0, 5, 6]] = True
    logits, state = model(tokens, model.init_state(1, max_len=20), True, resets=resets)

    apart = [model(document).logits for document in documents]
    torch.testing.assert_close(logits, torch.cat(apart, dim=1))
    assert (state.position - state.start).tolist() == [9]
    assert state.position.tolist() == [15]
    more = torch.randint(0, 37, (1, 3))
    last = model(torch.cat((documents[-1], more), dim=1)).logits[:, -3:]
    torch.testing.assert_close(model(more, state).logits, last)


@every_mixer
@every_position
def test_prompts_of_different_lengths_share_a_batch(names: Sequence[str], positions: str) -> None:
    model = build(names, positions=positions)
    tokens, lengths = torch.randint(0, 37, (3, 9)), torch.tensor([9, 1, 4])
    last, state = model.prefill(tokens, model.init_state(3, max_len=10), lengths)
    full, _ = model(tokens, model.init_state(3, max_len=10), True, lengths=lengths)
    with torch.no_grad():
        stepped = model.step(tokens[:, 0], state)

    for b, length in enumerate(lengths.tolist()):
        row = torch.cat((tokens[b : b + 1, :length], tokens[b : b + 1, :1]), dim=1)
        alone = model(row).logits[0]
        torch.testing.assert_close(last[b], alone[-2])
        torch.testing.assert_close(full[b, :length], alone[:-1])
        torch.testing.assert_close(stepped[b], alone[-1])
    assert state.position.tolist() == [10, 2, 5]


@every_mixer
def test_gradients_reach_every_parameter(names: Sequence[str]) -> None:
    model = build(names)
    for parameter in model.parameters():  # some start at zero, and nothing passes them
        parameter.data += 0.1 * torch.randn_like(parameter)
    model(torch.randint(0, 37, (2, 12))).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("name", mixers)
def test_only_the_state_of_softmax_grows(name: str) -> None:
    model = build((name, name), positions="rotary")
    shapes = [[part.shape for part in model.init_state(1, max_len=n).layers[0][0]] for n in (16, 100_000)]
    assert (shapes[0] == shapes[1]) == (name != "softmax")


def test_default_state_holds_all_learned_positions() -> None:
    assert build(HYBRID).init_state(2).layers[1][0].keys.shape[1] == 64
    with pytest.raises(InputError, match="max_len: softmax attention needs"):
        build(HYBRID, positions="rotary").init_state(2)


def test_flops_count_what_torch_counts_in_the_linear_layers() -> None:
    model = build(("linear", "softmax"), positions="learned")
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "norm" not in name]
    weights = sum(p.numel() for p in matrices) - 64 * 32  # looking up a position costs nothing
    cores = sum(block.mixer.flops(48) for block in model.blocks)
    assert model.flops(48) == 2 * 48 * weights + cores
    untied = build(("linear", "softmax"), tie_embeddings=False)
    assert untied.flops(48) == model.flops(48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "heads must divide width 32"),
        ({"key_value_heads": 3}, "key_value_heads must divide the 4 heads, got 3"),
        ({"layers": 0}, "layers: must be greater than or equal to 1, got 0"),
        ({"norm": "layer_norm"}, "norm: must be .*did you mean 'layernorm'"),
        ({"widht": 3}, "widht: unknown key .did you mean 'width'"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecoderConfig(**TINY | changes)


def test_there_is_one_mixer_a_layer() -> None:
    with pytest.raises(ConfigError, match="mixers: expected one for each of 2 layers, got 1"):
        build(("softmax",))


def test_bad_input_is_named() -> None:
    model = build(HYBRID)
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    rotary = build(HYBRID, positions="rotary")
    _, late = model(torch.zeros(1, 60, dtype=torch.int64), None, True)
    calls: list[tuple[str, Any]] = [
        (r"tokens: expected int64 \[B, T\], was float32 \[2, 5\]", lambda: model(tokens.float())),
        (r"tokens: expected int64 \[B, T\], was int64 \[2\]", lambda: model(tokens[:, 0])),
        (r"tokens: expected int64 \[B\], was int64 \[2, 5\]", lambda: model.step(tokens, model.init_state(2))),
        (r"tokens: expected 0 to 36, was 0 to 37", lambda: model(tokens.index_fill(1, torch.tensor(1), 37))),
        (r"tokens: expected 0 to 36, was -1 to -1", lambda: model(tokens - 1)),
        (r"tokens: expected at most 64 at a time \(max_positions\), was 65", lambda: model(tokens.new_zeros(1, 65))),
        (r"tokens: expected documents of at most 64 .*, was 65", lambda: model(tokens[:1], late)),
        (r"lengths: expected integers \[2\]", lambda: model(tokens, lengths=torch.zeros(3).long())),
        (r"resets: expected bool \[2, 5\]", lambda: model(tokens, resets=tokens)),
        (r"state: expected a batch of 2 as in the input, was 3", lambda: model(tokens, model.init_state(3))),
        (r"state: expected DecoderState .*, was tuple", lambda: model(tokens, (1, 2))),
        (
            r"state: expected 2 layers as in this model, was 1",
            lambda: model(tokens, DecoderState(model.init_state(2).layers[:1], tokens[:, 0], tokens[:, 0])),
        ),
        (
            r"state: expected \w+State as init_state returns it, was \w+State",
            lambda: model(tokens, build(HYBRID[::-1]).init_state(2)),
        ),
        (r"state: holds 3 tokens, 5 needed", lambda: rotary(tokens, rotary.init_state(2, max_len=3))),
    ]
    for message, call in calls:
        with pytest.raises(InputError, match=message):
            call()


def test_a_step_beyond_learned_positions_is_refused() -> None:
    model = build(("power", "power"))
    _, state = model(torch.zeros(1, 64, dtype=torch.int64), None, True)
    with pytest.raises(InputError, match=r"tokens: expected documents of at most 64 \(max_positions\), was 65"):
        model.step(torch.zeros(1, dtype=torch.int64), state)


def test_padding_may_reach_beyond_learned_positions() -> None:
    model = build(("power", "power"))
    _, state = model(torch.zeros(1, 60, dtype=torch.int64), None, True)
    _, state = model(torch.zeros(1, 30, dtype=torch.int64), state, True, lengths=torch.tensor([4]))
    assert state.position.tolist() == [64]


@every_mixer
def test_every_tensor_is_made_on_the_device_of_the_tokens(names: Sequence[str]) -> None:
    model = build(names).to("meta")
    tokens = torch.zeros(2, 7, dtype=torch.int64, device="meta")
    lengths, resets = tokens[:, 0], tokens > 0
    model(tokens, None, True, lengths=lengths, resets=resets).logits.sum().backward()
    _, state = model(tokens, model.init_state(2, max_len=9), True, lengths=lengths, resets=resets)
    logits, state = model.prefill(tokens, state, lengths)
    assert model.step(tokens[:, 0], state).shape == logits.shape == (2, 37)
    assert {part.device.type for part in _pytree.tree_leaves(state)} == {"meta"}
