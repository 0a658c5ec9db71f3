"""The interpreter takes the whole process: its tests run where TRITON_INTERPRET=1 is set, and only they do."""

import os
from collections.abc import Iterator

import pytest
import torch

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = (
    ["hopper", "test_gpu.py", "test_ahead_of_time.py", "test_tune.py"] if interpreted else ["test_interpreted.py"]
)


@pytest.fixture(autouse=True)
def give_memory_back() -> Iterator[None]:
    """Several test processes share a GPU, and each would keep what its largest test took."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
