"""Settings for every test: hypothesis profiles, one thread, seeded generators."""

import os
import signal
from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" in os.environ:  # whose neighbours have the other cores; before torch reads it
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

import pytest
import torch
import torch._inductor.config
from hypothesis import HealthCheck, settings

# Examples cost milliseconds to seconds according to what they draw, so hypothesis's deadlines would only measure that.
_common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("default", _common, derandomize=True, max_examples=50)
settings.register_profile("thorough", _common, max_examples=500, print_blob=True)
settings.load_profile("default")

# What started the tests may ignore them, as `nohup` and a shell's `&` do, and what is ignored stays ignored.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

if os.environ.get("TRITON_INTERPRET") == "1":
    from .kernels.faster_interpreter import spare_repetition

    spare_repetition()

torch.set_num_threads(1)
# Scalar code compiles in half the time of vectors', which are the compiler's own affair.
torch._inductor.config.cpp.simdlen = 1


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _memory_is_given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """A GPU's memory, which processes that test side by side share, and of which one test can take half."""
    yield
    if request.node.get_closest_marker("gpu") is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
