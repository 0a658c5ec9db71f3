"""RWKV-7's time mixing by the kernels of flash-linear-attention: the package fla-core, on a GPU.

They compute `S_t = diag(w_t) S_{t-1} + y_t (x_t^T S_{t-1}) + k_t v_t^T` in chunks, which with `x = kappa` and
`y = -kappa * a` is ours, with states in the same layout. The functions called here stand below fla-core's own autograd
and are no public interface of it, hence one version; without them every call would break the compiler's graph.

Only the inputs and the incoming state are kept for the backward pass, which computes the rest again.

Tensors are `[B, T, H, N]`, states `[B, H, N, N]`; fla-core is imported by the first call, since that takes seconds.
"""

import importlib.metadata
import importlib.util
from types import SimpleNamespace

import torch
from torch import Tensor

from zoo.kernels.rwkv7 import chunked
from zoo.kernels.rwkv7.call import Incoming, Mixed, MixedGradients, Saved, Tokens

__all__ = ["backward", "forward", "misfit", "resolve_chunk_size", "saved_states"]

VERSION = "0.6.0"
# Measured on a GPU against float64, beside plain PyTorch in the same dtype: in float16 outputs err 1.7 times as much
# and gradients of decays up to 5.9 times; those err 2.2 times as much with log decays below RWKV-7's own bound, -0.607.
# float32 would be multiplied as TensorFloat-32.
DTYPE = torch.bfloat16
LOWEST_LOG_W = -0.607
WIDTHS = (16, 32, 64, 128)
CHUNKS = (64, 32, 16)
SHORTEST = 16  # tokens; fewer are computed in PyTorch
_ELSEWHERE = "impl='chunked' runs anywhere"


def _missing() -> str:
    """What is not installed, or an empty string. Asks the installer's records: `fla` may be any folder."""
    try:
        version = importlib.metadata.version("fla-core")
    except importlib.metadata.PackageNotFoundError:
        return "needs the package fla-core, which is not installed: pip install 'mixer-zoo[fla]'"
    if version != VERSION:
        return f"needs fla-core {VERSION}, {version} is installed: pip install 'mixer-zoo[fla]'"
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    return ""


MISSING = _missing()


def resolve_chunk_size(chunk_size: int | None) -> int:
    """The longest chunk that is not longer than `chunk_size` asks for; at least 16."""
    wanted = max(chunk_size or CHUNKS[0], CHUNKS[-1])
    return next(C for C in CHUNKS if wanted >= C)


def misfit(r: Tensor, log_w_floor: float, resets: Tensor | None) -> str:
    """Why fla-core cannot take these inputs, as the line of an error; an empty string if it can."""
    if MISSING:
        return f"impl: 'fla' {MISSING}"
    if not r.is_cuda:
        return f"impl: 'fla' needs tensors on a GPU, r was on {r.device}; {_ELSEWHERE}"
    if r.dtype != DTYPE:
        return f"r: impl='fla' takes bfloat16, was {r.dtype}; {_ELSEWHERE}"
    if r.shape[-1] not in WIDTHS:
        return f"r: impl='fla' takes heads of 16, 32, 64 or 128 channels, was {r.shape[-1]}; {_ELSEWHERE}"
    if resets is not None:
        return f"resets: impl='fla' takes none, as its decays are never 0; {_ELSEWHERE}"
    if not log_w_floor >= LOWEST_LOG_W:
        needed = f"needs log decays known to be at least {LOWEST_LOG_W}"
        return f"log_w_floor: impl='fla' {needed}, was {log_w_floor:g}; {_ELSEWHERE}"
    return ""


def _is_short(r: Tensor) -> bool:
    """Whether there is nothing to launch, or so few tokens that the gradients of decays are not exact enough."""
    return r.numel() == 0 or r.shape[1] < SHORTEST


def saved_states(T: int, chunk_size: int, device: torch.device) -> int:
    """How many states the forward pass saves: the first."""
    return 1


def _arguments(tokens: Tokens, S: Tensor | None) -> tuple[Tensor | None, ...]:
    """r, k, v, x, y and log_w, contiguous as the kernels want them, and the state."""
    r, log_w, k, v, kappa, a = tokens
    y = torch.addcmul(kappa.new_zeros(()), kappa, a, value=-1)  # one kernel for -kappa * a
    return *(x.contiguous() for x in (r, k, v, kappa, y, log_w)), None if S is None else S.contiguous()


def forward(tokens: Tokens, S: Tensor | None, chunk_size: int) -> Mixed:
    """The output, the last state, and the state that `backward` starts from `[1, B, H, N, N]`."""
    r = tokens.r
    B, _, H, N = r.shape
    states = r.new_zeros(1, B, H, N, N, dtype=torch.float32)
    if S is not None:
        states[0] = S
    if _is_short(r):
        return chunked.forward(tokens, S, chunk_size)._replace(states=states)
    from fla.ops.generalized_delta_rule.dplr.chunk import ChunkDPLRDeltaRuleFunction

    *arguments, S = _arguments(tokens, S)
    unused = SimpleNamespace(save_for_backward=lambda *_: None)
    o, after = ChunkDPLRDeltaRuleFunction.forward(
        unused, *arguments, scale=1.0, initial_state=S, output_final_state=True, safe_gate=True, chunk_size=chunk_size
    )
    return Mixed(o, after, states)


def backward(incoming: Incoming, tokens: Tokens, saved: Saved, chunk_size: int) -> MixedGradients:
    """Gradients of tokens and state, from what `forward` saved."""
    if _is_short(tokens.r):
        return chunked.backward(incoming, tokens, saved, chunk_size)
    from fla.ops.generalized_delta_rule.dplr.chunk import ChunkDPLRDeltaRuleFunction

    context = SimpleNamespace(
        saved_tensors=_arguments(tokens, saved.states[0] if saved.has_state else None),
        scale=1.0, safe_gate=True, chunk_size=chunk_size, chunk_indices=None, cu_seqlens=None, cp_context=None,
        disable_recompute=False, _fwd_used_autocast=False, _dtype=tokens.r.dtype,
    )  # fmt: skip
    dr, dk, dv, dx, dy, dlog_w, _, dS, *_ = ChunkDPLRDeltaRuleFunction.backward(context, *incoming)
    da = torch.addcmul(dy.new_zeros(()), dy, tokens.kappa, value=-1)
    dkappa = torch.addcmul(dx, dy, tokens.a, value=-1)
    return MixedGradients(dr, dlog_w, dk, dv, dkappa, da, saved.states.new_empty(0) if dS is None else dS)
