"""Where tests of ops run: on a CPU, by Triton's interpreter, or on a GPU."""

import pytest
import torch

from zoo.kernels.triton_support import INTERPRETED

# Of what is no Triton kernel.
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="nothing here is for the interpreter")
# Of what is one.
interpreted_or_on_gpu = (
    [] if INTERPRETED else [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
)
KERNEL_DEVICE = "cpu" if INTERPRETED else "cuda"
