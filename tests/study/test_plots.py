import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from zoo.mixers import mixers
from zoo.report.plots import DARK, LIGHT, Theme, _spread
from zoo.study.colors import color_of
from zoo.study.plots import PLOTS, Plot, numbers_of, plots_of, render
from zoo.study.results import Accuracy, LengthLoss, PositionLoss, RunSummary
from zoo.study.summary import StudySummary


def count_pixels(image: np.ndarray, color: str) -> int:
    return int((np.abs(image[..., :3] - to_rgb(color)).max(axis=-1) < 0.02).sum())


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_variant_is_seen_in_its_colour(plot: Plot, theme: Theme, summary: StudySummary) -> None:
    image = imread(BytesIO(render(plot, summary, theme, "png")), format="png")
    assert image.shape == (780, 1120, 4)
    assert count_pixels(image, theme.background) > image.shape[0] * image.shape[1] / 2
    for variant in summary.variants:
        assert count_pixels(image, color_of(variant.name, summary, theme)) > 300


def test_a_plot_is_the_same_bytes_each_time(summary: StudySummary) -> None:
    assert render(PLOTS[0], summary, LIGHT, "svg") == render(PLOTS[0], summary, LIGHT, "svg")
    assert render(PLOTS[0], summary, LIGHT, "png") == render(PLOTS[0], summary, LIGHT, "png")


def test_a_style_of_the_users_own_changes_nothing(summary: StudySummary) -> None:
    expected = render(PLOTS[1], summary, LIGHT, "png")
    with matplotlib.rc_context({"axes.grid": False, "lines.linewidth": 9, "font.size": 30}):
        assert render(PLOTS[1], summary, LIGHT, "png") == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_ten_variants_and_odd_names_are_drawn(
    make_summary: Callable[..., StudySummary], make_variant: Callable
) -> None:
    names = ["$a^", "<b>&amp;", "c" * 64, *(f"variant {number}" for number in range(7))]
    variants = [make_variant(name, 2 + index / 100) for index, name in enumerate(names)]
    for plot in PLOTS:
        assert b"<svg" in render(plot, make_summary(*variants), LIGHT, "svg")


def test_a_variant_keeps_its_colour_while_others_are_missing(
    make_summary: Callable[..., StudySummary], make_variant: Callable
) -> None:
    a, b = make_variant("a"), make_variant("b")
    assert color_of("b", make_summary(a, b), LIGHT) == color_of("b", make_summary(b, planned=("a", "b")), LIGHT)


def test_a_mixer_has_its_colour_in_every_study_and_twelve_variants_have_twelve(
    make_summary: Callable[..., StudySummary], make_variant: Callable
) -> None:
    def colours(*names: str) -> dict[str, str]:
        summary = make_summary(*map(make_variant, names))
        return {name: color_of(name, summary, LIGHT) for name in names}

    few = colours("power", "softmax")
    many = colours("x", "power p=3", *mixers, "power")
    assert {name: many[name] for name in few} == few
    several = colours(*(f"gated-power p={number}" for number in range(6)), *(f"variant {n}" for n in range(6)))
    assert len(set(several.values())) == 12
    assert len(set(LIGHT.variants)) == len(set(DARK.variants)) == len(LIGHT.variants) == len(DARK.variants) == 14


def measured(run: RunSummary, share: float) -> RunSummary:
    """Return a run that was asked, and whose loss was taken by position."""
    positions = [
        PositionLoss(start=start, end=end, loss=3 - share, tokens=8) for start, end in ((0, 1), (1, 2), (2, 4))
    ]
    accuracy = [
        Accuracy(length=length, pairs=pairs, accuracy=share / pairs, answers=10 * pairs)
        for length in (64, 128)
        for pairs in (4, 8)
    ]
    # The same answers again, by distance, are no further ones.
    accuracy += [Accuracy(length=64, pairs=4, distance=distance, accuracy=0.0, answers=40) for distance in (2, 4)]
    lengths = [LengthLoss(length=length, loss=3.0, bits_per_byte=2.5, tokens=8) for length in (64, 128)]
    return run.replace(positions=tuple(positions), lengths=tuple(lengths), accuracy=tuple(accuracy), state_bytes=4096)


def test_what_was_measured_is_drawn_and_written(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    runs = tuple(measured(make_run(2.0, seed=seed), 0.5 + seed / 4) for seed in range(2))
    summary = make_summary(make_variant("softmax", runs=runs), make_variant("linear", runs=runs[:1]))
    plots = {plot.name: plot for plot in plots_of(summary)}
    assert set(plots) == {
        *(plot.name for plot in PLOTS),
        *("accuracy-by-state", "accuracy-by-length", "accuracy-by-pairs", "accuracy-by-distance"),
        *("loss-by-position", "loss-by-length"),
    }
    for plot in plots.values():
        assert render(plot, summary, LIGHT, "pdf").startswith(b"%PDF")
    rows = numbers_of(plots["loss-by-position"], summary).splitlines()
    assert rows[:2] == ["variant,start,end,nats_per_token,lowest,highest", "softmax,0,1,2.375,2.25,2.5"]
    rows = numbers_of(plots["accuracy-by-pairs"], summary).splitlines()
    assert rows[0] == "variant,pairs,accuracy,lowest,highest"
    assert float(rows[1].split(",")[2]) == pytest.approx((0.5 + 0.75) / 8)
    rows = numbers_of(plots["loss-by-length"], summary).splitlines()
    assert rows[1] == "softmax,64,2.5,2.5,2.5"
    assert numbers_of(plots["accuracy-by-state"], summary).splitlines()[1].startswith("softmax,4096,0,")


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_the_numbers_of_a_plot_are_those_of_every_variant(plot: Plot, summary: StudySummary) -> None:
    head, *rows = numbers_of(plot, summary).splitlines()
    assert head.startswith("variant,")
    assert {row.split(",")[0] for row in rows} == set(summary.planned)
    assert all(row.count(",") == head.count(",") and ",," not in row for row in rows)


def test_the_runs_of_every_rate_and_seed_are_drawn(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    runs = tuple(make_run(2 + rate * 50 + seed / 100, rate=rate, seed=seed) for rate in (1e-3, 4e-3) for seed in (0, 1))
    summary = make_summary(make_variant("a", runs=runs), make_variant("b", runs=runs))
    plots = plots_of(summary)
    assert [plot.name for plot in plots] == [*(plot.name for plot in PLOTS), "loss-by-rate"]
    for plot in plots:
        image = imread(BytesIO(render(plot, summary, LIGHT, "png")), format="png")
        assert count_pixels(image, color_of(summary.variants[1].name, summary, LIGHT)) > 200


def test_the_rate_that_was_chosen_is_marked_at_its_own_loss(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    runs = (make_run(2.0, rate=1e-3).replace(choosing_bits=2.2), make_run(2.1, rate=4e-3))
    rates = plots_of(summary := make_summary(make_variant("a", runs=runs)))[-1]
    axes = Figure().add_subplot()
    rates.fill(axes, summary, LIGHT)
    (mark,) = (line for line in axes.get_lines() if line.get_marker() == "D")
    assert (*mark.get_xdata(), *mark.get_ydata()) == (4e-3, 2.1)


def test_a_single_variant_above_the_bigram_and_no_time_are_drawn(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    run = make_run(5.0)
    still = run.validation.replace(seconds=len(run.validation.seconds) * (0.0,))
    run = run.replace(validation=still, training=still.replace(tokens=(), flops=(), seconds=(), bits=()))
    summary = make_summary(make_variant("slow", runs=(run,)))
    for plot in PLOTS:
        render(plot, summary, DARK, "png")


@given(st.lists(st.floats(0, 1), max_size=12))
def test_labels_are_apart_and_in_order(anchors: list[float]) -> None:
    gap = 0.06
    places = _spread(anchors, gap)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    order = sorted(range(len(anchors)), key=lambda index: anchors[index])
    assert all(places[after] - places[before] >= gap - 1e-9 for before, after in pairwise(order))
    if all(abs(a - b) >= gap for i, a in enumerate(anchors) for b in anchors[:i]):
        assert places == pytest.approx(anchors, abs=1e-9) or max(anchors, default=0) > 1 - gap


def test_pyplot_is_left_alone() -> None:
    code = "import sys, zoo.study.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_label_stands_at_the_height_of_its_lines_end(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    summary = make_summary(make_variant("softmax", runs=(measured(make_run(2.0), 0.4),)))
    for plot in plots_of(summary):
        if plot.name.startswith("accuracy-by-") and plot.name != "accuracy-by-state":
            axes = Figure().add_subplot()
            plot.fill(axes, summary, LIGHT)
            line = axes.get_lines()[0]
            (label,) = axes.texts
            height = axes.transAxes.inverted().transform(axes.transData.transform((1, line.get_ydata()[-1])))[1]
            assert label.get_position()[1] == pytest.approx(height, abs=0.02)
