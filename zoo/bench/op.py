"""`zoo bench op`: an op beside its peers, over lengths, widths and powers, in one run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
from rich.console import Console

from zoo.bench.compare import groups, print_comparison, times
from zoo.bench.engine import Benchmark, Row, describe_place
from zoo.bench.family import OPS
from zoo.bench.subjects import BOTH, FORWARD, Case, Subject, select
from zoo.bench.timing import Ceilings, Timer
from zoo.kernels.power import Heads, forward_flops
from zoo.kernels.power.flops import backward_flops

if TYPE_CHECKING:
    from zoo.report.plots import Panel

__all__ = ["OpBenchmark"]

_TUNING_LENGTH = 65536  # block sizes that are searched for should suit long sequences


@dataclass(frozen=True)
class OpBenchmark(Benchmark):
    """What is measured, how, and beside what ceilings: a case at each of several head widths, K = V, and powers."""

    case: Case
    lengths: tuple[int, ...]
    head_widths: tuple[int, ...]
    powers: tuple[int, ...]
    contestants: tuple[str, ...]
    timer: Timer
    ceilings: Ceilings
    quadratic_limit: int = 262144  # the longest sequence for softmax attention
    graph: bool = False  # whether the timer replays CUDA graphs
    memory: bool = True  # whether peak memory is measured on a CPU too, of our op
    op: str = "power"  # of `OPS`; the others have no powers

    name_column = "contestant"
    columns = (
        "op", "contestant", "head_width", "p", "tokens", "passes", "seconds", "fast_seconds", "slow_seconds",
        "peak_bytes", "flops_per_second", "matmul_share", "copy_share", "absent", "batch_size", "heads", "gated",
        "dtype",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse contestants that there are not."""
        select("op", [self.op], OPS)
        select("contestants", self.contestants, OPS[self.op])

    def constants(self) -> Mapping[str, Any]:
        B, H, _, _, gated, *_, dtype = self.case
        return {"op": self.op, "batch_size": B, "heads": H, "gated": gated, "dtype": str(dtype).removeprefix("torch.")}

    def title(self) -> str:
        op, B, H, gated, dtype = self.constants().values()
        of = {
            "power": f", {'gated' if gated else 'ungated'}",
            "packed-softmax": f", {self.case.documents} documents a row",
        }
        how = "CUDA-graph replays" if self.graph else "launches included"
        return (
            f"{describe_place(self.case.device)}\n"
            f"{op}{of.get(op, '')}: B = {B}, H = {H}, {dtype}, {how}, medians in ms\n"
            f"ceilings in this run: {self.ceilings.dtype} product {self.ceilings.matmul / 1e12:.3g} TFLOP/s, copy "
            f"{self.ceilings.copy / 1e12:.3g} TB/s"
        )

    def rows(self, say: Callable[[str], None]) -> Iterator[Row]:
        """Yield rows by head width, at each length all contestants in turn; softmax attention runs once for all powers.

        A contestant that cannot run, or has no memory left, is yielded without a time, and the others go on.
        """
        cases = len(self.head_widths) * len(self.powers)
        for head_width in self.head_widths:
            with torch._dynamo.config.patch(recompile_limit=8 + 2 * cases * len(self.lengths)):
                yield from self._rows(head_width, say)

    def _rows(self, head_width: int, say: Callable[[str], None]) -> Iterator[Row]:
        known = OPS[self.op]
        subjects = [
            (Subject(known[name], self.case._replace(head_width=head_width, p=powers[0]), memory=self.memory), powers)
            for name in dict.fromkeys(self.contestants)
            for powers in ([self.powers] if known[name].softmax else [(p,) for p in self.powers])
        ]
        long = max((length for length in self.lengths if length <= _TUNING_LENGTH), default=min(self.lengths))
        for subject, _ in subjects:
            subject.tune(long, say)
        for tokens in self.lengths:
            for subject, powers in subjects:
                too_long = subject.contestant.softmax and tokens > self.quadratic_limit
                for passes in (FORWARD, BOTH):
                    row = Row(subject.contestant.name, tokens, more={"passes": passes})
                    row = row if too_long else subject.measure(tokens, passes, self.timer)
                    more = {**row.more, **self._rates(subject, row), "head_width": head_width}
                    yield from (replace(row, more={**more, "p": p}) for p in powers)

    def _rates(self, subject: Subject, row: Row) -> dict[str, float]:
        """Of our op: FLOP/s at the packed size of the state, and shares of the ceilings, all tensors moved once."""
        if not subject.contestant.ours or row.seconds is None:
            return {}
        B, H, K, p, gated, *_, dtype = subject.case
        sizes = (B, row.tokens, Heads(H, H, H), K, K, p)
        flops = forward_flops(*sizes)
        moved = 4 * B * row.tokens * H * K * dtype.itemsize + (4 * B * row.tokens * H if gated else 0)
        if row["passes"] == BOTH:
            flops, moved = flops + backward_flops(*sizes), 2 * moved  # with gradients of inputs and outputs
        rate = flops / row.seconds
        return {
            "flops_per_second": rate,
            "matmul_share": rate / self.ceilings.matmul,
            "copy_share": moved / row.seconds / self.ceilings.copy,
        }

    def report(self, rows: Sequence[Row], console: Console) -> None:
        print_comparison(rows, console)

    def panels(self, rows: Sequence[Row]) -> "list[list[Panel]]":
        from zoo.report.plots import Panel

        found = [
            Panel(f"K = {head_width}, p = {p}, {passes}", times(group), "milliseconds", logarithmic=True)
            for (head_width, p, passes), group in groups(rows)
        ]
        return [found[start : start + 2] for start in range(0, len(found), 2)]
