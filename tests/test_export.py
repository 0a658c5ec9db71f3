"""Exported models give the same tokens in a process that never saw the model."""

import json
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from zoo.builder import build, configure, shrink
from zoo.errors import InputError
from zoo.export import export_model, load_exported
from zoo.mixers import mixers

from .generation.small_models import LIKE_ANOTHER

DECODE = """
import json, sys, torch
from zoo.export import load_exported
for line in sys.stdin:
    folder, prompts, lengths = json.loads(line)
    model = load_exported(folder, trusted=True)
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


@pytest.mark.parametrize(
    "mixer",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_ANOTHER else []) for name in mixers],
)
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
    exported, tokens = load_exported(tmp_path, trusted=True), torch.tensor([[5]])
    found, state = exported.prefill(tokens, exported.init_state(), torch.tensor([1]))
    with torch.no_grad():
        logits, expected = model.prefill(tokens, model.init_state(1, max_len=16), torch.tensor([1]))
        torch.testing.assert_close(found, logits)
        torch.testing.assert_close(exported.step(tokens[0], state), model.step(tokens[0], expected))


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder that export_model wrote"):
        load_exported(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 9, "state": []}')
    with pytest.raises(InputError, match="expected format 2, was 9"):
        load_exported(tmp_path)


@pytest.mark.parametrize(("options", "message"), [({"batch_size": 0}, "batch_size"), ({"max_len": 2}, "max_len")])
def test_sizes_out_of_range_are_named(options: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{message}: expected at least"):
        export_model(build("tiny", device="meta"), tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_model(build(shrink(configure("tiny", mixer="linear"))).eval(), folder, max_len=8)
    return folder


def test_programs_are_loaded_from_a_trusted_folder_only(exported: Path) -> None:
    with pytest.raises(InputError, match=r"trusted: .* holds programs, which can do what you can"):
        load_exported(exported)


def test_programs_hold_no_weights_and_nothing_pickled(exported: Path) -> None:
    for path in exported.glob("*.pt2"):
        with zipfile.ZipFile(path) as archive:
            assert [entry for entry in archive.infolist() if entry.filename.endswith(".pt") and entry.file_size] == []
            assert archive.read("archive/data/weights/model_weights_config.json") == b'{"config": {}}'
    names = set(safetensors.torch.load_file(next(exported.glob("*.safetensors"))))
    assert "model.blocks.0.mixer.input.projection.weight" in names


@pytest.mark.parametrize("pattern", ["prefill-*", "decode-*", "weights-*", "model.json"])
def test_a_flipped_bit_anywhere_is_told(pattern: str, exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (path,) = copy.glob(pattern)
    content = bytearray(path.read_bytes())
    at = content.index(b'"batch_size": 1') + 14 if pattern == "model.json" else len(content) // 2
    content[at] ^= 2
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path}: is damaged")):
        load_exported(copy, trusted=True)


def test_a_file_that_is_gone_is_told(exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    next(copy.glob("weights-*")).unlink()
    with pytest.raises(InputError, match=r"weights-.*cannot be read: No such file"):
        load_exported(copy, trusted=True)


def test_an_export_is_replaced_whole(exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (copy / "notes.txt").write_text("mine")
    export_model(build(shrink(configure("tiny", mixer="linear"))).eval(), copy, max_len=12)
    assert len(list(copy.iterdir())) == 5
    assert load_exported(copy, trusted=True)
    with (copy / "model.json").open() as file:
        assert json.load(file)["max_len"] == 12


@pytest.mark.parametrize("largest", [20_000, 120_000])
def test_a_full_disk_leaves_the_export_before_it(largest: int, exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    model = build(shrink(configure("tiny", mixer="linear"))).eval()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written: "):
            export_model(model, copy, max_len=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
