"""Every mixer on a GPU: trains compiled under autocast at any length, without a break, as it does eagerly."""

from collections.abc import Iterator

import pytest
import torch
import torch._inductor.config
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig
from zoo.models.checkpointing import Checkpointing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:TensorFloat32"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS: dict[Checkpointing, tuple[int, ...]] = {"none": (64, 2, 1000, 4096), "selective": (64, 1000)}
# FlexAttention takes whole blocks of tokens without a copy, which is a program of its own.
PROGRAMS = {"softmax": 4, "sliding-window": 4}
# A document's first token is `q.k` times its value, normalised: rounding turns it around where the two are nearly
# orthogonal. Which tokens those are follows from the weights, so that each draw has weights of its own.
DRAWS = 11


@pytest.fixture(autouse=True)
def _unpadded() -> Iterator[None]:
    """Torch 2.11 pads narrow products where its stopwatch says so, and then forgets that lengths vary."""
    with torch._inductor.config.patch(shape_padding=False):
        yield


def build(name: str, mode: Checkpointing = "none", seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    config = DecoderConfig(
        vocab_size=61, width=128, layers=2, heads=2, key_value_heads=1, positions="rotary", initializer_range=0.1
    )
    with torch.device("cuda"):
        model = Decoder(config, [mixers[name].config()] * 2)
    model.checkpoint(mode)
    return model


@pytest.mark.parametrize("mode", ["none", "selective"])
@pytest.mark.parametrize("name", mixers)
def test_trains_compiled_under_autocast(name: str, mode: Checkpointing) -> None:
    torch.compiler.reset()
    model = build(name, mode)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model.loss, fullgraph=True, backend=counter)
    for T in LENGTHS[mode]:
        draws = []
        for draw in range(DRAWS):
            plain = build(name, seed=draw)
            model.load_state_dict(plain.state_dict())
            tokens, targets = (torch.randint(0, 61, (2, T), device="cuda") for _ in range(2))
            resets = torch.rand(2, T, device="cuda") < 0.01
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss, expected = compiled(tokens, targets, resets=resets), plain.loss(tokens, targets, resets=resets)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
            found = torch.autograd.grad(loss, list(model.parameters()))
            wanted = torch.autograd.grad(expected, list(plain.parameters()))
            exact = torch.autograd.grad(plain.loss(tokens, targets, resets=resets), list(plain.parameters()))
            assert all(gradient.isfinite().all() for gradient in found)
            errors = [[(x - y).norm() for x, y in zip(side, exact, strict=True)] for side in (found, wanted)]
            draws.append(torch.stack([torch.stack(row) for row in (*errors, [gradient.norm() for gradient in wanted])]))
        error, allowed, size = torch.stack(draws).median(0).values
        held = error <= 1.5 * allowed + 0.1 * size + 0.01 * size.amax()
        assert held.all(), [name for (name, _), holds in zip(model.named_parameters(), held, strict=True) if not holds]
    assert counter.frame_count <= PROGRAMS.get(name, 3)  # two recompiles


@pytest.mark.parametrize("name", mixers)
def test_reads_on_from_a_state_compiled(name: str) -> None:
    torch.compiler.reset()
    model = build(name).eval()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    state = expected_state = model.init_state(2, max_len=4000)
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        for T in (100, 2, 1300, 2048):
            tokens = torch.randint(0, 61, (2, T), device="cuda")
            logits, state = compiled(tokens, state, True)
            expected, expected_state = model(tokens, expected_state, True)
            assert (logits - expected).float().norm() <= 0.05 * expected.float().norm()
    assert counter.frame_count <= PROGRAMS.get(name, 3)
