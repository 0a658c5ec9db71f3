"""What training a model takes of memory, estimated without allocating anything."""

import torch
from torch import Tensor

from zoo.builder import build
from zoo.recipe import Recipe

__all__ = ["training_bytes"]

_OF_A_PARAMETER = 16
"""Bytes in float32: the weight, its gradient and AdamW's two moments."""


def training_bytes(recipe: Recipe) -> int:
    """Return an estimate of the bytes that a step of a recipe's training takes.

    Weights, gradients and moments, and what the backward pass of one batch keeps in float32, uncompiled and with every
    activation kept: the compiler and `training.checkpointing` keep less, bfloat16 about half of that.
    """
    training = recipe.training
    model = build(recipe, device="meta")
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # held, so that its place is not another's later
        return tensor

    shape = (training.batch_size, training.context_length)
    tokens = torch.zeros(shape, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(tokens, tokens, resets=None)
    return _OF_A_PARAMETER * model.num_parameters() + sum(storage.nbytes() for storage in kept.values())
