"""Batches of the zoo through models of transformers, and how well those predict them."""

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data import Batch
from zoo.errors import InputError
from zoo.reading import hash_document
from zoo.training.optimizer import autocast

__all__ = ["check_context", "fingerprint", "logits_of", "perplexity"]


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return what tells weights from others, as hexadecimal: of sums of their bits, alike on any device."""
    sums = {name: int(x.detach().view(_BITS[x.element_size()]).sum(dtype=torch.int64)) for name, x in named}
    return hash_document(sums)


def positions_of(resets: Tensor) -> Tensor:
    """Return positions that start anew at each token marked in `resets [B, T]`, which is how transformers packs."""
    places = torch.arange(resets.shape[1], device=resets.device).expand(resets.shape)
    return places - torch.where(resets, places, 0).cummax(1).values


def logits_of(model: Any, batch: Batch, last: int = 0) -> Tensor:
    """Return logits `[B, T, vocab]`, or those of so many `last` tokens; documents in a row do not see each other."""
    device = model.device
    positions = positions_of(batch.resets.to(device))
    kept = {"logits_to_keep": last} if last and "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    found: Tensor = model(input_ids=batch.tokens.to(device), position_ids=positions, use_cache=False, **kept).logits
    return found


@torch.no_grad()
def perplexity(model: Any, batches: Sequence[Batch], dtype: torch.dtype | None) -> float:
    """Return the exponential of the mean loss, in nats per token, without dropout.

    Args:
        model: a causal language model of transformers.
        batches: of held-back text.
        dtype: of matrix products; None: the weights' own.
    """
    was_training = model.training
    model.eval()
    try:
        total, count = torch.zeros((), dtype=torch.float64), 0
        for batch in batches:
            with autocast(dtype, model.device):
                logits = logits_of(model, batch)
            targets = batch.targets.to(logits.device)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
            total += loss.double().cpu()
            count += targets.numel()
        mean = float(total) / count
        return math.exp(mean) if mean < 700 else math.inf
    finally:
        model.train(was_training)


def check_context(model: Any, context_length: int) -> None:
    """Check that a model has so many positions.

    Raises:
        InputError: it has fewer.
    """
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if isinstance(longest, int) and context_length > longest:
        raise InputError(f"context_length: expected at most the model's {longest:,} positions, was {context_length:,}")
