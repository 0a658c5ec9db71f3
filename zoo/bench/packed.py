"""`zoo bench packed`: softmax attention over rows of several documents, as training has them."""

import inspect
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.bench.subjects import Case, Contestant, Mix, Refusal, import_peer, make_inputs
from zoo.kernels.interval_attention import interval_attention
from zoo.kernels.interval_attention.mask import attend_by_mask

__all__ = ["packed_ops"]


def packed_ops(documents: tuple[int, ...]) -> dict[str, tuple[Contestant, ...]]:
    """Return entrants by how many documents there are in a row, of uneven lengths; all compute the same."""
    return {
        f"{count} documents" if count > 1 else "1 document": (
            Contestant("ours", partial(_intervals, count), inputs=_inputs),
            Contestant("varlen", partial(_varlen, count), inputs=_inputs),
            Contestant("mask", partial(_mask, count), inputs=_inputs),
        )
        for count in documents
    }


def starts_of(documents: int, tokens: int, device: str) -> Tensor:
    """Return where documents start, `[n]` int64 from 0 on: lengths grow by the square root of their number."""
    edges = torch.arange(documents, dtype=torch.float64).div(documents).pow(1.5).mul(tokens).long()
    return edges.unique().to(device)


def _inputs(case: Case, tokens: int, contestant: Contestant) -> list[Tensor | None]:
    """q, k and v `[B, T, H, K]`."""
    return make_inputs(case._replace(gated=False), tokens, contestant)[:3]


def _interval(documents: int, q: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last key that each query sees, `[1, T]` int64 both."""
    starts = starts_of(documents, q.shape[1], str(q.device))
    last = torch.arange(q.shape[1], device=q.device)
    return starts[torch.searchsorted(starts, last, right=True) - 1][None], last[None]


def _intervals(documents: int, _case: Case) -> Mix:
    """Our op, compiled, with the making of its block mask; where documents start comes from outside, as in a model."""
    attend = torch.compile(interval_attention, fullgraph=True)
    return lambda q, k, v: attend(q, k, v, *_interval(documents, q))


def _mask(documents: int, _case: Case) -> Mix:
    """`scaled_dot_product_attention` with a mask of all pairs."""

    return lambda q, k, v: attend_by_mask(q, k, v, *_interval(documents, q))


def _varlen(documents: int, case: Case) -> Mix:
    """`torch.nn.attention.varlen`, which takes rows that are joined."""
    if not case.device.startswith("cuda"):
        raise Refusal("needs a GPU")
    varlen_attn = import_peer("torch.nn.attention.varlen", "varlen_attn", "torch")
    # torch 2.11 has a switch, later versions a window.
    causal = (
        {"is_causal": True} if "is_causal" in inspect.signature(varlen_attn).parameters else {"window_size": (-1, 0)}
    )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, T = q.shape[:2]
        rows = T * torch.arange(B, device=q.device)
        starts = (rows[:, None] + starts_of(documents, T, str(q.device))).flatten()
        edges = F.pad(starts, (0, 1), value=B * T).int()
        longest = int(edges.diff().max())
        o: Tensor = varlen_attn(*(x.flatten(0, 1) for x in (q, k, v)), edges, edges, longest, longest, **causal)
        return o.unflatten(0, (B, T))

    return attend
