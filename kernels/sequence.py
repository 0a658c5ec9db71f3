"""One sequence over several processes: what those that each have a share of its tokens send one another.

Shares are of one length and follow one another as the processes do. All processes call the same functions in the same
order, and everything here has a gradient, which takes the ways back. What a process gets depends on its rank by
values alone, so that the compiler makes one graph for all of them.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.cache_key import key_compiled_code_by_sources
from zoo.kernels.errors import InputError
from zoo.kernels.precision import without_autocast

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "SequenceGroup",
    "at_the_end",
    "at_the_start",
    "gather",
    "gather_tokens",
    "mapped_before",
    "states_after",
    "states_before",
    "tail",
]


key_compiled_code_by_sources()


class SequenceGroup(NamedTuple):
    """The processes that have one sequence together."""

    name: str
    """Of the process group."""
    size: int
    """P."""
    rank: Tensor
    """0-d int64, this process's place: a tensor, so that all processes have one graph."""

    @classmethod
    def of(cls, group: "ProcessGroup", device: torch.device | str) -> Self:
        """Return the processes of a group, as one of them sees them that computes on `device`."""
        import torch.distributed._functional_collectives

        return cls(group.group_name, group.size(), torch.tensor(group.rank(), device=device))


def gather(x: Tensor, group: SequenceGroup) -> Tensor:
    """Return every process's x, all of one shape, `[P, *x.shape]`."""
    found = torch.ops._c10d_functional.all_gather_into_tensor(x.contiguous()[None], group.size, group.name)
    return _wait(found)


def gather_tokens(x: Tensor, group: SequenceGroup) -> Tensor:
    """Return the whole sequence `[B, P T, ...]` of x `[B, T, ...]`."""
    return gather(x, group).movedim(0, 1).flatten(1, 2)


def tail(x: Tensor, tokens: int, group: SequenceGroup) -> Tensor:
    """Return the last so many tokens of x `[B, T, ...]` of the share before, zeros in the first share.

    Raises:
        InputError: a share has fewer tokens.
    """
    if x.shape[1] < tokens:
        raise InputError(f"x: expected shares of at least {tokens} tokens, was {x.shape[1]}")
    if tokens == 0:
        return x[:, :0]
    return torch.ops.zoo.pass_on(x[:, x.shape[1] - tokens :].contiguous(), group.name, True)


def at_the_start(x: Tensor, group: SequenceGroup) -> Tensor:
    """Return x, what stands before the whole sequence, in the first share, and zeros in the others."""
    return torch.where(group.rank == 0, x, 0)


def at_the_end(x: Tensor, group: SequenceGroup, ends: Tensor | None = None) -> Tensor:
    """Return each row of x `[B, ...]` as the process has it in whose share the row ends, the same for all processes.

    Each process puts together one P-th for all of them, as in `states_before`: it receives `2 (P - 1) / P` times x.

    Args:
        x: of every process, all of one shape.
        group: who has the sequence.
        ends: `[B]` bool: true on one process for each row; None: in the last share for all.
    """
    if x.numel() == 0:
        return x
    ends = group.rank == group.size - 1 if ends is None else ends.view(-1, *[1] * (x.dim() - 1))
    own = torch.where(ends, x, 0).flatten()
    slices = F.pad(own, (0, -len(own) % group.size)).view(group.size, -1)
    mine = _all_to_all(slices, group).sum(0)  # exact: zeros but for one process
    return gather(mine, group).flatten()[: x.numel()].view(x.shape)


def states_before(states: Tensor, log_decays: Tensor | None, group: SequenceGroup) -> Tensor:
    """Return the state before this share `[B, H, n]`, from what each share adds to one that was empty before it.

    Each process puts together one P-th of the state for all of them: it receives `2 n (P - 1) / P` numbers a head in
    place of the `(P - 1) n` of all states.

    Args:
        states: `[B, H, n]`, at this share's end.
        log_decays: `[B, H]`, the logarithm of what is left at this share's end of a state before it; `-inf`: nothing;
            None: all of it, in every share.
        group: who has the sequence.
    """
    return _exchange(states, _weights(log_decays, states, group), group)


def states_after(gradients: Tensor, log_decays: Tensor | None, group: SequenceGroup) -> Tensor:
    """Return the gradient of the state after this share `[B, H, n]`: `states_before` from the other end.

    gradients: of the state before this share, as far as its own tokens see it.
    """
    return _exchange(gradients, _weights(log_decays, gradients, group).transpose(0, 1), group)


def mapped_before(states: Tensor, maps: Tensor, group: SequenceGroup) -> Tensor:
    """Return the state before this share `[B, H, D, V]`, where a share maps a state S before it to `maps S + states`.

    Every process gets all states and maps, and joins them in pairs of neighbours, pairs of pairs and so on: in few
    products, for states that are small.

    Args:
        states: `[B, H, D, V]`, at this share's end.
        maps: `[B, H, D, D]`.
        group: who has the sequence.
    """
    before = torch.zeros_like(states)[None]
    states, maps = gather(states, group)[:-1], gather(maps, group)[:-1]
    span = 1
    with without_autocast(states):
        while span < group.size - 1:  # shares that each state and map is of by now
            states = torch.cat((states[:span], maps[span:] @ states[:-span] + states[span:]))
            maps = torch.cat((maps[:span], maps[span:] @ maps[:-span]))
            span *= 2
    return torch.cat((before, states)).index_select(0, group.rank[None])[0]


def _weights(log_decays: Tensor | None, states: Tensor, group: SequenceGroup) -> Tensor:
    """What is left before each share of what each one before it adds, `[to, from, B, H]`."""
    share = torch.arange(group.size, device=states.device)
    to, source = share[:, None], share[None]
    earlier = source < to
    if log_decays is None:
        return earlier[..., None, None].to(states.dtype).expand(-1, -1, *states.shape[:2])
    decays = gather(log_decays.double(), group)
    forgets = decays == -torch.inf
    # Sums over the shares between, never differences of sums from the start.
    total = _sums_between(decays.masked_fill(forgets, 0))
    forgotten = _sums_between(forgets.double()) > 0
    return total.exp().masked_fill(forgotten | ~earlier[..., None, None], 0).to(states.dtype)


def _sums_between(x: Tensor) -> Tensor:
    """Return the sums of x `[P, ...]` over shares after one and before another, `[to, from, ...]`."""
    share = torch.arange(len(x), device=x.device)
    after = (share[:, None] > share).double().view(len(x), len(x), *[1] * (x.ndim - 1))
    sums = (x[:, None] * after).cumsum(0)
    return torch.cat((torch.zeros_like(sums[:1]), sums[:-1]))


def _exchange(states: Tensor, weights: Tensor, group: SequenceGroup) -> Tensor:
    """Return `sum_f weights[to, f] states[f]` `[B, H, n]`, each process its own."""
    n = states.shape[-1]
    slices = F.pad(states, (0, -n % group.size)).unflatten(-1, (group.size, -1))
    mine = _all_to_all(slices.permute(2, 0, 1, 3), group)  # of every process, [P, B, H, n / P]
    with without_autocast(states):
        combined = torch.einsum("tfbh,fbhn->tbhn", weights, mine)
    back = _all_to_all(combined, group)
    return back.permute(1, 2, 0, 3).flatten(2)[..., :n]


def _all_to_all(x: Tensor, group: SequenceGroup) -> Tensor:
    """Send x[i] to process i, and return what each sends here, `[P, ...]` as x."""
    one_each = [1] * group.size
    return _wait(torch.ops._c10d_functional.all_to_all_single(x.contiguous(), one_each, one_each, group.name))


def _wait(x: Tensor) -> Tensor:
    waited: Tensor = torch.ops._c10d_functional.wait_tensor(x)
    return waited


@torch.library.custom_op("zoo::pass_on", mutates_args=())
def _pass_on(x: Tensor, group: str, to_next: bool) -> Tensor:
    """Give x to the next process, or to the one before, and return what comes from the other side, zeros at the end.

    An op of its own: who sends to whom are numbers that differ between processes, and would differ in their graphs.
    """
    from torch.distributed.distributed_c10d import GroupName, _resolve_process_group  # type: ignore[attr-defined]

    processes = _resolve_process_group(GroupName(group))
    rank, size = processes.rank(), processes.size()
    step = 1 if to_next else -1
    sent, received = ([len(x) * (place == other) for place in range(size)] for other in (rank + step, rank - step))
    found = torch.zeros_like(x, memory_format=torch.contiguous_format)
    torch.distributed.all_to_all_single(
        found[: sum(received)], x[: sum(sent)].contiguous(), received, sent, group=processes
    )
    return found


@_pass_on.register_fake
def _(x: Tensor, group: str, to_next: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.group, ctx.to_next = inputs


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.zoo.pass_on(gradient, ctx.group, not ctx.to_next), None, None


_pass_on.register_autograd(_differentiate, setup_context=_save)
