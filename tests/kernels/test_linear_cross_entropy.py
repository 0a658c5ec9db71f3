"""Cross-entropy without its logits against torch's with them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.kernels import linear_cross_entropy as module
from zoo.kernels.linear_cross_entropy import linear_cross_entropy
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
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_loss_and_gradients_are_those_with_all_logits(N: int, M: int, V: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight, targets = make(N, M, V, torch.float64)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "_LOGITS_AT_ONCE", rows * V)
        ours = linear_cross_entropy(x, weight, targets)
    theirs = plain(x, weight, targets)
    torch.testing.assert_close(ours, theirs)
    for mine, exact in zip(*(torch.autograd.grad(3 * loss, (x, weight)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, exact)


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
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    found = []
    for most in (10**6, 0):
        monkeypatch.setattr(decoder, "MOST_CLASSES", most)
        for loss in (model.loss, compiled):
            torch.compiler.reset()
            value = loss(tokens[:, :-1], tokens[:, 1:])
            found.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    for other in found[1:]:
        for mine, theirs in zip(other, found[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
