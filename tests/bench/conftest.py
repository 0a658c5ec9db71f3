"""For tests of benchmarks: a small benchmark on the CPU, and measurements as a GPU would give them."""

from collections.abc import Callable, Sequence

import pytest

from zoo.bench.engine import Row
from zoo.bench.op import OpBenchmark
from zoo.bench.subjects import BOTH, FORWARD, Case
from zoo.bench.timing import Ceilings, Timing, wall_timer

LENGTHS = tuple(1024 * 4**index for index in range(6))


@pytest.fixture
def ceilings() -> Ceilings:
    return Ceilings(matmul=790e12, copy=4.3e12)


@pytest.fixture
def make_benchmark(ceilings: Ceilings) -> Callable[..., OpBenchmark]:
    """A benchmark of contestants with these names, on the CPU."""

    def make(*contestants: str, **options: object) -> OpBenchmark:
        case = Case(options.pop("batch_size", 1), heads=2, gated=True)
        settings = {
            "lengths": (64, 128), "head_widths": (16,), "powers": (2,), "timer": wall_timer(1), "ceilings": ceilings,
            "memory": False,
        }  # fmt: skip
        return OpBenchmark(case, contestants=contestants, **(settings | options))

    return make


@pytest.fixture
def make_rows() -> Callable[..., list[Row]]:
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
    ) -> list[Row]:
        rows = []
        for tokens in lengths:
            for passes in (FORWARD, BOTH):
                measured = tokens <= limit and not absent
                time = seconds * tokens * (tokens / 4096 if quadratic else 1) * (3 if passes == BOTH else 1)
                ours = measured and contestant == "power"
                more = {
                    "head_width": 128, "p": p, "passes": passes,
                    "peak_bytes": 30000 * tokens if measured and passes == BOTH else None,
                }  # fmt: skip
                rates = {"flops_per_second": 312.5e12, "matmul_share": 0.396, "copy_share": 0.123} if ours else {}
                timing = Timing(time, time, time) if measured else None
                rows.append(Row(contestant, tokens, timing, absent, more | rates))
        return rows

    return make
