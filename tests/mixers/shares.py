"""Run by `torchrun` for `test_shares.py`: every mixer with one sequence over all processes, beside one process.

Arguments: a file that gets `{variant: {case: {what: relative error}}}` of each process, and which variants are also
compiled.
"""

import sys
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tests.mixers.test_laws import VARIANTS, build, inputs, parts
from tests.torchrun import tell
from zoo.blocks.window import open_window
from zoo.kernels.sequence import SequenceGroup
from zoo.mixers import Mixer
from zoo.states import map_state

SHARE = 7  # tokens


def marks(case: str, T: int, P: int) -> Tensor | None:
    """Documents that begin inside of shares, at their borders, and such as reach over several; None: one document."""
    if case == "plain":
        return None
    resets = torch.zeros(2, T, dtype=torch.bool)
    resets[0, [3, T - 2]] = True
    resets[1, [0, T // P, T // P + 1]] = True
    return resets


def difference(one: Tensor, other: Tensor) -> float:
    one, other = one.detach(), other.detach()
    return float((one - other).norm() / other.norm().clamp(min=1e-300))


def share(x: Tensor | None, group: SequenceGroup) -> Tensor | None:
    return None if x is None else x.chunk(group.size, 1)[int(group.rank)].clone()


def run(mixer: Mixer, x: Tensor, resets: Tensor | None, weights: Tensor, group: SequenceGroup | None) -> Tensor:
    """Return the output; gradients are left."""
    mixer.zero_grad()
    window = open_window(x, None, lengths=None, resets=resets, return_state=False, group=group)
    y = mixer(x, window=window).y
    torch.autograd.backward((y * weights).sum())
    return y.detach()


def compare(mixer: Mixer, call: Any, resets: Tensor | None, group: SequenceGroup) -> dict[str, float]:
    """Return relative errors of `call`, which is the mixer or what was made of it."""
    T = SHARE * group.size
    x, weights = inputs(2, T).requires_grad_(), inputs(2, T)
    y = run(mixer, x, resets, weights, None)
    wanted = {name: parameter.grad.clone() for name, parameter in mixer.named_parameters()}  # type: ignore[union-attr]
    own, own_weights = share(x.detach(), group), share(weights, group)
    assert own is not None
    assert own_weights is not None
    found = run(call, own.requires_grad_(), share(resets, group), own_weights, group)
    errors = {"y": difference(found, share(y, group)), "x": difference(own.grad, share(x.grad, group))}  # type: ignore
    for name, parameter in mixer.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        dist.all_reduce(gradient)
        errors[name] = difference(gradient, wanted[name])
    return errors


class Call(NamedTuple):
    """A call with what stands before and behind: tokens and the state before them, which of them are real."""

    x: Tensor
    state: Any
    lengths: Tensor | None
    resets: Tensor | None


def a_call(mixer: Mixer, variant: str, P: int, *, padded: bool) -> Call:
    """Return a call behind a few tokens; if padded, of rows that end at different places and one without any token."""
    T, B, seen = SHARE * P, 3, 5
    _, state = mixer(inputs(B, seen), mixer.init_state(B, max_len=seen + T), True)
    layer = map_state(lambda part: part.detach().clone().requires_grad_(), state.layer)
    x = inputs(B, T).requires_grad_()
    if not padded:
        return Call(x, state._replace(layer=layer), None, None)
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[0, [2, T - 2 * SHARE + 3, T - 1]] = resets[1, SHARE - 1] = True  # some of padding, which count for nothing
    # One token of the last share, which sees more of the share before than it has; and an end within the first share.
    lengths = torch.tensor([T - SHARE + 1, SHARE - 2, 0])
    return Call(x, state._replace(layer=layer), None if "offset" in variant else lengths, resets)


def run_between(
    mixer: Any, call: Call, weights: tuple[Tensor, dict[str, Tensor]], group: SequenceGroup | None
) -> dict[str, Tensor]:
    """Return the output of real tokens, states after them, how far they are, and gradients of what is not shared."""
    x, state, lengths, resets = call
    window = open_window(x, state, lengths=lengths, resets=resets, return_state=True, group=group)
    y, after = mixer(x, state.layer, window=window)
    if window.lengths is not None:
        y = torch.where((torch.arange(x.shape[1]) < window.lengths[:, None])[..., None], y, 0)
    found = {"y": y} | {f"after {name}": part for name, part in parts(after).items()}
    # Every process has the state after all shares, and a part of what depends on it.
    count = 1 if group is None else (int(group.rank) + 1) / sum(range(1, group.size + 1))
    loss = (y * weights[0]).sum()
    for name, part in parts(after).items():
        loss = loss + count * (part * weights[1][name]).sum()
    torch.autograd.backward(loss)
    found |= {f"gradient {name}": _gradient(part) for name, part in (parts(state.layer) | {"x": x}).items()}
    return found | {"position": window.after.double(), "start": window.last_start.double()}


def _gradient(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad.clone()


def compare_between(mixer: Mixer, call: Any, case: Call, group: SequenceGroup) -> dict[str, float]:
    """Return relative errors of `call` on shares, with states before and after them."""
    mixer.zero_grad()
    weights = torch.randn_like(case.x), {name: torch.randn_like(part) for name, part in parts(case.state.layer).items()}
    wanted = run_between(mixer, case, weights, None)
    gradients = {name: _gradient(parameter) for name, parameter in mixer.named_parameters()}
    mixer.zero_grad()
    x, state, lengths, resets = case
    own, own_weights = share(x.detach(), group), share(weights[0], group)
    assert own is not None
    assert own_weights is not None
    layer = map_state(lambda part: part.detach().clone().requires_grad_(), state.layer)
    shared = Call(own.requires_grad_(), state._replace(layer=layer), lengths, share(resets, group))
    found = run_between(call, shared, (own_weights, weights[1]), group)
    found |= {name: _gradient(parameter) for name, parameter in mixer.named_parameters()}
    for name in (*gradients, *(f"gradient {name}" for name in parts(layer))):
        dist.all_reduce(found[name])
    for name in ("y", "gradient x"):
        wanted[name] = share(wanted[name], group)  # type: ignore[assignment]
    return {name: difference(found[name], part) for name, part in (wanted | gradients).items()}


def main(result: str, compiled: list[str]) -> None:
    dist.init_process_group("gloo")
    group = SequenceGroup.of(dist.group.WORLD, "cpu")  # type: ignore[arg-type]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for variant in VARIANTS:
        mixer = build(variant, 2)
        found[variant] = {}
        for case in ("plain", "documents"):
            resets = marks(case, SHARE * group.size, group.size)
            found[variant][case] = compare(mixer, mixer, resets, group)
        for padded in (False, True):
            between = a_call(mixer, variant, group.size, padded=padded)
            found[variant]["padded" if padded else "states"] = compare_between(mixer, mixer, between, group)
        if variant in compiled:
            torch.compiler.reset()  # graphs of all variants are those of one method, and may be eight
            call = torch.compile(mixer, fullgraph=True, backend="aot_eager")
            resets = marks("documents", SHARE * group.size, group.size)
            found[variant]["compiled"] = compare(mixer, call, resets, group)
            between = a_call(mixer, variant, group.size, padded=True)
            found[variant]["compiled, padded"] = compare_between(mixer, call, between, group)
    tell(found, result)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
