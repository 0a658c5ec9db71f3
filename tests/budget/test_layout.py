"""Layouts of many GPUs: a model, held against what is known of it by hand."""

import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from click.testing import CliRunner, Result

from zoo.budget.layout import Layout, Links, Room, lay_out, parse_links
from zoo.budget.times import read_times
from zoo.budget.traffic import count_pass
from zoo.builder import build
from zoo.cli import main
from zoo.errors import InputError
from zoo.kernels.power import state_size
from zoo.recipe import Recipe, load_recipe
from zoo.training.distributed import _layout

MILLION = 2**20


def gated(*overrides: str) -> Recipe:
    return load_recipe("gpt2-124m-rotary", ["mixer=gated-power", f"training.context_length={MILLION}", *overrides])


@pytest.fixture(scope="module")
def by_context() -> dict[int, Layout]:
    layouts = lay_out(gated(), 64, Links(), read_times(), Room())
    assert layouts.token_seconds == pytest.approx(2.93e-6, rel=0.05)  # measured: docs/performance.md
    return {layout.context: layout for layout in layouts.found}


@pytest.fixture
def zoo() -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(main, ["plan", *arguments])


def test_states_are_received_twice_each_way(by_context: dict[int, Layout]) -> None:
    heads, layers = 12, 12
    state = heads * state_size(64, 2) * (64 + 1) * 4
    assert by_context[1].states_received == 0
    for context, layout in by_context.items():
        received = layers * 2 * 2 * state * (context - 1) / context
        assert received <= layout.states_received <= 1.01 * received  # and gates, and padding


def test_weights_go_to_layers_and_gradients_back(by_context: dict[int, Layout]) -> None:
    model = build(gated(), device="meta")
    layers = sum(p.numel() for p in model.blocks.parameters())
    gathers = 4 * (2 * layers + (model.num_parameters() - layers))
    for layout in by_context.values():
        assert layout.weights_received == pytest.approx((gathers + 4 * model.num_parameters()) * 63 / 64, rel=1e-6)
        assert layout.state_memory > 16 * model.num_parameters() / 64


def test_more_to_a_sequence_is_less_memory_and_less_efficient(by_context: dict[int, Layout]) -> None:
    ordered = [by_context[context] for context in (1, 2, 4, 8, 16, 32, 64)]
    for fewer, more in pairwise(ordered):
        assert more.memory < fewer.memory
        assert more.efficiency < fewer.efficiency
    assert 0.97 < by_context[8].efficiency < 1  # within a node
    assert 0.8 < by_context[64].efficiency < 0.9
    layout = by_context[64]
    waited = 0.02e-3 * count_pass(gated(), layout.tokens, 64, "none").collectives + layout.states_received / 45e9
    assert layout.seconds == pytest.approx(layout.computing + waited)


def test_activations_are_near_what_was_measured() -> None:
    """docs/performance.md: 31.2 and 63.2 GiB at the most, of which 1.9 are weights, gradients and the optimiser."""
    assert count_pass(gated(), 65_536, 1, "none").kept / 2**30 == pytest.approx(31.2 - 0.9, rel=0.05)
    assert count_pass(gated(), 524_288, 1, "selective").kept / 2**30 == pytest.approx(63.2 - 0.9, rel=0.1)


def test_copies_are_taken_where_weights_would_be_waited_for() -> None:
    short = gated("training.context_length=1024", "model.layers=4")
    slow = lay_out(short, 16, Links(between=1), read_times(), Room())
    best = next(layout for layout in slow.found if layout.context == 1)
    assert best.data_replicate > 1
    tight = lay_out(short, 16, Links(between=1), read_times(), Room(memory=best.memory - 1))
    fewer = next(layout for layout in tight.found if layout.context == 1)
    assert fewer.memory < best.memory
    assert fewer.data_replicate < best.data_replicate


def test_the_printed_command_is_a_layout_of_all_gpus(zoo: Callable[..., Result]) -> None:
    printed = zoo("--gpus", "16", "--context", "256K", "mixer=gated-power", "model.layers=4")
    assert printed.exit_code == 0, printed.output
    assert "a model, not a measurement" in printed.stdout
    (line,) = (line for line in printed.stdout.splitlines() if line.startswith("torchrun "))
    assert line.startswith("torchrun --nnodes 2 --nproc-per-node 8 -m zoo train gpt2-124m-rotary mixer=gated-power ")
    recipe, *overrides = line.partition("zoo train ")[2].split()
    training = load_recipe(recipe, overrides).training
    copies, shards, context, _ = _layout(training.parallel, 16)
    assert copies * shards * context == 16
    assert training.batch_size == copies * shards
    rows = re.findall(r"^(\d+) x (\d+) x (\d+) ", printed.stdout, re.MULTILINE)
    assert rows[0] == (str(copies), str(shards), str(context))
    assert {int(row[2]) for row in rows} == {1, 2, 4, 8, 16}


def test_what_cannot_be_shared_is_said_and_left_out(zoo: Callable[..., Result]) -> None:
    printed = zoo("--gpus", "4", "--context", "96", "mixer=sliding-window", "mixer.window=40", "--token-us", "3")
    assert "Not 4 to a sequence: a layer looks back 39 tokens, a share has 24" in printed.stdout
    printed = zoo("--gpus", "6", "--context", "64", "mixer=gated-power", "--memory", "0.1", "model.layers=1")
    assert "Not 3 to a sequence: 3 do not divide 64 tokens" in printed.stdout
    told = " ".join(printed.stdout.split())
    assert "No layout fits into 102 MiB; training.checkpointing=selective or =full takes less memory." in told


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--gpus", "8"], "Missing option '--context'"),
        (["--context", "1K"], "Missing option '--params', or '--gpus'"),
        (["--context", "1K", "--params", "1M", "tiny"], "RECIPE and overrides go with --gpus"),
        (["--context", "1K", "--params", "1M", "--gpus", "8"], "--params is what a search is for"),
        (["--context", "1K", "--gpus", "8", "mixer=gla"], "token-us: expected the microseconds that a token takes"),
        (
            ["--context", "1K", "--gpus", "8", "--links", "inside=fast"],
            "links: expected node, inside, between, latency",
        ),
        (["--context", "1K", "--gpus", "8", "--memory", "nan"], "nan is not a number"),
        (["--context", "1K", "--gpus", "0"], "0 is not in the range"),
        (
            ["--context", "1K", "--gpus", "8", "training.parallel.tensor=2"],
            "training.parallel.tensor: expected 1, as a plan leaves layers whole, was 2",
        ),
    ],
)
def test_what_is_wrong_is_one_line(zoo: Callable[..., Result], arguments: list[str], line: str) -> None:
    refused = zoo(*arguments)
    assert refused.exit_code == 2
    assert line in refused.output


def test_links_are_parsed() -> None:
    assert parse_links("") == Links()
    assert parse_links("node=4, inside=450.5") == Links(node=4, inside=450.5)
    for text in ("nodes=4", "node=0", "node=1.5", "inside=nan", "between=-1", "latency"):
        with pytest.raises(InputError, match=r"^links: expected node, inside, between, latency as numbers over 0"):
            parse_links(text)
