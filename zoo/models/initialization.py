"""How every parameter starts: the one place that says so.

| parameter                                                              | start                                     |
|------------------------------------------------------------------------|-------------------------------------------|
| embeddings; weights of linear layers                                   | N(0, range)                               |
| weights that write to the residual stream (`ResidualLinear`)           | N(0, range / sqrt(writes)), as in GPT-2   |
| biases                                                                 | 0                                         |
| norms                                                                  | weight 1, bias 0                          |
| what a layer with a method `initialize(std)` owns (`RetentionGate`, …) | its own choice, after what it is made of  |

Parameters of 16 bits start as those of float32 would, rounded.

There are two writes to the residual stream a block, or one without a feed-forward layer, so its variance at the output
stays that of one block at any depth.
"""

import math

from torch import nn

from zoo.blocks.in_float32 import computed_in_float32
from zoo.blocks.linear import ResidualLinear

__all__ = ["initialize", "initialize_rwkv7"]


def initialize(model: nn.Module, initializer_range: float, writes: int) -> None:
    """Draw all parameters of `model`, with so many writes to its residual stream, from torch's default generator."""

    def draw(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            shrink = math.sqrt(writes) if isinstance(module, ResidualLinear) else 1.0
            with computed_in_float32(module):
                nn.init.normal_(module.weight, std=initializer_range / shrink)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
        initialize_own = getattr(module, "initialize", None)
        if initialize_own is not None:
            initialize_own(initializer_range)

    model.apply(draw)  # inner modules first


def initialize_rwkv7(embedding: nn.Embedding, head: nn.Linear | None) -> None:
    """Draw the embedding from U(-1e-4, 1e-4), as a norm follows it, and the head orthogonal with gain
    `0.5 sqrt(vocabulary / width)` where the vocabulary is larger, as RWKV-7 does.
    """
    with computed_in_float32(embedding):
        nn.init.uniform_(embedding.weight, -1e-4, 1e-4)
    if head is not None:
        with computed_in_float32(head):
            nn.init.orthogonal_(head.weight, gain=0.5 * math.sqrt(max(1.0, head.out_features / head.in_features)))
