"""A run on disk: its folder, checkpoints, metrics and result."""

from zoo.training.run.folder import (
    RunFolder,
    RunStatus,
    load_checkpoint_model,
    load_result,
    load_run,
    run_status,
)

__all__ = [
    "RunFolder",
    "RunStatus",
    "load_checkpoint_model",
    "load_result",
    "load_run",
    "run_status",
]
