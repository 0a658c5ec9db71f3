"""AdamW with decay on matrices only, and the clipping of gradients."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zoo.recipe.training import TrainingConfig

__all__ = ["build_optimizer", "clip_gradients"]

_FUSED_DEVICES = {"cpu", "cuda"}


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW over the model's trainable parameters.

    Matrices decay, embeddings among them (a tied embedding is also the output layer); biases, norm weights, gates'
    offsets and whatever else has one dimension do not. The learning rate is for the loop to set before each step.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=all(parameter.device.type in _FUSED_DEVICES for parameter in parameters),
    )


def clip_gradients(model: nn.Module, limit: float | None) -> Tensor:
    """Scale the gradients down to a joint norm of `limit` (None: leave them) and return the norm before, 0-d."""
    if limit is None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
    else:
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()
