"""The error law: how far from the float64 recurrence an implementation may be.

    err(ours) <= 1.5 err(baseline) + tiny

for every result and every gradient, in the L2 norm and in the largest element. The baseline is the quadratic form in
the same dtype, with gradients by autograd; since it happens to be exact on many small problems, there is `tiny`.

`tiny = FACTOR u sqrt(n) E`, where E bounds the effect of unit rounding errors (see `rounding`), u is the unit roundoff
of the sums, and n is the length of the longest one: errors of sums grow like its root (Higham and Mary, "A new
approach to probabilistic rounding error analysis", 2019). The largest error in thousands of random problems was
2.6 u sqrt(n) E. A result in a narrow dtype is rounded once more, at the end.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from zoo.kernels.power import state_size

from .problems import Problem, Tensors, attend, run
from .rounding import UNBOUNDED, error_bounds

FACTOR = 4.0
# Underflow: products of numbers below this lose digits, and a denominator below it has an inverse near overflow.
VANISHING = {torch.float32: 2.0**-100, torch.float64: 2.0**-900}


def vanishes(problem: Problem) -> bool:
    """Whether some denominator is so near to zero, without being zero, that underflow decides what comes of it."""
    if not problem.normalize:
        return False
    ones = torch.ones_like(problem.v[..., :1])
    z = None if problem.z is None else problem.z[..., None]
    sums = replace(problem, v=ones, S=z, normalize=False).double()
    denominator = attend(sums, "recurrent")[0].abs()
    return bool(((denominator > 0) & (denominator < VANISHING[problem.accumulation])).any())


def tolerances(problem: Problem, chunk: int, reference: Tensors) -> Tensors:
    """The `tiny` of each element of each tensor; `chunk` as in `error_bounds`."""
    terms = state_size(problem.q.shape[-1], problem.p, offset=problem.offset is not None) + problem.q.shape[1]
    tiny = FACTOR * torch.finfo(problem.accumulation).eps / 2 * terms**0.5
    allowed = {}
    for name, bound in error_bounds(problem, chunk, tiny).items():
        if name not in reference:
            continue
        stored = torch.finfo(problem.q.dtype if name in ("o", "dq", "dk", "dv") else problem.accumulation)
        last = stored.eps * (reference[name].double().abs() / 2 + stored.tiny)
        allowed[name] = tiny * bound + last + VANISHING[problem.accumulation]
    return allowed


def norms(x: Tensor) -> tuple[float, float]:
    """L2 norm and largest element."""
    return (float(x.norm()), float(x.abs().max())) if x.numel() else (0.0, 0.0)


def check_error_law(problem: Problem, impl: str) -> None:
    """Assert the error law for every result and gradient of a problem."""
    T = max(1, problem.q.shape[1])
    chunk = {"recurrent": 0, "quadratic": T}.get(impl, problem.chunk_size or T)
    if problem.q.dtype == torch.float64:
        chunk = 0  # the reference is a state form in the same precision
    reference, ours = run(problem.double(), "recurrent"), run(problem, impl)
    # The baseline has to do without itself, but where it is defined by narrow weights.
    alone = impl == "quadratic" and problem.q.dtype == problem.accumulation
    baseline = reference if alone else run(problem, "quadratic")
    _check_errors(impl, problem, chunk, reference, ours, baseline)


def check_steps(problem: Problem, ours: Tensors) -> None:
    """Assert the error law for what decoding gives: a token meets itself directly, and the others through a state."""
    exact = run(problem.double(), "recurrent")
    reference = {name: exact[name] for name in ours}
    _check_errors("step", problem, 1, reference, ours, run(problem, "quadratic"))


def _check_errors(
    what: str, problem: Problem, chunk: int, reference: Tensors, ours: Tensors, baseline: Tensors
) -> None:
    # Where a sum of monomials cancels to nothing, as it does for q nearly orthogonal to k, float64 is uncertain too.
    uncertainty = tolerances(problem.double(), 0, reference)
    for name, tiny in tolerances(problem, chunk, reference).items():
        tiny = tiny + uncertainty[name]
        claimed = (tiny < UNBOUNDED) & (reference[name].abs() < torch.finfo(ours[name].dtype).max)
        error, baseline_error = ((x[name].double() - reference[name])[claimed] for x in (ours, baseline))
        if what == "quadratic" and not baseline_error.isfinite().all():
            continue  # weights beyond float16's range
        _check_norms(f"{what}, {name}", error, baseline_error, norms(tiny[claimed]))


def check_error_law_to_last_digits(problem: Problem, impl: str) -> None:
    """Assert the error law with `tiny` no more than float32's last digits, for well-conditioned problems."""
    reference = run(problem.double(), "recurrent")
    ours, baseline = run(problem, impl), run(problem, "quadratic")
    for name, exact in reference.items():
        errors = [x[name].double() - exact for x in (ours, baseline)]
        # The contract sums the gates' gradient over all later tokens, which costs a digit.
        digits = 3e-5 if name == "dlog_g" else 3e-6
        l2, largest = norms(exact)
        _check_norms(f"{impl}, {name}", *errors, (digits * l2, digits * largest))


def _check_norms(what: str, error: Tensor, baseline_error: Tensor, tiny: tuple[float, float]) -> None:
    for norm, ours, baseline, allowed in zip(("L2", "max"), norms(error), norms(baseline_error), tiny, strict=True):
        # Where the baseline overflows, ours still has to be finite.
        limit = 1.5 * baseline + allowed if math.isfinite(baseline) else torch.finfo(torch.float64).max
        assert ours <= limit, f"{what}, {norm}: error {ours:.2e}, baseline {baseline:.2e}, tiny {allowed:.2e}"


def check_same(problem: Problem, ours: Tensors, theirs: Tensors) -> None:
    """Assert that two ways of solving a problem differ by rounding only, as two state forms may."""
    allowed = tolerances(problem, 0, theirs)
    for name in theirs:
        bounded = allowed[name] < UNBOUNDED
        difference = (ours[name].double() - theirs[name].double())[bounded]
        for norm, size, tiny in zip(("L2", "max"), norms(difference), norms(allowed[name][bounded]), strict=True):
            assert size <= 2 * tiny, f"{name}, {norm}: difference {size:.2e}, allowed {2 * tiny:.2e}"
