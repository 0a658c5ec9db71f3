"""Mixers of the delta rule and of gates a channel, against their equations as a loop over tokens in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.blocks.delta_layer import DeltaLayer
from zoo.blocks.matrix_state import MatrixStateLayer, resolve_matrix_heads
from zoo.blocks.window import Shared, open_window
from zoo.errors import ConfigError
from zoo.kernels.power.expansion import coefficients, expand
from zoo.mixers import LayerContext, mixers

M = 12
CONTEXT = LayerContext(width=M, heads=2, key_value_heads=1, head_width=6)


def build(name: str, context: LayerContext = CONTEXT, **options: Any) -> Any:
    spec = mixers[name]
    return spec.build(spec.config(**options), context)


def convolved(mixer: MatrixStateLayer, x: Tensor) -> Tensor:
    """The projections of one row `[T, M]` behind the convolution, where there is one; all queries, keys, values."""
    order = mixer.row_orders["input"]
    projected = x @ order.by_kind(mixer.input.weight).T
    if not hasattr(mixer.convolution, "weight"):
        return projected
    weight = order.by_kind(mixer.convolution.weight)
    channels, width = weight.shape
    padded = torch.cat((torch.zeros(width - 1, channels, dtype=x.dtype), projected))
    return F.silu(F.conv1d(padded.T[None], weight[:, None], groups=channels)[0].T)


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(x))


def rms(o: Tensor) -> Tensor:
    return o / torch.sqrt((o * o).mean(-1, keepdim=True) + CONTEXT.norm_eps)


def by_the_equations(mixer: Any, name: str, x: Tensor) -> Tensor:
    """One row `[T, M]`; heads of K by V, written out."""
    T, heads = len(x), mixer.heads
    H, Hv, K, V = heads
    mixed = convolved(mixer, x)
    if isinstance(mixer, DeltaLayer) and not hasattr(mixer.convolution, "weight"):
        mixed = F.silu(mixed)
    q, k, v = mixed.split((H * K, H * K, Hv * V), -1)
    q, k, v = q.view(T, H, K), k.view(T, H, K), v.view(T, Hv, V)
    g, beta = torch.ones(T, Hv, K, dtype=x.dtype), None
    if name == "gla":
        down, up = mixer.gate
        logits = x @ down.weight.T @ up.weight.T + up.bias
        g = torch.sigmoid(logits).view(T, Hv, K) ** (1 / 16)
    elif name == "hgrn2":
        g = torch.sigmoid(k)
        q, k = q * torch.sigmoid(q), 1 - g
    else:
        q, k = unit(q), unit(k)
        beta = mixer.largest_rate * torch.sigmoid(x @ mixer.rate.weight.T)
        if mixer.__dict__["_modules"].get("gate") is not None:
            weights = [mixer.steps] if isinstance(mixer.steps, torch.nn.Linear) else list(mixer.steps)
            logits = x
            for linear in weights:
                logits = logits @ linear.weight.T
            A, b = mixer.gate.log_decay.exp(), mixer.gate.step_bias
            if name == "kda":
                g = torch.exp(-A[:, None] * softplus(logits.view(T, Hv, K) + b))
            else:
                g = torch.exp(-A * softplus(logits + b))[..., None].expand(T, Hv, K)
    p, c = mixer.p, coefficients(K, mixer.p, x.dtype, x.device)
    scale = 1.0 if name == "delta-power" else K**-0.5
    S = [torch.zeros(len(c), V, dtype=x.dtype) for _ in range(Hv)]
    rows = []
    for t in range(T):
        read = []
        for h in range(Hv):
            key = h // (Hv // H)
            m_k, m_q = expand(k[t, key], p), c * expand(scale * q[t, key], p)
            decay = g[t, h, :1] if p > 1 else g[t, h]
            S[h] = decay[:, None] * S[h]
            written = v[t, h] if beta is None else beta[t, h] * (v[t, h] - S[h].T @ (c * m_k))
            S[h] = S[h] + torch.outer(m_k, written)
            read.append(S[h].T @ m_q)
        rows.append(torch.stack(read))
    o = torch.stack(rows)
    if name == "hgrn2":
        return rms(o.flatten(-2)) * mixer.output.norm.weight @ mixer.output.projection.weight.T
    y = (rms(o) * mixer.output.norm.weight).flatten(-2)
    if name == "kda":
        down, up = mixer.output.gate
        y = y * torch.sigmoid(x @ down.weight.T @ up.weight.T + up.bias)
    elif mixer.output.gate is not None:
        y = y * F.silu(x @ mixer.output.gate.weight.T)
    return y @ mixer.output.projection.weight.T


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gla", {"heads": 3, "head_width": 2}),
        ("gla", {"head_width": 3, "expand": 1, "convolution": 2}),
        ("hgrn2", {"head_width": 3}),
        ("delta", {}),
        ("delta", {"output_gate": True, "negative_eigenvalues": True, "convolution": None}),
        ("gated-delta", {"head_width": 3}),
        ("gated-delta", {"heads": 2, "head_width": 2, "value_heads": 4, "expand": 1}),
        ("kda", {"heads": 3, "head_width": 4}),
        ("delta-power", {"head_width": 3}),
        ("delta-power", {"head_width": 2, "p": 3, "gated": False}),
    ],
)
def test_follows_the_equations(name: str, options: dict[str, Any]) -> None:
    @settings(deadline=None, max_examples=5)
    @given(T=st.integers(1, 9), seed=st.integers(0, 2**31))
    def check(T: int, seed: int) -> None:
        torch.manual_seed(seed)
        mixer = build(name, **options).double()
        for parameter in mixer.parameters():
            parameter.data.normal_(std=0.5)
        x, weights = torch.randn(2, T, M, dtype=torch.float64)
        x.requires_grad_()
        ours, theirs = mixer(x[None]).y[0], by_the_equations(mixer, name, x)
        torch.testing.assert_close(ours, theirs)
        inputs = (x, *mixer.parameters())
        found = [torch.autograd.grad((y * weights).sum(), inputs, materialize_grads=True) for y in (ours, theirs)]
        for mine, exact in zip(*found, strict=True):
            torch.testing.assert_close(mine, exact)

    check()


def test_gates_of_hgrn2_rise_by_layer_from_shares_that_the_first_one_owns() -> None:
    def layer(number: int) -> Any:
        context = LayerContext(width=M, heads=2, key_value_heads=1, head_width=6, layer=number, layers=4)
        return build("hgrn2", context)

    first, x, shared = layer(0), torch.randn(1, 5, M), Shared()
    window = open_window(x, None, lengths=None, resets=None, return_state=False)
    first.shares.data.normal_()
    first(x, window=window._replace(shared=shared))
    earlier, logits = shared.take(), torch.zeros(1, 5, 2, 6)
    shares = torch.cat((torch.zeros(1, M), first.shares)).softmax(0)
    assert first._least_gates(Shared(earlier), logits) is None
    for number in (1, 2, 3):
        rising = layer(number)._least_gates(Shared(earlier), logits)
        torch.testing.assert_close(rising.flatten(), shares[1 : number + 1].sum(0))
        assert layer(number)._least_gates(Shared(), logits) == number / 4
    later = layer(2)
    later(x, window=window._replace(shared=Shared(earlier))).y.sum().backward()
    assert first.shares.grad is not None
    assert first.shares.grad.isfinite().all()


def test_start_as_published() -> None:
    torch.manual_seed(0)
    context = LayerContext(width=64, heads=512, key_value_heads=1, head_width=1)
    for name, least in (("gated-delta", 0), ("kda", 1), ("delta-power", 0)):
        gate = build(name, context).gate
        decay, steps = gate.log_decay.exp(), F.softplus(gate.step_bias)
        assert least <= decay.min()
        assert decay.max() <= 16
        assert abs(decay.mean() - (16 + least) / 2) < 0.6
        assert steps.min() >= 1e-3 * 0.99
        assert steps.max() <= 0.1 * 1.01
        assert abs(steps.log().mean() - torch.tensor([1e-3, 0.1]).log().mean()) < 0.15


def test_gates_and_rates_keep_their_digits_in_narrow_models() -> None:
    for name in ("gla", "hgrn2", "gated-delta", "kda", "delta-power"):
        mixer = build(name).bfloat16()
        x = torch.randn(1, 3, M, dtype=torch.bfloat16)
        read = mixer.read(x, mixer._split(mixer.input(x)), Shared())
        assert read.log_g.dtype == torch.float32
        assert read.beta is None or read.beta.dtype == torch.float32
        assert read.q.dtype == read.k.dtype == read.v.dtype == torch.bfloat16


def test_sizes_of_heads_follow_from_those_that_are_set() -> None:
    assert resolve_matrix_heads(CONTEXT, None, None) == (2, 2, 6, 6)
    assert resolve_matrix_heads(CONTEXT, 3, None, expand=2) == (3, 3, 4, 8)
    assert resolve_matrix_heads(CONTEXT, None, 4, value_heads=6) == (3, 6, 4, 4)
    assert resolve_matrix_heads(CONTEXT, None, None, share=2, expand=2) == (2, 2, 3, 6)
    assert resolve_matrix_heads(CONTEXT, 5, 7) == (5, 5, 7, 7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("delta", {"heads": 5}, "heads: must divide the width of all keys, 12, got 5"),
        ("gla", {"head_width": 5}, "head_width: must divide the width of all keys, 6, got 5"),
        ("kda", {"value_heads": 3}, "value_heads: must be a multiple of the 2 heads, got 3"),
        ("delta-power", {"p": 5}, "p: must be less than or equal to 4, got 5"),
    ],
)
def test_sizes_that_do_not_fit_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **options)
