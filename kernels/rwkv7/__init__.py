"""RWKV-7's time mixing: contract (`api`), definition (`reference`), linear-cost forms (`chunked`, `triton`)."""

from zoo.kernels.rwkv7.api import Rwkv7Output, rwkv7, rwkv7_step
from zoo.kernels.rwkv7.flops import rwkv7_flops
from zoo.kernels.rwkv7.state import init_rwkv7_state

__all__ = ["Rwkv7Output", "init_rwkv7_state", "rwkv7", "rwkv7_flops", "rwkv7_step"]
