"""Helpers that work on every state alike."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from zoo.errors import InputError
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig, DecoderState
from zoo.states import detach_state, map_state, move_state, reorder_state, state_bytes


class Inner(NamedTuple):
    sums: Tensor
    position: Tensor


class Outer(NamedTuple):
    layers: tuple[Inner, ...]
    position: Tensor


def example(rows: int = 3) -> Outer:
    inner = Inner(torch.randn(rows, 2, 4), torch.arange(rows))
    return Outer((inner, inner._replace(sums=inner.sums * 2)), torch.arange(rows))


def test_bytes_count_every_tensor() -> None:
    assert state_bytes(example()) == 2 * (3 * 8 * 4 + 3 * 8) + 3 * 8
    assert state_bytes(None) == 0


def test_reorder_copies_rows() -> None:
    state = example()
    moved = reorder_state(state, torch.tensor([2, 0, 0, 1]))
    assert isinstance(moved, Outer)
    assert isinstance(moved.layers[0], Inner)
    assert torch.equal(moved.layers[1].sums, state.layers[1].sums[[2, 0, 0, 1]])
    assert moved.position.tolist() == [2, 0, 0, 1]
    moved.position.zero_()
    assert state.position.tolist() == [0, 1, 2]


@pytest.mark.parametrize("index", [torch.tensor(1), torch.tensor([1.0]), torch.tensor([True])])
def test_reorder_refuses_other_indices(index: Tensor) -> None:
    with pytest.raises(InputError, match="index: expected integers"):
        reorder_state(example(), index)


def test_detach_cuts_gradients() -> None:
    x = torch.randn(1, 2, requires_grad=True)
    state = Inner(x * 2, torch.zeros(1))
    assert state.sums.requires_grad
    assert not detach_state(state).sums.requires_grad


def test_move_converts_floating_tensors_only() -> None:
    moved = move_state(example(), dtype=torch.bfloat16)
    assert moved.layers[0].sums.dtype == torch.bfloat16
    assert moved.layers[0].position.dtype == moved.position.dtype == torch.int64
    assert {part.device.type for part in move_state(example(), device="meta").layers[0]} == {"meta"}


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(InputError, match="state: expected tensors in tuples, as init_state returns them, was dict"):
        state_bytes({"sums": torch.zeros(1)})


@pytest.mark.parametrize("name", mixers)
def test_helpers_take_the_state_of_every_model(name: str) -> None:
    config = DecoderConfig(vocab_size=11, width=16, layers=2, heads=2)
    model = Decoder(config, [mixers[name].config()] * 2)
    tokens = torch.randint(0, 11, (2, 9))
    _, state = model(tokens[:, :5], model.init_state(2, max_len=9), True)
    assert state_bytes(state) > 0

    twice = reorder_state(detach_state(state), torch.tensor([1, 1, 0]))
    back = move_state(move_state(twice, dtype=torch.float64), dtype=torch.float32)
    assert isinstance(back, DecoderState)
    continued = model(tokens[[1, 1, 0], 5:], back).logits
    torch.testing.assert_close(continued, model(tokens[[1, 1, 0]]).logits[:, 5:], rtol=1e-4, atol=1e-5)
    assert all(not part.requires_grad for part in _pytree.tree_leaves(map_state(torch.clone, twice)))
