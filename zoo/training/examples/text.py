"""Windows of a corpus to train on, and its validation text by context and by position."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from zoo.data import Batch, Batches, Corpus, bits_per_byte, bytes_of, validation_batches
from zoo.errors import CorpusError
from zoo.recipe.evaluation import EvaluationConfig
from zoo.recipe.training import TrainingConfig
from zoo.training.distributed import Processes
from zoo.training.examples.documents import DocumentRows, document_rows, window_rows
from zoo.training.measures import Judge, LengthLoss, Measures, PositionLoss, Tally, doubling, finite
from zoo.training.objective import Evaluation, evaluate

__all__ = ["TextExamples"]


class TextExamples:
    """See `Examples`; the text's documents, where they are marked, are told from one another.

    Raises:
        CorpusError: the corpus is too short for one window of a context.
    """

    def __init__(
        self, corpus: Corpus, config: TrainingConfig, evaluation: EvaluationConfig, processes: Processes
    ) -> None:
        self._corpus, self._config, self._evaluation, self._processes = corpus, config, evaluation, processes
        self._batches = Batches(
            corpus.train,
            config.batch_size,
            config.context_length,
            config.seed,
            rank=processes.data_rank,
            world_size=processes.data_count,
        )
        self._validation = self._windows(config.context_length)
        for length in evaluation.lengths:
            if len(corpus.validation) <= length:
                raise CorpusError(
                    f"evaluation.lengths: the {len(corpus.validation)} tokens of {corpus.validation.name} are too few "
                    f"for a context of {length}"
                )

    @property
    def hash(self) -> str:
        return self._corpus.hash

    @property
    def marked(self) -> bool:
        return self._corpus.train.separator is not None

    @property
    def longest(self) -> int:
        return max((self._config.context_length, *self._evaluation.lengths))

    def batch(self, number: int) -> Batch:
        return self._processes.tokens_of(self._batches.batch(number))

    def origin(self, step: int) -> str:
        windows = self._config.batch_size * self._config.accumulate
        epoch, window = divmod((step - 1) * windows, self._batches.windows_per_epoch)
        return f"the {windows} windows from number {window} of epoch {epoch} in the order of seed {self._config.seed}"

    def evaluate(self, judge: Judge) -> Evaluation:
        return evaluate(judge.loss, self._validation, self._corpus.tokenizer)

    def measure(self, judge: Judge) -> Measures:
        return Measures(
            positions=list(self._by_position(judge)) if self._evaluation.positions else [],
            lengths=[self._at_length(judge, length) for length in self._evaluation.lengths],
        )

    def _windows(self, length: int) -> list[Batch]:
        tokens = max(self._config.evaluation_tokens, length)
        return validation_batches(self._corpus.validation, self._rows(length), length, tokens)

    def _rows(self, length: int) -> int:
        """Rows of `length` tokens that together have no more tokens than a training batch, but for a lone one."""
        return max(1, self._config.batch_size * self._config.context_length // length)

    def _at_length(self, judge: Judge, length: int) -> LengthLoss:
        batches = self._windows(length)
        nats = sum(float(judge.scores(batch, marked=self.marked).losses.sum()) for batch in batches)
        tokens = sum(batch.targets.numel() for batch in batches)
        byte_count = sum(bytes_of(batch, self._corpus.tokenizer) for batch in batches)
        loss, bits = finite(nats / tokens), finite(bits_per_byte(nats, byte_count))
        return LengthLoss(length=length, loss=loss, bits_per_byte=bits, tokens=tokens)

    def _by_position(self, judge: Judge) -> Iterator[PositionLoss]:
        longest = self.longest
        stream, tokens = self._corpus.validation, max(self._config.evaluation_tokens, longest)
        rows = (document_rows if self.marked else window_rows)(stream, longest, tokens)
        tally = Tally(int(doubling(np.array([longest - 1]))[0]) + 1)
        for part in _parts(rows, self._rows(longest)):
            asked = part.positions >= 0
            tensors = (torch.from_numpy(array) for array in (part.tokens, part.targets, part.positions == 0))
            losses = judge.scores(Batch(*tensors), marked=self.marked).losses
            tally.add(doubling(part.positions[asked]), losses[asked])
        for interval, loss, count in tally.means():
            start, end = 2**interval // 2, min(2**interval, longest)
            yield PositionLoss(start=start, end=end, loss=loss, tokens=count)


def _parts(rows: DocumentRows, size: int) -> Sequence[DocumentRows]:
    """Cut into parts of `size` rows, the last one filled up with empty ones, so that all have one shape."""
    missing = -len(rows.tokens) % min(size, max(1, len(rows.tokens)))
    size = min(size, max(1, len(rows.tokens)))
    whole = rows.filled_up(missing)
    return [
        DocumentRows(*(array[first : first + size] for array in whole)) for first in range(0, len(whole.tokens), size)
    ]
