"""The `evaluation` section of a recipe: what is measured after the last step, beside the validation loss."""

from collections import Counter
from typing import Annotated, Self

from pydantic import Field, model_validator

from zoo.config import Config
from zoo.limits import LONGEST

__all__ = ["EvaluationConfig"]


class EvaluationConfig(Config):
    """What a finished run is asked for once, with its last weights. It changes nothing of the training."""

    positions: bool = False
    """Tell the loss by position in the document, to the longest context that is evaluated."""

    lengths: tuple[Annotated[int, Field(ge=1, le=LONGEST)], ...] = ()
    """Text: contexts to tell the validation loss at too. A task: sequences to tell its accuracy at, in place of its own
    `test_lengths`."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        for length, times in Counter(self.lengths).items():
            if times > 1:
                raise ValueError(f"lengths: {length} stands {times} times")
        return self
