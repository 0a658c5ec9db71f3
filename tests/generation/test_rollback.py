"""Tokens that a model takes back, whatever its layers are and whatever stands around them."""

from pathlib import Path

import pytest
import torch
from torch.utils import _pytree

import zoo
from zoo.builder import build, configure, shrink
from zoo.errors import InputError
from zoo.generation import compile_decoder
from zoo.mixers import mixers
from zoo.models import Decoder
from zoo.states import reorder_state


def small(mixer: str, backbone: str = "tiny") -> Decoder:
    torch.manual_seed(0)
    return build(shrink(configure(backbone, mixer=mixer))).eval().double()


@pytest.mark.parametrize("backbone", ["tiny", "rwkv7-124m", "mamba2-130m"])
@pytest.mark.parametrize("mixer", mixers)
@torch.no_grad()
def test_what_follows_is_as_if_they_had_never_been(mixer: str, backbone: str) -> None:
    """A prompt that is much longer than what can be taken back, steps, and a block that is read at once."""
    model, tokens, lengths = small(mixer, backbone), torch.randint(257, (2, 40)), torch.tensor([30, 23])
    whole, _ = model(tokens)
    state = model.decoding_state(2, max_len=45, rollback=3)
    _, state = model.prefill(tokens[:, :30], state, lengths)
    addresses = [x.data_ptr() for x in _pytree.tree_leaves(state)]
    model.rollback(state, torch.tensor([3, 1]))
    for t in range(2):
        model.step(tokens[:, t], state)
    model.rollback(state, 2)
    assert [x.data_ptr() for x in _pytree.tree_leaves(state)] == addresses
    assert state.position.tolist() == [27, 22]
    block = torch.stack((torch.cat((tokens[0, 27:28], tokens[0, :3])), tokens[1, 22:26]))
    logits, state = model(block, state, True)
    torch.testing.assert_close(logits[0, 0], whole[0, 27], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(logits[1], whole[1, 22:26], rtol=1e-6, atol=1e-8)
    model.rollback(state, torch.tensor([3, 0]))
    for t in range(4):
        logits = model.step(torch.stack((tokens[0, 28 + t], tokens[1, 26 + t])), state)
        torch.testing.assert_close(logits[0], whole[0, 28 + t], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(logits[1], whole[1, 26 + t], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mixer", ["gated-power", "sliding-window", "mamba2"])
@torch.no_grad()
def test_states_that_can_take_back_are_states_like_any(mixer: str, tmp_path: Path) -> None:
    """Rows are chosen, and they go to disk."""
    model, tokens = small(mixer), torch.randint(257, (2, 20))
    _, state = model(tokens, model.decoding_state(2, max_len=24, rollback=2), True)
    zoo.save_state(state, tmp_path / "state.safetensors")
    found = zoo.load_state(tmp_path / "state.safetensors", model)
    both = reorder_state(state, torch.tensor([1, 0, 1]))
    expected = model(tokens[:, :19], model.decoding_state(2, max_len=24), True).state
    for one, rows in ((state, [0, 1]), (found, [0, 1]), (both, [1, 0, 1])):
        model.rollback(one, 1)
        logits = model.step(tokens[rows, 0], one)
        wanted = model(tokens[rows, :1], reorder_state(expected, torch.tensor(rows))).logits[:, 0]
        torch.testing.assert_close(logits, wanted, rtol=1e-6, atol=1e-8)


def test_compiled_steps_take_back() -> None:
    torch._dynamo.reset()
    model, tokens = small("rwkv7"), torch.randint(257, (2, 9))
    decoder = compile_decoder(model, backend="aot_eager")
    state = decoder.decoding_state(2, rollback=2)
    for t in (0, 1, 5, 6):
        decoder.step(tokens[:, t], state)
    decoder.rollback(state, 2)
    with torch.no_grad():
        torch.testing.assert_close(decoder.step(tokens[:, 2], state), model(tokens[:, :3]).logits[:, 2])


def test_softmax_takes_back_any_number() -> None:
    model, tokens = small("softmax"), torch.randint(257, (2, 9))
    _, state = model(tokens, model.init_state(2, max_len=9), True)
    model.rollback(state, 9)
    assert state.position.tolist() == [0, 0]
    with pytest.raises(InputError, match=r"tokens: expected at most those of each document, \[0, 0\], was \[1, 1\]"):
        model.rollback(state, 1)
