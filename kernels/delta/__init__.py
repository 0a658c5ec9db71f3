"""The delta rule: contract (`api`), definition (`reference`), linear-cost form on any device (`chunked`)."""

from zoo.kernels.delta.api import DeltaAttentionOutput, Implementation, delta_attention, delta_attention_step
from zoo.kernels.delta.flops import delta_flops
from zoo.kernels.delta.state import init_delta_state

__all__ = [
    "DeltaAttentionOutput",
    "Implementation",
    "delta_attention",
    "delta_attention_step",
    "delta_flops",
    "init_delta_state",
]
