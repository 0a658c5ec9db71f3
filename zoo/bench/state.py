"""How exact a state stays: an op stepped token by token beside its recurrence in float64."""

import csv
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.kernels.power import PowerState, init_power_state, power_attention_step
from zoo.kernels.power import reference as power_reference
from zoo.kernels.power.call import Inputs
from zoo.kernels.rwkv7 import init_rwkv7_state, rwkv7_step
from zoo.kernels.rwkv7 import reference as rwkv7_reference

__all__ = ["Recurrence", "StateCase", "StateError", "measure_state_error", "select_recurrences", "write_state_csv"]

_PIECE = 100  # tokens at a time: inputs are drawn, and the recurrences of reference read, in such pieces


class StateCase(NamedTuple):
    """Sizes, and what the inputs are; states are float32."""

    batch_size: int = 2
    heads: int = 4
    head_width: int = 16
    dtype: torch.dtype = torch.bfloat16
    device: str = "cpu"


class StateError(NamedTuple):
    """Relative errors `|x - exact| / |exact|` (norms over rows and heads) of one recurrence after `position` tokens.

    `output` and `state` are the op's; `plain_output`, rounded as the op's is, and `plain_state` are those of a plain
    float32 recurrence. Of a state's parts the worst counts.
    """

    name: str
    position: int
    output: float
    plain_output: float
    state: float
    plain_state: float


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


def select_recurrences(case: StateCase, names: Sequence[str] | None = None) -> list[Recurrence]:
    """The ops that can be measured: power attention with p = 1 and 2, gated and not, and RWKV-7's; None: all of them.

    Raises:
        InputError: there is none of a name.
    """
    found = [_power(case, p, gated) for p in (1, 2) for gated in (False, True)]
    known = {recurrence.name: recurrence for recurrence in (*found, _rwkv7(case))}
    for name in names or ():
        if name not in known:
            raise InputError(f"ops: expected some of {', '.join(known)}, was {name!r}")
    return list(known.values()) if names is None else [known[name] for name in names]


@torch.no_grad()
def measure_state_error(recurrence: Recurrence, positions: Sequence[int], *, seed: int = 0) -> list[StateError]:
    """Step an op through random tokens, and compare it with float64 at each of `positions`, counted from 1.

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
    errors, total = [], max(positions)
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
            output_errors = _error((output,), (last,)), _error((rounded,), (last,))
            errors.append(
                StateError(recurrence.name, end, *output_errors, _error(stepped, exact), _error(plain, exact))
            )
    return errors


def write_state_csv(errors: Sequence[StateError], path: Path) -> None:
    """Write one line an error, with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(StateError._fields)
        writer.writerows(errors)


def _power(case: StateCase, p: int, gated: bool) -> Recurrence:
    B, H, K, dtype, device = case
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


def _rwkv7(case: StateCase) -> Recurrence:
    B, H, N, dtype, device = case

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
