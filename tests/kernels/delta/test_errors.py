"""Bad input: one line that names the argument, what it was and what it must be."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.errors import InputError, ZooError
from zoo.kernels.delta import delta_attention, delta_attention_step, init_delta_state
from zoo.kernels.power import debug_checks

Arguments = dict[str, Any]


def arguments(**changes: Any) -> Arguments:
    """A good call: B = 2, T = 3, heads (1, 2, 4), K = 4, V = 5; with changes."""
    good = {
        "q": torch.zeros(2, 3, 1, 4),
        "k": torch.zeros(2, 3, 2, 4),
        "v": torch.zeros(2, 3, 4, 5),
        "log_g": torch.zeros(2, 3, 4),
        "beta": torch.zeros(2, 3, 4),
        "state": init_delta_state(2, 4, 4, 5),
    }
    return good | changes


def packed(ends: Any, **changes: Any) -> Arguments:
    """A good packed call but for `cu_seqlens`: one row of 3 tokens, one state a sequence."""
    good = arguments(state=None, cu_seqlens=torch.as_tensor(ends), **changes)
    return {name: x[:1] if name in ("q", "k", "v", "log_g", "beta") else x for name, x in good.items()}


def filled(value: float) -> Tensor:
    return torch.zeros(2, 3, 4).index_fill(1, torch.tensor([1]), value)


CASES: list[tuple[str, Callable[[], Arguments], str]] = [
    ("q rank", lambda: arguments(q=torch.zeros(2, 3, 4)), "q: expected [B, T, H, K], was [2, 3, 4]"),
    ("v rank", lambda: arguments(v=torch.zeros(2, 3, 4)), "v: expected [B, T, H, V], was [2, 3, 4]"),
    (
        "k tokens",
        lambda: arguments(k=torch.zeros(2, 4, 2, 4)),
        "k: expected [2, 3] as in q before the heads, was [2, 4, 2, 4]",
    ),
    ("k width", lambda: arguments(k=torch.zeros(2, 3, 2, 6)), "k: expected key width 4 as in q, was 6"),
    (
        "q integers",
        lambda: arguments(q=torch.zeros(2, 3, 1, 4, dtype=torch.int64)),
        "q: expected a floating dtype, was torch.int64",
    ),
    (
        "mixed dtypes",
        lambda: arguments(v=torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16)),
        "v: expected torch.float32 as q is, was torch.bfloat16",
    ),
    (
        "mixed devices",
        lambda: arguments(k=torch.zeros(2, 3, 2, 4, device="meta")),
        "k: expected on cpu as q is, was on meta",
    ),
    (
        "no heads",
        lambda: arguments(k=torch.zeros(2, 3, 0, 4)),
        "q, k, v: expected at least one head each, was 1, 0, 4",
    ),
    ("q heads", lambda: arguments(q=torch.zeros(2, 3, 8, 4)), "q: expected 8 heads to divide 4 value heads"),
    ("k heads", lambda: arguments(k=torch.zeros(2, 3, 3, 4)), "k: expected 3 heads to divide 4 value heads"),
    ("p zero", lambda: arguments(p=0), "p: expected a whole number from 1 on, was 0"),
    ("p fraction", lambda: arguments(p=2.0), "p: expected a whole number from 1 on, was 2.0"),
    (
        "gates' shape",
        lambda: arguments(log_g=torch.zeros(2, 3)),
        "log_g: expected [2, 3, 4] as in v, or [2, 3, 4, 4] for a gate a key channel, was [2, 3]",
    ),
    (
        "a power's gates",
        lambda: arguments(log_g=torch.zeros(2, 3, 4, 4), p=2, state=None),
        "log_g: expected [2, 3, 4], a gate a head, for p=2, was [2, 3, 4, 4]",
    ),
    (
        "gates' dtype",
        lambda: arguments(log_g=torch.zeros(2, 3, 4, dtype=torch.float16)),
        "log_g: expected torch.float32, was torch.float16",
    ),
    (
        "gates' device",
        lambda: arguments(log_g=torch.zeros(2, 3, 4, device="meta")),
        "log_g: expected on cpu as q is, was on meta",
    ),
    ("positive gates", lambda: arguments(log_g=filled(0.5)), "log_g: expected log gates of at most 0, found 0.5"),
    ("NaN gates", lambda: arguments(log_g=filled(torch.nan)), "log_g: expected log gates of at most 0, found nan"),
    ("rates' shape", lambda: arguments(beta=torch.zeros(2, 3)), "beta: expected [2, 3, 4] as in v, was [2, 3]"),
    (
        "rates' dtype",
        lambda: arguments(beta=torch.zeros(2, 3, 4, dtype=torch.int64)),
        "beta: expected a floating dtype, was torch.int64",
    ),
    (
        "rates' device",
        lambda: arguments(beta=torch.zeros(2, 3, 4, device="meta")),
        "beta: expected on cpu as q is, was on meta",
    ),
    ("negative rates", lambda: arguments(beta=filled(-0.5)), "beta: expected rates from 0 to 2, found -0.5"),
    ("large rates", lambda: arguments(beta=filled(2.5)), "beta: expected rates from 0 to 2, found 2.5"),
    ("NaN rates", lambda: arguments(beta=filled(torch.nan)), "beta: expected rates from 0 to 2, found nan"),
    (
        "state of another batch",
        lambda: arguments(state=init_delta_state(1, 4, 4, 5)),
        "state: expected [2, 4, 4, 5] for batch 2, 4 value heads, p=1, K=4 and V=5, was [1, 4, 4, 5]: a state of "
        "another batch, p or width",
    ),
    (
        "state's dtype",
        lambda: arguments(state=init_delta_state(2, 4, 4, 5, dtype=torch.float64)),
        "state: expected torch.float32, was torch.float64",
    ),
    (
        "state's device",
        lambda: arguments(state=init_delta_state(2, 4, 4, 5, device="meta")),
        "state: expected on cpu as q is, was on meta",
    ),
    (
        "packed batch",
        lambda: arguments(state=None, cu_seqlens=torch.tensor([0, 3])),
        "cu_seqlens: expected sequences packed into batch 1, q has batch 2",
    ),
    ("packed end", lambda: packed([0, 2]), "cu_seqlens: expected to end at T=3, ends at 2"),
    (
        "packed and padded",
        lambda: packed([0, 3], lengths=torch.tensor([3])),
        "lengths: expected None beside cu_seqlens, which has the lengths already",
    ),
    ("lengths' shape", lambda: arguments(lengths=torch.tensor([3])), "lengths: expected [2] as the batch, was [1]"),
    (
        "lengths' dtype",
        lambda: arguments(lengths=torch.tensor([3.0, 1.0])),
        "lengths: expected whole numbers, was torch.float32",
    ),
    ("long lengths", lambda: arguments(lengths=torch.tensor([4, 1])), "lengths: expected from 0 to T=3, was [4, 1]"),
    (
        "resets' shape",
        lambda: arguments(resets=torch.zeros(2, 4, dtype=torch.bool)),
        "resets: expected [2, 3] as q is, was [2, 4]",
    ),
    ("resets' dtype", lambda: arguments(resets=torch.zeros(2, 3)), "resets: expected torch.bool, was torch.float32"),
    (
        "resets' device",
        lambda: arguments(resets=torch.zeros(2, 3, dtype=torch.bool, device="meta")),
        "resets: expected on cpu as q is, was on meta",
    ),
    ("chunk size", lambda: arguments(chunk_size=0), "chunk_size: expected a whole number from 1 on, was 0"),
    ("chunk size's type", lambda: arguments(chunk_size=2.0), "chunk_size: expected a whole number from 1 on, was 2.0"),
    (
        "implementation",
        lambda: arguments(impl="fast"),
        "impl: expected 'triton', 'chunked', 'recurrent' or None, was 'fast'",
    ),
]


def test_the_good_call_is_good() -> None:
    delta_attention(**arguments())
    delta_attention(**packed([0, 1, 3]))


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_error_is_one_line_that_names_the_argument(make: Callable[[], Arguments], message: str) -> None:
    call = make()
    with pytest.raises(InputError, match=f"^{re.escape(message)}$") as caught:
        delta_attention(**call)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ZooError)


def test_a_state_over_the_limit_is_refused() -> None:
    with pytest.raises(InputError, match=r"^p: a state of p=3 with key width K=128 and value width V=128 takes"):
        delta_attention(*(torch.zeros(1, 1, 1, 128) for _ in range(3)), p=3)


def step_arguments(**changes: Any) -> Arguments:
    good = {name: x if name == "state" else x[:, 0] for name, x in arguments().items()}
    return good | changes


STEP_CASES: list[tuple[Callable[[], Arguments], str]] = [
    (lambda: step_arguments(q=torch.zeros(2, 1, 2, 4)), "q: expected [B, H, K], was [2, 1, 2, 4]"),
    (
        lambda: step_arguments(log_g=torch.zeros(2, 2)),
        "log_g: expected [2, 4] as in v, or [2, 4, 4] for a gate a key channel, was [2, 2]",
    ),
    (lambda: step_arguments(log_g=torch.ones(2, 4)), "log_g: expected log gates of at most 0, found 1"),
    (lambda: step_arguments(beta=torch.full((2, 4), 3.0)), "beta: expected rates from 0 to 2, found 3"),
    (
        lambda: step_arguments(state=init_delta_state(2, 2, 4, 5)),
        "state: expected [2, 4, 4, 5] for batch 2, 4 value heads, p=1, K=4 and V=5, was [2, 2, 4, 5]: a state of "
        "another batch, p or width",
    ),
]


@pytest.mark.parametrize(("make", "message"), STEP_CASES)
def test_step_errors(make: Callable[[], Arguments], message: str) -> None:
    call = make()
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        delta_attention_step(**call)


def test_a_failed_step_leaves_the_state_alone() -> None:
    call = step_arguments(beta=torch.full((2, 4), 3.0), k=torch.ones(2, 2, 4), v=torch.ones(2, 4, 5))
    with pytest.raises(InputError):
        delta_attention_step(**call)
    assert not call["state"].any()


def test_values_are_checked_in_debug_mode_under_no_compiler_only() -> None:
    """On the CPU they are checked either way, and never where there are no values."""
    with debug_checks():
        delta_attention(**{n: x.to("meta") for n, x in arguments(beta=filled(3.0)).items()})
