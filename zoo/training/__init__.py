"""Training of one recipe: the loop, checkpoints, metrics and what a run folder holds."""

from zoo.recipe.training import TrainingConfig
from zoo.training.progress import LineProgress, ProgressReporter, SilentProgress, TerminalProgress, make_progress
from zoo.training.run import RunStatus, load_checkpoint_model, load_result, load_run, run_status
from zoo.training.run.metrics import read_metrics
from zoo.training.run.result import TrainingResult
from zoo.training.train import train

__all__ = [
    "LineProgress",
    "ProgressReporter",
    "RunStatus",
    "SilentProgress",
    "TerminalProgress",
    "TrainingConfig",
    "TrainingResult",
    "load_checkpoint_model",
    "load_result",
    "load_run",
    "make_progress",
    "read_metrics",
    "run_status",
    "train",
]
