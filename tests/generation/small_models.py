"""Models and prompts that generation is tested with."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig

__all__ = ["HYBRID", "LIKE_ANOTHER", "build", "every_mixer", "greedy_by_forward", "prompts"]

HYBRID = ("gated-power", "softmax")
LIKE_ANOTHER = ("gla", "delta", "gated-delta")  # of the same layer and op as kda, and simpler around it
every_mixer = pytest.mark.parametrize(
    "names",
    [
        *(pytest.param((name, name), marks=[pytest.mark.slow] if name in LIKE_ANOTHER else []) for name in mixers),
        HYBRID,
    ],
    ids="-".join,
)


def build(names: Sequence[str] = HYBRID, positions: str = "learned", vocab_size: int = 257) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=vocab_size,
        width=32,
        layers=len(names),
        heads=4,
        key_value_heads=2,
        max_positions=48,
        positions=positions,
        initializer_range=0.3,
    )
    return Decoder(config, [mixers[name].config() for name in names])


def prompts() -> tuple[Tensor, Tensor]:
    """Return three prompts of different lengths, and the lengths."""
    torch.manual_seed(1)
    return torch.randint(0, 257, (3, 9)), torch.tensor([9, 1, 5])


@torch.no_grad()
def greedy_by_forward(model: Decoder, prompt: Tensor, count: int) -> Tensor:
    """Run the whole sequence anew for every token."""
    tokens = prompt[None]
    for _ in range(count):
        tokens = torch.cat((tokens, model(tokens).logits[:, -1:].argmax(-1)), dim=1)
    return tokens[0, len(prompt) :]
