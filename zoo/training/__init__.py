"""Training of one recipe: the loop, checkpoints, metrics and what a run folder holds."""

from zoo.training.config import TrainingConfig

__all__ = ["TrainingConfig"]
