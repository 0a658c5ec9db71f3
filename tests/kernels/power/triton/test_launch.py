"""A call's launches are known before any of them, so that kernels can be compiled side by side."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels import launch as module
from zoo.kernels.power import context as halves
from zoo.kernels.power.call import Incoming, Inputs, Options
from zoo.kernels.power.triton import context, op, plan
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
    rehearsed = op.rehearse(inputs, options)

    launched = _Everything()
    monkeypatch.setattr(module, "_compiled", launched)
    with module.unseen(q.device):
        outputs = forward(inputs, options)
        backward(Incoming(torch.zeros_like(outputs.o), None, None), inputs, outputs.saved(options), options)
    assert set(launched) == {each.key for each in rehearsed}
    assert len(rehearsed) > 4


@pytest.mark.parametrize("save_states", [False, True])
@pytest.mark.parametrize(
    ("p", "width", "dtype", "offset", "hopper"),
    [
        (2, 64, torch.bfloat16, False, True),
        (2, 128, torch.bfloat16, False, True),
        (1, 16, torch.bfloat16, False, False),
        (2, 16, torch.float16, True, False),
        (3, 16, torch.float32, False, False),
    ],
)
def test_halves_of_shares_launch_and_give_what_their_fakes_say(
    monkeypatch: pytest.MonkeyPatch, p: int, width: int, dtype: torch.dtype, offset: bool, hopper: bool,
    save_states: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(plan, "supports_hopper", lambda *_: hopper)
    options = Options(p, 0.25, p % 2 == 0, use_triton=True, save_states=save_states, save_output=p % 2 == 0)
    with FakeTensorMode(), module.rehearsal() as launches:
        q, k, v = (torch.zeros(2, 4097, count, width, dtype=dtype) for count in (4, 2, 2))
        inputs = Inputs(q, k, v, torch.zeros(2, 4097, 2), offset=torch.zeros(4) if offset else None)
        sums, S, z = context.share_sums(inputs, options)
        outputs = context.share_outputs(inputs._replace(S=S, z=z), sums, options)
        saved, do = outputs.saved(options), torch.zeros_like(outputs.o)
        back = context.share_gradient_sums(do, inputs, saved, options)
        incoming = Incoming(do, *back[1:])
        gradients = context.share_gradients(incoming, inputs._replace(S=S, z=z), saved, back[0], options)
        fakes = [
            *halves._fake_sums(inputs, options),
            *halves._fake_outputs(inputs._replace(S=S, z=z), sums, options),
            *halves._fake_sums(inputs, options),
            *halves._fake_gradients(incoming, inputs._replace(S=S, z=z), saved, back[0], options),
        ]
    found = [sums, S, z, *outputs, *back, *gradients]
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in fakes]
    assert len(launches) > 10
