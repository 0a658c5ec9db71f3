"""Run by `torchrun` for `test_shared_recipes.py`: every recipe, shrunk and compiled, its sequences over all processes.

Writes `{recipe: {documents: {what: relative error}}}` of each process.
"""

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from tests.torchrun import tell
from zoo.builder import build, shrink
from zoo.kernels.sequence import SequenceGroup
from zoo.models import Decoder
from zoo.recipe import available_recipes, load_recipe

TOKENS = 64
ROWS = 2


def make(name: str) -> Decoder:
    torch.manual_seed(0)
    return build(shrink(load_recipe(name))).double()


def marks(case: str, processes: int) -> Tensor | None:
    """Documents that begin inside of shares and at their borders, and one over several; None: one document."""
    if case == "plain":
        return None
    resets = torch.zeros(ROWS, TOKENS, dtype=torch.bool)
    resets[0, [5, TOKENS // processes, TOKENS - 3]] = True
    resets[1, TOKENS // processes + 1] = True
    return resets


def gradients(model: Decoder, tokens: Tensor, targets: Tensor, resets: Tensor | None) -> dict[str, Tensor]:
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager") if model.group else model.loss
    model.zero_grad()
    torch.autograd.backward(compiled(tokens, targets, resets=resets))
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def compare(name: str, case: str, group: SequenceGroup) -> dict[str, float]:
    torch.manual_seed(1)  # the same for all processes
    tokens, targets = torch.randint(257, (2, ROWS, TOKENS))
    resets = marks(case, group.size)
    whole = gradients(make(name), tokens, targets, resets)
    model = make(name)
    model.share_sequences(group)
    own = [None if x is None else x.chunk(group.size, 1)[int(group.rank)] for x in (tokens, targets, resets)]
    errors = {}
    torch.compiler.reset()
    for part, found in gradients(model, *own).items():  # type: ignore[arg-type]
        dist.all_reduce(found)  # the mean over processes, as of many that train together
        errors[part] = float((found / group.size - whole[part]).norm() / whole[part].norm().clamp(min=1e-300))
    return errors


def main(result: str) -> None:
    dist.init_process_group("gloo")
    group = SequenceGroup.of(dist.group.WORLD, "cpu")  # type: ignore[arg-type]
    found = {
        name: {case: compare(name, case, group) for case in ("plain", "documents")} for name in available_recipes()
    }
    tell(found, result)


if __name__ == "__main__":
    main(sys.argv[1])
