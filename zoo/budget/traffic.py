"""What a pass over a share of a sequence sends, keeps and computes, counted by making it on the meta device.

So it is what the code does, of any mixer and mixture of them, and nothing is allocated.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from zoo.builder import build
from zoo.kernels.sequence import SequenceGroup
from zoo.models.checkpointing import mixing_ops
from zoo.recipe import Recipe
from zoo.recipe.training import Checkpointing

__all__ = ["Pass", "Received", "count_pass"]

_LONG = 4_096
"""Tokens, more than any width."""


class Received(TorchDispatchMode):
    """Counts collectives, and the bytes that each kind brings a process from the others, the mean over them.

    Args:
        processes: how many there are.
    """

    def __init__(self, processes: int) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        others = processes - 1
        self._shares = {
            "all_gather_into_tensor": others / processes,
            "all_to_all_single": others / processes,
            "pass_on": others / processes,
            "reduce_scatter_tensor": others,
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.name().split("::")[1].partition(".")[0]
        if func.namespace in ("_c10d_functional", "zoo") and name in self._shares:
            self.calls[name] += 1
            self.bytes[name] += round(found.numel() * found.element_size() * self._shares[name])
        return found


@dataclass(frozen=True)
class Pass:
    """A forward and a backward pass over one process's share of one sequence."""

    received: int
    """Bytes that the exchange between the sequence's processes brings."""
    collectives: int
    flops: int
    kept: int
    """Bytes of activations at the most, as they are without a compiler."""


def count_pass(
    recipe: Recipe, tokens: int, processes: int, mode: Checkpointing, dtype: torch.dtype = torch.bfloat16
) -> Pass:
    """Return what one of several processes does for its share of a sequence.

    Args:
        recipe: whose model.
        tokens: of the share.
        processes: that have the sequence together.
        mode: what layers keep.
        dtype: of weights and activations; sums over the past are float32.

    Raises:
        ConfigError: a mixer takes whole sequences.
        InputError: a layer looks back further than a share.
    """
    everything = _count(recipe, tokens, processes, "none", dtype)
    if mode == "none":
        return Pass(*everything[:3], everything.saved)
    again = _count(recipe, tokens, processes, mode, dtype)
    # What layers keep, and one of them while it is computed again.
    kept = again.saved + everything.saved // recipe.model.layers
    return Pass(*again[:3], kept + (everything.mixed if mode == "selective" else 0))


class _Counts(NamedTuple):
    """Of a forward and a backward pass."""

    received: int
    collectives: int
    flops: int
    saved: int
    """Bytes that are saved for the backward pass outside of what is computed again."""
    mixed: int
    """Bytes of what mixing ops return."""


def _count(recipe: Recipe, tokens: int, processes: int, mode: Checkpointing, dtype: torch.dtype) -> _Counts:
    """Count a model, of many layers by the first of them, which may differ from the others, and those that follow."""
    period, layers = len(recipe.repeated_mixers), recipe.model.layers
    if layers % period or layers <= 2 * period:
        return _run(recipe, tokens, processes, mode, dtype)
    shorter = (recipe.replace(model=recipe.model.replace(layers=n * period)) for n in (1, 2))
    one, two = (_run(each, tokens, processes, mode, dtype) for each in shorter)
    more = layers // period - 1
    return _Counts(*(first + more * (second - first) for first, second in zip(one, two, strict=True)))


class _Mixed(TorchDispatchMode):
    """Counts the bytes that mixing ops return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in mixing_ops():
            self.bytes += sum(x.numel() * x.element_size() for x in tree_leaves(found) if isinstance(x, Tensor))
        return found


def _run(recipe: Recipe, tokens: int, processes: int, mode: Checkpointing, dtype: torch.dtype) -> _Counts:
    model = build(recipe, device="meta", dtype=dtype)
    if processes > 1:
        rank = torch.zeros((), dtype=torch.int64, device="meta")
        model.share_sequences(SequenceGroup("none", processes, rank))
    if mode != "none":
        model.checkpoint(mode)
    batch = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    with Received(processes) as received, FlopCounterMode(display=False) as flops:
        with _Mixed() as mixed, _saving(model) as saved:
            loss = model.loss(batch, batch)
        torch.autograd.backward(loss)
    counts = flops.get_flop_counts()["Global"]
    if any(config.name == "sliding-window" for config in recipe.layer_mixers):
        counts.pop(torch.ops.aten.bmm, None)  # on the meta device a window is taken for all that it might see
    return _Counts(
        received.bytes.total(), received.calls.total(), sum(counts.values()), sum(saved.values()), mixed.bytes
    )


@contextmanager
def _saving(model: nn.Module) -> Iterator[dict[int, int]]:
    """Count bytes that are saved for the backward pass, by storage, without parameters and scores of all pairs.

    Those are there on the meta device alone: wherever models are trained, softmax attention writes no such thing.
    """
    saved: dict[int, int] = {}
    alive = []
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and not _is_of_pairs(tensor):
            saved[storage._cdata] = storage.nbytes()
            alive.append(storage)  # so that no other gets its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _is_of_pairs(tensor: Tensor) -> bool:
    return tensor.ndim > 2 and tensor.shape[-1] >= tensor.shape[-2] >= _LONG
