"""Run by `torchrun` for `test_sequence.py`: what processes send one another beside what one of them computes alone.

Writes `{what: largest error}` of all processes, and how many bytes a process receives.
"""

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from tests.torchrun import tell
from zoo.budget.traffic import Received
from zoo.kernels.power import init_power_state, power_attention
from zoo.kernels.sequence import SequenceGroup, at_the_end, gather, mapped_before, states_after, states_before, tail

B, H, D, V = 2, 3, 5, 7


def error(one: Tensor, other: Tensor) -> float:
    return float(((one - other).norm() / other.norm().clamp(min=1e-300)).detach())


def one_by_one(states: Tensor, step: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The state before each share, by passing it from share to share."""
    before, found = torch.zeros_like(states[0]), []
    for share in range(len(states)):
        found.append(before)
        before = step(share, before) + states[share]
    return torch.stack(found)


def compare(run: Callable[..., Tensor], alone: Callable[..., Tensor], rank: int, *inputs: Tensor) -> dict[str, float]:
    """Errors of `run` of this process's inputs beside `alone` of all, and of their gradients."""
    whole = [x.clone().requires_grad_() for x in inputs]
    expected = alone(*whole)
    weights = torch.randn_like(expected)
    torch.autograd.backward((expected * weights).sum())
    own = [x[rank].clone().requires_grad_() for x in inputs]
    found = run(*own)
    torch.autograd.backward((found * weights[rank]).sum())
    errors = {"result": error(found, expected[rank])}
    for number, (x, all_of_it) in enumerate(zip(own, whole, strict=True)):
        assert all_of_it.grad is not None
        gradient = torch.zeros_like(x) if x.grad is None else x.grad  # of two processes, no map is needed
        errors[f"gradient {number}"] = error(gradient, all_of_it.grad[rank])
    return errors


def exchanges(group: SequenceGroup) -> dict[str, dict[str, float]]:
    rank, P = int(group.rank), group.size
    states, maps = torch.randn(P, B, H, D, dtype=torch.float64), torch.randn(P, B, H, D, D, dtype=torch.float64)
    decays = -torch.rand(P, B, H, dtype=torch.float64)
    decays[-1, 0, 1] = decays[0, 1] = -torch.inf
    wide, x = torch.randn(P, B, H, D, V, dtype=torch.float64), torch.randn(P, B, 4, V, dtype=torch.float64)

    def decayed(states: Tensor, decays: Tensor) -> Tensor:
        return one_by_one(states, lambda share, before: decays[share].exp()[..., None] * before)

    def backwards(states: Tensor, decays: Tensor) -> Tensor:
        return decayed(states.flip(0), decays.flip(0)).flip(0)

    def mapped(states: Tensor, maps: Tensor) -> Tensor:
        return one_by_one(states, lambda share, before: maps[share] @ before)

    def tails(x: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(x[:1]), x[:-1]))[:, :, 1:]

    def gathered(x: Tensor) -> Tensor:
        return x[None].expand(P, *x.shape)

    ends = torch.arange(B) % P  # the process in whose share each row ends

    def rows(x: Tensor) -> Tensor:
        return x[ends, torch.arange(B)].expand(P, *x.shape[1:])

    narrow = [x[rank].float() for x in (states, decays, wide, maps)]
    with torch.autocast("cpu", torch.bfloat16):
        lowered = states_before(*narrow[:2], group), mapped_before(*narrow[2:], group)
    exact = decayed(states, decays)[rank], mapped(wide, maps)[rank]

    return {
        "under autocast, float32": {
            str(number): 1e-6 * error(ours.double(), theirs)
            for number, (ours, theirs) in enumerate(zip(lowered, exact, strict=True))
        },
        "states before": compare(lambda s, d: states_before(s, d, group), decayed, rank, states, decays),
        "states after": compare(lambda s, d: states_after(s, d, group), backwards, rank, states, decays),
        "states, no decays": compare(
            lambda s: states_before(s, None, group), lambda s: one_by_one(s, lambda _, before: before), rank, states
        ),
        "maps": compare(lambda s, m: mapped_before(s, m, group), mapped, rank, wide, maps),
        "tail": compare(lambda x: tail(x, 3, group), tails, rank, x),
        "rows at their ends": compare(lambda x: at_the_end(x, group, ends == rank), rows, rank, x),
        "at the end": compare(lambda x: at_the_end(x, group), lambda x: gathered(x)[:, -1], rank, x),
        "gather": compare(lambda x: gather(x, group), gathered, rank, x),
    }


def power(group: SequenceGroup) -> dict[str, dict[str, float]]:
    """Several chunks a share, which a mixer's few tokens never are."""
    found, P, rank = {}, group.size, int(group.rank)
    for p, normalize, heads in ((2, True, (4, 2, 2)), (1, False, (2, 2, 4)), (3, False, (2, 1, 1))):
        q, k, v = (torch.randn(2, 9 * P, n, 3, dtype=torch.float64) for n in heads)
        log_g = -torch.rand(2, 9 * P, heads[2], dtype=torch.float64)
        log_g[0, [5, 9 * (P - 1)]] = -torch.inf

        def attend(
            *inputs: Tensor, p: int = p, normalize: bool = normalize, group: SequenceGroup | None = None
        ) -> Tensor:
            return power_attention(*inputs, p=p, normalize=normalize, chunk_size=4, group=group).o

        def alone(*inputs: Tensor, attend: Callable[..., Tensor] = attend) -> Tensor:
            return torch.stack(attend(*(torch.cat([*x], 1) for x in inputs)).chunk(P, 1))

        shares = [torch.stack(x.chunk(P, 1)) for x in (q, k, v, log_g)]
        found[f"power, p={p}"] = compare(
            lambda *inputs, attend=attend: attend(*inputs, group=group), alone, rank, *shares
        )
    return found


def received(group: SequenceGroup) -> dict[str, int]:
    q, k, v = (torch.randn(2, 12, 3, 4).requires_grad_() for _ in range(3))
    counts = {}
    with Received(group.size) as forward:
        o = power_attention(q, k, v, group=group).o
    counts["forward"] = forward.bytes.total()
    with Received(group.size) as backward:
        torch.autograd.backward(o.sum())
    counts["backward"] = backward.bytes.total()
    with Received(group.size) as between:
        power_attention(q, k, v, state=init_power_state(2, 3, 4, 4, 2), return_state=True, group=group)
    counts["with states"] = between.bytes.total()
    return counts


def main(result: str) -> None:
    dist.init_process_group("gloo")
    group = SequenceGroup.of(dist.group.WORLD, "cpu")  # type: ignore[arg-type]
    torch.manual_seed(0)
    found = {"errors": exchanges(group) | power(group), "received": received(group)}
    tell(found, result)


if __name__ == "__main__":
    main(sys.argv[1])
