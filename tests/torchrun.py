"""Several processes, as `torchrun` starts them, that say what they found."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

ROOT = Path(__file__).parent.parent


def run_together(processes: int, module: str, result: Path, *arguments: str) -> Any:
    """Return what the processes that run `module` write to the file `result`, their first argument, as JSON."""
    options = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", module]
    command = [sys.executable, *options, str(result), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(result.read_text())


def tell(found: Any, result: str) -> None:
    """Write what each process found as a list, and leave the others."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, found)
    if dist.get_rank() == 0:
        Path(result).write_text(json.dumps(every))
    time.sleep(0.1)  # as `zoo.training.distributed._leave`
    dist.destroy_process_group()
