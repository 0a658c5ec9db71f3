"""The forward and the backward pass: what is launched, one after the other, on tensors as kernels read them."""

import torch
from torch import Tensor

from zoo.kernels.delta.triton.plan import Plan
from zoo.kernels.delta.triton.scan import Given, History, Maps, Way, room
from zoo.kernels.launch import launcher
from zoo.kernels.rwkv7.call import Incoming, Kept, Mixed, MixedGradients, Options, Saved, Tokens
from zoo.kernels.rwkv7.triton.decays import decay_sums_kernel
from zoo.kernels.rwkv7.triton.incoming import incoming_kernel
from zoo.kernels.rwkv7.triton.key_gradient import key_gradient_kernel
from zoo.kernels.rwkv7.triton.maps import maps_kernel
from zoo.kernels.rwkv7.triton.output import output_kernel
from zoo.kernels.rwkv7.triton.plan import first_level, make_plan
from zoo.kernels.rwkv7.triton.scores import scores_kernel
from zoo.kernels.rwkv7.triton.value_gradient import value_gradient_kernel

__all__ = ["backward", "forward", "room_to_keep"]

# exp(-128) is zero in float32, so this stands for -inf; sums of it lose as few digits as may be.
LOWEST_DECAY = -128.0

HALVED_BLOCK = 16  # channels at a time where chunks are halved down to single tokens, which takes more registers


def room_to_keep(plan: Plan, like: Tensor) -> Kept:
    """Memory for what the backward pass needs of the forward pass, but for states."""
    square = (plan.C, plan.C)
    of_keys = (plan.slots, plan.C, plan.K)
    return Kept(
        removed=like.new_empty(plan.batch, plan.tokens, plan.heads.value, plan.K, dtype=plan.dtype),
        inverses=room(plan, like, plan.slots, *square, dtype=plan.inverse_dtype),
        scores=room(plan, like, plan.slots, 3, *square),
        removes=room(plan, like, *of_keys),
        keeps=room(plan, like, *of_keys),
        receives=room(plan, like, *of_keys),
        wholes=room(plan, like, plan.slots, plan.K, dtype=torch.float32),
    )


def _sum_decays(plan: Plan, first: int, log_w: Tensor) -> Tensor:
    """Log decays summed since each chunk's start, of base 2 `[B, T, H, K]`."""
    sums = torch.empty_like(log_w, dtype=torch.float64 if plan.exact else torch.float32)
    launcher(decay_sums_kernel)[(plan.slots, plan.heads.value)](
        log_w, sums, plan.tokens, plan.heads.value, C=plan.C, K=plan.K, LOWEST=LOWEST_DECAY, BOUNDED=first > 0,
        num_warps=4,
    )  # fmt: skip
    return sums


def forward(tokens: Tokens, S: Tensor | None, options: Options) -> Mixed:
    """What the options ask for; widths are the kernels', and tensors contiguous."""
    plan = make_plan(tokens.r, options)
    sizes = plan.sizes
    r, log_w, k, v, kappa, a = tokens
    first, grid, sized = first_level(plan, options), (plan.slots, plan.heads.value), {"C": plan.C, "K": plan.K}
    kept, additions = room_to_keep(plan, r), room(plan, r, plan.slots, plan.K, plan.K)
    sums, numbers = _sum_decays(plan, first, log_w), (plan.tokens, plan.heads.value)
    block = sizes.key_values if first > 0 else HALVED_BLOCK
    launcher(scores_kernel)[grid](
        r, log_w, k, kappa, a, sums, kept.inverses, kept.scores, *numbers, **sized, BLOCK=min(plan.K, block),
        FIRST=first, LEVELS=plan.levels, LOWEST=LOWEST_DECAY, PRECISION=plan.precision, num_warps=sizes.prepare_warps,
    )  # fmt: skip
    launcher(maps_kernel)[grid](
        r, log_w, k, v, kappa, a, sums, kept.inverses, kept.scores, kept.removes, kept.keeps, kept.receives,
        kept.wholes, additions, *numbers, **sized, BLOCK=min(plan.K, sizes.value_block), FIRST=first,
        LOWEST=LOWEST_DECAY, PRECISION=plan.precision, num_warps=sizes.prepare_warps,
    )  # fmt: skip
    maps, given = Maps(kept.keeps, kept.removes, kept.wholes), Given(additions=additions, initial=S)
    way = Way(plan, maps, given, r, r.new_empty(0, dtype=torch.float32))
    states, final, *_ = way.states(way.starts(), wants_final=True)
    o, block = torch.empty_like(v), min(plan.K, sizes.output_block)
    launcher(output_kernel)[(*grid, plan.K // block)](
        v, kept.inverses, kept.scores, kept.removes, kept.receives, states, o, kept.removed, *numbers,
        **sized, BLOCK=block, WANTS_REMOVED=options.save, PRECISION=plan.precision,
        num_warps=sizes.output_warps,
    )  # fmt: skip
    return Mixed(o, final, states, *kept)


def backward(incoming: Incoming, tokens: Tokens, saved: Saved, options: Options) -> MixedGradients:
    """Gradients of tokens and state, from what `forward` gave and kept."""
    plan = make_plan(tokens.r, options)
    sizes = plan.sizes
    r, log_w, k, v, kappa, a = tokens
    first, grid, sized = first_level(plan, options), (plan.slots, plan.heads.value), {"C": plan.C, "K": plan.K}
    kept, do, numbers = saved.kept, incoming.do, (plan.tokens, plan.heads.value)
    additions, dheld = room(plan, r, plan.slots, plan.K, plan.K), torch.empty_like(kept.removed)
    block = min(plan.K, sizes.output_block)
    launcher(incoming_kernel)[(*grid, plan.K // block)](
        do, kept.inverses, kept.scores, kept.receives, additions, dheld, *numbers,
        **sized, BLOCK=block, PRECISION=plan.precision, num_warps=sizes.incoming_warps,
    )  # fmt: skip
    maps = Maps(kept.removes, kept.keeps, kept.wholes)
    given, nothing = Given(dheld, additions, initial=incoming.dS), r.new_empty(0, dtype=torch.float32)
    way = Way(plan, maps, given, r, nothing, reverse=True)
    dstates, dS, dheld, alongs = way.states(
        way.starts(), wants_final=saved.S is not None, history=History(saved.states, saved.S), wants_read=True
    )
    sums, dv = _sum_decays(plan, first, log_w), torch.empty_like(v)
    dscores = room(plan, r, plan.slots, 4, plan.C, plan.C)
    launcher(value_gradient_kernel)[grid](
        k, log_w, v, sums, do, dheld, kept.removed, kept.scores, dstates, dv, dscores, *numbers, **sized,
        BLOCK=min(plan.K, sizes.value_block), FIRST=first, LOWEST=LOWEST_DECAY, PRECISION=plan.precision,
        num_warps=sizes.incoming_warps,
    )  # fmt: skip
    dr, dlog_w, dk, dkappa, da = (torch.empty_like(x) for x in (r, log_w, k, kappa, a))
    block = min(plan.K, sizes.key_block)
    launcher(key_gradient_kernel)[(*grid, plan.K // block)](
        r, log_w, k, v, kappa, a, sums, kept.removed, do, dheld, dscores, saved.states, dstates, alongs, dr, dlog_w, dk,
        dkappa, da, *numbers, **sized, BLOCK=block, VALUES=min(plan.K, sizes.key_values), PARTS=alongs.shape[2],
        FIRST=first, LEVELS=plan.levels, LOWEST=LOWEST_DECAY, PRECISION=plan.precision, num_warps=sizes.key_warps,
    )  # fmt: skip
    return MixedGradients(dr, dlog_w, dk, dv, dkappa, da, dS)
