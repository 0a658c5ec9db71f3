"""Run by `torchrun` for `test_older_runs.py`: a run goes on with several processes.

Arguments: a file that gets what is measured from step 5 on, and the run's folder.
"""

import json
import sys
from pathlib import Path

from tests.training.conftest import make_corpus
from zoo.config import load_yaml
from zoo.recipe import Recipe
from zoo.training import train


def main(result: str, folder: Path) -> None:
    train(Recipe.from_mapping(load_yaml(folder / "recipe.yaml"), "older"), folder, corpus=make_corpus(), device="cpu")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    later = [(line["kind"], line["step"], line["loss"]) for line in lines if line["step"] > 4]
    Path(result).write_text(json.dumps(later))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
