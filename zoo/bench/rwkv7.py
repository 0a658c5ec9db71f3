"""`zoo bench rwkv7`: RWKV-7's time mixing by each of its implementations, and by fla-core called directly."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from zoo.bench.engine import Benchmark, Row, describe_place
from zoo.bench.subjects import BOTH, FORWARD, Case, Contestant, Mix, Refusal, Subject, import_peer, select
from zoo.bench.timing import Timer
from zoo.errors import InputError
from zoo.kernels.rwkv7 import rwkv7
from zoo.kernels.rwkv7.supported import check_triton
from zoo.report.numbers import known, milliseconds
from zoo.report.tables import plain_table

__all__ = ["ENTRANTS", "FLOOR", "Rwkv7Benchmark", "make_rwkv7_inputs"]

FLOOR = -0.607  # of RWKV-7's log decays


@dataclass(frozen=True)
class Rwkv7Benchmark(Benchmark):
    """What is measured, and how."""

    case: Case  # of heads of `head_width` channels
    lengths: tuple[int, ...]
    timer: Timer
    entrants: tuple[str, ...] = ()  # of `ENTRANTS`; none: all

    name_column = "entrant"
    columns = ("entrant", "tokens", "passes", "seconds", "fast_seconds", "slow_seconds", "peak_bytes", "absent")

    def __post_init__(self) -> None:
        """Refuse entrants that there are not."""
        select("entrants", self.entrants, ENTRANTS)

    def title(self) -> str:
        B, H, N, *_, dtype = self.case
        name = str(dtype).removeprefix("torch.")
        return f"{describe_place(self.case.device)}\nB = {B}, H = {H}, N = {N}, {name}, medians in ms"

    def rows(self, say: Callable[[str], None]) -> Iterator[Row]:
        """Yield rows as they are measured, at each length all entrants in turn, forward and forward + backward."""
        subjects = [Subject(ENTRANTS[name], self.case) for name in self.entrants or ENTRANTS]
        for tokens in self.lengths:
            for subject in subjects:
                for passes in (FORWARD, BOTH):
                    yield subject.measure(tokens, passes, self.timer)

    def report(self, rows: Sequence[Row], console: Console) -> None:
        """Print, for each pass, times and how they and the memory compare with fla-core's own, and who is absent."""
        for passes in (FORWARD, BOTH):
            found = [row for row in rows if row["passes"] == passes and row.timing is not None]
            times = {(row.name, row.tokens): row.seconds for row in found}
            table = plain_table("tokens", "entrant", "ms", "20%", "80%", "/ direct", "/ ready", "peak MiB", words=2)
            for row in found:
                beside = (times.get((name, row.tokens)) for name in ("direct", "arguments-ready"))
                table.add_row(
                    f"{row.tokens:,}", row.name, *map(milliseconds, row.timing or ()),
                    *(known(row.seconds, ".3f", other) for other in beside),
                    known(row["peak_bytes"], ",.0f", 2**20),
                )  # fmt: skip
            console.print(f"\n{passes}", style="bold", highlight=False)
            console.print(table)
        for name, absent in dict.fromkeys((row.name, row.absent) for row in rows if row.absent):
            console.print(f"{name}: {absent}", highlight=False, markup=False)


def make_rwkv7_inputs(case: Case, tokens: int, _contestant: Contestant) -> list[Tensor | None]:
    """Random r, log_w (float32), k, v, kappa and a `[B, T, H, N]`, as RWKV-7 makes them, requiring gradients."""
    generator = torch.Generator(case.device).manual_seed(tokens)

    def normal() -> Tensor:
        shape = (case.batch_size, tokens, case.heads, case.head_width)
        return torch.randn(shape, generator=generator, device=case.device)

    r, k, v, kappa, a = (normal() for _ in range(5))
    r, k, v, kappa, a = (x.to(case.dtype) for x in (r, k, v, F.normalize(kappa, dim=-1), a.sigmoid()))
    return [x.requires_grad_() for x in (r, -0.6065 * normal().sigmoid(), k, v, kappa, a)]


@torch.no_grad()
def _ready_inputs(case: Case, tokens: int, contestant: Contestant) -> list[Tensor | None]:
    """The same, with what fla-core takes in the place of the last two: -kappa and kappa * a."""
    *others, kappa, a = make_rwkv7_inputs(case, tokens, contestant)
    assert kappa is not None
    assert a is not None
    return [*others, kappa.neg_(), a.mul_(-kappa)]


def _compiled(impl: str, case: Case) -> Mix:
    """Our op, compiled: by Triton's kernels, or in PyTorch."""
    if impl == "triton":
        try:
            check_triton(torch.empty(1, 1, case.heads, case.head_width, device=case.device, dtype=case.dtype))
        except InputError as error:
            raise Refusal(str(error)) from None

    def mix(*inputs: Tensor) -> Tensor:
        return rwkv7(*inputs, log_w_floor=FLOOR, impl=impl).o  # type: ignore[arg-type]

    return torch.compile(mix, fullgraph=True)


def _direct(case: Case) -> Mix:
    """fla-core's function under its own autograd, given what our op is given."""
    call = _fla_core(case)
    return lambda r, log_w, k, v, kappa, a: call(r, log_w, k, v, -kappa, kappa * a)


def _fla_core(case: Case) -> Mix:
    """fla-core's function on its own arguments: the last two inputs stand for -kappa and kappa * a."""
    if torch.device(case.device).type != "cuda" or case.dtype != torch.bfloat16:
        # float32 would be multiplied as TensorFloat-32
        raise Refusal(f"needs a GPU and bfloat16, was {case.device} and {case.dtype}")
    chunk_rwkv7 = import_peer("fla.ops.rwkv7", "chunk_rwkv7", "'mixer-zoo[fla]'")
    return lambda *inputs: chunk_rwkv7(*inputs, lower_bound=FLOOR)[0]


ENTRANTS = {
    name: Contestant(name, build, inputs=inputs)
    for name, build, inputs in (
        ("ours", partial(_compiled, "triton"), make_rwkv7_inputs),
        ("direct", _direct, make_rwkv7_inputs),
        ("arguments-ready", _fla_core, _ready_inputs),
        ("chunked", partial(_compiled, "chunked"), make_rwkv7_inputs),
    )
}
