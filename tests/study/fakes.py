"""Training that leaves what training leaves, but for the checkpoints, in no time."""

import json
from collections.abc import Callable
from pathlib import Path

from zoo.recipe import Recipe
from zoo.training import TrainingResult
from zoo.training.run import RunFolder

__all__ = ["FakeTraining"]


class FakeTraining:
    """Called as `zoo.training.train` is; the loss falls evenly from 8 bits to 5, and more is added by `penalty`."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.corpora: set[int] = set()
        self.fails: dict[str, BaseException] = {}
        self.penalty: Callable[[Recipe], float] = lambda _recipe: 0.0

    def __call__(self, recipe: Recipe, folder: Path, *, corpus, device, progress, workshop) -> TrainingResult:
        self.trained.append(folder.name)
        self.corpora.add(id(corpus))
        run = RunFolder(folder)
        run.claim(recipe)
        if folder.name in self.fails:
            raise self.fails[folder.name]
        steps, step_tokens, added = recipe.training.steps, recipe.training.tokens_per_step, self.penalty(recipe)
        with run.metrics_path.open("w") as file:
            for step in range(steps + 1):
                bits = 8.0 - 3 * step / steps + added
                place = {"step": step, "tokens": step * step_tokens, "flops": step * 10**6, "seconds": step / 10}
                lines = [{"kind": "validation", **place, "loss": bits - 3, "bits_per_byte": bits}]
                if step:
                    lines.append({"kind": "train", **place, "loss": bits - 3, "tokens_per_second": 2560.0})
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                if progress is not None and 0 < step < steps:
                    progress.advance(step)
        result = TrainingResult(
            folder=folder, parameters=1000, steps=steps, tokens=steps * step_tokens, flops=steps * 10**6,
            seconds=steps / 10, tokens_per_second=2560.0, compile_seconds=1.5, graph_breaks=0, recompiles=0,
            final_loss=2.0, final_validation_loss=2.0, final_bits_per_byte=5.0 + added,
            best_bits_per_byte=4.9 + added, corpus_hash=corpus.hash,
        )  # fmt: skip
        run.finish(result)
        return result
