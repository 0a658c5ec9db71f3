"""What training consumes, be it of a text or of a task."""

from typing import Protocol

from zoo.data import Batch
from zoo.training.measures import Judge, Measures
from zoo.training.objective import Evaluation

__all__ = ["Examples"]


class Examples(Protocol):
    """Batches to train on, by number alone, and evaluations. All processes call the same methods in the same order."""

    @property
    def hash(self) -> str:
        """sha256, as hexadecimal, of what the examples are of; a run goes on with the same ones only."""

    @property
    def marked(self) -> bool:
        """Whether resets of training batches count. If not, no row has any, and mixers need no mask."""

    @property
    def longest(self) -> int:
        """The most tokens of a sequence that is trained or measured on."""

    def batch(self, number: int) -> Batch:
        """Return this process's share of training batch `number`, counted from 0."""

    def origin(self, step: int) -> str:
        """Return which examples step `step` (from 1) sees, for error messages."""

    def evaluate(self, judge: Judge) -> Evaluation:
        """Return how good a model is on what is held back, of the same shape as in training."""

    def measure(self, judge: Judge) -> Measures:
        """Return everything that the recipe wants to know of the trained model."""
