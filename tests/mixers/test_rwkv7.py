"""RWKV-7 against its equations, written down once more as a loop over tokens in float64, and how it starts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.blocks.window import Shared, open_window
from zoo.errors import ConfigError
from zoo.mixers import LayerContext, mixers
from zoo.mixers.rwkv7 import FIRST_VALUES, Rwkv7, Rwkv7Config


def build(layer: int = 1, layers: int = 3, width: int = 12, head_width: int = 4) -> Rwkv7:
    context = LayerContext(
        width=width, heads=width // head_width, key_value_heads=1, head_width=head_width, layer=layer, layers=layers
    )
    mixer = mixers["rwkv7"].build(Rwkv7Config(), context)
    assert isinstance(mixer, Rwkv7)
    return mixer


def by_the_equations(mixer: Rwkv7, x: Tensor, first_values: Tensor | None) -> Tensor:
    """One row `[T, M]`; H heads of N."""
    T, M = x.shape
    H, N = mixer.heads, mixer.width
    mu = dict(zip("rwkvag", mixer.mu, strict=True))
    shifted = torch.cat((torch.zeros(1, M, dtype=x.dtype), x[:-1])) - x
    inputs = {name: x + shifted * share for name, share in mu.items()}

    def low_rank(part: str, between: object) -> Tensor:
        layer = {"w": mixer.decay, "a": mixer.rate, "g": mixer.gate, "v": mixer.first_share}[part]
        assert layer is not None
        inner = inputs[part] @ layer.contract.weight.T
        y = (between(inner) if callable(between) else inner) @ layer.expand.weight.T
        return y if layer.expand.bias is None else y + layer.expand.bias

    r, k, v = (inputs[n] @ m.weight.T for n, m in (("r", mixer.receptance), ("k", mixer.key), ("v", mixer.value)))
    w = torch.exp(-math.exp(-0.5) * torch.sigmoid(low_rank("w", torch.tanh)))
    a, g = torch.sigmoid(low_rank("a", None)), low_rank("g", torch.sigmoid)
    if first_values is not None:
        v = v + (first_values - v) * torch.sigmoid(low_rank("v", None))
    kappa = (k * mixer.removal).view(T, H, N)
    kappa = kappa / kappa.norm(dim=-1, keepdim=True)
    k = k * (1 + (a - 1) * mixer.replacement)
    r, w, k, v, a = (part.view(T, H, N) for part in (r, w, k, v, a))
    rows = []
    S = [torch.zeros(N, N, dtype=x.dtype) for _ in range(H)]
    for t in range(T):
        heads = []
        for h in range(H):
            removed = torch.outer(kappa[t, h] * a[t, h], kappa[t, h] @ S[h])
            S[h] = w[t, h][:, None] * S[h] - removed + torch.outer(k[t, h], v[t, h])
            o = S[h].T @ r[t, h]
            o = (o - o.mean()) / torch.sqrt(o.var(correction=0) + N * 1e-5)
            o = o * mixer.norm.weight[h] + mixer.norm.bias[h]
            heads.append(o + (r[t, h] * k[t, h] * mixer.bonus[h]).sum() * v[t, h])
        rows.append(mixer.output.weight @ (torch.cat(heads) * g[t]))
    return torch.stack(rows)


@settings(deadline=None, max_examples=20)
@given(T=st.integers(1, 12), later=st.booleans(), seed=st.integers(0, 2**31))
def test_follows_the_equations(T: int, later: bool, seed: int) -> None:
    torch.manual_seed(seed)
    mixer = build(layer=int(later)).double()
    for parameter in mixer.parameters():
        parameter.data.normal_(std=0.5)
    x, weights = torch.randn(T, 12, dtype=torch.float64, requires_grad=True), torch.randn(T, 12, dtype=torch.float64)
    first = torch.randn(T, 12, dtype=torch.float64, requires_grad=True) if later else None
    window = open_window(x[None], None, lengths=None, resets=None, return_state=False)
    if first is not None:
        window = window._replace(shared=Shared({FIRST_VALUES: first[None]}))
    ours = mixer(x[None], window=window).y[0]
    theirs = by_the_equations(mixer, x, first)
    torch.testing.assert_close(ours, theirs)
    inputs = [x, *([] if first is None else [first]), *mixer.parameters()]
    for mine, exact in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, exact)


def test_starts_as_published() -> None:
    """Single numbers by hand, for layer 1 of 3, width 12 and heads of 4."""
    torch.manual_seed(0)
    mixer = build()
    i, n, left, depth = 5, 1, 2 / 3, 0.5
    zigzag = (n - 1.5) / 1.5
    zigzag *= abs(zigzag)
    linear = i / 11 - 0.5
    shares = [1 - (i / 12) ** (exponent * left) for exponent in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)]
    assert mixer.mu[:, i].tolist() == pytest.approx(shares)
    decay = -6 + 6 * (i / 11) ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag
    assert mixer.decay.expand.bias[i].item() == pytest.approx(decay, rel=1e-5)
    assert mixer.rate.expand.bias[i].item() == pytest.approx(-0.19 + 0.3 * zigzag + 0.4 * linear)
    assert mixer.first_share is not None
    assert mixer.first_share.expand.bias[i].item() == pytest.approx(0.73 - 0.4 * linear)
    assert mixer.removal[i].item() == pytest.approx(0.71 - 0.1 * linear)
    assert mixer.norm.weight.unique().tolist() == pytest.approx([(2 / 3) ** 0.7])
    for layer in (mixer.decay, mixer.rate, mixer.gate, mixer.first_share):
        assert not layer.contract.weight.any()
    gram = mixer.gate.expand.weight.T @ mixer.gate.expand.weight  # 32 columns, of which 12 can be orthogonal
    assert gram.trace().item() == pytest.approx(12 * 0.01 * 32 / 12, rel=1e-4)
    assert mixer.key.weight.abs().max() <= 0.05 / math.sqrt(12)
    assert not mixer.output.weight.any()
    assert build(layer=0).first_share is None


def test_a_head_width_that_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="head_width: must divide the width 12, got 5"):
        build(head_width=5)
