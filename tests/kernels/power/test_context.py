"""Power attention in halves, for sequences over several processes: the shares of one process, without any other."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zoo.kernels.errors import InputError
from zoo.kernels.power import PowerState, chunked, context, init_power_state, power_attention
from zoo.kernels.power.call import Gradients, Incoming, Inputs, Options, Outputs, Saved, or_empty
from zoo.kernels.sequence import SequenceGroup

from ..test_opcheck import Calls
from .error_law import check_same, vanishes
from .problems import Problem, Tensors, problems, run


def run_in_halves(problem: Problem, shares: int, *, use_triton: bool) -> Tensors:
    """`run` without a state, the sequence cut into shares whose states are added up one by one."""
    options = Options(
        problem.p, problem.scale, problem.normalize, use_triton=use_triton, chunk_size=problem.chunk_size or 0,
        save_states=True, save_output=problem.normalize,
    )  # fmt: skip
    T = problem.q.shape[1] // shares
    parts = [problem.tokens(i * T, (i + 1) * T) for i in range(shares)]
    calls = [Inputs(part.q, part.k, part.v, part.log_g, offset=part.offset) for part in parts]
    sums = [context.Sums(*context._sums(*call, *options)) for call in calls]
    calls = [call._replace(S=S, z=z) for call, (S, z) in zip(calls, pass_on(calls, sums), strict=True)]
    outputs = [Outputs(*context._outputs(*c, s.chunks, *options)) for c, s in zip(calls, sums, strict=True)]
    saved = [each.saved(options) for each in outputs]
    gradient_sums = [
        context.Sums(*context._gradient_sums(part.do, *call._replace(S=None, z=None), *kept, *options))
        for part, call, kept in zip(parts, calls, saved, strict=True)
    ]
    afters = pass_on(calls[::-1], gradient_sums[::-1])[::-1]
    gradients = [
        Gradients(*context._gradients(part.do, *after, *call, *kept, added.chunks, *options))
        for part, after, call, kept, added in zip(parts, afters, calls, saved, gradient_sums, strict=True)
    ]
    found = {"o": torch.cat([each.o for each in outputs], 1)}
    for name in ("q", "k", "v", "log_g"):
        found[f"d{name}"] = torch.cat([getattr(gradient, name) for gradient in gradients], 1)
    found["doffset"] = torch.stack([gradient.offset for gradient in gradients]).sum(0)
    return found


def pass_on(calls: list[Inputs], sums: list[context.Sums]) -> list[PowerState]:
    """The state before each share, or its gradient where both are turned round."""
    befores, before = [], PowerState(torch.zeros_like(sums[0].S), torch.zeros_like(sums[0].z))
    for call, added in zip(calls, sums, strict=True):
        befores.append(before)
        left = added.S.new_ones(1, 1)
        if call.log_g is not None:
            left = call.log_g.sum(1).exp().repeat_interleave(call.heads.state // call.heads.value, 1)
        before = PowerState(left[..., None, None] * before.S + added.S, left[..., None] * before.z + added.z)
    return befores


def check_halves(problem: Problem, shares: int, impl: str) -> None:
    """Assert that shares of a problem, which has no state, joined are one call."""
    alone = {name: x for name, x in run(problem, impl).items() if name not in ("S_out", "z_out")}
    check_same(problem, run_in_halves(problem, shares, use_triton=impl == "triton"), alone)


@given(problems(state=False, shortest=3), st.integers(1, 3))
def test_halves_are_one_call(problem: Problem, shares: int) -> None:
    problem = problem.tokens(0, problem.q.shape[1] // shares * shares)
    do = torch.randn(*problem.q.shape[:2], problem.heads.output, problem.v.shape[-1]).to(problem.q.dtype)
    problem = replace(problem, do=do, dS=None, dz=None)
    assume(not vanishes(problem))
    check_halves(problem, shares, "chunked")


@pytest.mark.parametrize("p", [1, 2, 3])
def test_no_product_is_made_twice(p: int) -> None:
    T, K = 96, 8
    q, k, v = (torch.randn(2, T, 2, K) for _ in range(3))
    do, state = torch.randn_like(v), init_power_state(2, 2, K, K, p)
    options = Options(p, K**-0.5, p == 2, chunk_size=32)
    with FlopCounterMode(display=False) as halves:
        plain = Inputs(q, k, v)
        sums, _, _ = chunked.chunk_sums(plain, options)
        o, denominator, *_ = chunked.forward(plain._replace(S=state.S, z=state.z), options, sums)
        saved = Saved(o, denominator, *(or_empty(None, o) for _ in range(2)))
        sums, _, _ = chunked.chunk_gradient_sums(do, plain, saved, options)
        chunked.backward(Incoming(do, *state), plain._replace(S=state.S, z=state.z), saved, options, sums)
    with FlopCounterMode(display=False) as whole:
        inputs = Inputs(q, k, v, S=state.S, z=state.z)
        outputs = chunked.forward(inputs, options._replace(return_state=True))
        chunked.backward(Incoming(do, *state), inputs, outputs.saved(options), options)
    assert 0 < halves.get_total_flops() <= 1.05 * whole.get_total_flops()


@pytest.fixture
def alone() -> SequenceGroup:
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield SequenceGroup.of(dist.group.WORLD, "cpu")
    dist.destroy_process_group()


def attend_alone(group: SequenceGroup, dtype: torch.dtype = torch.float32, p: int = 2, offset: bool = False) -> Tensor:
    q, k, v = (torch.randn(2, 5, n, 4).to(dtype).requires_grad_() for n in (4, 2, 2))
    offsets = torch.ones(4, requires_grad=True) if offset else 0.0
    log_g = (-torch.rand(2, 5, 2)).requires_grad_()
    return power_attention(q, k, v, log_g, p=p, offset=offsets, chunk_size=2, group=group).o


@pytest.mark.parametrize(
    ("dtype", "p", "offset"), [("float32", 2, False), ("bfloat16", 2, False), ("float32", 3, True)]
)
def test_opcheck_of_halves(alone: SequenceGroup, dtype: str, p: int, offset: bool) -> None:
    with Calls() as calls:
        attend_alone(alone, getattr(torch, dtype), p, offset).sum().backward()
    names = ["sums", "outputs", "gradient_sums", "share_gradients"]
    assert [op.name() for op, _ in calls.found] == [f"zoo::power_attention_{name}" for name in names]
    for op, arguments in calls.found:
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_the_flops_of_halves_are_those_of_a_call_between_states(alone: SequenceGroup) -> None:
    with FlopCounterMode(display=False) as halves:
        attend_alone(alone).sum().backward()
    q, k, v = (torch.randn(2, 5, n, 4, requires_grad=True) for n in (4, 2, 2))
    state = PowerState(*(x.requires_grad_() for x in init_power_state(2, 2, 4, 4, 2)))
    with FlopCounterMode(display=False) as whole:
        o, after = power_attention(q, k, v, chunk_size=2, state=state, return_state=True)
        torch.autograd.backward(o.sum() + after.S.sum() + after.z.sum())
    ours = sum(count for op, count in halves.get_flop_counts()["Global"].items() if "power" in str(op))
    assert 0 < ours <= 1.05 * whole.get_total_flops()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cu_seqlens", torch.tensor([0, 5], dtype=torch.int32)),
        ("impl", "quadratic"),
    ],
)
def test_what_a_share_does_not_take_is_refused(alone: SequenceGroup, option: str, value: object) -> None:
    q, k, v = (torch.randn(1, 5, 2, 4) for _ in range(3))
    with pytest.raises(InputError, match=f"^{option}: expected"):
        power_attention(q, k, v, group=alone, **{option: value})


def test_lengths_beside_an_offset_are_refused_of_a_share(alone: SequenceGroup) -> None:
    q, k, v = (torch.randn(1, 5, 2, 4) for _ in range(3))
    with pytest.raises(InputError, match=r"^lengths: expected None beside an offset where several processes"):
        power_attention(q, k, v, offset=1.0, lengths=torch.tensor([3]), group=alone)
