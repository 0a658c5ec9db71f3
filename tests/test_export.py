"""Exported models give the same tokens in a process that never saw the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo.builder import build, configure, shrink
from zoo.errors import InputError
from zoo.export import export_model, load_exported
from zoo.mixers import mixers

DECODE = """
import json, sys, torch
from zoo.export import load_exported
model = load_exported(sys.argv[1])
prompts, lengths = (torch.tensor(x) for x in json.loads(sys.argv[2]))
logits, state = model.prefill(prompts, model.init_state(), lengths)
found = []
for _ in range(8):
    tokens = logits.argmax(-1)
    found.append(tokens.tolist())
    logits = model.step(tokens, state)
print(json.dumps(found))
"""


@pytest.mark.parametrize("mixer", mixers)
def test_a_fresh_process_decodes_the_same_tokens(mixer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = "rwkv7-124m" if mixer == "rwkv7" else "tiny"
    model = build(shrink(configure(backbone, mixer=mixer))).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    export_model(model, tmp_path / "exported", batch_size=2, max_len=40)

    prompts, lengths = torch.randint(0, 257, (2, 21)), torch.tensor([21, 13])
    with torch.no_grad():
        logits, state = model.prefill(prompts, model.init_state(2, max_len=40), lengths)
        expected = []
        for _ in range(8):
            tokens = logits.argmax(-1)
            expected.append(tokens.tolist())
            logits = model.step(tokens, state)
    arguments = [str(tmp_path / "exported"), json.dumps([prompts.tolist(), lengths.tolist()])]
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", DECODE, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout) == expected


def test_a_prompt_of_one_token(tmp_path: Path) -> None:
    model = build(shrink(configure("tiny", mixer="gated-power"))).eval()
    export_model(model, tmp_path, max_len=16)
    exported, tokens = load_exported(tmp_path), torch.tensor([[5]])
    found, state = exported.prefill(tokens, exported.init_state(), torch.tensor([1]))
    with torch.no_grad():
        logits, expected = model.prefill(tokens, model.init_state(1, max_len=16), torch.tensor([1]))
        torch.testing.assert_close(found, logits)
        torch.testing.assert_close(exported.step(tokens[0], state), model.step(tokens[0], expected))


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder that export_model wrote"):
        load_exported(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 9, "state": []}')
    with pytest.raises(InputError, match="expected format 1, was 9"):
        load_exported(tmp_path)


@pytest.mark.parametrize(("options", "message"), [({"batch_size": 0}, "batch_size"), ({"max_len": 2}, "max_len")])
def test_sizes_out_of_range_are_named(options: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{message}: expected at least"):
        export_model(build("tiny", device="meta"), tmp_path, **options)
    assert not list(tmp_path.iterdir())
