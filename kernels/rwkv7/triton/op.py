"""The Triton implementation behind the op: widths are filled up to those of the kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.delta.triton.scan import room
from zoo.kernels.launch import unseen
from zoo.kernels.rwkv7.call import Incoming, Mixed, MixedGradients, Options, Saved, Tokens, nothing_kept
from zoo.kernels.rwkv7.triton import passes
from zoo.kernels.rwkv7.triton.plan import make_plan

__all__ = ["fake_forward", "triton_backward", "triton_forward"]


def fake_forward(tokens: Tokens, options: Options) -> Mixed:
    """What `triton_forward` gives, without numbers."""
    r, v = tokens.r, tokens.v
    (B, _, H, N), plan = r.shape, make_plan(r, options)
    o, S = v.new_empty(v.shape), r.new_empty(B, H, N, N, dtype=torch.float32)
    if not options.save:
        return Mixed(o, S, S.new_empty(0), *nothing_kept(r))
    return Mixed(o, S, room(plan, r, plan.slots, plan.K, plan.K), *passes.room_to_keep(plan, r))


def _fill(x: Tensor, width: int, *, square: bool = False) -> Tensor:
    """With its last dimension, or if square its last two, as wide as the kernels take it: zeros change nothing."""
    missing = width - x.shape[-1]
    return F.pad(x, (0, missing, 0, missing) if square else (0, missing)) if missing else x.contiguous()


def _filled(tokens: Tokens, width: int) -> Tokens:
    filled = Tokens(*(_fill(x, width) for x in tokens))
    return filled._replace(log_w=filled.log_w.float())


def triton_forward(tokens: Tokens, S: Tensor | None, options: Options) -> Mixed:
    """See `zoo.kernels.rwkv7.op.mix`."""
    N, width = tokens.r.shape[-1], make_plan(tokens.r, options).K
    with unseen(tokens.r.device):
        found = passes.forward(_filled(tokens, width), None if S is None else _fill(S, width, square=True), options)
    found = found._replace(o=found.o[..., :N].contiguous(), S=found.S[..., :N, :N].contiguous())
    return found if options.save else Mixed(found.o, found.S, found.S.new_empty(0), *nothing_kept(tokens.r))


def triton_backward(incoming: Incoming, tokens: Tokens, saved: Saved, options: Options) -> MixedGradients:
    """Gradients of tokens and state, from what `triton_forward` kept."""
    N, width = tokens.r.shape[-1], make_plan(tokens.r, options).K
    do, dS, S = incoming.do, incoming.dS, saved.S
    incoming = Incoming(_fill(do, width), None if dS is None else _fill(dS, width, square=True))
    saved = saved._replace(S=None if S is None else _fill(S, width, square=True))
    with unseen(tokens.r.device):
        found = passes.backward(incoming, _filled(tokens, width), saved, options)
    by_token = [x[..., :N].contiguous() for x in found[:-1]]
    return MixedGradients._make((*by_token, found.S if S is None else found.S[..., :N, :N].contiguous()))
