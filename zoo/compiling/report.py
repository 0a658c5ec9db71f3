"""Graphs, graph breaks, recompiles and seconds of torch.compile for one model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import calculate_time_spent, counters
from torch._inductor.exc import InductorError

from zoo.errors import UntrainableError

__all__ = ["CompileReport", "CompileWatch", "compiling_seconds", "naming_compile_errors", "watch_anew"]


@dataclass(frozen=True)
class CompileReport:
    """Counts over a stretch of a program."""

    graphs: int = 0
    """Graphs that were compiled."""
    graph_breaks: int = 0
    """Places where a graph had to end early; 0 for every model compiled with `fullgraph=True`."""
    recompiles: int = 0
    """Graphs beyond those expected; of a training run, beyond one for steps and one for evaluations."""
    seconds: float = 0.0
    """Wall time spent compiling, forward and backward graphs together."""

    def __add__(self, other: CompileReport) -> CompileReport:
        """Return the counts of two stretches together."""
        return CompileReport(
            self.graphs + other.graphs,
            self.graph_breaks + other.graph_breaks,
            self.recompiles + other.recompiles,
            self.seconds + other.seconds,
        )


class CompileWatch:
    """Counts compilations from its creation on.

    The compiler's counters are of the whole process, so a watch sees one model only while no other one compiles.
    """

    def __init__(self) -> None:
        self._graphs = counters["stats"]["unique_graphs"]
        self._graph_breaks = sum(counters["graph_break"].values())
        self._seconds = compiling_seconds()

    def report(self, expected_graphs: int) -> CompileReport:
        """Return the counts so far.

        Args:
            expected_graphs: as many are no recompiles. A model takes one for each way it is run in: with gradients and
                without, as a whole sequence and step by step.
        """
        graphs = counters["stats"]["unique_graphs"] - self._graphs
        return CompileReport(
            graphs=graphs,
            graph_breaks=sum(counters["graph_break"].values()) - self._graph_breaks,
            recompiles=max(0, graphs - expected_graphs),
            seconds=compiling_seconds() - self._seconds,
        )


def watch_anew() -> CompileWatch:
    """Drop every compiled graph, and count from here.

    A model's second instance would otherwise count as the recompile of the first, and the compiler gives up after eight
    of those.
    """
    torch.compiler.reset()
    return CompileWatch()


def compiling_seconds() -> float:
    """Return the wall time that this process has spent compiling since the compiler was last reset."""
    return calculate_time_spent()["total_wall_time"]


@contextmanager
def naming_compile_errors() -> Iterator[None]:
    """Turn what stops the compiler, which fills a screen, into one line; the rest is in the error's cause.

    Raises:
        UntrainableError: a model did not compile whole.
    """
    try:
        yield
    except (TorchDynamoException, InductorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # What happened and why; hints, graphs and traces follow.
        reason = " ".join(lines[:2]) or type(error).__name__
        line = f"torch.compile: {reason.rstrip('.')}; training.compile=false trains without it"
        raise UntrainableError(line) from error
