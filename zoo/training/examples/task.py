"""Sequences of a task to train on, and its accuracy on those that are held back."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from math import fsum, log

import numpy as np
import torch

from zoo.data import Batch
from zoo.kernels.targets import IGNORED
from zoo.recipe.evaluation import EvaluationConfig
from zoo.recipe.training import TrainingConfig
from zoo.tasks import Case, Rows, Task, held_back_rows, held_back_sequences, training_rows
from zoo.training.distributed import Processes
from zoo.training.measures import Accuracy, Judge, Measures, Tally, doubling
from zoo.training.objective import Evaluation

__all__ = ["TaskExamples"]


class TaskExamples:
    """See `Examples`. Short sequences stand several to a row, told from one another as documents of a text are."""

    def __init__(self, task: Task, config: TrainingConfig, evaluation: EvaluationConfig, processes: Processes) -> None:
        self._task, self._config, self._processes = task, config, processes
        self._lengths = evaluation.lengths or task.test_lengths
        rows, length = config.batch_size, config.context_length
        self._validation = [
            _as_batch(held_back_rows(task, rows, length, number))
            for number in range(max(1, config.evaluation_tokens // (rows * length)))
        ]

    @property
    def hash(self) -> str:
        settings = json.dumps(self._task.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()

    @property
    def marked(self) -> bool:
        return any(length < self._config.context_length for length in self._task.train_lengths)

    @property
    def longest(self) -> int:
        return max((self._config.context_length, *self._lengths))

    def batch(self, number: int) -> Batch:
        config = self._config
        rows = training_rows(self._task, config.batch_size, config.context_length, config.seed, number)
        return self._processes.share_of(_as_batch(rows))

    def origin(self, step: int) -> str:
        parts = self._config.accumulate
        which = f"batch {step - 1}" if parts == 1 else f"batches {(step - 1) * parts} to {step * parts - 1}"
        return f"{which} of task {self._task.kind} from seed {self._config.seed}"

    def evaluate(self, judge: Judge) -> Evaluation:
        """Of answers, not of all tokens; each counts as one byte, so that bits per byte are bits per answer."""
        nats, hits, answers = [], [], []
        for batch in self._validation:
            scores = judge.scores(batch, marked=self.marked)
            nats.append(float(scores.losses.sum()))
            hits.append(int(scores.hits.sum()))
            answers.append(int((batch.targets != IGNORED).sum()))

        def loss(some: slice) -> float:
            return fsum(nats[some] or nats) / sum(answers[some] or answers)

        mean, halves = loss(slice(None)), (loss(slice(0, None, 2)), loss(slice(1, None, 2)))
        return Evaluation(
            mean, mean / log(2), (halves[0] / log(2), halves[1] / log(2)), accuracy=sum(hits) / sum(answers)
        )

    def measure(self, judge: Judge) -> Measures:
        cases = self._task.test_cases(self._lengths)
        return Measures(accuracy=[entry for case in cases for entry in self._accuracy(judge, case)])

    def _accuracy(self, judge: Judge, case: Case) -> Iterator[Accuracy]:
        """Yield the accuracy of a case, and then by distance, where its answers differ in that."""
        count = max(1, self._config.evaluation_tokens // case.length)
        sequences = held_back_sequences(self._task, case, count)
        tally = Tally(int(doubling(np.array([case.length]))[0]) + 1)
        for rows in _parts(count, max(1, self._config.batch_size * self._config.context_length // case.length)):
            tokens, targets, distances = (array[rows] for array in sequences)
            tensors = torch.from_numpy(tokens), torch.from_numpy(targets)
            hits = judge.scores(Batch(*tensors, torch.zeros_like(tensors[0], dtype=torch.bool)), marked=False).hits
            asked = targets != IGNORED
            tally.add(doubling(distances[asked]), hits[asked])

        def entry(distance: int | None, hits: float, answers: int) -> Accuracy:
            return Accuracy(
                length=case.length,
                pairs=case.pairs,
                distance=distance,
                depth=case.depth,
                accuracy=hits / answers,
                answers=answers,
            )

        yield entry(None, float(tally.sums.sum()), int(tally.counts.sum()))
        intervals = np.flatnonzero(tally.counts).tolist()
        if len(intervals) > 1:
            for interval in intervals:
                yield entry(2**interval // 2, float(tally.sums[interval]), int(tally.counts[interval]))


def _as_batch(rows: Rows) -> Batch:
    return Batch(*(torch.from_numpy(array) for array in rows))


def _parts(count: int, size: int) -> Sequence[slice]:
    """Cut `count` rows into parts of `size`, and one of what is left."""
    return [slice(first, first + size) for first in range(0, count, size)]
