"""How a step computes and moves: AdamW, its learning rate, the precision of products and the order of sums."""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from zoo.blocks.treatment import Treatment, treatments
from zoo.recipe.training import TrainingConfig

__all__ = [
    "autocast",
    "autocast_dtype",
    "build_optimizer",
    "clip_gradients",
    "deterministic_on_cpu",
    "learning_rate_at",
    "set_learning_rate",
]

_FUSED_DEVICES = {"cpu", "cuda"}


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW over the model's trainable parameters, in groups that are treated alike (`zoo.blocks.treatment`).

    The learning rate is for the loop to set before each step: `set_learning_rate`.
    """
    treated = treatments(model)
    grouped: dict[Treatment, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            grouped.setdefault(treated[name], []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": config.weight_decay * treatment.decays, "share": treatment.share}
            for treatment in sorted(grouped, reverse=True)  # what decays first
            for parameters in _by_mesh(grouped[treatment])
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=all(parameter.device.type in _FUSED_DEVICES for parameter in model.parameters()),
    )
    set_learning_rate(optimizer, config.learning_rate)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def clip_gradients(model: nn.Module, limit: float | None) -> Tensor:
    """Scale the gradients down to a joint norm of `limit` (None: leave them) and return the norm before, 0-d."""
    groups = _by_mesh(parameter for parameter in model.parameters() if parameter.grad is not None)
    norms = [_norm_of_gradients(parameters) for parameters in groups]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if limit is not None:
        for parameters in groups:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def _norm_of_gradients(parameters: list[nn.Parameter]) -> Tensor:
    norm = nn.utils.get_total_norm([cast(Tensor, parameter.grad) for parameter in parameters])
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()


def _by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters by what they are spread over: torch computes with many at once where it is the same for all."""
    groups: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault(mesh, []).append(parameter)
    return list(groups.values())


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of optimiser step `step`, counted from 1 to `config.steps`.

    It rises in a straight line to the peak at step `warmup_steps`, then decays to the minimum at the last step.
    """
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * step / config.warmup_steps
    if config.schedule == "constant" or config.steps == config.warmup_steps:
        return peak
    minimum = peak / 10 if config.min_learning_rate is None else config.min_learning_rate
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    return minimum + (peak - minimum) * remaining


def autocast_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    """Return bfloat16, or None for the parameters' own float32.

    `auto` is bfloat16 on a CUDA device that computes in it and None everywhere else. It stays None even on a CPU with
    AMX or AVX512-BF16: a run on a laptop and its repetition on a server are to be the same run.
    """
    if config.autocast == "none" or (config.autocast == "auto" and device.type != "cuda"):
        return None
    if config.autocast == "auto" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    return torch.bfloat16


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Return the context that forward passes run in."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextmanager
def deterministic_on_cpu(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms on a CPU, and put the former setting back.

    Without it Inductor's threads add an embedding's gradient atomically, in whichever order they come. On a GPU, where
    such algorithms cost time and bitwise repetition is not promised, nothing changes.
    """
    if device.type != "cpu":
        yield
        return
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
