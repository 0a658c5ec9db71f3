"""Build the kernels that a call launches, for any GPU and without one."""

from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels import launch
from zoo.kernels.delta.call import Incoming, Inputs, Options
from zoo.kernels.delta.triton import passes, stretches
from zoo.kernels.delta.triton.stretches import find_errors

from ...power.triton.ahead_of_time import HOPPER, HOPPER_SHARED, Launch, build, rehearsed, usage

__all__ = ["check_budget", "launches", "launches_for_errors"]

BUDGET = Path(__file__).with_name("budget.yaml")


def launches(
    K: int,
    V: int,
    *,
    gates: str = "head",
    corrects: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    sequences: int | None = None,
) -> dict[str, Launch]:
    """The kernels of both passes of a long sequence by name; those that also run backwards in time stand twice.

    sequences: that are packed in it, if they are.
    """
    T, H = 65536, 8
    found: dict[str, Launch] = {}
    with FakeTensorMode(), launch.rehearsal() as recorded:
        q, k, v = (torch.empty(1, T, H, width, dtype=dtype) for width in (K, K, V))
        log_g = {"none": None, "head": torch.empty(1, T, H), "channel": torch.empty(1, T, H, K)}[gates]
        cu_seqlens = None if sequences is None else torch.empty(sequences + 1, dtype=torch.int32)
        inputs = Inputs(q, k, v, log_g, torch.empty(1, T, H) if corrects else None, cu_seqlens=cu_seqlens)
        options = Options(1, 1.0, save_errors=True, use_triton=True)
        outputs = passes.forward(inputs, options)
        passes.backward(Incoming(outputs.o, None), inputs, outputs.saved, options)
    for each in recorded:
        name = each.kernel.__name__ + (", reverse" if each.constants.get("REVERSE") else "")
        found[name] = rehearsed(each)
    return found


def launches_for_errors(
    K: int, V: int, p: int, *, dtype: torch.dtype = torch.bfloat16, sequences: int | None = None, hopper: bool = False
) -> dict[str, Launch]:
    """The kernels that find errors on a power state of a long sequence, by name: of any GPU, or of Hopper GPUs."""
    T, H = 65536, 8
    supports = patch.object(stretches, "supports_hopper", lambda *_: hopper)
    with FakeTensorMode(), launch.rehearsal() as recorded, supports:
        k, v = (torch.empty(1, T, H, width, dtype=dtype) for width in (K, V))
        cu_seqlens = None if sequences is None else torch.empty(sequences + 1, dtype=torch.int32)
        find_errors(k, v, torch.empty(1, T, H), torch.empty(1, T, H), None, cu_seqlens, p)
    return {each.kernel.__name__: rehearsed(each) for each in recorded}


def check_budget(case: str, launches: dict[str, Launch]) -> None:
    """Assert that kernels take no more of a Hopper GPU than they are allowed to."""
    budget = yaml.safe_load(BUDGET.read_text())[case]
    for name, each in launches.items():
        found, allowed = usage(build(each, HOPPER)), budget[name]
        assert found.registers <= allowed["registers"], (name, found)
        assert found.stack <= allowed["spilled"], (name, found)
        assert found.shared <= HOPPER_SHARED, (name, found)
