"""Runs that earlier code wrote: they load, answer as they did, and go on with the losses that they went on with.

Each folder in `data/` is a run as it stood after 4 of 8 steps, beside what came of it (`expected.json`). Two were
written when everything of two dimensions decayed, and all moved at one rate; others by two processes. In all of them
rows of projections to heads stand by kind, but for those to queries, keys and values in the last.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zoo.blocks.rows import OrderedRows
from zoo.blocks.treatment import Treatment
from zoo.config import load_yaml
from zoo.data import Corpus
from zoo.recipe import Recipe
from zoo.training import optimizer, train
from zoo.training.run import load_run

from ..torchrun import run_together

DATA = Path(__file__).parent / "data"
OLD_RULES = ("power", "rwkv7-hybrid")
IN_PARTS = ("grouped-in-parts", "matrix-in-parts")


def expected(name: str) -> Any:
    return json.loads((DATA / name / "expected.json").read_text())


@pytest.mark.parametrize("name", [*OLD_RULES, *IN_PARTS])
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


def earlier_treatments(model: nn.Module) -> dict[str, Treatment]:
    return {name: Treatment(decays=parameter.ndim >= 2) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "treated"),
    [
        *((name, how) for name in OLD_RULES for how in ("as it was", "as its mixers say")),
        *((name, "as it says") for name in IN_PARTS),
    ],
)
def test_an_older_run_goes_on(
    name: str, treated: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if treated == "as it was":
        monkeypatch.setattr(optimizer, "treatments", earlier_treatments)
    folder = tmp_path / name
    shutil.copytree(DATA / name, folder)
    recipe = Recipe.from_mapping(load_yaml(folder / "recipe.yaml"), name)
    train(recipe, folder, corpus=corpus, device="cpu")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    later = [(line["kind"], line["step"], line["loss"]) for line in lines if line["step"] > 4]
    for (kind, step, loss), wanted in zip(later, expected(name)["later"], strict=True):
        assert [kind, step] == wanted[:2]
        # Otherwise RWKV-7's mixtures, norms and thin matrices no longer decay, and its decays move at twice the rate.
        assert loss == pytest.approx(wanted[2], rel=1e-2 if treated == "as its mixers say" else 1e-5)


def test_an_older_run_goes_on_with_two_processes(tmp_path: Path) -> None:
    for name in IN_PARTS:
        shutil.copytree(DATA / name, tmp_path / name)
    every = run_together(
        2, "tests.training.older", tmp_path / "found.json", *(str(tmp_path / name) for name in IN_PARTS)
    )
    for name, later in zip(IN_PARTS, every, strict=True):
        for (kind, step, loss), wanted in zip(later, expected(name)["later"], strict=True):
            assert [kind, step] == wanted[:2]
            assert loss == pytest.approx(wanted[2], rel=1e-5)
        newest = json.loads((tmp_path / name / "checkpoints" / "step-00000008" / "checkpoint.json").read_text())
        assert newest["format"] == 5


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_state_dict_with_rows_by_kind_is_taken(name: str) -> None:
    _, model = load_run(DATA / name)
    older = model.state_dict()
    now = {key: x.clone() for key, x in older.items()}
    for prefix, module in model.named_modules():
        if isinstance(module, OrderedRows):
            older._metadata[prefix]["version"] = 1
            for child, order in module.row_orders.items():
                for kind in ("weight", "bias"):
                    if (key := f"{prefix}.{child}.{kind}") in now:
                        older[key] = order.by_kind(now[key])
    assert any(not torch.equal(x, now[key]) for key, x in older.items())
    model.load_state_dict(older)
    for key, x in model.state_dict().items():
        assert torch.equal(x, now[key]), key
