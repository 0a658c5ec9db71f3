"""Decoding on a GPU, in a CUDA graph: the same tokens as without one, at the same addresses, compiled once."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree

from zoo.generation import Decoding, Draft, compile_decoder, generate, generate_tokens, stepper
from zoo.generation.draft import speculate
from zoo.generation.sampling import Sampling
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig, DecoderState

from .small_models import HYBRID, every_mixer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:TensorFloat32"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0.8},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


def build(names: Sequence[str] = HYBRID, dtype: torch.dtype = torch.float32) -> Decoder:
    """Heads of 16 channels, which the kernels of a GPU take."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=257, width=64, layers=len(names), heads=4, key_value_heads=2, max_positions=1024,
        positions="rotary", initializer_range=0.3,
    )  # fmt: skip
    return Decoder(config, [mixers[name].config() for name in names]).to("cuda", dtype)


def prompts() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"tokens": torch.randint(0, 257, (3, 9)), "lengths": torch.tensor([9, 1, 5])}


def unrecorded() -> AbstractContextManager[object]:
    """A context in which steps are never recorded, but each is launched anew."""
    return patch.object(stepper, "_RUNS_BEFORE_RECORDING", 10**9)


def addresses(state: DecoderState) -> list[int]:
    return [part.data_ptr() for part in _pytree.tree_leaves(state)]


@every_mixer
def test_greedy_tokens_are_those_without_a_graph(names: Sequence[str]) -> None:
    model, inputs = build(names), prompts()
    decoder = compile_decoder(model)
    decoding = decoder.decoding(**inputs, max_new_tokens=30)
    chosen = torch.stack(list(decoding), 1)
    assert decoding.recorded
    with unrecorded():
        assert torch.equal(chosen, generate_tokens(compile_decoder(model), **inputs, max_new_tokens=30))
    assert torch.equal(chosen, generate_tokens(model, **inputs, max_new_tokens=30))


@pytest.mark.parametrize("name", ["linear", "power", "gated-power"])
def test_journals_fold_in_a_graph(name: str) -> None:
    """Rows at different places, from the first token to long after sums are read."""
    model, inputs = build((name,)), prompts()
    decoding = compile_decoder(model).decoding(**inputs, max_new_tokens=200)
    chosen = torch.stack(list(decoding), 1)
    assert decoding.recorded
    state = decoding.state.layers[0][0]
    assert ((state.folded > 0) & (state.folded % 16 == 0)).all()
    with torch.no_grad():
        for row, length in enumerate(inputs["lengths"].tolist()):
            whole = torch.cat((inputs["tokens"][row, :length].cuda(), chosen[row]))[None]
            logits = model(whole[:, :-1]).logits[0, length - 1 :]
            best = logits.max(-1).values
            mine = logits.gather(-1, chosen[row][:, None])[:, 0]
            torch.testing.assert_close(mine, best, rtol=1e-3, atol=1e-3)


@every_mixer
def test_drafts_are_checked_on_a_gpu(names: Sequence[str]) -> None:
    model, inputs = build(names).double(), prompts()
    expected = generate_tokens(model, **inputs, max_new_tokens=40)
    draft = Draft(build(("gated-power",)).double(), ahead=3)
    chosen = speculate(model, draft, *inputs.values(), Sampling(), max_new_tokens=40)
    assert torch.equal(torch.stack(list(chosen), 1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", SAMPLED)
def test_a_seed_gives_the_same_tokens_in_a_graph(options: dict[str, Any], dtype: torch.dtype) -> None:
    model, inputs = build(dtype=dtype), prompts()
    decoder = compile_decoder(model)
    first, again, other = (
        generate_tokens(decoder, **inputs, max_new_tokens=40, seed=seed, **options) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with unrecorded():
        launched = generate_tokens(compile_decoder(model), **inputs, max_new_tokens=40, seed=1, **options)
    assert torch.equal(first, launched)
    if dtype == torch.float32:
        assert torch.equal(first, generate_tokens(model, **inputs, max_new_tokens=40, seed=1, **options))


def test_replays_draw_new_numbers() -> None:
    """The same logits at every step, so that only the generator moves."""

    class Uniform(Decoder):
        def _next_logits(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x[..., :1]).expand(*x.shape[:-1], 257).contiguous()

    config = DecoderConfig(vocab_size=257, width=64, layers=1, heads=4, positions="rotary")
    decoder = compile_decoder(Uniform(config, [mixers["linear"].config()]).cuda())
    tokens = torch.zeros(16, 1, dtype=torch.int64)
    chosen = generate_tokens(decoder, tokens, 500, temperature=1.0, seed=0)
    counts = chosen.flatten().bincount(minlength=257).double()
    assert (chosen[:, 1:] == chosen[:, :-1]).float().mean() < 0.02
    assert ((counts - 8000 / 257) ** 2 / (8000 / 257)).sum() < 257 + 6 * (2 * 257) ** 0.5


@every_mixer
def test_nothing_moves_and_nothing_recompiles(names: Sequence[str]) -> None:
    model, inputs = build(names), prompts()
    counter = CompileCounterWithBackend("inductor")
    decoder = compile_decoder(model, backend=counter)
    decoding = decoder.decoding(**inputs, max_new_tokens=210)
    before, first = addresses(decoding.state), decoding.next()
    compiled = None
    for t in range(209):
        assert decoding.next().data_ptr() == first.data_ptr()
        compiled = counter.frame_count if t == 0 else compiled
    assert decoding.recorded
    assert addresses(decoding.state) == before
    assert counter.frame_count == compiled <= 2
    assert decoding.state.position.tolist() == [9 + 209, 1 + 209, 5 + 209]


def test_a_recording_serves_the_next_batch() -> None:
    model, inputs = build(), prompts()
    decoder = compile_decoder(model)
    generate_tokens(decoder, **inputs, max_new_tokens=8)
    kept = decoder._kept.stepper
    graph = kept._graph
    assert graph is not None
    shorter = {"tokens": inputs["tokens"][:, :4], "lengths": torch.tensor([4, 2, 3])}
    chosen = generate_tokens(decoder, **shorter, max_new_tokens=20)
    assert decoder._kept.stepper is kept
    assert kept._graph is graph
    assert torch.equal(chosen, generate_tokens(model, **shorter, max_new_tokens=20))


def test_texts_stop_and_prompts_come_in_pieces() -> None:
    model = build()
    texts = ["def f(x):", "", "größer als alles"]
    whole = generate(model, texts, 60)
    decoder = compile_decoder(model)
    assert generate(decoder, texts, 60) == whole
    assert generate(decoder, texts, 60, prefill_chunk=4) == whole
    stop = max(whole, key=len)[5:7]
    assert generate(decoder, texts, 60, stop=stop) == generate(model, texts, 60, stop=stop)


def test_decoding_goes_on_from_a_state_far_out() -> None:
    model = build(["gated-power", "rwkv7"], torch.bfloat16)

    def run() -> Tensor:
        state = model.init_state(4)
        for part in _pytree.tree_leaves(state):
            part.fill_(1_000_000 if part.dtype == torch.int64 else 0.01)
        tokens = torch.arange(4, device="cuda")
        chosen = torch.stack(list(Decoding.from_state(compile_decoder(model), state, tokens, max_new_tokens=50)), 1)
        assert state.position.tolist() == [1_000_050] * 4
        return chosen

    recorded = run()
    with unrecorded():
        assert torch.equal(recorded, run())


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """A context in which the host must not wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():  # torch says once in a process that this mode is a prototype, and then sets it
            warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_the_host_does_not_wait() -> None:
    model, inputs = build(), prompts()
    decoder = compile_decoder(model)
    for options in ({}, *SAMPLED):
        decoding = decoder.decoding(**inputs, max_new_tokens=20, seed=0, **options)
        for _ in range(5):
            decoding.next()
        with waiting_is_an_error():
            for _ in range(10):
                decoding.next()
