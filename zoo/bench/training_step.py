"""One training step of a recipe's model on random tokens: what `zoo bench model` times."""

import torch
from torch import Tensor

from zoo.builder import build
from zoo.recipe import Recipe
from zoo.training.objective import NextTokenLoss
from zoo.training.optimizer import autocast, autocast_dtype, build_optimizer, clip_gradients

__all__ = ["TrainingStep"]


class TrainingStep:
    """Forward and backward pass, and the optimiser's step where asked for, as `zoo train` makes them.

    Args:
        recipe: its `training` section says length, batch, precision and checkpointing.
        device: where the model is built.
        compiled: run through `torch.compile(fullgraph=True)`, for this length alone.
        optimize: also clip the gradients and let AdamW step.
    """

    def __init__(self, recipe: Recipe, device: torch.device, *, compiled: bool, optimize: bool) -> None:
        torch.manual_seed(recipe.training.seed)
        self.recipe, self.device = recipe, device
        self.model = build(recipe, device=device)
        self.model.checkpoint(recipe.training.checkpointing)
        self._config = recipe.training
        self._autocast = autocast_dtype(self._config, device)
        self._objective = NextTokenLoss(self.model)
        if compiled:
            self._objective.compile(fullgraph=True, dynamic=False)
        self._optimizer = build_optimizer(self.model, self._config) if optimize else None
        shape = (self._config.batch_size, self._config.context_length)
        self._tokens, self._targets = (
            torch.randint(0, recipe.model.vocab_size, shape, device=device) for _ in range(2)
        )

    def forward(self) -> Tensor:
        """Return the loss, 0-d float32, with what the backward pass needs."""
        with autocast(self._autocast, self.device):
            return self._objective(self._tokens, self._targets, None)

    def __call__(self) -> None:
        """Make one step; without an optimiser the gradients are dropped."""
        torch.autograd.backward(self.forward())
        if self._optimizer is not None:
            clip_gradients(self.model, self._config.clip_norm)
            self._optimizer.step()
        self.model.zero_grad(set_to_none=True)
