"""Activation checkpointing: what a layer keeps for its backward pass, and what it computes again there."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVarTuple

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from zoo.recipe.training import Checkpointing

__all__ = ["mixing_ops", "run_checkpointed"]

Arguments = TypeVarTuple("Arguments")

# Softmax attention is one of these according to device, dtype and mask.
_ATTENTION = (
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)

_OPS = (
    "power_attention",
    "power_attention_sums",
    "power_attention_outputs",
    "delta_attention",
    "rwkv7",
    "interval_attention",
    "pass_on",
)

# What processes sent one another is not sent again.
_COLLECTIVES = ("all_gather_into_tensor", "all_reduce", "all_to_all_single", "wait_tensor")


def run_checkpointed(run: Callable[[*Arguments], Any], mode: Checkpointing, *arguments: *Arguments) -> Any:
    """Return `run(*arguments)`, whose backward pass computes again what the mode does not keep.

    Layers draw no random numbers, so none are replayed.
    """
    if mode == "full":
        return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
    contexts = partial(create_selective_checkpoint_contexts, _keep_mixing)
    return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@cache
def mixing_ops() -> frozenset[Any]:
    """Return the ops that mix over time, whose outputs `selective` keeps: they cost more to compute again."""
    own = (getattr(torch.ops.zoo, name).default for name in _OPS)
    sent = (getattr(torch.ops._c10d_functional, name).default for name in _COLLECTIVES)
    return frozenset((*own, *(getattr(torch.ops.aten, name).default for name in _ATTENTION), *sent))


def _keep_mixing(_context: SelectiveCheckpointContext, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in mixing_ops() else CheckpointPolicy.PREFER_RECOMPUTE
