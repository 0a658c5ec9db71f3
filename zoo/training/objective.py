"""The objective, next-token cross-entropy in float32, and its value on validation text."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.data import Batch, Tokenizer, bits_per_byte, bytes_in

__all__ = ["Evaluation", "NextTokenLoss", "evaluate"]


class NextTokenLoss(nn.Module):
    """A model and its loss as one module, so that the compiler fuses the softmax over the vocabulary into it.

    Args:
        model: `model.loss(tokens, targets, resets=resets)` is the mean loss, or, if there is no such method,
            `model(tokens, resets=resets).logits` is `[B, T, vocab]`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor, resets: Tensor | None) -> Tensor:
        """Return the mean cross-entropy in nats, 0-d float32, of `targets` `[B, T]` given `tokens` `[B, T]`."""
        own = getattr(self.model, "loss", None)
        if own is not None:
            return own(tokens, targets, resets=resets)
        logits = self.model(tokens, resets=resets).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Evaluation(NamedTuple):
    """The loss on the validation batches."""

    loss: float
    """Nats per token."""
    bits_per_byte: float


def evaluate(loss: Callable[[Batch], Tensor], batches: Sequence[Batch], tokenizer: Tokenizer) -> Evaluation:
    """Return the loss over `batches`, all of one shape, without gradients.

    Args:
        loss: the mean cross-entropy of a batch, 0-d, over all processes.
        batches: at least one.
        tokenizer: says how many bytes the targets stand for.
    """
    with torch.no_grad():
        mean = torch.stack([loss(batch).double() for batch in batches]).mean().item()
    targets = sum(batch.targets.numel() for batch in batches)
    byte_count = sum(bytes_in(batch.targets, tokenizer) for batch in batches)
    return Evaluation(mean, bits_per_byte(mean * targets, byte_count))
