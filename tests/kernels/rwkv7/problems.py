"""Random problems for RWKV-7's time mixing: a strategy, what one run of a problem gives, and how far it may be off.

Hypothesis draws the structure (sizes, decays, layouts) and a seed; values are random numbers from that seed, so that a
failing example shrinks to the smallest structure that still fails.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.rwkv7 import rwkv7

from ..layouts import lay_out

IMPLEMENTATIONS = ("chunked", "recurrent")
DECAYS = ("none", "mild", "strong", "infinite", "mixed")
LAYOUTS = ("contiguous", "heads first", "strided", "expanded")
TOKENS = ("r", "log_w", "k", "v", "kappa", "a")
# A few of float32's last digits, and of float64's.
DIGITS = {torch.float32: 1e-5, torch.float64: 1e-12}

Tensors = dict[str, Tensor]


@dataclass(frozen=True, repr=False)
class Problem:
    """One call of `rwkv7`, and the gradients that come back to its results (None: that result is not used)."""

    r: Tensor
    log_w: Tensor
    k: Tensor
    v: Tensor
    kappa: Tensor
    a: Tensor
    S: Tensor | None
    do: Tensor | None
    dS: Tensor | None  # noqa: N815 - the state's gradient
    resets: Tensor | None
    lengths: Tensor | None
    chunk_size: int | None

    @property
    def T(self) -> int:  # noqa: N802 - the shape legend
        return self.r.shape[1]

    @property
    def accumulation(self) -> torch.dtype:
        """The dtype of sums and states."""
        return torch.promote_types(self.r.dtype, torch.float32)

    @property
    def tensors(self) -> Tensors:
        """The differentiable inputs that are there, by name."""
        found = {name: getattr(self, name) for name in (*TOKENS, "S")}
        return {name: x for name, x in found.items() if x is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> "Problem":
        """The problem with `change` done to every floating tensor in it."""
        names = (*TOKENS, "S", "do", "dS")
        return replace(self, **{n: change(x) for n in names if (x := getattr(self, n)) is not None})

    def double(self) -> "Problem":
        """The same numbers in float64."""
        return self.map(lambda x: x.detach().double())

    def tokens(self, start: int, stop: int) -> "Problem":
        """Only the tokens from `start` to `stop`."""
        names = (*TOKENS, "do", "resets")
        return replace(self, **{n: x[:, start:stop] for n in names if (x := getattr(self, n)) is not None})

    def row(self, i: int) -> "Problem":
        """Only one row of the batch."""
        names = (*TOKENS, "S", "do", "dS", "resets", "lengths")
        return replace(self, **{n: x[i : i + 1] for n in names if (x := getattr(self, n)) is not None})

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what hypothesis prints
        printer.text(repr(self))

    def __repr__(self) -> str:
        decays = [round(x, 3) for x in self.log_w.flatten().tolist()[:6]]
        lengths = None if self.lengths is None else self.lengths.tolist()
        resets = None if self.resets is None else self.resets.nonzero().tolist()
        return (
            f"Problem({list(self.r.shape)}, {self.r.dtype}, chunk_size={self.chunk_size}, log_w={decays}, "
            f"inputs={list(self.tensors)}, do={self.do is not None}, dS={self.dS is not None}, "
            f"lengths={lengths}, resets={resets}, strides of r={self.r.stride()})"
        )


def mix(problem: Problem, impl: str | None = None, **changes: Any) -> tuple[Tensor, Tensor]:
    """Output and final state of a problem."""
    options = {
        "state": problem.S, "return_state": True, "lengths": problem.lengths, "resets": problem.resets,
        "chunk_size": problem.chunk_size, "impl": impl, **changes,
    }  # fmt: skip
    o, state = rwkv7(*(getattr(problem, name) for name in TOKENS), **options)
    assert state is not None
    return o, state


def run(problem: Problem, impl: str | None = None, **changes: Any) -> Tensors:
    """Results and gradients by name: `o`, `S_out`, and `d<input>`."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    o, S = mix(replace(problem, **leaves), impl, **changes)
    return differentiate(problem, {"o": o, "S_out": S}, leaves)


def differentiate(problem: Problem, results: Tensors, leaves: Tensors) -> Tensors:
    """The results, detached, and gradients of `leaves`; zeros where nothing depends on a leaf."""
    sources = {"o": problem.do, "S_out": problem.dS}
    used = [name for name, dx in sources.items() if dx is not None and results[name].requires_grad]
    found = {name: x.detach() for name, x in results.items()}
    if not used:
        return found | {f"d{name}": torch.zeros_like(x) for name, x in leaves.items()}
    grads = torch.autograd.grad(
        [results[name] for name in used],
        list(leaves.values()),
        [sources[name] for name in used],
        allow_unused=True,
        materialize_grads=True,
    )
    return found | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def make_decays(kind: str, shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Log decays of one of the kinds in `DECAYS`, float64."""
    mild = -0.607 * torch.rand(*shape, generator=random, dtype=torch.float64)
    chance = torch.rand(*shape, generator=random)
    match kind:
        case "none":
            return torch.zeros(*shape, dtype=torch.float64)
        case "mild":
            return mild
        case "strong":
            return mild - 20
        case "infinite":
            return torch.where(chance < 0.2, -torch.inf, mild)
        case _:
            decays = torch.where(chance < 0.1, -torch.inf, torch.where(chance < 0.4, 40 * mild, mild))
            return torch.where(chance > 0.8, 0, decays)


@st.composite
def _sizes(draw: st.DrawFn, shortest: int, longest: int) -> tuple[int, int | None]:
    """Tokens and chunk size: often a whole number of chunks, or one token more or less."""
    if draw(st.booleans()):
        chunk = draw(st.sampled_from([1, 2, 4, 8, 16]))
        T = min(longest, chunk * draw(st.integers(1, 3)) + draw(st.integers(-1, 1)))
        return max(shortest, T), chunk
    T = max(shortest, draw(st.sampled_from([0, 1]) | st.integers(2, longest)))
    return T, draw(st.none() | st.integers(1, T + 3))


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    decays: Sequence[str] = DECAYS,
    resets: bool | None = None,
    lengths: bool | None = None,
    state: bool | None = None,
    shortest: int = 0,
    longest: int = 40,
) -> Problem:
    """A random problem; the arguments narrow what is drawn (None: both)."""
    (T, chunk_size), dtype = draw(_sizes(shortest, longest)), draw(st.sampled_from(dtypes))
    B, H, N = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([8, 1, 2, 3, 5, 16]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    accumulation = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def lay(x: Tensor, dtype: torch.dtype = dtype) -> Tensor:
        return lay_out(x.to(dtype), draw(st.sampled_from(LAYOUTS)))

    r, k, v = (lay(normal(B, T, H, N)) for _ in range(3))
    kappa, a = lay(F.normalize(normal(B, T, H, N), dim=-1)), lay(normal(B, T, H, N).sigmoid())
    log_w = lay(make_decays(draw(st.sampled_from(decays)), (B, T, H, N), random), accumulation)
    S = lay(normal(B, H, N, N), accumulation) if (draw(st.booleans()) if state is None else state) else None
    used = draw(st.sampled_from([{"o", "S"}, {"o"}, {"S"}]))
    do = lay(normal(B, T, H, N)) if "o" in used else None
    dS = lay(normal(B, H, N, N), accumulation) if "S" in used else None
    marks = torch.rand(B, T, generator=random) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    rows = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
    return Problem(
        r, log_w, k, v, kappa, a, S, do, dS,
        resets=marks if (draw(st.booleans()) if resets is None else resets) else None,
        lengths=torch.tensor(rows) if (draw(st.booleans()) if lengths is None else lengths) else None,
        chunk_size=chunk_size,
    )  # fmt: skip


def random_problem(
    B: int, T: int, H: int, N: int, decays: str = "mild", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Problem:
    """A problem with a state and both gradients, without resets and lengths."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    r, k, v, kappa, a, do = (normal(B, T, H, N) for _ in range(6))
    log_w, S, dS = make_decays(decays, (B, T, H, N), random), normal(B, H, N, N), normal(B, H, N, N)
    accumulation = torch.promote_types(dtype, torch.float32)
    narrow = (x.to(dtype) for x in (r, k, v, F.normalize(kappa, dim=-1), a.sigmoid(), do))
    wide = (x.to(accumulation) for x in (log_w, S, dS))
    (r, k, v, kappa, a, do), (log_w, S, dS) = narrow, wide
    return Problem(r, log_w, k, v, kappa, a, S, do, dS, None, None, None)


def scale(problem: Problem, name: str, reference: Tensor) -> float:
    """The size that a result's errors are relative to: its own, or a gradient's source where nothing is left."""
    size = float(reference.norm())
    if name in ("o", "S_out"):
        return size
    sources = [float(x.norm()) for x in (problem.do, problem.dS) if x is not None]
    return max(size, *sources)


def check_error_law(problem: Problem, impl: str) -> None:
    """Assert `err(ours) <= 1.5 err(recurrent in the same dtype) + digits`, in L2, against the float64 recurrence."""
    reference, ours = run(problem.double(), "recurrent"), run(problem, impl)
    baseline = reference if problem.r.dtype == torch.float64 else run(problem, "recurrent")
    for name, exact in reference.items():
        error, allowed = (float((x[name].double() - exact).norm()) for x in (ours, baseline))
        tiny = DIGITS[problem.accumulation] * scale(problem, name, exact)
        assert error <= 1.5 * allowed + tiny, f"{name}: error {error:.2e}, baseline {allowed:.2e}, tiny {tiny:.2e}"


def check_same(problem: Problem, ours: Tensors, theirs: Tensors) -> None:
    """Assert that two ways of solving a problem differ by rounding only."""
    digits = DIGITS[problem.accumulation]
    for name, expected in theirs.items():
        expected, found = expected.double(), ours[name].double()
        difference = float((found - expected).norm())
        narrow = torch.finfo(problem.r.dtype).eps if problem.r.dtype != problem.accumulation else 0
        tiny = (2 * digits + narrow) * scale(problem, name, expected)
        assert difference <= tiny, f"{name}: difference {difference:.2e}, allowed {tiny:.2e}"
