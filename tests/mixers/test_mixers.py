"""Each mixer against its definition; its options, its cost and its errors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.blocks.gate import RetentionGate
from zoo.errors import ConfigError, InputError
from zoo.mixers import LayerContext, Mixer, mixers

CONTEXT = LayerContext(width=24, heads=4, key_value_heads=2, head_width=6, rotary=False)


def build(name: str, context: LayerContext = CONTEXT, **options: Any) -> Mixer:
    torch.manual_seed(0)
    spec = mixers[name]
    mixer = spec.build(spec.config(**options), context).double()
    for gate in (module for module in mixer.modules() if isinstance(module, RetentionGate)):
        gate.initialize(std=0.1)
    return mixer


def softmax_weights(scores: Tensor, log_decay: Tensor, window: int) -> Tensor:
    T = scores.shape[-1]
    inside = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)
    return scores.masked_fill(~inside, -math.inf).softmax(-1)


def power_weights(scores: Tensor, log_decay: Tensor, p: int, normalize: bool, offset: float = 0) -> Tensor:
    weights = ((offset + scores) ** p * log_decay.exp()).tril()
    return weights / weights.sum(-1, keepdim=True) if normalize else weights


@pytest.mark.parametrize(
    ("name", "options", "weights"),
    [
        ("softmax", {}, lambda s, g: softmax_weights(s, g, 10_000)),
        ("sliding-window", {"window": 7}, lambda s, g: softmax_weights(s, g, 7)),
        ("sliding-window", {"window": 64}, lambda s, g: softmax_weights(s, g, 64)),
        ("linear", {}, lambda s, g: power_weights(s, g, 1, False)),
        ("gated-linear", {}, lambda s, g: power_weights(s, g, 1, False)),
        ("power", {}, lambda s, g: power_weights(s, g, 2, True)),
        ("power", {"p": 3}, lambda s, g: power_weights(s, g, 3, False)),
        ("gated-power", {"p": 4}, lambda s, g: power_weights(s, g, 4, True)),
        ("power", {"offset": -0.5}, lambda s, g: power_weights(s, g, 2, True, -0.5)),
        ("gated-power", {"p": 3, "offset": "learned"}, lambda s, g: power_weights(s, g, 3, False, 1)),
    ],
)
def test_output_follows_the_definition(name: str, options: dict[str, Any], weights: Any) -> None:
    mixer = build(name, **options)
    x = torch.randn(2, 30, 24, dtype=torch.float64)
    q, k, v = mixer.input(x, torch.arange(30)[None])
    k, v = (heads.repeat_interleave(2, dim=2) for heads in (k, v))  # grouped heads, consecutive
    scores = torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(6)
    gates = torch.zeros(2, 30, 4) if getattr(mixer, "gate", None) is None else mixer.gate(x).repeat_interleave(2, -1)
    total = gates.cumsum(1).transpose(1, 2)
    o = torch.einsum("bhts,bshv->bthv", weights(scores, total[..., :, None] - total[..., None, :]), v)

    torch.testing.assert_close(mixer(x).y, mixer.output(o, x))


def test_rotary_scores_depend_on_distance_only() -> None:
    mixer = build("softmax", LayerContext(width=24, heads=4, key_value_heads=4, head_width=6, rotary=True))
    x = torch.randn(1, 1, 24, dtype=torch.float64).expand(1, 9, 24)
    q, k, _ = mixer.input(x, torch.arange(9)[None])
    scores = torch.einsum("bthk,bshk->bhts", q, k)
    for distance in range(1, 9):
        band = scores.diagonal(-distance, dim1=-2, dim2=-1)
        torch.testing.assert_close(band, band[..., :1].expand_as(band))
    assert not torch.allclose(scores[..., 0, 0], scores[..., 5, 0])


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (4, 2, 6)),
        ({"heads": 8}, (8, 4, 3)),
        ({"head_width": 12}, (2, 1, 12)),
        ({"heads": 2, "head_width": 5}, (2, 1, 5)),
        ({"key_value_heads": 4}, (4, 4, 6)),
        ({"heads": 1}, (1, 1, 24)),
    ],
)
def test_sizes_of_heads_that_are_not_set_follow_from_those_that_are(options: dict[str, int], shape: object) -> None:
    assert build("softmax", **options).heads == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads: must divide .* 24, got 5"),
        ({"head_width": 7}, "head_width: must divide .* 24, got 7"),
        ({"key_value_heads": 3}, "key_value_heads: must divide the 4 query heads, got 3"),
        ({"heads": 8, "rotary": True}, "head_width: rotary embedding needs an even width, got 3"),
    ],
)
def test_heads_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("softmax", **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("power", {"p": 3, "normalize": True}, "normalize must be false for odd p=3"),
        ("power", {"p": 5}, "p: must be less than or equal to 4"),
        ("power", {"offset": "learnt"}, "offset: must be a number or 'learned', got 'learnt'"),
        ("gated-power", {"offset": math.inf}, "offset: must be a number or 'learned', got inf"),
        ("linear", {"offset": 1.0}, "offset: unknown key"),
        ("gated-power", {"retention": [0.9, 0.8]}, "retention: must be two numbers in order"),
        ("gated-power", {"retention": [0.9, 1.0]}, "retention: must be two numbers in order"),
        ("sliding-window", {"window": 0}, "window: must be greater than or equal to 1"),
        ("softmax", {"windw": 3}, "windw: unknown key"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mixers[name].config.from_mapping({"name": name, **options})


def test_what_has_no_normaliser_ends_in_a_norm() -> None:
    def normed(name: str, **options: Any) -> bool:
        return any(key.startswith("output.norm") for key, _ in build(name, **options).named_parameters())

    assert normed("linear")
    assert normed("gated-linear")
    assert normed("power", p=3)
    assert normed("power", normalize=False)
    assert not normed("power")
    assert not normed("softmax")
    assert not normed("linear", output_norm=False)
    assert normed("sliding-window", output_norm=True)


def test_a_sink_takes_its_part_of_the_softmax() -> None:
    mixer, plain = build("sliding-window", window=7, sinks=True), build("sliding-window", window=7)
    state = mixer.state_dict()
    mixer.sink.data.normal_()
    del state["sink"]
    plain.load_state_dict(state)
    x = torch.randn(2, 20, 24, dtype=torch.float64)
    q, k, _ = mixer.input(x, torch.arange(20)[None])
    scores = torch.einsum("bthk,bshk->bhts", q, k.repeat_interleave(2, dim=2)) / math.sqrt(6)
    inside = torch.ones(20, 20, dtype=torch.bool).tril().triu(-6)
    total = scores.exp().masked_fill(~inside, 0).sum(-1)
    share = (total / (total + mixer.sink.exp()[:, None])).mT  # of a token's weights that keys have
    seen: list[Tensor] = []
    plain.output.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    plain(x)
    torch.testing.assert_close(mixer(x).y, mixer.output(seen[0] * share[..., None], x))


def test_learned_offsets_are_one_a_query_head_and_start_at_one() -> None:
    mixer, fixed = build("power", offset="learned"), build("power", offset=1.0)
    assert torch.equal(mixer.offset.value, torch.ones(4, dtype=torch.float64))
    assert not any("offset" in name for name, _ in fixed.named_parameters())
    fixed.load_state_dict({name: x for name, x in mixer.state_dict().items() if "offset" not in name})
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    y = mixer(x).y
    assert torch.equal(y, fixed(x).y)
    y.square().sum().backward()
    assert (mixer.offset.value.grad != 0).all()


def test_an_offset_adds_rows_to_the_state_and_flops() -> None:
    plain, offset = build("power"), build("power", offset="learned")
    assert plain.init_state(1).layer.S.shape[2] == 21
    assert offset.init_state(1).layer.S.shape[2] == 28
    assert build("power", offset=0).init_state(1).layer.S.shape[2] == 21
    # Each query head reads, and each key head updates, 7 rows of 6 values and the normaliser more.
    assert offset.flops(100_000) - plain.flops(100_000) == 100_000 * 2 * (4 + 2) * 7 * 7
    with pytest.raises(InputError, match="S"):
        offset(torch.randn(1, 2, 24, dtype=torch.float64), plain.init_state(1))


@pytest.mark.parametrize("name", ["softmax", "gated-power"])
def test_a_gate_multiplies_what_heads_give(name: str) -> None:
    mixer, plain = build(name, output_gate=True), build(name)
    assert plain.output.gate is None
    plain.load_state_dict({key: value for key, value in mixer.state_dict().items() if "output.gate" not in key})
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    ungated = torch.linalg.solve(plain.output.projection.weight, plain(x).y.mT).mT
    gated = torch.sigmoid(x @ mixer.output.gate.weight.mT) * ungated
    torch.testing.assert_close(mixer(x).y, gated @ mixer.output.projection.weight.mT)


def test_flops() -> None:
    softmax, window = build("softmax"), build("sliding-window", window=16)
    assert softmax.flops(1) == 4 * 4 * 6
    assert softmax.flops(10) == 55 * softmax.flops(1)
    assert window.flops(16) == softmax.flops(16)
    assert window.flops(26) - window.flops(16) == 10 * 16 * softmax.flops(1)
    for name in ("linear", "gated-linear", "power", "gated-power"):
        mixer = build(name)
        assert mixer.flops(200_000) == 2 * mixer.flops(100_000)
    assert build("power", p=3).flops(100_000) > build("power", p=2).flops(100_000) > build("linear").flops(100_000)


def test_a_softmax_cache_is_as_long_as_it_was_made() -> None:
    mixer = build("softmax")
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    with pytest.raises(InputError, match=r"max_len: softmax attention needs the number of tokens .*, was None"):
        mixer.init_state(2)
    _, full = mixer(x, None, True)
    for too_much in (lambda: mixer(x[:, :2], full, True), lambda: mixer.step(x[:, 0], full)):
        with pytest.raises(
            InputError, match=r"state: holds 5 tokens, \d needed; make it with init_state\(max_len=\d\)"
        ):
            too_much()
    mixer(x, mixer(x, mixer.init_state(2, max_len=7), True).state, True, lengths=torch.tensor([2, 0]))


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_where_nobody_looks_a_full_cache_gives_nan_and_never_a_shorter_past(
    backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer = build("softmax").float()
    step, forward = mixer.step, mixer.forward
    if backend is None:  # as on a GPU
        monkeypatch.setattr("zoo.blocks.cache.values_at_hand", lambda x: False)
    else:
        step, forward = (torch.compile(call, backend=backend, fullgraph=True) for call in (step, forward))
    x = torch.randn(2, 8, 24)
    whole = mixer(x).y
    _, state = mixer(x[:, :3], mixer.init_state(2, max_len=4), True, lengths=torch.tensor([3, 2]))
    y, _ = forward(x[:, 3:5], state, True, lengths=torch.tensor([2, 1]))  # rows have seen 5 and 3 tokens now
    assert y[0].isnan().all()
    assert y[1, :1].isfinite().all()
    for t in range(3, 8):
        y = step(x[:, t], state)
        assert y[0].isnan().all() == (t > 3)
        if t == 3:
            torch.testing.assert_close(y[0], whole[0, t])
        assert y[1].isnan().all() == (t > 4)


def test_a_cache_may_be_kept_in_another_dtype() -> None:
    for name in ("softmax", "sliding-window"):
        mixer = build(name)
        x = torch.randn(2, 6, 24, dtype=torch.float64)
        state = mixer.init_state(2, max_len=6, dtype=torch.float32)
        y, state = mixer(x[:, :5], state, True)
        assert state.layer.keys.dtype == torch.float32
        stepped = mixer.step(x[:, 5], state)
        torch.testing.assert_close(torch.cat([y, stepped[:, None]], 1), mixer(x).y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1, 7, 64])
def test_a_window_is_the_same_by_intervals_and_by_bands(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = build("sliding-window", window=width)
    x = torch.randn(2, 50, 24, dtype=torch.float64)
    resets = torch.rand(2, 50) < 0.1
    banded = mixer(x, None, True, resets=resets, lengths=torch.tensor([50, 31]))
    monkeypatch.setattr("zoo.mixers.sliding_window.supports_flex", lambda q: True)
    by_intervals = mixer(x, None, True, resets=resets, lengths=torch.tensor([50, 31]))
    torch.testing.assert_close(by_intervals.y[0], banded.y[0])
    torch.testing.assert_close(by_intervals.y[1, :31], banded.y[1, :31])
    torch.testing.assert_close(by_intervals.state, banded.state)


@pytest.mark.parametrize("name", mixers)
def test_bad_input_is_named(name: str) -> None:
    mixer = build(name)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    other = mixers["power" if name == "softmax" else "softmax"]
    foreign = other.build(other.config(), CONTEXT).init_state(2, max_len=9)
    state = mixer.init_state(3, max_len=9)
    calls: list[tuple[str, Any]] = [
        (r"state: expected \w+ as init_state returns it, was \w+State", lambda: mixer(x, foreign)),
        (r"state: expected a batch of 2 as in the input, was 3", lambda: mixer(x, state)),
        (r"state: expected a batch of 2 as in the input, was 3", lambda: mixer.step(x[:, 0], state)),
        (r"resets: expected bool \[2, 5\], was bool \[2, 4\]", lambda: mixer(x, resets=x[:, 1:, 0] > 0)),
        (r"resets: expected bool \[2, 5\], was float64 \[2, 5\]", lambda: mixer(x, resets=x[..., 0])),
        (r"lengths: expected integers \[2\], was int64 \[3\]", lambda: mixer(x, lengths=torch.ones(3).long())),
        (r"lengths: expected integers \[2\], was float32 \[2\]", lambda: mixer(x, lengths=torch.ones(2))),
        (r"lengths: expected 0 to 5, the tokens given, was \[1, 6\]", lambda: mixer(x, lengths=torch.tensor([1, 6]))),
    ]
    for message, call in calls:
        if name == "sliding-window" and "as init_state" in message:
            message = r"state.keys: expected \[2, 256, 2, 6\] as in this mixer, was float32 \[2, 9, 2, 6\]"
        with pytest.raises(InputError, match=message):
            call()


def test_a_state_of_another_width_is_refused() -> None:
    wide = LayerContext(width=48, heads=4, key_value_heads=2, head_width=8, rotary=False)
    for name in mixers:
        state = build(name, wide).init_state(2, max_len=9)
        with pytest.raises(InputError, match=r"state\.\w+: expected"):
            build(name)(torch.randn(2, 5, 24, dtype=torch.float64), state)
