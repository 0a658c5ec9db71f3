"""The Triton kernel under the interpreter or on a GPU, and the op that calls it, against torch in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.kernels.linear_cross_entropy import linear_cross_entropy
from zoo.kernels.triton_support import INTERPRETED, TRITON

on_gpu = TRITON and torch.cuda.is_available()
pytestmark = [] if INTERPRETED else [pytest.mark.gpu, pytest.mark.skipif(not on_gpu, reason="needs a GPU")]
DEVICE = "cpu" if INTERPRETED else "cuda"


@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(1, 5), classes=st.integers(1, 70), padding=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), size=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_losses_and_gradients(
    rows: int, classes: int, padding: int, dtype: torch.dtype, size: float, seed: int
) -> None:
    from zoo.kernels import cross_entropy_rows as module

    torch.manual_seed(seed)
    logits = (size * torch.randn(rows, classes + padding)).to(DEVICE, dtype)
    targets = torch.randint(0, classes, (rows,), device=DEVICE)
    targets[torch.rand(rows, device=DEVICE) < 0.3] = -100
    exact = logits[:, :classes].double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), exact)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "BLOCK", 16)  # several trips
        only_losses = module.cross_entropy_rows(logits.clone(), targets, classes, wants_gradient=False)
        losses = module.cross_entropy_rows(logits, targets, classes, wants_gradient=True)
    assert torch.equal(losses, only_losses)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    digits = max(torch.finfo(dtype).eps, 2e-5)  # differences of logits up to 100 have float32's last digits
    torch.testing.assert_close(logits[:, :classes].double(), gradient, rtol=digits, atol=digits / 10)
    assert not logits[:, classes:].any()
    assert not logits[targets == -100].any()


@pytest.mark.parametrize("wrong", [-1, -101, 12, 2**40])
def test_a_target_out_of_range_gives_nan_and_reads_nothing_else(wrong: int) -> None:
    from zoo.kernels.cross_entropy_rows import cross_entropy_rows

    logits = torch.randn(3, 16, device=DEVICE)
    losses = cross_entropy_rows(logits, torch.tensor([0, wrong, 11], device=DEVICE), 12, wants_gradient=True)
    assert losses.isnan().tolist() == [False, True, False]
    assert logits[:, :12].isnan().any(1).tolist() == [False, True, False]


@pytest.mark.gpu
@pytest.mark.skipif(not on_gpu, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("classes", [257, 50257])
def test_the_op_errs_no_more_than_torch_does(dtype: torch.dtype, classes: int) -> None:
    torch.manual_seed(0)
    N, M = 9000, 64
    x, weight = (torch.randn(rows, M, device="cuda").to(dtype).requires_grad_() for rows in (N, classes))
    targets = torch.randint(0, classes, (N,), device="cuda")
    results = []
    for function, kind in ((linear_cross_entropy, dtype), (_plain, dtype), (_plain, torch.float64)):
        inputs = [y.detach().to(kind).requires_grad_() for y in (x, weight)]
        loss = function(*inputs, targets)
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for ours, theirs, exact in zip(*results, strict=True):
        mine, plain = ((y.double() - exact).norm().item() for y in (ours, theirs))
        assert mine <= 1.5 * plain + 1e-6 * exact.norm().item()


def _plain(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = F.linear(x, weight)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)
