"""`zoo list` and `zoo show`."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from torch import Tensor

from zoo.blocks.gate import RetentionGate
from zoo.builder import build
from zoo.compiling import check
from zoo.errors import InputError
from zoo.kernels.power import state_limit
from zoo.mixers import mixers
from zoo.recipe import Recipe, available_recipes, load_recipe


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_list_names_everything(zoo: Callable[..., Result]) -> None:
    result = zoo("list")
    assert result.exit_code == 0
    words = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert {*available_recipes(), *mixers, "four-mixers"} <= words.keys()
    assert "124,439,808" in words["gpt2-124m"]


def test_the_matrix_has_every_recipe_and_mixer(zoo: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = zoo("list", "--matrix")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    rows: dict[str, list[str]] = {name: [] for name in mixers}
    for name, *cells in filter(None, map(str.split, result.stdout.splitlines())):
        rows.get(name, []).extend(cells)  # of several tables, one beneath the other
    assert {len(cells) for cells in rows.values()} == {len(available_recipes())}
    assert rows["softmax"][available_recipes().index("gpt2-124m")] == "124.4"
    assert rows["rwkv7"][available_recipes().index("rwkv7-124m")] == "124.3"


def test_show_says_positions_and_exact_parameters(zoo: Callable[..., Result]) -> None:
    learned, rotary = zoo("show", "gpt2-124m").stdout, zoo("show", "gpt2-124m-rotary").stdout
    assert "learned, 1,024" in learned
    assert "124,439,808" in learned
    assert "786,432" in learned
    assert "4,096" not in learned
    assert "rotary, base 10,000" in rotary
    assert "123,653,376" in rotary
    for context in ("1,024", "4,096", "16,384", "65,536", "1,048,576"):
        assert context in rotary


def test_show_says_what_decays_and_how_fast_it_moves(zoo: Callable[..., Result]) -> None:
    result = zoo("show", "rwkv7-124m", "--optimizer", "training.learning_rate=0.25", "training.weight_decay=0.5")
    assert result.exit_code == 0, result.output
    decaying, twice, steady = re.split(r"\n(?=no decay)", result.stdout)
    assert decaying.startswith("decay 0.5, learning rate 0.25  ")
    assert re.search(r"  blocks\.\*\.mixer\.receptance\.weight +7,077,888", decaying)
    assert re.findall(r"^  (\S+)", twice, flags=re.MULTILINE) == ["blocks.*.mixer.decay.expand.bias"]
    assert twice.startswith("no decay, learning rate 0.5  9,216 parameters")
    assert "blocks.*.mixer.norm.weight" in steady


def test_show_takes_overrides(zoo: Callable[..., Result]) -> None:
    output = zoo("show", "hybrid-124m", "mixer=power", "mixer.p=3", "--dtype", "bfloat16").stdout
    assert "power (p=3) in 9 layers, softmax in 3 layers" in output
    short = zoo("show", "gpt2-124m", "model.max_positions=512", "training.context_length=512").stdout
    assert "  512  " in short
    assert "  1,024  " not in short


def test_show_yaml_is_the_whole_recipe(zoo: Callable[..., Result], tmp_path: Path) -> None:
    result = zoo("show", "tiny", "mixer=gated-power", "mixer.p=4", "--yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(result.stdout)
    assert load_recipe(path) == load_recipe("tiny", ["mixer=gated-power", "mixer.p=4"])
    assert Recipe.from_yaml(result.stdout).to_yaml() == result.stdout
    assert zoo("show", path, "--yaml").stdout == result.stdout


def test_a_description_gives_a_terminal_no_orders(
    zoo: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(load_recipe("tiny").replace(description="Mine\x1b]0;yours\x07").to_yaml())
    monkeypatch.setenv("FORCE_COLOR", "1")  # takes standard output for a terminal
    shown = zoo("show", path).stdout
    assert r"Mine\x1b" in shown
    assert "\x1b]" not in shown
    assert "\x07" not in shown


def test_what_cannot_be_shown_is_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    assert refused("show", "tinny") == "unknown recipe 'tinny' (did you mean 'tiny'?)"
    assert refused("show", tmp_path / "\x1b[2J.yaml") == rf"{tmp_path}/\x1b[2J.yaml: no such file"
    assert refused("show", "tiny", "mixer=powr").endswith("got 'powr' (did you mean 'power'?)")
    assert refused("show", "tiny", "steps=3") == "overrides: steps: unknown key (did you mean 'training.steps'?)"
    assert refused("show", "tiny", "mixer").startswith("override 'mixer': must look like key=value")
    assert refused("show", tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such file"
    assert "divide the 3 query heads" in refused("show", "tiny", "mixer.key_value_heads=2")
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nmodel: !!python/object/apply:os.system ['true']")
    assert refused("show", path).startswith(f"{path}, line 2: tags are not taken")


@pytest.mark.parametrize("recipe", ["hybrid-124m", "rwkv7-124m"])
def test_show_compiles_whole(zoo: Callable[..., Result], recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_BACKEND", "aot_eager")  # the same graphs, in a tenth of the time
    result = zoo("show", recipe, "--compile")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()]
    found = {row[0]: row[-4:-1] for row in rows if row[0] in ("training", "reading", "decoding")}
    assert found.keys() == {"training", "reading", "decoding"}
    for graphs, breaks, recompiles in found.values():
        assert int(graphs) in (1, 2)
        assert (breaks, recompiles) == ("0", "0")


def test_show_names_what_breaks_a_graph(zoo: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: RetentionGate, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x.new_zeros(*x.shape[:-1], len(self.bias))

    monkeypatch.setattr(check, "_BACKEND", "eager")
    monkeypatch.setattr(RetentionGate, "forward", broken)
    output = zoo("show", "tiny", "mixer=gated-power", "--compile").stdout
    training = next(line.split() for line in output.splitlines() if line.strip().startswith("training"))
    assert int(training[-3]) > 0
    assert "training: " in output


def test_a_state_over_the_limit_is_shown_and_not_built(zoo: Callable[..., Result]) -> None:
    overrides = ["mixer=power", "mixer.p=4", "model.head_width=64"]
    result = zoo("show", "tiny", *overrides)
    assert result.exit_code == 0, result.output
    assert "No such model is built or trained as it is: p: a state of p=4 with key width K=64" in result.stdout
    assert "No such model" not in zoo("show", "tiny", "mixer=power", "mixer.p=4").stdout
    with pytest.raises(InputError, match="p: a state of p=4 with key width K=64"):
        build("tiny", overrides=overrides)
    with state_limit(2**28):
        assert build("tiny", overrides=[*overrides, "model.layers=1"]).num_parameters()


@pytest.mark.parametrize("options", [("--yaml", "--compile"), ("--yaml", "--dtype"), ("--compile", "--dtype")])
def test_options_of_which_one_would_say_nothing_are_refused(
    refused: Callable[..., str], options: tuple[str, str]
) -> None:
    given = [*options, "float32"] if options[1] == "--dtype" else options
    assert refused("show", "tiny", *given) == (
        f"{options[1]}: expected without {options[0]}, which prints something else; give one of them"
    )


def test_show_says_how_many_heads_the_mixers_have(zoo: Callable[..., Result]) -> None:
    assert "24 layers, width 768, 24 heads, rmsnorm, no feed-forward layers" in zoo("show", "mamba2-130m").stdout
    assert "24 layers, width 768, 12 heads, rmsnorm" in zoo("show", "mamba2-130m", "mixer=power").stdout
    assert "15 heads in 5 groups" in zoo("show", "llama-360m").stdout
    one = zoo("show", "tiny", "model.layers=2", "model.heads=1", "hybrid={mixer: rwkv7, every: 2}").stdout
    assert "2 layers, width 96, 1 head, rmsnorm" in one
    assert "softmax in 1 layer, rwkv7 in 1 layer" in one


def test_show_imports_what_it_needs_by_itself() -> None:
    """In a process of its own: here, the modules that import each other are all there already."""
    program = "from zoo.cli import main; main(['show', 'tiny'])"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
