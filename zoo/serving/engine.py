"""Continuous batching: one state of so many rows, in which answers are decoded side by side, each at its place."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from zoo.errors import InputError
from zoo.generation import CompiledDecoder
from zoo.generation.sampling import NOTHING, Sampling
from zoo.models import Decoder, DecoderState
from zoo.serving.text import TextStream

__all__ = ["Engine", "FullError", "Job", "Piece"]

_READ = 512  # tokens of a prompt between two decode steps, so that a long one does not keep others waiting


class FullError(InputError):
    """As many requests as may wait do already."""


class Piece(NamedTuple):
    """What an answer gained with one of its `tokens`; the last one says why it ended: `stop`, `length` or `error`."""

    text: str
    tokens: int
    finish: str | None = None


@dataclass(eq=False)
class Job:
    """The ids of a prompt, and what is wanted of its answer.

    `ends` are tokens that end it, after `most` it ends anyway. `deliver` gets its pieces, in the engine's thread.
    Whoever sets `cancelled` no longer wants it, and its row is free before the next step.
    """

    ids: Sequence[int]
    most: int
    sampling: Sampling
    seed: int | None
    ends: frozenset[int]
    text: TextStream
    deliver: Callable[[Piece], None]
    cancelled: bool = False
    tokens: int = 0
    read: int = 0
    generator: torch.Generator | None = None

    def take(self, token: int) -> bool:
        """Add a chosen token to the answer, and return whether it goes on."""
        if token == NOTHING:
            self.deliver(Piece(f"model: its logits are NaN after {len(self.ids) + self.tokens} tokens", 0, "error"))
            return False
        self.tokens += 1
        ended = token in self.ends
        told = "" if ended else self.text.add(token)
        over = ended or self.text.stopped or self.tokens == self.most
        told += self.text.finish() if over else ""
        finish = "stop" if ended or self.text.stopped else "length" if over else None
        self.deliver(Piece(told, self.tokens, finish))
        return not over


class Engine:
    """A thread that decodes `rows` answers side by side, while at most `waiting` more requests wait.

    `context_length` is of a prompt and its answer together.
    """

    def __init__(self, model: Decoder | CompiledDecoder, *, rows: int, context_length: int, waiting: int = 64) -> None:
        self.model, self.context_length, self._most_waiting = model, context_length, waiting
        self._state = model.decoding_state(rows, max_len=context_length)
        self._tokens = torch.zeros_like(self._state.position)
        self._jobs: list[Job | None] = [None] * rows
        self._reading: tuple[Job, DecoderState] | None = None
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zoo-engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """How many requests are being answered, and how many wait."""
        return sum(job is not None for job in self._jobs) + (self._reading is not None), len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a request, or raise `FullError`."""
        with self._changed:
            if self._closing or len(self._waiting) >= self._most_waiting:
                raise FullError(f"requests: expected at most {self._most_waiting} that wait; try again later")
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Stop after the step that is being made; answers that are not finished end with an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @torch.no_grad()
    def _run(self) -> None:
        while self._wait():
            try:
                self._read()
                self._step()
            except Exception as error:  # of any kind: those who wait have to hear of it, and others can go on
                self._fail(" ".join(str(error).split()) or type(error).__name__)
        self._fail("the server is stopping")

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or any(self.load))
            return not self._closing

    def _read(self) -> None:
        """Free rows of answers that nobody wants, and read a piece of the next prompt, which may then join."""
        self._jobs = [None if job is None or job.cancelled else job for job in self._jobs]
        if self._reading is None or self._reading[0].cancelled:
            free = self._waiting and None in self._jobs
            self._reading = (
                (self._waiting.popleft(), self.model.decoding_state(1, max_len=self.context_length)) if free else None
            )
        if self._reading is None or self._reading[0].cancelled:
            return
        (job, state), device = self._reading, self._tokens.device
        tokens = torch.tensor([job.ids[job.read : job.read + _READ]], device=device)
        logits, state = self.model.prefill(tokens, state, torch.tensor([tokens.shape[1]], device=device))
        job.read += tokens.shape[1]
        self._reading = (job, state)
        if job.read == len(job.ids):
            self._join(job, state, logits)

    def _join(self, job: Job, state: DecoderState, logits: Tensor) -> None:
        row, self._reading = self._jobs.index(None), None
        for target, source in zip(_pytree.tree_leaves(self._state), _pytree.tree_leaves(state), strict=True):
            target[row].copy_(source[0])
        job.generator = torch.Generator(self._tokens.device)
        job.generator.manual_seed(int(torch.randint(2**63 - 1, ())) if job.seed is None else job.seed)
        self._jobs[row] = job
        self._choose(row, logits)

    def _step(self) -> None:
        """Decode one token a row; those without a job stay at their beginning, and nobody reads them."""
        idle = [row for row, job in enumerate(self._jobs) if job is None]
        if len(idle) == len(self._jobs):
            return
        if idle:
            rows = torch.tensor(idle, device=self._tokens.device)
            for x in (*_pytree.tree_leaves(self._state), self._tokens):
                if not x.is_floating_point():  # counts of tokens, and tokens
                    x.index_fill_(0, rows, 0)
        logits = self.model.step(self._tokens, self._state)
        for row, job in enumerate(self._jobs):
            if job is not None:
                self._choose(row, logits[row : row + 1])

    def _choose(self, row: int, logits: Tensor) -> None:
        """Choose the next token of a row from logits `[1, vocab]`, as if it were decoded alone."""
        job = self._jobs[row]
        assert job is not None
        token = int(job.sampling.choose(logits, job.generator))
        if job.take(token):
            self._tokens[row] = token
        else:
            self._jobs[row] = None

    def _fail(self, reason: str) -> None:
        """End all answers that are being made, and at the end those that wait too, with an error."""
        jobs = [job for job in (*self._jobs, self._reading and self._reading[0]) if job is not None]
        self._jobs, self._reading = [None] * len(self._jobs), None
        if self._closing:
            jobs += self._waiting
        for job in jobs:
            job.deliver(Piece(reason, job.tokens, "error"))
