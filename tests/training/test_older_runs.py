"""Runs that earlier code wrote: they load, answer as they did, and go on with the losses that they went on with.

Each folder in `data/` is a run as it stood after 4 of 8 steps, beside what came of it (`expected.json`).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.config import load_yaml
from zoo.data import Corpus
from zoo.recipe import Recipe
from zoo.training import train
from zoo.training.run import load_run

DATA = Path(__file__).parent / "data"
every_run = pytest.mark.parametrize("name", ["power", "rwkv7-hybrid"])


def expected(name: str) -> Any:
    return json.loads((DATA / name / "expected.json").read_text())


@every_run
def test_an_older_model_answers_as_it_did(name: str) -> None:
    _, model = load_run(DATA / name)
    tokens = torch.arange(97, 117)[None].repeat(2, 1)
    resets = torch.zeros(2, 20, dtype=torch.bool)
    resets[1, 7] = True
    with torch.no_grad():
        logits, state = model(tokens, model.init_state(2, max_len=30), True, resets=resets)
        stepped = model.step(torch.tensor([117, 118]), state)
    for found, wanted in ((logits[:, -1], "logits"), (stepped, "stepped")):
        torch.testing.assert_close(found[:, 97:105], torch.tensor(expected(name)[wanted]), rtol=1e-4, atol=1e-5)


@every_run
def test_an_older_run_goes_on(name: str, corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(DATA / name, folder)
    recipe = Recipe.from_mapping(load_yaml(folder / "recipe.yaml"), name)
    train(recipe, folder, corpus=corpus, device="cpu")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    later = [(line["kind"], line["step"], line["loss"]) for line in lines if line["step"] > 4]
    for (kind, step, loss), wanted in zip(later, expected(name)["later"], strict=True):
        assert [kind, step] == wanted[:2]
        assert loss == pytest.approx(wanted[2], rel=1e-5)
