"""Bad input to an op: one line that names the argument, what it was and what it must be."""

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from zoo.errors import InputError, ZooError
from zoo.kernels.power import debug_checks, init_power_state, power_attention, power_attention_step, state_limit
from zoo.kernels.rwkv7 import rwkv7, rwkv7_step

from .power import bad_calls as power
from .rwkv7 import bad_calls as rwkv7_calls

OPS = [(power_attention, power.CASES), (rwkv7, rwkv7_calls.CASES)]
STEPS = [(power_attention_step, power.STEP_CASES), (rwkv7_step, rwkv7_calls.STEP_CASES)]
CASES = [
    *(pytest.param(op, make, said, id=f"{op.__name__}: {name}") for op, cases in OPS for name, make, said in cases),
    *(pytest.param(op, make, said, id=f"{op.__name__}: {said}") for op, cases in STEPS for make, said in cases),
]


def test_good_calls_are_good() -> None:
    power_attention(**power.arguments())
    power_attention(**power.packed([0, 1, 3]))
    rwkv7(**rwkv7_calls.arguments())


@pytest.mark.parametrize(("op", "make", "message"), CASES)
def test_error_is_one_line_that_names_the_argument(
    op: Callable[..., Any], make: Callable[[], dict[str, Any]], message: str
) -> None:
    call = make()
    with pytest.raises(InputError, match=f"^{re.escape(message)}$") as caught:
        op(**call)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ZooError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("step", "calls", "bad"),
    [
        (power_attention_step, power, {"log_g": torch.ones(2, 2), "k": torch.ones(2, 2, 4)}),
        (rwkv7_step, rwkv7_calls, dict.fromkeys(("log_w", "k", "v"), torch.ones(2, 2, 4))),
    ],
)
def test_a_failed_step_leaves_the_state_alone(step: Callable[..., Any], calls: ModuleType, bad: dict[str, Any]) -> None:
    call = calls.step_arguments(**bad)
    with pytest.raises(InputError):
        step(**call)
    assert not any(x.any() for x in tree_leaves(call["state"]))


def test_state_limit_is_lowered_raised_and_restored() -> None:
    wide = [torch.zeros(1, 1, 1, 128), torch.zeros(1, 1, 1, 128), torch.zeros(1, 1, 1, 64)]
    with state_limit(2**20), pytest.raises(InputError, match=r"takes 2 MiB .* limit of 1 MiB; .* fits is K=89,"):
        power_attention(*wide)
    power_attention(*wide)
    with pytest.raises(InputError, match="p: a state of p=3 with key width K=128"):
        init_power_state(1, 1, 128, 64, 3, device="meta")
    with state_limit(2**28):
        assert init_power_state(1, 1, 128, 64, 3, device="meta").z.shape == (1, 1, 357760)


def test_values_are_not_looked_at_on_other_devices() -> None:
    call = {name: x.to("meta") for name, x in power.arguments(state=None).items() if x is not None}
    o, _ = power_attention(**call)
    assert o.shape == (2, 3, 4, 5)
    with debug_checks():
        power_attention(**call)
