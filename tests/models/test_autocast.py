"""States in any dtype, in models of any dtype, under autocast to any other."""

import pytest
import torch

from zoo.builder import build, configure, shrink
from zoo.mixers import mixers

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("backbone", ["tiny", "rwkv7-124m", "mamba2-130m"])
@pytest.mark.parametrize("mixer", mixers)
def test_any_dtype_meets_any_other(mixer: str, backbone: str) -> None:
    torch.manual_seed(0)
    model = build(shrink(configure(backbone, mixer=mixer))).eval()
    tokens, resets = torch.randint(257, (2, 7)), torch.zeros(2, 7, dtype=torch.bool)
    resets[:, 2] = True
    for parameters in (torch.float32, *HALVES):
        model.to(parameters)
        for cached in (torch.float32, *HALVES, *FLOAT8):
            for autocast in HALVES:
                state = model.init_state(2, max_len=9, dtype=cached)
                with torch.no_grad(), torch.autocast("cpu", dtype=autocast):
                    logits, state = model(tokens, state, return_state=True, resets=resets)
                    token = model.step(tokens[:, 0], state)
                assert logits.isfinite().all()
                assert token.isfinite().all()
