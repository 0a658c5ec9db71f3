"""Files: with and without `import zoo.hf`, what is executed, and base checkpoints taken as they are."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from zoo.errors import ConfigError

from .tiny import fresh, tokens

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    fresh(layers=[0, 2]).save_pretrained(folder)
    return folder


def test_without_the_zoo_imported_only_a_trusted_stub_runs(saved: Path, tmp_path: Path) -> None:
    unread = tmp_path / "unread"
    shutil.copytree(saved, unread)
    (unread / "modeling_zoo.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    code = f"""
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({str(unread)!r}, trust_remote_code=False)
except ValueError as error:
    print("trust_remote_code=True" in str(error))
model = AutoModelForCausalLM.from_pretrained({str(saved)!r}, trust_remote_code=True)
print(type(model).__module__, type(model).__name__, model.config.zoo["mixer"])
model.save_pretrained({str(tmp_path / "again")!r})
"""
    places = {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "code")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | places, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "zoo.hf.classes", "ZooLlamaForCausalLM", "gated-power"], done.stderr
    assert not (tmp_path / "ran").exists()
    assert {path.name for path in (tmp_path / "again").iterdir()} == {path.name for path in saved.iterdir()}


@pytest.mark.parametrize("trust", [None, False, True])
def test_with_the_zoo_imported_nothing_of_the_folder_runs(saved: Path, tmp_path: Path, trust: bool | None) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "modeling_zoo.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
    assert type(model).__module__ == "zoo.hf.classes"
    assert not (tmp_path / "ran").exists()


def test_auto_classes_know_a_converted_type(saved: Path) -> None:
    config = AutoConfig.from_pretrained(saved)
    assert type(config).__name__ == "ZooLlamaConfig"
    assert config.model_type == "zoo_llama"
    assert type(AutoModel.from_pretrained(saved)).__name__ == "ZooLlamaModel"
    made = AutoModelForCausalLM.from_config(config)
    gate = made.model.layers[0].self_attn.retention_gate
    retained = torch.sigmoid(gate.bias)
    torch.testing.assert_close(retained, torch.tensor([0.9, 0.9999]), rtol=1e-3, atol=1e-3)


def test_gates_that_a_checkpoint_lacks_start_as_they_should(saved: Path, tmp_path: Path) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(saved / "model.safetensors")
    base = {name: x for name, x in weights.items() if "retention_gate" not in name}
    save_file(base, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    for layer in (0, 2):
        gate = model.model.layers[layer].self_attn.retention_gate
        torch.testing.assert_close(torch.sigmoid(gate.bias), torch.tensor([0.9, 0.9999]), rtol=1e-3, atol=1e-3)
        assert 0.01 < gate.weight.std() < 0.03
    for name, x in base.items():
        assert torch.equal(model.state_dict()[name], x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_loads_in_another_dtype(saved: Path, dtype: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype)
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    assert model(tokens()).logits.isfinite().all()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"mixer": "gated-pwer"}, "config.zoo: mixer: "),
        ({"power": 3}, "config.zoo: power: unknown key"),
        ({"heads": {"7": [4, 2, 8, 8]}}, r"config.zoo: expected layers among \[0, 1, 2\], heads name \[7\]"),
        ({"heads": {"0": [4, 2, 8]}}, "config.zoo: heads.0"),
    ],
)
def test_a_damaged_conversion_is_refused_by_key(saved: Path, tmp_path: Path, change: dict, line: str) -> None:
    values = json.loads((saved / "config.json").read_text())
    values["zoo"] |= change
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=line):
        AutoModelForCausalLM.from_config(config)
