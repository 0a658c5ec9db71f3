"""Blocks of queries against the keys that they can reach, as an op that the compiler leaves alone.

How far a block reaches depends on the documents, which are known only when it runs; so the loop is not for tracing.
PyTorch's attention for CPUs does the work of each block, and gives what its backward pass needs.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula

from zoo.kernels.cache_key import key_compiled_code_by_sources
from zoo.kernels.interval_attention.mask import attend_by_mask
from zoo.kernels.precision import accumulation_dtype
from zoo.kernels.transforms import differentiable_gradients, differentiates_again

__all__ = ["attend_in_blocks"]

key_compiled_code_by_sources()

BLOCK = 128
"""Queries that meet their keys at once: with fewer, calls cost more than their work; with more, pairs in vain do."""

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_differentiate = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """`interval_attention` on a CPU, in any dtype."""
    return attend(q, k, v, first, last)[0]


class _Block(NamedTuple):
    queries: slice
    keys: slice  # all that any of the queries sees
    bias: Tensor  # [B or 1, 1, queries, keys], 0 for a key that a query sees, else -inf


def _blocks(first: Tensor, last: Tensor, dtype: torch.dtype) -> Iterator[_Block]:
    begins = torch.arange(0, first.shape[1], BLOCK)
    ends = (begins + BLOCK).clamp(max=first.shape[1])
    # Neither bound ever falls, so a block's reach is from its first query's first key to its last query's last.
    lowest, highest = first[:, begins].amin(0), last[:, ends - 1].amax(0) + 1
    for begin, end, low, high in torch.stack((begins, ends, lowest, highest), 1).tolist():
        key = torch.arange(low, high)
        seen = (key >= first[:, begin:end, None]) & (key <= last[:, begin:end, None])
        bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
        yield _Block(slice(begin, end), slice(low, high), bias[:, None])


def _heads_first(x: Tensor, tokens: slice, heads: int) -> Tensor:
    """Some tokens of `x [B, T, Hx, K]` as `[B, heads, tokens, K]`, each head for the queries that share it."""
    return x[:, tokens].repeat_interleave(heads // x.shape[2], 2).transpose(1, 2)


@torch.library.custom_op("zoo::interval_attention", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """o `[B, T, Hq, K]`, and `[B, Hq, T]` the logarithms of its denominators, in the accumulation dtype."""
    heads = q.shape[2]
    o, log_sums = torch.empty_like(q, memory_format=torch.contiguous_format), _log_sums(q)
    for block in _blocks(first, last, q.dtype):
        tokens = block.queries
        o_block, log_sums[:, :, tokens] = _attend(
            q[:, tokens].transpose(1, 2), *(_heads_first(x, block.keys, heads) for x in (k, v)), attn_mask=block.bias
        )
        o[:, tokens] = o_block.transpose(1, 2)
    return o, log_sums


def _log_sums(q: Tensor) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=accumulation_dtype(q.dtype))


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q, memory_format=torch.contiguous_format), _log_sums(q)


@torch.library.custom_op("zoo::interval_attention_backward", mutates_args=())
def attend_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, o: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv, each as what it is the gradient of."""
    heads, dtype = q.shape[2], accumulation_dtype(q.dtype)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros(x.shape, dtype=dtype) for x in (k, v))
    for block in _blocks(first, last, q.dtype):
        tokens = block.queries
        do_block, q_block, o_block = (x[:, tokens].transpose(1, 2) for x in (do, q, o))
        k_block, v_block = (_heads_first(x, block.keys, heads) for x in (k, v))
        dq_block, dk_block, dv_block = _differentiate(
            do_block, q_block, k_block, v_block, o_block, log_sums[:, :, tokens], 0.0, False, attn_mask=block.bias
        )
        dq[:, tokens] = dq_block.transpose(1, 2)
        for total, part in ((dk, dk_block), (dv, dv_block)):
            total[:, block.keys] += part.transpose(1, 2).unflatten(2, (total.shape[2], -1)).sum(3, dtype=dtype)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


@attend_backward.register_fake
def _(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, o: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if do is None:
        return (None,) * 5
    if differentiates_again():
        *tensors, first, last, _, _ = ctx.saved_tensors
        return *differentiable_gradients(partial(_plain, first, last), tensors, (do,)), None, None
    return *attend_backward(do, *ctx.saved_tensors), None, None


def _plain(first: Tensor, last: Tensor, tensors: list[Tensor | None]) -> tuple[Tensor]:
    """o by all pairs, whose gradient torch differentiates again, unlike that of its faster kernels."""
    q, k, v = tensors
    assert q is not None
    assert k is not None
    assert v is not None
    with sdpa_kernel(SDPBackend.MATH):
        return (attend_by_mask(q, k, v, first, last),)


attend.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.zoo.interval_attention)
def _(q: Any, k: Any, *_: Any, **__: Any) -> int:
    """Of all pairs, as PyTorch counts attention whatever its mask: which ones are seen, shapes do not say."""
    return int(4 * q[0] * q[1] * q[2] * q[3] * k[1])


@register_flop_formula(torch.ops.zoo.interval_attention_backward)
def _(do: Any, q: Any, k: Any, *_: Any, **__: Any) -> int:
    return int(8 * q[0] * q[1] * q[2] * q[3] * k[1])
