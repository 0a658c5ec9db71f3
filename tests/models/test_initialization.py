"""Models start alike in every precision."""

from collections.abc import Iterator

import pytest
import torch

from zoo.builder import build, configure, shrink
from zoo.mixers import mixers
from zoo.models import Decoder

HALVES = (torch.bfloat16, torch.float16)


def small(mixer: str, backbone: str, **options: torch.dtype) -> Decoder:
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
