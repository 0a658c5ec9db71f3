"""The delta rule in chunks as papers write it, in the inputs' dtype, with autograd's gradients.

`T = (I + tril(beta k k^T decay, -1))^-1`, `u = T beta v`, `w = T beta k exp(G)`; a gate a head, p = 1, equal heads.
What the error law holds implementations against where a form in chunks has to lose digits: a token's product with an
equal key, once rounded, is wrong for all pairs alike, and the errors add up where nothing decays.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .problems import Problem, Tensors, differentiate

C = 64


def attend_in_chunks(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output `[B, T, H, V]` and final state."""
    dtype = problem.q.dtype
    log_g = torch.zeros_like(problem.beta) if problem.log_g is None else problem.log_g
    tokens = (problem.q * problem.scale, problem.k, problem.v, log_g[..., None], problem.beta[..., None].to(dtype))
    S, outputs = problem.S, []
    for q, k, v, gates, beta in zip(*(x.transpose(1, 2).split(C, dim=2) for x in tokens), strict=True):
        total = gates.cumsum(2)  # [B, H, C, 1]
        decay = (total - total.mT).tril().exp().tril()
        system = (beta * k @ k.mT).float() * decay
        ones = torch.eye(k.shape[2], device=k.device).expand_as(system)
        inverse = torch.linalg.solve_triangular(system.tril(-1) + ones, ones, upper=False).to(dtype)
        u, w = inverse @ (beta * v), inverse @ (beta * k * total.exp().to(dtype))
        corrected = u - w @ S.to(dtype)
        scores = ((q @ k.mT).float() * decay).to(dtype)
        outputs.append((q * total.exp().to(dtype)) @ S.to(dtype) + scores @ corrected)
        end = total[:, :, -1:]
        S = end.exp() * S + ((k * (end - total).exp().to(dtype)).mT @ corrected).float()
    return torch.cat(outputs, dim=2).transpose(1, 2), S


def run_in_chunks(problem: Problem) -> Tensors:
    """Results and gradients by name, as `problems.run` gives them."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    o, S = attend_in_chunks(replace(problem, **leaves))
    return differentiate(problem, {"o": o, "S_out": S}, leaves)
