"""Exported models give the same tokens in a process that never saw the model."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zoo.builder import build, configure, shrink
from zoo.errors import InputError
from zoo.export import export_model, load_exported
from zoo.mixers import mixers

DECODE = """
import json, sys, torch
from zoo.export import load_exported
for line in sys.stdin:
    folder, prompts, lengths = json.loads(line)
    model = load_exported(folder)
    logits, state = model.prefill(torch.tensor(prompts), model.init_state(), torch.tensor(lengths))
    found = []
    for _ in range(8):
        tokens = logits.argmax(-1)
        found.append(tokens.tolist())
        logits = model.step(tokens, state)
    print(json.dumps(found), flush=True)
"""

Decode = Callable[[Path, Tensor, Tensor], list[list[int]]]


@pytest.fixture(scope="module")
def decode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decode]:
    """Decodes greedily from exported folders in one process for all of them, as most of its time is its start."""
    errors = (tmp_path_factory.mktemp("decode") / "errors.txt").open("w+")
    command = [sys.executable, "-W", "ignore", "-c", DECODE]
    pipe = subprocess.PIPE
    with errors, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def run(folder: Path, prompts: Tensor, lengths: Tensor) -> list[list[int]]:
            print(json.dumps([str(folder), prompts.tolist(), lengths.tolist()]), file=questions, flush=True)
            answer = answers.readline()
            errors.seek(0)
            assert answer, errors.read()[-2000:]
            found: list[list[int]] = json.loads(answer)
            return found

        yield run
        questions.close()


@pytest.mark.parametrize("mixer", mixers)
def test_a_fresh_process_decodes_the_same_tokens(mixer: str, decode: Decode, tmp_path: Path) -> None:
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
    assert decode(tmp_path / "exported", prompts, lengths) == expected


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
