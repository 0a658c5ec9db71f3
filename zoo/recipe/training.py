"""How to train: the `training` section of a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from zoo.config import Config
from zoo.limits import LONGEST

__all__ = ["Checkpointing", "ParallelConfig", "TrainingConfig"]

Checkpointing = Literal["none", "selective", "full"]
"""`none` keeps what the backward pass wants; `selective` a layer's input and the outputs of its mixing op; `full` the
input alone."""


class ParallelConfig(Config):
    """How the processes that `torchrun` started are laid out; a run may go on with another layout.

    Names are torchtitan's.
    """

    data_replicate: int = Field(default=1, ge=1, le=LONGEST)
    """Copies of the whole model, each spread over `data_shard` processes: between nodes, for example, where a copy fits
    into each."""

    data_shard: int = Field(default=-1, ge=-1, le=LONGEST)
    """Groups of `context` times `tensor` processes that parameters, gradients and the optimiser's state of one copy are
    spread over; -1: all there are."""

    context: int = Field(default=1, ge=1, le=LONGEST)
    """Processes that have one sequence together, each a share of its tokens: for sequences that are too long for one.
    Copies are spread over them as well."""

    tensor: int = Field(default=1, ge=1, le=LONGEST)
    """Processes that have each layer together, each some of its heads and hidden channels: for layers that are too wide
    for one. They have the same tokens, and are best neighbours within a node."""

    gather: Literal["float32", "bfloat16"] = "float32"
    """In what parameters are sent to where a layer is computed. bfloat16 sends half the bytes and rounds what is not
    rounded otherwise: embeddings, norms and gates' offsets. Gradients are always added up in float32."""

    @model_validator(mode="after")
    def _check_shards(self) -> Self:
        if self.data_shard == 0:
            raise ValueError("data_shard must be 1 or more, or -1 for all processes, got 0")
        return self


class TrainingConfig(Config):
    """Length, optimiser, schedule and bookkeeping of one training run; every duration is counted in optimiser steps."""

    context_length: int = Field(default=256, ge=1, le=LONGEST)
    """Tokens in a training sequence, T."""

    batch_size: int = Field(default=16, ge=1, le=LONGEST)
    """Sequences in one forward pass, over all processes together."""

    accumulate: int = Field(default=1, ge=1, le=LONGEST)
    """Forward and backward passes whose gradients are averaged into one optimiser step."""

    steps: int = Field(default=1000, ge=1, le=LONGEST)
    """Optimiser steps in the whole run."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """The peak, reached after the warm-up."""

    min_learning_rate: float | None = Field(default=None, ge=0)
    """The absolute value that the schedule ends at; a tenth of the peak when not given."""

    warmup_steps: int = Field(default=0, ge=0, le=LONGEST)
    """Steps over which the learning rate rises in a straight line from near 0 to the peak."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay from the peak after the warm-up to the minimum at the last step."""

    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of matrices, embeddings included; biases, norms, gates' offsets and the like do not decay."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's memory of the gradient."""

    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's memory of the squared gradient."""

    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of AdamW's mean squared gradient."""

    clip_norm: float | None = Field(default=1.0, gt=0)
    """The gradient's largest norm over all parameters together; `null` leaves it as it is."""

    evaluate_every: int = Field(default=100, ge=1, le=LONGEST)
    """Steps between two evaluations; there is one more at step 0 and one after the last step."""

    evaluation_tokens: int = Field(default=65536, ge=1, le=LONGEST)
    """Validation tokens per evaluation, the same ones each time."""

    checkpoint_every: int = Field(default=500, ge=1, le=LONGEST)
    """Steps between two checkpoints; there is one more after the last step."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Determines the initial weights and the order of the data."""

    start_from: str | None = Field(default=None, min_length=1)
    """Folder of a run whose newest weights training begins with, in place of such as are drawn; all else is new."""

    spike: Literal["warn", "skip", "stop"] = "warn"
    """What a step does whose loss is above the mean of the 32 before by 1 nat per token and by 6 standard deviations of
    theirs: it is told, its update is left out (which takes reading the loss at every step), or training ends there."""

    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    """Precision of matrix products: `auto` is bfloat16 on a CUDA device that has it, and none on a CPU, where bfloat16
    is faster on few machines and makes a run depend on the machine."""

    compile: bool | Literal["layers"] = True
    """Train through `torch.compile(model, fullgraph=True)`; a model that does not compile whole is an error. `layers`
    compiles each kind of layer once, by itself: training begins sooner, and what is around layers is not fused."""

    checkpointing: Checkpointing = "none"
    """Activations that layers keep for the backward pass: `none`, all that it wants; `selective`, their inputs and the
    outputs of their mixing ops, the rest is computed again; `full`, their inputs alone. It changes memory and time."""

    log_every: int = Field(default=10, ge=1, le=LONGEST)
    """Steps between two lines of training metrics."""

    parallel: ParallelConfig = ParallelConfig()
    """Of several processes."""

    tensorboard: bool = False
    """Write the metrics as TensorBoard events too, into `tensorboard/` in the run's folder; needs tensorboard."""

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.min_learning_rate is not None and self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} must not be above learning_rate {self.learning_rate}"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must not be above steps {self.steps}; set both for a short run"
            )
        if self.context_length % self.parallel.context:
            raise ValueError(
                f"context_length must be a multiple of parallel.context {self.parallel.context}, "
                f"got {self.context_length}"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step trains on."""
        return self.context_length * self.batch_size * self.accumulate
