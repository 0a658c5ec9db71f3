"""`zoo bench state`: how exact a state stays, of an op stepped token by token, beside its recurrence in float64."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from zoo.bench.engine import Benchmark, Row
from zoo.bench.subjects import Case, select
from zoo.errors import InputError
from zoo.kernels.power import PowerState, init_power_state, power_attention_step
from zoo.kernels.power import reference as power_reference
from zoo.kernels.power.call import Inputs
from zoo.kernels.rwkv7 import init_rwkv7_state, rwkv7_step
from zoo.kernels.rwkv7 import reference as rwkv7_reference
from zoo.report.tables import plain_table

__all__ = ["Recurrence", "StateBenchmark", "measure_state_error", "select_recurrences"]

_PIECE = 100  # tokens at a time: inputs are drawn, and the recurrences of reference read, in such pieces


ERRORS = ("output", "plain_output", "state", "plain_state")
"""Relative errors `|x - exact| / |exact|`, norms over rows and heads: of the op's output and state, and of those of a
plain float32 recurrence, whose output is rounded as the op's is. Of a state's parts the worst counts."""

Tokens = tuple[Any, ...]  # tensors `[B, T, ...]`, or None where there are no gates
State = tuple[Tensor, ...]


class Recurrence(NamedTuple):
    """An op with a state, stepped and by definition.

    `draw(generator, T)` gives T tokens of inputs; `init()` the empty state; `step(tokens, state)` takes one token
    `[B, ...]` in place and returns its output; `read(tokens, state)` is the definition, in the inputs' precision.
    """

    name: str
    draw: Callable[[torch.Generator, int], Tokens]
    init: Callable[[], State]
    step: Callable[[Tokens, State], Tensor]
    read: Callable[[Tokens, State], tuple[Tensor, State]]


def select_recurrences(case: Case, names: Sequence[str] | None = None) -> list[Recurrence]:
    """The ops that can be measured: power attention with p = 1 and 2, gated and not, and RWKV-7's; None: all of them.

    Raises:
        InputError: there is none of a name.
    """
    found = [_power(case, p, gated) for p in (1, 2) for gated in (False, True)]
    known = {recurrence.name: recurrence for recurrence in (*found, _rwkv7(case))}
    return [known[name] for name in select("ops", known if names is None else names, known)]


@dataclass(frozen=True)
class StateBenchmark(Benchmark):
    """What is stepped, and after how many tokens it is compared; states are float32."""

    case: Case
    recurrences: Sequence[Recurrence]
    positions: tuple[int, ...]
    seed: int = 0

    name_column = "name"
    tokens_column = "position"
    columns = ("name", "position", *ERRORS)

    def title(self) -> str:
        B, H, K, *_, device, dtype = self.case
        name = str(dtype).removeprefix("torch.")
        return (
            f"torch {torch.__version__}, {device}; B={B}, H={H}, K=V={K}, {name} inputs, float32 states; relative "
            "errors to float64"
        )

    def rows(self, say: Callable[[str], None]) -> Iterator[Row]:
        for recurrence in self.recurrences:
            yield from measure_state_error(recurrence, self.positions, seed=self.seed)

    def report(self, rows: Sequence[Row], console: Console) -> None:
        table = plain_table("op", "token", "output", "plain", "state", "plain")
        for row in rows:
            table.add_row(row.name, f"{row.tokens:,}", *(f"{row[error]:.1e}" for error in ERRORS))
        console.print(table)
        console.print("plain: the recurrence in float32, its output rounded like the op's")


@torch.no_grad()
def measure_state_error(recurrence: Recurrence, positions: Sequence[int], *, seed: int = 0) -> list[Row]:
    """Step an op through random tokens, and return its `ERRORS` beside float64 at each of `positions`, counted from 1.

    All see the same inputs, rounded to the case's dtype. The state that float64 has is never taken over by the others,
    so that errors add up as they do in decoding.

    Raises:
        InputError: there are no positions, or one is below 1.
    """
    if not positions or min(positions) < 1:
        raise InputError(f"positions: expected numbers from 1 on, was {list(positions)}")
    generator = torch.Generator().manual_seed(seed)
    stepped, plain = recurrence.init(), recurrence.init()
    exact = tuple(part.double() for part in recurrence.init())
    found, total = [], max(positions)
    # A piece ends wherever a comparison is due, so that the states are there to be compared.
    ends = sorted({*positions, *range(_PIECE, total, _PIECE)})
    for first, end in pairwise((0, *ends)):
        tokens = recurrence.draw(generator, end - first)
        for t in range(end - first):
            output = recurrence.step(_each(tokens, lambda x, t=t: x[:, t]), stepped)  # type: ignore[misc]
        plain_output, plain = recurrence.read(_each(tokens, Tensor.float), plain)
        exact_output, exact = recurrence.read(_each(tokens, Tensor.double), exact)
        if end in positions:
            last = exact_output[:, -1]
            rounded = plain_output[:, -1].to(output.dtype)  # as the op's own
            pairs = ((output,), (last,)), ((rounded,), (last,)), (stepped, exact), (plain, exact)
            more = {name: _error(*pair) for name, pair in zip(ERRORS, pairs, strict=True)}
            found.append(Row(recurrence.name, end, more=more))
    return found


def _power(case: Case, p: int, gated: bool) -> Recurrence:
    B, H, K, *_, device, dtype = case
    normalize = p % 2 == 0
    # From 0.9 to 0.9999 of the past a token, spread over the heads, as gates start.
    retention = 1 - torch.logspace(-1, -4, H)

    def draw(generator: torch.Generator, T: int) -> Tokens:
        q, k, v = torch.randn(3, B, T, H, K, generator=generator).to(device, dtype)
        log_g = (retention.log() * torch.rand(B, T, H, generator=generator) * 2).to(device)
        return q, k, v, log_g if gated else None

    def step(tokens: Tokens, state: State) -> Tensor:
        return power_attention_step(*tokens, state=PowerState(*state), p=p, normalize=normalize)

    def read(tokens: Tokens, state: State) -> tuple[Tensor, State]:
        return power_reference.recurrent(Inputs(*tokens, *state), p=p, scale=K**-0.5, normalize=normalize)

    def init() -> State:
        return init_power_state(B, H, K, K, p, device=device)

    return Recurrence(f"gated-p{p}" if gated else f"p{p}", draw, init, step, read)


def _rwkv7(case: Case) -> Recurrence:
    B, H, N, *_, device, dtype = case

    def draw(generator: torch.Generator, T: int) -> Tokens:
        r, k, v, kappa, a, w = torch.randn(6, B, T, H, N, generator=generator)
        kappa = torch.nn.functional.normalize(kappa, dim=-1)
        r, k, v, kappa, a = (x.to(device, dtype) for x in (r, k, v, kappa, a.sigmoid()))
        return r, (-0.6065 * (w - 3).sigmoid()).to(device), k, v, kappa, a

    def step(tokens: Tokens, state: State) -> Tensor:
        return rwkv7_step(*tokens, state=state[0])

    def read(tokens: Tokens, state: State) -> tuple[Tensor, State]:
        o, S = rwkv7_reference.recurrent(*tokens, *state)
        return o, (S,)

    return Recurrence("rwkv7", draw, lambda: (init_rwkv7_state(B, H, N, device),), step, read)


def _each(tokens: Tokens, function: Callable[[Tensor], Tensor]) -> Tokens:
    return tuple(None if x is None else function(x) for x in tokens)


def _error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The relative distance of the part that is furthest from the exact one."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))
