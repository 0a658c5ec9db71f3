"""For tests of benchmarks: a small benchmark on the CPU, and measurements as a GPU would give them."""

from collections.abc import Callable, Sequence

import pytest
import torch

from zoo.bench.contestants import CONTESTANTS, Contestant
from zoo.bench.entrant import BOTH, FORWARD
from zoo.bench.op import OpBenchmark, OpMeasurement
from zoo.bench.timing import Ceilings

LENGTHS = tuple(1024 * 4**index for index in range(6))


@pytest.fixture
def ceilings() -> Ceilings:
    return Ceilings(matmul=790e12, copy=4.3e12)


@pytest.fixture
def make_benchmark() -> Callable[..., OpBenchmark]:
    """A benchmark of these contestants, or of those with these names, on the CPU."""

    def make(*contestants: Contestant | str, **options: object) -> OpBenchmark:
        chosen = tuple(CONTESTANTS[each] if isinstance(each, str) else each for each in contestants)
        settings = {
            "lengths": (64, 128), "head_widths": (16,), "powers": (2,), "heads": 2, "dtype": torch.float32,
            "device": "cpu",
        }  # fmt: skip
        return OpBenchmark(contestants=chosen, **(settings | options))

    return make


@pytest.fixture
def make_rows() -> Callable[..., list[OpMeasurement]]:
    """Measurements of a contestant, linear in the length or quadratic, forward and forward + backward."""

    def make(
        contestant: str,
        *,
        seconds: float = 1e-7,
        quadratic: bool = False,
        lengths: Sequence[int] = LENGTHS,
        p: int = 2,
        absent: str = "",
        limit: int = 2**20,
    ) -> list[OpMeasurement]:
        rows = []
        for tokens in lengths:
            for passes in (FORWARD, BOTH):
                measured = tokens <= limit and not absent
                time = seconds * tokens * (tokens / 4096 if quadratic else 1) * (3 if passes == BOTH else 1)
                ours = measured and contestant == "power"
                rows.append(
                    OpMeasurement(
                        contestant=contestant,
                        head_width=128,
                        p=p,
                        tokens=tokens,
                        passes=passes,
                        seconds=time if measured else None,
                        fast_seconds=time if measured else None,
                        slow_seconds=time if measured else None,
                        peak_bytes=30000 * tokens if measured and passes == BOTH else None,
                        flops_per_second=312.5e12 if ours else None,
                        matmul_share=0.396 if ours else None,
                        copy_share=0.123 if ours else None,
                        absent=absent,
                    )
                )
        return rows

    return make
