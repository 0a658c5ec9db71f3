"""States on disk: data alone, whole, and of the model that reads them."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.utils import _pytree

import zoo
from zoo.builder import build, configure, shrink
from zoo.errors import InputError
from zoo.mixers import mixers
from zoo.models import Decoder


def small(mixer: str, backbone: str = "tiny", **options: object) -> Decoder:
    return build(shrink(configure(backbone, mixer=mixer, **options))).eval()


@pytest.mark.parametrize("backbone", ["tiny", "rwkv7-124m", "mamba2-130m"])
@pytest.mark.parametrize("mixer", mixers)
def test_a_state_goes_to_disk_and_back(mixer: str, backbone: str, tmp_path: Path) -> None:
    model, tokens, path = small(mixer, backbone), torch.randint(257, (2, 5)), tmp_path / "state.safetensors"
    _, state = model(tokens, return_state=True)
    zoo.save_state(state, path)
    found = zoo.load_state(path, model)
    assert _pytree.tree_structure(found) == _pytree.tree_structure(state)
    assert all(map(torch.equal, _pytree.tree_leaves(found), _pytree.tree_leaves(state)))
    assert not any(x.requires_grad for x in _pytree.tree_leaves(found))
    layer = model.blocks[0].mixer
    _, alone = layer(torch.randn(2, 5, model.config.width), None, True)
    zoo.save_state(alone, path)
    assert torch.equal(zoo.load_state(path, layer).position, alone.position)


@pytest.mark.parametrize("mixer", ["gated-power", "softmax"])
def test_a_state_for_decoding_goes_to_disk_and_back(mixer: str, tmp_path: Path) -> None:
    model, tokens, path = small(mixer), torch.randint(257, (2, 9)), tmp_path / "state.safetensors"
    with torch.no_grad():
        _, state = model(tokens[:, :8], model.decoding_state(2, max_len=9), True)
        zoo.save_state(state, path)
        found = zoo.load_state(path, model)
        assert _pytree.tree_structure(found) == _pytree.tree_structure(state)
        assert torch.equal(model.step(tokens[:, 8], found), model.step(tokens[:, 8], state))
    layer = model.blocks[0].mixer
    zoo.save_state(layer.decoding_state(2, max_len=9), path)
    assert zoo.load_state(path, layer).position.tolist() == [0, 0]


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    zoo.save_state(small("power").init_state(2), path)
    with pytest.raises(InputError, match=r"state\.safetensors: expected the state of this model, was another's"):
        zoo.load_state(path, small("softmax"))
    with pytest.raises(InputError, match=r"state.safetensors: state\.S: expected \[2, "):
        zoo.load_state(path, small("power", p=3))
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"state\.safetensors: cannot be read: "):
        zoo.load_state(path, small("power"))
    with pytest.raises(InputError, match=r"none\.safetensors: cannot be read: No such file or directory"):
        zoo.load_state(tmp_path / "none.safetensors", small("power"))
    with pytest.raises(InputError, match="state: expected tensors in tuples"):
        zoo.save_state([1], path)


def test_a_state_with_channels_in_an_earlier_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    for mixer, is_refused in (("gated-delta", True), ("power", False), ("mamba2", False)):  # which has one group
        model = small(mixer)
        zoo.save_state(model.init_state(2), path)
        safetensors.torch.save_file(safetensors.torch.load_file(path), path)
        if is_refused:
            with pytest.raises(InputError, match=r"state\.safetensors: expected a state of this version, was an"):
                zoo.load_state(path, model)
        else:
            zoo.load_state(path, model)
