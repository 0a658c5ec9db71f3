"""Cross-entropy without its logits against torch's with them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.errors import InputError
from zoo.kernels import linear_cross_entropy as module
from zoo.kernels.linear_cross_entropy import linear_cross_entropy, plain_cross_entropy
from zoo.models import decoder


def plain(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(x, weight)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)


def make(N: int, M: int, V: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = (torch.randn(rows, M).to(dtype).requires_grad_() for rows in (N, V))
    return x, weight, torch.randint(0, V, (N,))


@settings(deadline=None, max_examples=30)
@given(
    N=st.integers(1, 20), M=st.integers(1, 9), V=st.integers(1, 30), rows=st.integers(1, 25),
    ignored=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_loss_and_gradients_are_those_with_all_logits(
    N: int, M: int, V: int, rows: int, ignored: float, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight, targets = make(N, M, V, torch.float64)
    targets[1:][torch.rand(N - 1) < ignored] = -100  # one row counts: torch's mean over none is NaN
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "_LOGITS_AT_ONCE", rows * V)
        ours = linear_cross_entropy(x, weight, targets)
    theirs = plain(x, weight, targets)
    torch.testing.assert_close(ours, theirs)
    for mine, exact in zip(*(torch.autograd.grad(3 * loss, (x, weight)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("function", [linear_cross_entropy, plain_cross_entropy])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_rows_count_for_their_weights(
    function: Callable[..., Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 8 * 11)  # several trips
    torch.manual_seed(0)
    x, weight, targets = make(20, 6, 11, dtype)
    targets[3:9] = -100
    weights = torch.rand(20)
    weights[12] = 0
    ours = function(x, weight, targets, weights)
    exact_inputs = [y.detach().double().requires_grad_() for y in (x, weight)]
    losses = F.cross_entropy(F.linear(*exact_inputs), targets, reduction="none")
    counts = weights.double() * (targets != -100)
    exact = (counts * losses).sum() / counts.sum()
    digits = 1e-7 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(ours.double(), exact, rtol=digits, atol=digits)
    gradients = torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(exact, exact_inputs)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=digits, atol=digits / 5)
    assert not gradients[0][0][3:9].any()
    assert not gradients[0][0][12].any()


@pytest.mark.parametrize("function", [linear_cross_entropy, plain_cross_entropy])
def test_the_mean_over_nothing_is_zero(function: Callable[..., Tensor]) -> None:
    x, weight, targets = make(5, 3, 4, torch.float32)
    for arguments in ((targets.fill_(-100),), (torch.zeros_like(targets), torch.zeros(5))):
        loss = function(x, weight, *arguments)
        assert loss == 0
        assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (x, weight)))


@pytest.mark.parametrize("wrong", [-1, -99, 11])
def test_targets_out_of_range_are_named(wrong: int) -> None:
    x, weight, targets = make(5, 3, 11, torch.float32)
    targets[2] = wrong
    with pytest.raises(InputError, match=rf"targets: expected 0 to 10, or -100 .*, was {wrong}$"):
        linear_cross_entropy(x, weight, targets)


def test_narrow_inputs_err_no_more_than_torch_does() -> None:
    torch.manual_seed(0)
    x, weight, targets = make(300, 64, 500, torch.bfloat16)
    exact_inputs = [x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    exact = plain(*exact_inputs, targets)
    references = torch.autograd.grad(exact, exact_inputs)
    errors = []
    for function in (linear_cross_entropy, plain):
        loss = function(x, weight, targets)
        assert loss.dtype == torch.float32
        gradients = torch.autograd.grad(loss, (x, weight))
        errors.append(
            [(y.double() - z).norm().item() for y, z in zip((loss, *gradients), (exact, *references), strict=True)]
        )
    for ours, theirs in zip(*errors, strict=True):
        assert ours <= 1.5 * theirs + 1e-6


def test_autocast_rounds_the_products_only() -> None:
    x, weight, targets = make(20, 8, 11, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = linear_cross_entropy(x, weight, targets), plain(x, weight, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, (x, weight)) for loss in (ours, theirs)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.02, atol=1e-3)


@pytest.fixture
def differentiable() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, weight, targets = make(7, 4, 5, torch.float64)
    targets[2] = -100
    return x, weight, targets, torch.rand(7).double()


def test_gradients_of_gradients(differentiable: tuple[Tensor, ...]) -> None:
    x, weight, targets, weights = differentiable
    for rows in (None, weights):
        assert torch.autograd.gradcheck(lambda x, w, rows=rows: linear_cross_entropy(x, w, targets, rows), (x, weight))
        assert torch.autograd.gradgradcheck(
            lambda x, w, rows=rows: 2 * linear_cross_entropy(x, w, targets, rows) ** 2, (x, weight)
        )


def test_transforms_see_what_they_see_of_torch(differentiable: tuple[Tensor, ...]) -> None:
    x, weight, targets, _ = differentiable
    x, weight = x.detach(), weight.detach()
    results = []
    for function in (linear_cross_entropy, plain):
        forward = torch.func.jvp(lambda x, f=function: f(x, weight, targets), (x,), (torch.ones_like(x),))
        one = torch.func.grad(lambda w, x, t, f=function: f(x[None], w, t[None]))
        each = torch.func.vmap(one, (None, 0, 0))(weight, x[3:], targets[3:])
        ensemble = torch.func.vmap(lambda w, f=function: f(x, w, targets))(torch.stack([weight, 2 * weight]))
        hessian = torch.func.hessian(lambda x, f=function: f(x, weight, targets))(x)
        with torch.autograd.forward_ad.dual_level() as _:
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            tangent = torch.autograd.forward_ad.unpack_dual(function(dual, weight, targets)).tangent
        results.append([*forward, each, ensemble, hessian, tangent])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_gradients_only_the_loss_is_computed() -> None:
    x, weight, targets = make(7, 4, 5, torch.float32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear_cross_entropy(x, weight, targets)
    assert counter.get_total_flops() == 2 * 7 * 4 * 5
    with FlopCounterMode(display=False) as counter:
        linear_cross_entropy(x, weight, targets)
    assert counter.get_total_flops() == 3 * 2 * 7 * 4 * 5


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_with_many_classes_has_the_same_loss(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["model.layers=1", f"model.tie_embeddings={str(tied).lower()}"]
    model = zoo.build("tiny", mixer="gated-power", overrides=overrides).double()
    tokens = torch.randint(0, 257, (2, 30))
    targets = tokens[:, 1:].masked_fill(torch.rand(2, 29) < 0.3, -100)
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    found = []
    for most in (10**6, 0):
        monkeypatch.setattr(decoder, "MOST_CLASSES", most)
        for loss in (model.loss, compiled):
            torch.compiler.reset()
            value = loss(tokens[:, :-1], targets)
            found.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    for other in found[1:]:
        for mine, theirs in zip(other, found[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("most", [10**6, 0])
def test_a_model_takes_weights_and_names_what_is_wrong(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "MOST_CLASSES", most)
    model = zoo.build("tiny", mixer="gated-power", overrides=["model.layers=1"])
    tokens, weights = torch.randint(0, 257, (2, 30)), torch.rand(2, 29)
    tokens, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
    targets[0, :7] = -100
    losses = F.cross_entropy(model(tokens).logits.mT, targets, reduction="none")
    counts = weights * (targets != -100)
    torch.testing.assert_close(model.loss(tokens, targets, weights=weights), (counts * losses).sum() / counts.sum())
    for wrong, message in (
        ({"targets": targets.masked_fill(targets == targets[1, 1], 257)}, "targets: expected 0 to 256, or -100 .*257"),
        ({"targets": targets[:, 1:]}, r"targets: expected int64 \[2, 29\] as tokens, was int64 \[2, 28\]"),
        ({"targets": targets.float()}, "targets: expected int64"),
        ({"weights": weights[0]}, r"weights: expected floating \[2, 29\] as tokens, was float32 \[29\]"),
        ({"weights": -weights}, "weights: expected 0 or more, was -"),
    ):
        with pytest.raises(InputError, match=message):
            model.loss(tokens, **{"targets": targets, **wrong})
