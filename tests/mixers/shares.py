"""Run by `torchrun` for `test_shares.py`: every mixer with one sequence over all processes, beside one process.

Arguments: a file that gets `{variant: {case: {what: relative error}}}` of each process, and which variants are also
compiled.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.mixers.test_laws import VARIANTS, build, inputs
from tests.torchrun import tell
from zoo.blocks.window import open_window
from zoo.kernels.sequence import SequenceGroup
from zoo.mixers import Mixer

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
        if variant in compiled:
            call = torch.compile(mixer, fullgraph=True, backend="aot_eager")
            resets = marks("documents", SHARE * group.size, group.size)
            found[variant]["compiled"] = compare(mixer, call, resets, group)
    tell(found, result)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
