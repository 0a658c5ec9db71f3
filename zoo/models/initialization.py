"""How every parameter starts: the one place that says so.

| parameter                                                              | start                                     |
|------------------------------------------------------------------------|-------------------------------------------|
| embeddings; weights of linear layers                                   | N(0, range)                               |
| weights that write to the residual stream (`ResidualLinear`)           | N(0, range / sqrt(writes)), as in GPT-2   |
| biases                                                                 | 0                                         |
| norms                                                                  | weight 1, bias 0                          |
| what a layer with a method `initialize(std)` owns (`RetentionGate`, …) | its own choice, after what it is made of  |

Parameters of 16 bits start as those of float32 would, rounded.

What a module draws depends on a seed and on its name alone: models that differ in their mixer start from the same
embeddings and feed-forward layers, and a layer can be drawn where the others are not.

There are two writes to the residual stream a block, or one without a feed-forward layer, so its variance at the output
stays that of one block at any depth.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from zoo.blocks.in_float32 import computed_in_float32
from zoo.blocks.linear import ResidualLinear

__all__ = ["draw_seed", "initialize", "initialize_rwkv7"]


def draw_seed() -> int:
    """Return a seed for `initialize`, from torch's default generator on the CPU."""
    return int(torch.randint(2**62, (), device="cpu").item())


def initialize(model: nn.Module, initializer_range: float, writes: int, *, seed: int, part: str = "") -> None:
    """Draw parameters of `model`, with so many writes to its residual stream.

    Args:
        seed: what they are drawn from.
        part: the name of the submodule whose parameters they are; "" is the whole model.
    """

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

    within = model.get_submodule(part)
    with _drawing_for(within, seed) as begin:
        for name, module in reversed(list(within.named_modules(prefix=part))):  # inner modules first
            if hasattr(module, "initialize") or next(module.parameters(recurse=False), None) is not None:
                begin(name)
                draw(module)


@contextmanager
def _drawing_for(model: nn.Module, seed: int) -> Iterator[Callable[[str], None]]:
    """What has torch's default generators draw what `seed` and a name determine; afterwards they are as they were."""
    devices = {parameter.device for parameter in model.parameters()}
    gpus = {device for device in devices if device.type == "cuda"}

    def begin(name: str) -> None:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") >> 1
        if not {device.type for device in devices} <= {"cpu", "cuda", "meta"}:
            torch.manual_seed(drawn)
            return
        # Not by `torch.manual_seed`: for each kind of GPU that is not there it writes down where it was called from.
        torch.default_generator.manual_seed(drawn)
        for gpu in gpus:
            torch.cuda.default_generators[gpu.index].manual_seed(drawn)

    with torch.random.fork_rng(devices=gpus):
        yield begin


def initialize_rwkv7(embedding: nn.Embedding | None, head: nn.Linear | None, *, seed: int) -> None:
    """Draw the embedding from U(-1e-4, 1e-4), as a norm follows it, and the head orthogonal with gain
    `0.5 sqrt(vocabulary / width)` where the vocabulary is larger, as RWKV-7 does; what is None is left out.
    """
    if embedding is not None:
        with _drawing_for(embedding, seed) as begin, computed_in_float32(embedding):
            begin("rwkv7 embedding")
            nn.init.uniform_(embedding.weight, -1e-4, 1e-4)
    if head is not None:
        with _drawing_for(head, seed) as begin, computed_in_float32(head):
            begin("rwkv7 head")
            nn.init.orthogonal_(head.weight, gain=0.5 * math.sqrt(max(1.0, head.out_features / head.in_features)))
