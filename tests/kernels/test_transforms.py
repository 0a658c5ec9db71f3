"""Gradients of gradients, forward mode and torch.func over every op: right, or refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from zoo.errors import InputError
from zoo.kernels.delta import delta_attention
from zoo.kernels.interval_attention import interval_attention
from zoo.kernels.linear_cross_entropy import linear_cross_entropy
from zoo.kernels.power import PowerState, power_attention, state_size
from zoo.kernels.rwkv7 import rwkv7

B, T, H, K = 2, 4, 2, 3
FIRST, LAST = torch.tensor([[0, 0, 2, 2]]).expand(B, T), torch.arange(T).expand(B, T)


def power(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, S: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    o, after = power_attention(q, k, v, log_g, p=2, state=PowerState(S, z), return_state=True)
    assert after is not None
    return o, *after


def delta(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, ...]:
    return tuple(delta_attention(q, k, v, log_g, beta, state=S, return_state=True))


def mix(*tensors: Tensor) -> tuple[Tensor, ...]:
    *tokens, S = tensors
    return tuple(rwkv7(*tokens, state=S, return_state=True))


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
    return (interval_attention(q, k, v, FIRST[: len(q)], LAST[: len(q)]),)


def loss(x: Tensor, weight: Tensor) -> tuple[Tensor]:
    return (linear_cross_entropy(x, weight, torch.tensor([0, 2, -100, 1])),)


def tokens(count: int) -> list[Tensor]:
    return [torch.randn(B, T, H, K, dtype=torch.float64) for _ in range(count)]


def inputs(name: str) -> list[Tensor]:
    torch.manual_seed(0)
    q, k, v = tokens(3)
    gates = -torch.rand(B, T, H, dtype=torch.float64)
    if name == "power":
        D = state_size(K, 2)
        S, z = torch.randn(B, H, D, K, dtype=torch.float64), 5 + torch.randn(B, H, D, dtype=torch.float64)
        return [q.abs() + 0.5, k.abs() + 0.5, v, gates, S, z]
    if name == "delta":
        rates = torch.rand(B, T, H, dtype=torch.float64)
        return [q, F.normalize(k, dim=-1), v, gates, rates, torch.randn(B, H, K, K, dtype=torch.float64)]
    if name == "rwkv7":
        decays = -0.6 * torch.rand(B, T, H, K, dtype=torch.float64)
        kappa, rates = F.normalize(torch.randn_like(q), dim=-1), torch.rand_like(q)
        return [q, decays, k, v, kappa, rates, torch.randn(B, H, K, K, dtype=torch.float64)]
    if name == "loss":
        return [torch.randn(4, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)]
    return [q, k, v]


OPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "power": power, "delta": delta, "rwkv7": mix, "interval": attend, "loss": loss,
}  # fmt: skip
every_op = pytest.mark.parametrize("name", OPS)


def total(name: str, *given: Tensor) -> Tensor:
    """A number that depends on all results."""
    return sum((result.sin() * (1 + result)).sum() for result in OPS[name](*given))  # type: ignore[return-value]


@every_op
def test_gradients_of_gradients_are_right(name: str) -> None:
    given = [x.requires_grad_() for x in inputs(name)]
    torch.autograd.gradgradcheck(lambda *x: OPS[name](*x), given, atol=1e-5, check_batched_grad=False, fast_mode=True)


@every_op
def test_a_gradient_is_the_same_whether_or_not_it_is_differentiated_again(name: str) -> None:
    given = [x.requires_grad_() for x in inputs(name)]
    first = torch.autograd.grad(total(name, *given), given)
    again = torch.autograd.grad(total(name, *given), given, create_graph=True)
    torch.testing.assert_close(first, again)


@every_op
def test_forward_mode_is_right(name: str) -> None:
    given = inputs(name)
    directions = [torch.randn_like(x) for x in given]
    expected = torch.autograd.grad(total(name, *(x.requires_grad_() for x in given)), given)
    along = sum((gradient * direction).sum() for gradient, direction in zip(expected, directions, strict=True))
    given = [x.detach() for x in given]
    torch.testing.assert_close(jvp(lambda *x: total(name, *x), tuple(given), tuple(directions))[1], along)
    with forward_ad.dual_level():
        dual = total(name, *map(forward_ad.make_dual, given, directions))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, along)


@every_op
def test_transforms_give_each_sample_its_own(name: str) -> None:
    given = inputs(name)
    samples = [torch.stack((x, 0.5 * x)) for x in given]
    gradients = vmap(grad(lambda *x: total(name, *x), argnums=tuple(range(len(given)))))(*samples)
    results = vmap(OPS[name])(*samples)
    for i in range(2):
        alone = [x[i].detach().requires_grad_() for x in samples]
        torch.testing.assert_close([x[i] for x in results], list(OPS[name](*alone)))
        torch.testing.assert_close([x[i] for x in gradients], list(torch.autograd.grad(total(name, *alone), alone)))


@pytest.mark.parametrize("call", [power_attention, delta_attention, rwkv7])
def test_forms_without_such_derivatives_are_refused(call: Callable[..., Any]) -> None:
    given = inputs("rwkv7")[:6] if call is rwkv7 else inputs("interval")
    with pytest.raises(InputError, match=r"impl: 'chunked' has no derivatives for torch\.func's transforms"):
        grad(lambda x: call(x, *given[1:], impl="chunked")[0].sum())(given[0])


def test_a_tensor_given_twice_has_both_gradients() -> None:
    x = inputs("interval")[0].requires_grad_()
    torch.autograd.gradgradcheck(lambda x: power_attention(x, x, x, p=1)[0], [x], fast_mode=True)


def test_packed_sequences_are_differentiated_again() -> None:
    given = [x[:1].requires_grad_() for x in inputs("interval")]
    ends = torch.tensor([0, 1, 4], dtype=torch.int32)
    for call in (power_attention, delta_attention):
        torch.autograd.gradgradcheck(lambda *x, call=call: call(*x, p=1, cu_seqlens=ends)[0], given, fast_mode=True)
