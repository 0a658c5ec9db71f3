"""Who takes part in `zoo bench op`: our op, softmax attention by backend, and peers where they are installed."""

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.bench.attention import Attend, AttentionCase, compile_power
from zoo.errors import InputError, nearest

__all__ = ["CONTESTANTS", "DEFAULT_CONTESTANTS", "Contestant", "Refusal", "first_line", "select_contestants"]


class Refusal(Exception):  # noqa: N818 (an answer, not an error)
    """A contestant cannot take part; says why in one line."""


def _accept(_case: AttentionCase) -> None:
    return


@dataclass(frozen=True)
class Contestant:
    """One row of a comparison."""

    name: str
    build: Callable[[AttentionCase], Attend]
    """Returns a function of q, k, v and gates, in this layout: `[B, T, H, K]`. Raises `Refusal`."""
    check_backward: Callable[[AttentionCase], None] = _accept
    """Raises `Refusal` where the backward pass is known to be refused, which spares tuning it."""
    softmax: bool = False
    """Softmax attention takes heads first, has neither gates nor a power, and is quadratic in the length."""
    ours: bool = False
    """Whether it is the op of this library, whose work is counted."""
    static: bool = False
    """Whether it is compiled for each length by itself, rather than once for all."""
    tunes: bool = False
    """Whether the first call searches for block sizes, which can take minutes."""
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered around all calls."""


def select_contestants(names: Iterable[str]) -> list[Contestant]:
    """Return contestants by name, in this order.

    Raises:
        InputError: there is none of that name.
    """
    for name in names:
        if name not in CONTESTANTS:
            expected = ", ".join(CONTESTANTS)
            raise InputError(f"contestants: expected some of {expected}, was {name!r}{nearest(name, CONTESTANTS)}")
    return [CONTESTANTS[name] for name in dict.fromkeys(names)]


def first_line(error: BaseException) -> str:
    """Return what an error says, as one line of at most 160 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 160 else f"{lines[0][:159]}…"


def _softmax(name: str, backend: SDPBackend) -> Contestant:
    def attend(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return Contestant(name, lambda _: attend, softmax=True, context=lambda: sdpa_kernel(backend))


def _import(module: str, attribute: str, package: str) -> Callable[..., Any]:
    """Import a peer's function, or raise `Refusal`."""
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or module).partition(".")[0] == module.partition(".")[0]:
            raise Refusal(f"not installed (pip install {package})") from None
        raise Refusal(f"needs {error.name}, which is not installed") from None
    except Exception as error:
        raise Refusal(f"cannot be imported: {first_line(error)}") from error
    return function


def _build_retention(case: AttentionCase) -> Attend:
    """The package's Triton implementation, in chunks as long as in its own benchmark."""
    if case.p != 2:
        raise Refusal("has only p = 2")
    if case.head_width not in (32, 64, 128):
        raise Refusal("has only head widths 32, 64 and 128")
    power_retention = _import("retention.triton", "power_retention", "retention")

    def attend(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return power_retention(q, k, v, log_g, deg=2, chunk_size=1024)

    return _compiled_if_possible(attend)


def _compiled_if_possible(attend: Attend) -> Attend:
    """Compile in parts, as far as the compiler comes; where it fails, eager from then on."""
    chosen = compiled = torch.compile(attend)

    def attend_as_chosen(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        nonlocal chosen
        try:
            return chosen(q, k, v, log_g)
        except TorchDynamoException:
            if chosen is not compiled:
                raise
            chosen = attend
            return attend(q, k, v, log_g)

    return attend_as_chosen


def _build_fla(case: AttentionCase) -> Attend:
    """`chunk_simple_gla`, which is not for compiling."""
    if case.p != 1:
        raise Refusal("has only p = 1")
    chunk_simple_gla = _import("fla.ops.simple_gla", "chunk_simple_gla", "flash-linear-attention")

    def attend(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return chunk_simple_gla(q, k, v, g=log_g)[0]

    return attend


def _check_fla_backward(case: AttentionCase) -> None:
    """Know what the package refuses, but only after it has tuned most of its backward kernels."""
    utils: Any = importlib.import_module("fla.utils")
    names = ("IS_NVIDIA_HOPPER", "TRITON_ABOVE_3_4_0", "TRITON_ABOVE_3_7_1")
    hopper, from_3_4_0, from_3_7_1 = (getattr(utils, name, False) for name in names)
    tilelang = importlib.util.find_spec("tilelang") is not None  # has a kernel of its own
    if case.gated and hopper and from_3_4_0 and not from_3_7_1 and not tilelang:
        raise Refusal("its gated backward pass refuses to run on Hopper with Triton 3.4.0 to 3.7.0")


CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant("power", partial(compile_power, dynamic=None), ours=True),
        Contestant("power-static", partial(compile_power, dynamic=False), ours=True, static=True),
        _softmax("softmax-cudnn", SDPBackend.CUDNN_ATTENTION),
        _softmax("softmax-flash", SDPBackend.FLASH_ATTENTION),
        _softmax("softmax-math", SDPBackend.MATH),
        Contestant("retention", _build_retention, tunes=True),
        Contestant("fla", _build_fla, check_backward=_check_fla_backward, tunes=True),
    )
}
DEFAULT_CONTESTANTS = ("power", "softmax-cudnn", "softmax-flash", "retention", "fla")
