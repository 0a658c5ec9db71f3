"""The short convolution: as kernels, run as Python by Triton's interpreter where that is on, on a GPU otherwise."""

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels import launch
from zoo.kernels.causal_convolution import causal_convolution, op
from zoo.kernels.causal_convolution.call import Inputs
from zoo.kernels.causal_convolution.op import convolve
from zoo.kernels.causal_convolution.plain import convolve_plainly
from zoo.kernels.triton_support import INTERPRETED

from ..marks import KERNEL_DEVICE, interpreted_or_on_gpu, not_interpreted

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)

LENGTH = 8 if INTERPRETED else op._LENGTH  # the interpreter takes each token by itself


@pytest.fixture(autouse=True, scope="module")
def _stretches_are_short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "_LENGTH", LENGTH)
        yield


def make_inputs(
    B: int, T: int, channels: int, width: int, *, bias: bool = False, tail: bool = False, resets: float = 0.0,
    dtype: torch.dtype = torch.float32, device: str = KERNEL_DEVICE, padding: int = 0,
) -> Inputs:  # fmt: skip
    """Inputs that want gradients; padding: channels between tokens that are not the call's."""
    random = torch.Generator().manual_seed(B + T + channels + width)
    x = torch.randn(B, T, channels + padding, generator=random)
    weight, offset = torch.randn(channels, width, generator=random), torch.randn(channels, generator=random)
    before = torch.randn(B, width - 1, channels, generator=random)
    marked = torch.rand(B, T, generator=random) < resets
    x, before = (tensor.to(device, dtype) for tensor in (x, before))
    tensors = x[..., :channels], weight.to(device), offset.to(device) if bias else None, before if tail else None
    wanted = (tensor if tensor is None else tensor.detach().requires_grad_() for tensor in tensors)
    return Inputs(*wanted, marked.to(device) if resets else None)


def in_float64(inputs: Inputs) -> Inputs:
    *tensors, resets = inputs
    return Inputs(*(None if x is None else x.detach().double().requires_grad_() for x in tensors), resets)


def with_gradients(y: Tensor, inputs: Inputs, dy: Tensor) -> list[Tensor]:
    wanted = [x for x in inputs[:4] if x is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, dy.to(y.dtype))]


def check_error_law(inputs: Inputs) -> None:
    """Output and gradients err at most 1.5 times as much as PyTorch's operations in the same dtype."""
    dy = torch.randn(inputs.x.shape, generator=torch.Generator().manual_seed(1)).to(inputs.x)
    found = with_gradients(convolve(*inputs), inputs, dy)
    plain = with_gradients(convolve_plainly(inputs), inputs, dy)
    exact = in_float64(inputs)
    for ours, theirs, right in zip(found, plain, with_gradients(convolve_plainly(exact), exact, dy), strict=True):
        assert ours.dtype == theirs.dtype
        errors = [float((x.double() - right).norm()) for x in (ours, theirs)]
        assert errors[0] <= 1.5 * errors[1] + 1e-7 * float(right.norm()), errors


@pytest.mark.parametrize("device", [pytest.param(KERNEL_DEVICE, marks=interpreted_or_on_gpu)])
@settings(max_examples=25 if INTERPRETED else 100, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.sampled_from([1, 2, 5, LENGTH - 1, LENGTH, LENGTH + 1, 2 * LENGTH + 3]),
    channels=st.sampled_from([50, 256, 300]),
    width=st.integers(2, 8),
    bias=st.booleans(),
    tail=st.booleans(),
    resets=st.sampled_from([0.0, 0.02, 0.5]),
    dtype=st.sampled_from(DTYPES),
    padding=st.sampled_from([0, 3, 8]),
)
def test_errs_as_little_as_torch(device, B, T, channels, width, bias, tail, resets, dtype, padding):
    check_error_law(
        make_inputs(B, T, channels, width, bias=bias, tail=tail, resets=resets, dtype=dtype, padding=padding)
    )


@pytest.mark.parametrize("device", [pytest.param(KERNEL_DEVICE, marks=interpreted_or_on_gpu)])
@pytest.mark.parametrize("channels", [1, 7])
def test_few_channels(device: str, channels: int) -> None:
    """Of so few numbers luck decides whose error is smaller."""
    inputs = make_inputs(2, LENGTH + 3, channels, 4, bias=True, tail=True, resets=0.1)
    exact, dy = in_float64(inputs), torch.ones_like(inputs.x)
    found = with_gradients(convolve(*inputs), inputs, dy)
    right = with_gradients(convolve_plainly(exact), exact, dy)
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", [pytest.param(KERNEL_DEVICE, marks=interpreted_or_on_gpu)])
def test_what_another_document_holds_does_not_count(device: str) -> None:
    """Also where it is no number."""
    inputs = make_inputs(1, LENGTH + 7, 20, 4, resets=0.05)
    assert inputs.resets is not None
    inputs.resets[0, LENGTH + 2] = True
    with torch.no_grad():
        whole = convolve(*inputs)
        inputs.x[:, : LENGTH + 2] = torch.nan
        assert torch.equal(convolve(*inputs)[:, LENGTH + 2 :], whole[:, LENGTH + 2 :])


@pytest.mark.parametrize("device", [pytest.param(KERNEL_DEVICE, marks=interpreted_or_on_gpu)])
@pytest.mark.parametrize("at", [1, 2, 5, LENGTH])
def test_pieces_are_the_whole(device: str, at: int) -> None:
    x, weight, bias, tail, resets = make_inputs(2, 2 * LENGTH, 20, 4, bias=True, tail=True, resets=0.05)
    assert tail is not None
    assert resets is not None
    seen = torch.cat((tail, x), 1)
    whole = convolve(x, weight, bias, tail, resets)
    first = convolve(x[:, :at], weight, bias, tail, resets[:, :at])
    # The tail holds no reset: what it must not show is zero.
    document = F.pad(resets.long().cumsum(1), (3, 0))[:, at : at + 3]
    between = seen[:, at : at + 3].where((document == document[:, -1:])[..., None], 0)
    second = convolve(x[:, at:], weight, bias, between, resets[:, at:])
    assert torch.equal(torch.cat((first, second), 1), whole)


@pytest.mark.parametrize("device", [pytest.param(KERNEL_DEVICE, marks=interpreted_or_on_gpu)])
def test_compiled_gives_what_is_launched(device: str) -> None:
    inputs = make_inputs(2, LENGTH + 3, 20, 4, bias=True, tail=True, resets=0.05)
    dy = torch.randn_like(inputs.x)
    compiled = torch.compile(lambda *given: convolve(*given) * 2, fullgraph=True)(*inputs)
    found, expected = (with_gradients(y, inputs, dy) for y in (compiled, convolve(*inputs) * 2))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("device", [pytest.param(KERNEL_DEVICE, marks=interpreted_or_on_gpu)])
def test_differentiates_twice(device: str) -> None:
    inputs = make_inputs(1, 5, 3, 3, bias=True, tail=True, resets=0.3)

    def second(y: Tensor, wanted: Sequence[Tensor]) -> Sequence[Tensor]:
        (first,) = torch.autograd.grad(y.square().sum(), wanted[:1], create_graph=True)
        return torch.autograd.grad(first.square().sum(), wanted)

    wanted = [x for x in inputs[:4] if x is not None]
    exact = in_float64(inputs)
    expected = second(convolve_plainly(exact), [x for x in exact[:4] if x is not None])
    for ours, right in zip(second(convolve(*inputs), wanted), expected, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-5)


@not_interpreted
def test_is_what_torch_calls_a_convolution() -> None:
    x, weight, bias, *_ = make_inputs(2, 50, 6, 4, bias=True, device="cpu")
    assert bias is not None
    expected = F.silu(F.conv1d(F.pad(x.mT, (3, 0)), weight[:, None], bias, groups=6).mT)
    torch.testing.assert_close(causal_convolution(x, weight, bias), expected)


@not_interpreted
def test_launches_what_it_says() -> None:
    """Strides that eight divides are told to the compiler, which then loads eight bytes at once."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), launch.rehearsal() as launches:
        x = torch.empty(1, 1000, 3352, dtype=torch.bfloat16)[..., :1792]
        op._convolve(Inputs(x, torch.empty(1792, 4), None, None, None))
    assert [each.constants["ALIGNED"] for each in launches] == [8]
