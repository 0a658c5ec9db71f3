"""Training on a GPU: in bfloat16 by itself, compiled once for each mode, and resumed as closely as its sums allow."""

import pytest
import torch

from zoo.builder import shrink
from zoo.recipe import load_recipe
from zoo.training import TrainingConfig, read_metrics, train
from zoo.training.optimizer import autocast_dtype

from .stopping import StopAt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:TensorFloat32"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(folder):
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


def test_auto_is_bfloat16():
    assert autocast_dtype(TrainingConfig(), torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("mixer", ["softmax", "gated-power"])
@pytest.mark.parametrize("compiled", [False, True])
def test_trains_and_resumes(tmp_path, corpus, mixer, compiled):
    overrides = [
        f"mixer={mixer}",
        f"training.compile={str(compiled).lower()}",
        "training.steps=12",
        "training.log_every=1",
        "training.checkpoint_every=4",
    ]
    recipe = shrink(load_recipe("tiny")).override(overrides)
    straight = train(recipe, tmp_path / "straight", corpus=corpus, device="cuda")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "resumed", corpus=corpus, device="cuda", progress=StopAt(6))
    train(recipe, tmp_path / "resumed", corpus=corpus, device="cuda")
    assert losses(tmp_path / "resumed") == pytest.approx(losses(tmp_path / "straight"), rel=2e-2)
    assert losses(tmp_path / "straight")[-1] < losses(tmp_path / "straight")[0]
    assert (straight.graph_breaks, straight.recompiles) == (0, 0)

    plain = train(recipe.override(["training.autocast=none"]), tmp_path / "plain", corpus=corpus, device="cuda")
    assert straight.final_loss == pytest.approx(plain.final_loss, rel=2e-2)
