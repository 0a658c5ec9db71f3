"""Losses and hits of single tokens, against logits that are made whole."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from zoo.kernels import token_scores as module
from zoo.kernels.errors import InputError
from zoo.kernels.targets import IGNORED
from zoo.kernels.token_scores import linear_scores, logits_scores


def problem(rows=50, width=8, classes=11, dtype=torch.float32):
    x, weight = torch.randn(rows, width, dtype=dtype), torch.randn(classes, width, dtype=dtype)
    targets = torch.randint(0, classes, (rows,))
    targets[::7] = IGNORED
    return x, weight, targets


@pytest.mark.parametrize("at_once", [2**26, 33, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_are_those_of_whole_logits(monkeypatch, at_once, dtype):
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", at_once)
    x, weight, targets = problem(dtype=dtype)
    losses, hits = linear_scores(x, weight, targets)
    exact = x.double() @ weight.double().T
    expected = functional.cross_entropy(exact, targets, ignore_index=IGNORED, reduction="none")
    plain = functional.cross_entropy((x @ weight.T).float(), targets, ignore_index=IGNORED, reduction="none")
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Of whole sums: single losses of equal roundings may differ by one of them.
    error, plain_error = (losses - expected).norm(), (plain - expected).norm()
    assert error <= 1.5 * plain_error + 1e-12
    assert torch.equal(hits, ((x @ weight.T).argmax(-1) == targets) & (targets != IGNORED))
    assert (losses[::7] == 0).all()
    assert not hits[::7].any()


def test_logits_give_the_same():
    x, weight, targets = problem()
    for ours, theirs in zip(logits_scores(x @ weight.T, targets), linear_scores(x, weight, targets), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_scores_have_no_gradient_and_count_their_product():
    x, weight, targets = problem(7, 4, 5)
    with FlopCounterMode(display=False) as counter:
        losses, _ = linear_scores(x.requires_grad_(), weight.requires_grad_(), targets)
    assert not losses.requires_grad
    assert counter.get_total_flops() == 2 * 7 * 4 * 5


def test_autocast_rounds_the_product():
    x, weight, targets = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = linear_scores(x, weight, targets)
    rounded, _ = linear_scores(x.bfloat16(), weight.bfloat16(), targets)
    assert torch.equal(losses, rounded)


def test_a_target_out_of_range_is_refused():
    x, weight, targets = problem()
    targets[3] = 11
    with pytest.raises(InputError, match="targets: expected 0 to 10, or -100 to be ignored, was 11"):
        linear_scores(x, weight, targets)
