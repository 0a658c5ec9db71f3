"""RWKV-7's time mixing as plain PyTorch writes it in a narrow dtype: what the error law holds kernels against.

Chunks of 16 tokens with every product in the inputs' dtype; decays, the triangular systems and the state are float32.
Gradients are autograd's.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .problems import TOKENS, Problem, Tensors, differentiate

C = 16


def mix_in_chunks(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, S: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output `[B, T, H, N]` and final state."""
    B, _, H, N = r.shape
    S = r.new_zeros(B, H, N, N, dtype=torch.float32) if S is None else S
    tokens = (r, k, v, kappa, -(kappa * a), log_w)
    outputs = []
    for chunk in zip(*(x.transpose(1, 2).split(C, dim=2) for x in tokens), strict=True):
        o, S = _mix_chunk(*chunk, S)
        outputs.append(o)
    return torch.cat(outputs, dim=2).transpose(1, 2), S


def _mix_chunk(
    r: Tensor, k: Tensor, v: Tensor, kappa: Tensor, b: Tensor, log_w: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """One chunk, heads first: `[B, H, C, N]`."""
    dtype = r.dtype
    after = log_w.cumsum(-2)
    before, end = after - log_w, after[..., -1:, :]
    seen = torch.ones(r.shape[2], r.shape[2], dtype=torch.bool, device=r.device).tril()

    def scores(readers: Tensor, writers: Tensor, since: Tensor, seen: Tensor) -> Tensor:
        decays = (since[..., :, None, :] - after[..., None, :, :]).masked_fill(~seen[..., None], -torch.inf).exp()
        return torch.einsum("bhin,bhijn,bhjn->bhij", readers.float(), decays, writers.float())

    held = scores(kappa, k, before, seen.tril(-1)).to(dtype) @ v + (kappa * before.exp()).to(dtype) @ S.to(dtype)
    system = -scores(kappa, b, before, seen.tril(-1))
    u = torch.linalg.solve_triangular(system, held.float(), upper=False, unitriangular=True).to(dtype)
    o = scores(r, k, after, seen).to(dtype) @ v + scores(r, b, after, seen).to(dtype) @ u
    o = o + (r * after.exp()).to(dtype) @ S.to(dtype)
    to_end = (end - after).exp()
    written = (k * to_end).to(dtype).mT @ v + (b * to_end).to(dtype).mT @ u
    return o, end.exp().mT * S + written


def run_in_chunks(problem: Problem) -> Tensors:
    """Results and gradients by name, as `problems.run` gives them."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    given = replace(problem, **leaves)
    o, S = mix_in_chunks(*(getattr(given, name) for name in TOKENS), given.S)
    return differentiate(problem, {"o": o, "S_out": S}, leaves)
