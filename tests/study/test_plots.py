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

from zoo.report.plots import DARK, LIGHT, Theme, _spread
from zoo.study.colors import color_of
from zoo.study.plots import PLOTS, Plot, plots_of, render
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
