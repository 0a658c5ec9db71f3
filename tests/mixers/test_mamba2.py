"""Mamba-2 against its equations, written down once more as a loop over tokens in float64."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.errors import ConfigError, InputError
from zoo.kernels.power.expansion import coefficients, expand
from zoo.mixers import LayerContext, mixers
from zoo.mixers.mamba2 import Mamba2, Mamba2State
from zoo.recipe.training import TrainingConfig
from zoo.training.optimizer import build_optimizer

CONTEXT = LayerContext(width=12, heads=1, key_value_heads=1, head_width=12)


def build(context: LayerContext = CONTEXT, **options: Any) -> Mamba2:
    spec = mixers["mamba2"]
    mixer = spec.build(spec.config(**options), context)
    assert isinstance(mixer, Mamba2)
    return mixer


def by_the_equations(mixer: Mamba2, u: Tensor) -> Tensor:
    """One row `[T, M]`; d inner channels, H heads of P, G groups, N state width."""
    p, G, N, H, P = mixer.config.p, mixer.config.groups, mixer.config.state_width, mixer.heads, mixer.width
    d, W = H * P, mixer.config.convolution
    projection, filters = (mixer.row_orders[name].by_kind for name in ("input", "convolution"))
    z, xBC, dt = (u @ projection(mixer.input.weight).T).split((d, d + 2 * G * N, H), -1)
    padded = torch.cat((torch.zeros(W - 1, xBC.shape[1], dtype=u.dtype), xBC))
    weight, bias = filters(mixer.convolution.weight), filters(mixer.convolution.bias)
    xBC = F.silu(F.conv1d(padded.T[None], weight[:, None], bias, groups=xBC.shape[1])[0].T)
    x, B, C = xBC.split((d, G * N, G * N), -1)
    delta = torch.log1p(torch.exp(dt + mixer.step_bias)).clamp(*mixer.config.step_limit)
    A, c = -mixer.log_decay.exp(), coefficients(N, p, u.dtype, u.device)
    rows = []
    S = [torch.zeros(len(c), P, dtype=u.dtype) for _ in range(H)]
    for t in range(len(u)):
        heads = []
        for h in range(H):
            group = h // (H // G)
            B_t, C_t = (expand(y[t].view(G, N)[group], p) for y in (B, C))
            x_t = x[t].view(H, P)[h]
            S[h] = torch.exp(delta[t, h] * A[h]) * S[h] + torch.outer(B_t, delta[t, h] * x_t)
            heads.append(S[h].T @ (c * C_t) + mixer.skip[h] * x_t)
        y = torch.cat(heads) * F.silu(z[t])
        y = y.view(G, -1)
        y = y / torch.sqrt((y * y).mean(-1, keepdim=True) + CONTEXT.norm_eps)
        rows.append(mixer.output.weight @ (y.flatten() * mixer.norm.weight))
    return torch.stack(rows)


@settings(deadline=None, max_examples=20)
@given(
    T=st.integers(1, 12), groups=st.sampled_from([1, 2, 4]), p=st.sampled_from([1, 1, 2]), seed=st.integers(0, 2**31),
    convolution=st.integers(1, 5),
)  # fmt: skip
def test_follows_the_equations(T: int, groups: int, p: int, seed: int, convolution: int) -> None:
    torch.manual_seed(seed)
    mixer = build(groups=groups, p=p, head_width=3, state_width=3, convolution=convolution, step_limit=(0.1, 2.0))
    mixer = mixer.double()
    for parameter in mixer.parameters():
        parameter.data.normal_(std=0.5)
    u = torch.randn(T, 12, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(T, 12, dtype=torch.float64)
    ours, theirs = mixer(u[None]).y[0], by_the_equations(mixer, u)
    torch.testing.assert_close(ours, theirs)
    inputs = (u, *mixer.parameters())
    for mine, exact in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, exact)


def test_starts_as_published() -> None:
    torch.manual_seed(0)
    mixer = build(LayerContext(width=2048, heads=1, key_value_heads=1, head_width=64), head_width=4)
    steps, decay = F.softplus(mixer.step_bias), mixer.log_decay.exp()
    assert steps.min() >= 1e-3 * 0.99
    assert steps.max() <= 0.1 * 1.01
    assert abs(steps.log().mean() - (math.log(1e-3) + math.log(0.1)) / 2) < 0.15
    assert decay.min() >= 1
    assert decay.max() <= 16
    assert abs(decay.mean() - 8.5) < 0.5
    assert torch.equal(mixer.skip, torch.ones_like(mixer.skip))


def test_what_has_one_number_a_head_does_not_decay() -> None:
    mixer = build()
    group = build_optimizer(mixer, TrainingConfig()).param_groups[1]
    assert group["weight_decay"] == 0
    held = {id(parameter) for parameter in group["params"]}
    assert {id(x) for x in (mixer.log_decay, mixer.step_bias, mixer.skip)} <= held


def test_gates_keep_their_digits_in_narrow_models() -> None:
    mixer = build(LayerContext(width=64, heads=1, key_value_heads=1, head_width=64)).bfloat16()
    steps, log_g = mixer._gates(torch.zeros(1, 3, mixer.heads, dtype=torch.bfloat16))
    assert steps.dtype == log_g.dtype == torch.float32
    y, state = mixer(torch.randn(1, 5, 64, dtype=torch.bfloat16), return_state=True)
    assert y.dtype == torch.bfloat16
    assert isinstance(state.layer, Mamba2State)
    assert state.layer.S.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [({"head_width": 7}, "head_width: must divide the inner width 24, got 7"),
     ({"head_width": 8, "groups": 2}, "groups: must divide 3, the number of heads, got 2"),
     ({"step": (0.1, 0.01)}, "step: must be two numbers in order, from 0 to 1e.06, was"),
     ({"step": (0, 0.01)}, "step: must be two numbers above 0, was"),
     ({"decay": (1e300, 1e300)}, "decay: must be two numbers in order, from 0 to 1e.06, was")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    def build_it() -> None:
        spec = mixers["mamba2"]
        spec.build(spec.config.from_mapping({"name": "mamba2", **options}), CONTEXT)

    with pytest.raises(ConfigError, match=message):
        build_it()


def test_a_state_over_the_limit_is_blamed_on_the_width_of_the_state() -> None:
    mixer = build(LayerContext(width=64, heads=1, key_value_heads=1, head_width=64), p=4, state_width=128)
    message = (
        r"state_width: expected at most 48 at p=4 in heads of 64 channels, .* 64 MiB a head, was 128, .* 2,905 MiB"
    )
    with pytest.raises(InputError, match=message):
        mixer.init_state(1)
    build(LayerContext(width=64, heads=1, key_value_heads=1, head_width=64), p=4, state_width=48).init_state(
        1, device="meta"
    )
