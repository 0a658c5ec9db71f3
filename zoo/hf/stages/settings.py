"""Length, data order, optimiser and schedule of a stage."""

from typing import Literal

from pydantic import Field

from zoo.config import Config
from zoo.limits import LONGEST
from zoo.recipe.training import TrainingConfig

__all__ = ["Stage"]


class Stage(Config):
    """One stage of training a converted model; every duration is counted in optimiser steps."""

    context_length: int = Field(512, ge=2, le=LONGEST)
    """Tokens in a sequence, T."""

    batch_size: int = Field(8, ge=1, le=LONGEST)
    """Sequences in one forward pass."""

    accumulate: int = Field(1, ge=1, le=LONGEST)
    """Forward and backward passes whose gradients are averaged into one optimiser step."""

    steps: int = Field(1000, ge=1, le=LONGEST)
    """Optimiser steps of the stage."""

    learning_rate: float = Field(1e-3, gt=0)
    """The peak, reached after the warm-up."""

    min_learning_rate: float | None = Field(None, ge=0)
    """The value that the schedule ends at; None: a tenth of the peak."""

    warmup_steps: int = Field(0, ge=0, le=LONGEST)
    """Steps over which the learning rate rises in a straight line from near 0 to the peak."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay after the warm-up."""

    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices; none by default, for the weights are those of a trained model."""

    clip_norm: float | None = Field(1.0, gt=0)
    """The gradient's largest norm over all parameters together; None leaves it as it is."""

    evaluation_tokens: int = Field(65536, ge=1, le=LONGEST)
    """Held-back tokens that the perplexity is measured on, the same ones each time."""

    checkpoint_every: int = Field(200, ge=1, le=LONGEST)
    """Steps between two checkpoints; there is one more after the last step."""

    log_every: int = Field(10, ge=1, le=LONGEST)
    """Steps whose mean loss is one line."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Determines the order of the data and what is drawn."""

    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    """Precision of matrix products: `auto` is bfloat16 on a CUDA device that has it, and none elsewhere."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step reads."""
        return self.context_length * self.batch_size * self.accumulate

    def training(self) -> TrainingConfig:
        """Return the same as options of training, which the zoo's optimiser and schedule read.

        Raises:
            ConfigError: two options contradict each other, such as more steps of warm-up than steps.
        """
        own = {name: value for name, value in self.model_dump().items() if name in TrainingConfig.model_fields}
        return TrainingConfig(**own, compile=False)
