"""The kernels build for a GPU that is not here, spill nothing, and load and store several channels at once."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels import launch
from zoo.kernels.causal_convolution import op
from zoo.kernels.causal_convolution.call import Inputs
from zoo.kernels.triton_support import INTERPRETED

from ..power.triton.ahead_of_time import HOPPER, build, rehearsed, usage

pytestmark = pytest.mark.skipif(INTERPRETED, reason="nothing is built for the interpreter")


@pytest.mark.parametrize("whole", [False, True])
def test_mamba_2s_shape(whole: bool) -> None:
    """Channels of a wider projection, whose rows are no multiple of sixteen; whole: with a tail and resets as well."""
    T, channels, width, dtype = 65536, 1792, 4, torch.bfloat16
    with FakeTensorMode(), launch.rehearsal() as launches:
        x = torch.empty(1, T, 3352, dtype=dtype)[..., :channels]
        tail, resets = torch.empty(1, width - 1, channels, dtype=dtype), torch.empty(1, T, dtype=torch.bool)
        more = (tail, resets) if whole else (None, None)
        inputs = Inputs(x, torch.empty(channels, width), torch.empty(channels), *more)
        op._convolve(inputs)
        op._gradients(torch.empty(1, T, channels, dtype=dtype), inputs)
    for each, most in zip(launches, (72, 168), strict=True):
        built = build(rehearsed(each), HOPPER)
        found = usage(built)
        assert found.registers <= most, (each.kernel.__name__, found)
        assert found.stack == 0, (each.kernel.__name__, found)
        assert not re.search(r"(ld|st)\.global\.b16", built.asm["ptx"]), each.kernel.__name__
