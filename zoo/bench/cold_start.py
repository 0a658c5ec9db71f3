"""From the start of a process to its first training step, with nothing compiled before: in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from zoo.errors import InputError
from zoo.recipe import Recipe

__all__ = ["ColdStart", "measure_cold_start"]


class ColdStart(NamedTuple):
    """Seconds since the process was started, when each stage was done."""

    imported: float
    built: float
    stepped: float


def measure_cold_start(recipe: Recipe, mixer: str, device: str, documents: str = "packed") -> ColdStart:
    """Start Python, import zoo, read the data, build a recipe's model, compile it and make one step with AdamW.

    The caches of compiled kernels are empty folders of their own.

    Args:
        recipe: with the length and batch of its `training` section.
        mixer: the recipe's, or a softmax backend by name (see `zoo.bench.models`).
        device: for example `cuda`.
        documents: `packed` or `one`, as in `ModelBenchmark`.

    Raises:
        InputError: the process failed; says how.
    """
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: str(Path(folder, name)) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        job = {"recipe": recipe.model_dump(mode="json"), "mixer": mixer, "device": device, "documents": documents}
        started = time.time()
        process = subprocess.run(
            [sys.executable, "-m", "zoo.bench.cold_start"], input=json.dumps(job), capture_output=True, text=True,
            check=False, env=os.environ | caches,
        )  # fmt: skip
    lines = process.stdout.strip().splitlines()
    if process.returncode or not lines:
        reason = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise InputError(f"cold start: the first step failed: {reason}")
    return ColdStart(*(moment - started for moment in json.loads(lines[-1])))


def _first_step() -> None:
    """What the process does: read its job, and write when each stage was done."""
    moments = [time.time()]  # importing this module has imported zoo
    import torch

    from zoo.bench.models import TrainingStep, load_documents, make_batches, softmax_backend

    job = json.loads(sys.stdin.read())
    device = torch.device(job["device"])
    recipe = Recipe.from_mapping(job["recipe"], "cold start")
    with softmax_backend(job["mixer"]):
        batches = make_batches(recipe, load_documents(recipe) if job["documents"] == "packed" else None, device)
        step = TrainingStep(recipe, batches, device, compiled=True, optimize=True)
        moments.append(time.time())
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    moments.append(time.time())
    print(json.dumps(moments))


if __name__ == "__main__":
    _first_step()
