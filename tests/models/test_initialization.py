"""Models start alike in every precision."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from zoo.builder import build, configure, shrink
from zoo.mixers import mixers
from zoo.models import Decoder
from zoo.models.initialization import draw_seed

HALVES = (torch.bfloat16, torch.float16)


def small(mixer: str, backbone: str, **options: Any) -> Decoder:
    return build(shrink(configure(backbone, mixer=mixer)), **options)


@pytest.fixture
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backbone", ["tiny", "rwkv7-124m", "mamba2-130m"])
@pytest.mark.parametrize("mixer", mixers)
def test_a_short_dtype_starts_as_float32_rounded(mixer: str, backbone: str, dtype: torch.dtype) -> None:
    expected, found = small(mixer, backbone), small(mixer, backbone, dtype=dtype)
    for model in (expected, found):
        torch.manual_seed(0)
        model.reset_parameters()
    for name, parameter in found.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, expected.get_parameter(name).to(dtype)), name


@pytest.mark.parametrize("default", HALVES, indirect=True)
@pytest.mark.parametrize("backbone", ["tiny", "rwkv7-124m", "mamba2-130m"])
@pytest.mark.parametrize("mixer", mixers)
def test_any_default_dtype_will_do(mixer: str, backbone: str, default: torch.dtype) -> None:
    model = small(mixer, backbone)
    assert {parameter.dtype for parameter in model.parameters()} == {default}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    tokens, resets = torch.randint(257, (2, 9)), torch.zeros(2, 9, dtype=torch.bool)
    resets[:, 4] = True
    logits, state = model(tokens, model.init_state(2, max_len=12), return_state=True, resets=resets)
    assert logits.dtype == default
    assert logits.isfinite().all()
    assert model.step(tokens[:, 0], state).isfinite().all()
    assert model.loss(tokens, tokens, resets=resets).dtype == torch.float32
    assert torch.get_default_dtype() == default


@pytest.mark.parametrize("backbone", ["tiny", "gpt2-124m", "rwkv7-124m", "mamba2-130m"])
@pytest.mark.parametrize("mixer", mixers)
def test_parts_start_as_in_the_whole(mixer: str, backbone: str) -> None:
    torch.manual_seed(3)
    whole = small(mixer, backbone)
    torch.manual_seed(3)
    seed = draw_seed()
    parted = small(mixer, backbone, device="meta").to_empty(device="cpu")
    for name in ("head", "norm", *(f"blocks.{layer}" for layer in (1, 0)), "position_embedding", "embedding_norm"):
        if getattr(parted, name.partition(".")[0]) is not None:
            parted.reset_parameters(seed=seed, part=name)
    parted.reset_parameters(seed=seed, part="token_embedding")
    for name, parameter in whole.named_parameters():
        assert torch.equal(parted.get_parameter(name), parameter), name


def test_drawing_leaves_the_generator_one_number_further() -> None:
    torch.manual_seed(0)
    small("softmax", "tiny").reset_parameters(seed=1)
    torch.manual_seed(0)
    model = small("gated-power", "tiny")
    after = torch.get_rng_state()
    model.reset_parameters(seed=1)
    assert torch.equal(torch.get_rng_state(), after)


def test_models_that_differ_in_their_mixer_start_from_the_same_rest() -> None:
    models = [small(mixer, "tiny") for mixer in ("softmax", "gated-power")]
    for model in models:
        model.reset_parameters(seed=5)
    names = [name for name, _ in models[0].named_parameters() if ".mixer." not in name]
    assert len(names) > 5
    for name in names:
        assert torch.equal(models[0].get_parameter(name), models[1].get_parameter(name)), name
    other = small("softmax", "tiny")
    other.reset_parameters(seed=6)
    assert not torch.equal(other.token_embedding.weight, models[0].token_embedding.weight)
