"""The compiler's graphs of processes that have one sequence together: one for all of them, however many there are."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.testing._internal.distributed.fake_pg import FakeStore

from zoo.blocks.window import open_window
from zoo.kernels.sequence import SequenceGroup

from ..mixers.test_laws import VARIANTS, build, inputs

PROCESSES = 512
QUICK = ("gated-power",)  # the only one that time allows elsewhere than in the thorough profile
TOKENS = 7


@pytest.fixture
def _nothing_sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend that sends nothing minds how much each process sends its neighbours alone."""
    monkeypatch.setattr(dist, "all_to_all_single", lambda *_, **__: None)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def graphs(variant: str, rank: int) -> list[str]:
    """Hashes of the forward and the backward graph of one of many processes."""
    found = []

    def keep(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        found.append(hashlib.sha256(graph.print_readable(print_output=False).encode()).hexdigest())
        return make_boxed_func(graph.forward)

    torch.compiler.reset()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=PROCESSES)
    group = SequenceGroup.of(dist.group.WORLD, "cpu")  # type: ignore[arg-type]
    mixer = build(variant, 2)

    def run(x: Tensor, resets: Tensor) -> Tensor:
        window = open_window(x, None, lengths=None, resets=resets, return_state=False, group=group)
        y: Tensor = mixer(x, window=window).y
        return y

    compiled = torch.compile(run, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    y = compiled(inputs(1, TOKENS).requires_grad_(), torch.zeros(1, TOKENS, dtype=torch.bool))
    torch.autograd.backward(y.sum())
    dist.destroy_process_group()
    return found


@pytest.mark.usefixtures("_nothing_sent")
@pytest.mark.parametrize(
    "variant", [variant if variant in QUICK else pytest.param(variant, marks=pytest.mark.slow) for variant in VARIANTS]
)
def test_first_and_last_of_512_processes_have_one_graph(variant: str) -> None:
    first = graphs(variant, 0)
    assert len(first) == 2
    assert graphs(variant, PROCESSES - 1) == first
