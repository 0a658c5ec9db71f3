"""The objective, next-token cross-entropy in float32, whole or token by token, and its value on validation text."""

from collections.abc import Callable, Sequence
from math import fsum
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.data import Batch, Tokenizer, bits_per_byte, bytes_of
from zoo.kernels.token_scores import TokenScores, logits_scores
from zoo.recipe.training import TrainingConfig

__all__ = ["HALVES", "Evaluation", "NextTokenLoss", "TokenByToken", "blocks_of", "evaluate"]

HALVES = ("bits_per_byte_of_even_batches", "bits_per_byte_of_odd_batches")
"""What metrics call `Evaluation.halves`."""


class NextTokenLoss(nn.Module):
    """A model and its loss as one module, so that the compiler fuses the softmax over the vocabulary into it.

    Args:
        model: `model.loss(tokens, targets, resets=resets)` is the mean loss, or, if there is no such method,
            `model(tokens, resets=resets).logits` is `[B, T, vocab]`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.tokens = TokenByToken(model)

    @property
    def is_compiled(self) -> bool:
        """Whether `compile_for` was called."""
        return any(module._compiled_call_impl is not None for module in (self, *blocks_of(self.model)))

    def compile_for(self, config: TrainingConfig) -> None:
        """Let the compiler take the model with its loss, and with the losses of tokens, as one graph each, or, where
        `config.compile` is `layers`, each layer as a graph, which those that are alike share."""
        if config.compile == "layers":
            for layer in blocks_of(self.model):
                layer.compile(fullgraph=True, dynamic=False)
            return
        # Every batch has one of two shapes, so that sizes need not become variables.
        self.compile(fullgraph=True, dynamic=False)
        # Measures have many: a graph for the first, and one for all others.
        self.tokens.compile(fullgraph=True)

    def forward(self, tokens: Tensor, targets: Tensor, resets: Tensor | None) -> Tensor:
        """Return the mean cross-entropy in nats, 0-d float32, of `targets` `[B, T]` given `tokens` `[B, T]`."""
        own = getattr(self.model, "loss", None)
        if own is not None:
            return own(tokens, targets, resets=resets)
        logits = self.model(tokens, resets=resets).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class TokenByToken(nn.Module):
    """A model's loss and hits of single tokens, as one module for the compiler.

    Args:
        model: `model.score(tokens, targets, resets=resets)` returns them, or, if there is no such method,
            `model(tokens, resets=resets).logits` is `[B, T, vocab]`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor, resets: Tensor | None) -> TokenScores:
        """Return the losses and hits of `targets` `[B, T]` given `tokens` `[B, T]`, both `[B, T]`."""
        own = getattr(self.model, "score", None)
        if own is not None:
            return own(tokens, targets, resets=resets)
        logits = self.model(tokens, resets=resets).logits
        scores = logits_scores(logits.flatten(0, 1), targets.flatten())
        return TokenScores(*(score.view_as(targets) for score in scores))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the model's layers: the members of every list of modules it has directly."""
    return [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]


class Evaluation(NamedTuple):
    """The loss on the validation batches."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    halves: tuple[float, float]
    """Bits per byte of every second batch, from the first on and from the second on: of text to choose a setting by,
    and of other text to tell how good it is. Of a lone batch, both are what it has."""
    accuracy: float | None = None
    """A task's share of right answers; None of text."""


def evaluate(loss: Callable[[Batch], Tensor], batches: Sequence[Batch], tokenizer: Tokenizer) -> Evaluation:
    """Return the loss over `batches`, all of one shape, without gradients.

    Args:
        loss: the mean cross-entropy of a batch, 0-d, over all processes.
        batches: at least one.
        tokenizer: says how many bytes the targets stand for.
    """
    with torch.no_grad():
        means = torch.stack([loss(batch).double() for batch in batches]).tolist()
    nats = [mean * batch.targets.numel() for mean, batch in zip(means, batches, strict=True)]
    byte_counts = [bytes_of(batch, tokenizer) for batch in batches]

    def bits(some: slice) -> float:
        return bits_per_byte(fsum(nats[some] or nats), sum(byte_counts[some] or byte_counts))

    halves = bits(slice(0, None, 2)), bits(slice(1, None, 2))
    return Evaluation(fsum(means) / len(means), bits(slice(None)), halves)
