"""Training of one recipe: the loop, checkpoints, metrics and what a run folder holds."""

from zoo.training.api import train
from zoo.training.compile_report import CompileReport, CompileWatch
from zoo.training.config import TrainingConfig
from zoo.training.metrics import read_metrics
from zoo.training.progress import LineProgress, ProgressReporter, SilentProgress, TerminalProgress, make_progress
from zoo.training.result import TrainingResult
from zoo.training.run import RunStatus, load_checkpoint_model, load_result, load_run, run_status

__all__ = [
    "CompileReport",
    "CompileWatch",
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
