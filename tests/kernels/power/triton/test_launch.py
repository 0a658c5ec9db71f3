"""A call's launches are known before any of them, so that kernels can be compiled side by side."""

from typing import Any

import pytest
import torch

from zoo.kernels import launch as module
from zoo.kernels.power.call import Incoming, Inputs, Options
from zoo.kernels.power.triton import op, plan
from zoo.kernels.power.triton.passes import backward, forward
from zoo.kernels.triton_support import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


class _Everything(dict[Any, Any]):
    """Kernels that are all compiled, and do nothing."""

    def get(self, key: Any, default: Any = None) -> Any:
        self[key] = None
        return self

    def __getitem__(self, grid: Any) -> Any:
        assert len(grid) == 3
        return lambda *_, **__: None


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("gated", "heads"), [(True, (2, 2, 2)), (False, (4, 2, 1))])
@pytest.mark.parametrize("T", [500, 4097])
def test_a_rehearsal_finds_what_is_launched(
    monkeypatch: pytest.MonkeyPatch, width: int, gated: bool, heads: tuple[int, int, int], T: int
) -> None:
    monkeypatch.setattr(plan, "supports_hopper", lambda *_: True)
    q, k, v = (torch.zeros(1, T, count, width, dtype=torch.bfloat16) for count in heads)
    inputs = Inputs(q, k, v, torch.zeros(1, T, heads[2]) if gated else None)
    options = Options(2, 0.125, True, save_states=True, save_output=True)
    rehearsed = op._rehearse(inputs, options)

    launched = _Everything()
    monkeypatch.setattr(module, "_compiled", launched)
    with module.unseen(q.device):
        outputs = forward(inputs, options)
        backward(Incoming(torch.zeros_like(outputs.o), None, None), inputs, outputs.saved(options), options)
    assert set(launched) == {each.key for each in rehearsed}
    assert len(rehearsed) > 4
