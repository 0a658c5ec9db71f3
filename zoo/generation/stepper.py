"""The loop of decoding without Python in it: one step and the choice of a token, replayed from a CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.generation.sampling import Sampling
from zoo.models import DecoderState

__all__ = ["Stepper"]

_RUNS_BEFORE_RECORDING = 2  # the first compiles; the second finds all that is set up on first use


class Stepper:
    """A decode step and the choice of the next tokens, over a state and tokens that stay where they are.

    Args:
        step: takes tokens `[B]` and a state, writes the state in place and returns logits `[B, vocab]`.
        state: is written in place from now on.
        tokens: `[B]` int64, what the next step takes; overwritten with what it chooses.
        sampling: how tokens are chosen.
        record: put all this into a CUDA graph. The first steps, which are steps like any other, run as they are; the
            next is recorded, and replayed from then on.
    """

    def __init__(
        self,
        step: Callable[[Tensor, DecoderState], Tensor],
        state: DecoderState,
        tokens: Tensor,
        sampling: Sampling,
        *,
        record: bool,
    ) -> None:
        self.state, self.tokens, self.sampling = state, tokens, sampling
        self.generator = torch.Generator(tokens.device)
        self._step, self._record = step, record
        self._runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed from a CUDA graph by now."""
        return self._graph is not None

    def seed(self, seed: int | None) -> None:
        """Begin a sequence of random numbers: that of `seed`, or one that torch's default generator chooses."""
        self.generator.manual_seed(int(torch.randint(2**63 - 1, ())) if seed is None else seed)

    def choose(self, logits: Tensor) -> None:
        """Choose `tokens` from logits `[B, vocab]`."""
        self.tokens.copy_(self.sampling.choose(logits, self.generator))

    @torch.no_grad()
    def advance(self) -> None:
        """Take `tokens`, and choose the next ones in their place; never waits for the device."""
        if self._graph is None and self._record and self._runs >= _RUNS_BEFORE_RECORDING:
            self._graph = self._recording()
        if self._graph is not None:
            self._graph.replay()
        elif self._record:
            self._run_beside()
        else:
            self._run()
        self._runs += 1

    def _run(self) -> None:
        # Where nothing was chosen, any token does: whoever asks for the tokens finds that out.
        self.choose(self._step(self.tokens.clamp(min=0), self.state))

    def _run_beside(self) -> None:
        """Run on another stream, as recording will, so that what is allocated for good on first use is there."""
        here, beside = torch.cuda.current_stream(self.tokens.device), torch.cuda.Stream(self.tokens.device)
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            self._run()
        here.wait_stream(beside)

    def _recording(self) -> torch.cuda.CUDAGraph:
        """Return the step as a graph; recording runs nothing."""
        graph = torch.cuda.CUDAGraph()
        if self.sampling.temperature > 0:
            graph.register_generator_state(self.generator)  # each replay then draws on from where the last one stopped
        with torch.cuda.device(self.tokens.device), torch.cuda.graph(graph):
            self._run()
        return graph
