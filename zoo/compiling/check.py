"""A recipe's model compiled each way that it runs: trained, read from a state, and decoded, over several lengths."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from zoo.builder import build, shrink
from zoo.compiling.report import CompileReport, watch_anew
from zoo.models.decoder import Decoder
from zoo.recipe import Recipe

__all__ = ["LENGTHS", "WayOfRunning", "check_compilation"]

LENGTHS = (2, 3, 17, 64, 300, 1024)
_STEPS = 5
_BACKEND = "inductor"


class WayOfRunning(NamedTuple):
    """One way to run a model, and what compiling it took."""

    name: str
    lengths: tuple[int, ...]
    report: CompileReport
    reasons: tuple[str, ...]
    """Of graph breaks, one line each."""


def check_compilation(recipe: Recipe, device: torch.device) -> Iterator[WayOfRunning]:
    """Compile a recipe's model each way, without insisting on one graph, and yield what happened.

    On a CPU the model is shrunk first: what breaks a graph or makes the compiler start again depends on the mixers and
    options, not on the sizes. Expected are one graph for the first length and one for all others, and one for decoding.
    """
    small = shrink(recipe) if device.type == "cpu" else recipe
    limit = small.model.max_positions if small.model.positions == "learned" else max(LENGTHS)
    lengths = tuple(length for length in LENGTHS if length <= limit)
    torch.manual_seed(0)
    model = build(small, device=device)
    vocabulary = small.model.vocab_size

    def tokens(length: int) -> Tensor:
        return torch.randint(0, vocabulary, (2, length), device=device)

    yield _watch("training", lengths, 2, lambda: _train(model, [tokens(length) for length in lengths]))
    yield _watch("reading on from a state", lengths, 2, lambda: _read(model, [tokens(length) for length in lengths]))
    yield _watch("decoding", (1,), 1, lambda: _decode(model, tokens(_STEPS)))


def _watch(name: str, lengths: tuple[int, ...], expected: int, run: Callable[[], None]) -> WayOfRunning:
    watch, before = watch_anew(), dict(counters["graph_break"])
    run()
    breaks = counters["graph_break"]
    reasons = [text for text, count in breaks.items() if count > before.get(text, 0)]
    return WayOfRunning(name, lengths, watch.report(expected), tuple(text.strip().splitlines()[0] for text in reasons))


def _train(model: Decoder, batches: list[Tensor]) -> None:
    compiled = torch.compile(model, backend=_BACKEND)
    for tokens in batches:
        compiled(tokens).logits.float().logsumexp(-1).mean().backward()
        model.zero_grad(set_to_none=True)


@torch.no_grad()
def _read(model: Decoder, batches: list[Tensor]) -> None:
    compiled = torch.compile(model, backend=_BACKEND)
    for tokens in batches:
        compiled(tokens, model.init_state(2, max_len=tokens.shape[1]), True)


@torch.no_grad()
def _decode(model: Decoder, tokens: Tensor) -> None:
    compiled, state = torch.compile(model.step, backend=_BACKEND), model.init_state(2, max_len=tokens.shape[1])
    for t in range(tokens.shape[1]):
        compiled(tokens[:, t], state)
