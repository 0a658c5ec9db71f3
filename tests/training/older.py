"""Run by `torchrun` for `test_older_runs.py`: runs go on with several processes.

Arguments: a file that gets what is measured of each from step 5 on, and their folders.
"""

import json
import sys
from pathlib import Path

from tests.training.conftest import make_corpus
from zoo.config import load_yaml
from zoo.recipe import Recipe
from zoo.training import train


def go_on(folder: Path) -> list[tuple[str, int, float]]:
    train(Recipe.from_mapping(load_yaml(folder / "recipe.yaml"), "older"), folder, corpus=make_corpus(), device="cpu")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["step"], line["loss"]) for line in lines if line["step"] > 4]


if __name__ == "__main__":
    later = [go_on(Path(folder)) for folder in sys.argv[2:]]
    Path(sys.argv[1]).write_text(json.dumps(later))
