import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from zoo.study.measure import validation_curve
from zoo.study.page import render_page
from zoo.study.results import Accuracy
from zoo.study.summary import Option, StudySummary

EVIL = "<script>alert('1')</script>\"&$x"


class Outline(HTMLParser):
    """Tags with their attributes, rows of cells, and text of a page; raises for tags that do not match."""

    _VOID = frozenset({"meta", "link", "img", "source", "br", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self._VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self._open):
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


@pytest.fixture
def outline(page: str) -> Outline:
    return Outline(page)


def test_the_page_names_what_was_done(outline: Outline, summary: StudySummary) -> None:
    corpus, machine = summary.corpus, summary.variants[0].runs[0].machine
    for expected in (
        *(summary.name, summary.description, summary.command, summary.study_yaml, corpus.hash, "1,234", "12,345,678"),
        *(
            machine.torch,
            machine.python,
            machine.zoo,
            machine.device,
            "2 threads",
            "02 January 2026",
            "standard library",
        ),
        "Lowest validation loss at the end, of one seed: gated-power, 2.197 bits per byte, softmax +0.017",
        "All are below a bigram model",
    ):
        assert expected in outline.text


def test_the_table_has_the_variants_in_order_and_the_bigram_last(outline: Outline, summary: StudySummary) -> None:
    results = outline.rows[: len(summary.variants) + 2]
    assert [row[0] for row in results] == ["variant", *summary.planned, "bigram model"]
    assert {len(row) for row in results} == {16}
    linear = dict(zip(results[0], results[2], strict=True))
    assert linear["final bits per byte"] == "2.391"
    assert linear["parameters"] == "1.20M (+0.05%)"
    assert linear["state at 65,536"] == "68 KiB"
    assert linear["graph breaks"] == linear["recompiles"] == "0"
    assert results[-1][2:4] == ["3.583", "3.583"]


def test_nothing_is_loaded_and_one_script_of_its_own_runs(outline: Outline) -> None:
    assert [tag for tag, _ in outline.tags].count("script") == 1
    for _, attributes in outline.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")


def test_a_policy_allows_the_own_style_and_pictures_and_nothing_else(page: str, outline: Outline) -> None:
    first = next(attributes for tag, attributes in outline.tags if "http-equiv" in attributes)
    assert first["http-equiv"] == "Content-Security-Policy"
    digests = {}
    for tag in ("style", "script"):
        content = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digests[tag] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert page.count(f"<{tag}") == 1
    assert first["content"] == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests['style']}'; "
        f"script-src 'sha256-{digests['script']}'; base-uri 'none'; form-action 'none'"
    )
    assert not any("style" in attributes for _, attributes in outline.tags)  # which no hash allows


def test_every_variant_has_its_colors_in_the_style(page: str, summary: StudySummary) -> None:
    for index in range(len(summary.variants)):
        assert page.count(f'class="swatch of-{index}"') == 2
        assert re.search(rf"^\.of-{index} {{ --light: #\w+; --dark: #\w+; }}$", page, flags=re.MULTILINE)


def test_the_plots_are_whole_drawings_for_light_and_dark(page: str) -> None:
    drawings = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    assert len(drawings) == 8
    for drawing in drawings:
        assert ElementTree.fromstring(base64.b64decode(drawing)).tag.endswith("svg")
    assert len(set(drawings)) == 8


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the time of drawing where a test looks at the text."""
    monkeypatch.setattr("zoo.study.page.render", lambda *arguments: b"<svg/>")


@pytest.mark.usefixtures("undrawn")
def test_every_text_is_escaped(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    run = make_run(2.1)
    variant = make_variant(EVIL, runs=(run.replace(machine=run.machine.replace(device=EVIL)),))
    variant = variant.replace(mixer=EVIL, overrides=(EVIL,))
    summary = make_summary(
        variant,
        planned=(EVIL, EVIL + "2"),
        **dict.fromkeys(["name", "description", "recipe", "study_yaml", "command", "unit"], EVIL),
    )
    corpus = summary.corpus.replace(source=EVIL, tokenizer=EVIL, hash=EVIL)
    page = render_page(summary.replace(corpus=corpus))
    outline = Outline(page)
    assert page.count("<script") == 1
    assert {tag for tag, _ in outline.tags} == {tag for tag, _ in Outline(render_page(make_summary())).tags}
    assert outline.text.count(EVIL) >= 15


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_study_says_so(make_summary: Callable[..., StudySummary], make_variant: Callable) -> None:
    assert "Not finished yet: b, c." in render_page(make_summary(make_variant("a"), planned=("a", "b", "c")))
    assert "Not finished" not in render_page(make_summary())


@pytest.mark.usefixtures("undrawn")
def test_a_variant_above_the_bigram_is_named(make_summary: Callable[..., StudySummary], make_variant: Callable) -> None:
    assert "Not below a bigram model of the same text (3.583): bad." in render_page(
        make_summary(make_variant("good", 2.0), make_variant("bad", 4.0))
    )


@pytest.mark.usefixtures("undrawn")
def test_machines_are_told_apart(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    a, run = make_variant("a"), make_run(2.1)
    b = make_variant("b", runs=(run.replace(machine=run.machine.replace(threads=1)),))
    text = Outline(render_page(make_summary(a, b))).text
    assert "a: mixer-zoo 0.1.0, torch 2.13.0, Python 3.11.2, A Processor @ 2.1 GHz, 2 threads" in text
    assert "b: mixer-zoo 0.1.0, torch 2.13.0, Python 3.11.2, A Processor @ 2.1 GHz, 1 thread" in text


@pytest.mark.usefixtures("undrawn")
def test_tokens_of_unknown_bytes_are_not_called_bytes(make_summary: Callable[..., StudySummary]) -> None:
    text = Outline(render_page(make_summary(unit="bits per token"))).text
    assert "per byte" not in text
    assert "final bits per token" in text


def test_the_page_of_many_long_runs_is_small(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    variants = []
    for number in range(50):
        records = [
            {"kind": "validation", "step": step, "tokens": step * 4096, "flops": step * 1e9, "seconds": step / 5,
             "bits_per_byte": 2.1 + number / 100 + 6 / (1 + step / 40)}
            for step in range(5_000)
        ]  # fmt: skip
        curve = validation_curve(records)
        assert (curve.tokens[0], curve.tokens[-1], curve.bits[-1]) == (0, 4999 * 4096, records[-1]["bits_per_byte"])
        run = make_run(curve.bits[-1]).replace(validation=curve, training=curve)
        variants.append(make_variant(f"variant-{number}", runs=(run,)))
    assert len(render_page(make_summary(*variants))) < 5e6


def test_over_seeds_the_page_says_what_chance_may_have_ordered(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    losses = {"a": (2.0, 2.1, 2.2), "b": (2.3, 1.9, 2.3), "c": (3.0, 3.11, 3.2)}
    variants = [
        make_variant(name, runs=tuple(make_run(loss, seed=seed) for seed, loss in enumerate(of)))
        for name, of in losses.items()
    ]
    outline = Outline(render_page(make_summary(*variants)))
    assert "mean of 3 seeds with its 95% interval: a, 2.100 ± 0.248" in outline.text
    assert "Not distinguishable from a: b." in outline.text
    table = {row[0]: row[1:] for row in outline.rows}
    assert [table["b − a"][place] for place in (0, 2)] == ["+0.067 ± 0.625", "no"]  # noqa: RUF001
    assert table["c − a"][-1] == "yes"  # noqa: RUF001
    assert "seeds 0, 1, 2" in outline.text


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_differs_besides_the_mixer(make_summary: Callable[..., StudySummary]) -> None:
    assert "Nothing: every other setting is the same." in Outline(render_page(make_summary())).text
    options = (Option(key="mixer.query_key_norm", values={"softmax": "false", "power": "true"}),)
    rows = Outline(render_page(make_summary(options=options))).rows
    assert ["mixer.query_key_norm", "false", "", "true", ""] in rows


@pytest.mark.usefixtures("undrawn")
def test_every_run_says_what_it_ran_on(outline: Outline, summary: StudySummary) -> None:
    rows = [row for row in outline.rows if row[-1] == str(summary.variants[0].runs[0].machine)]
    assert [row[0] for row in rows] == list(summary.planned)


@pytest.mark.usefixtures("undrawn")
def test_a_task_has_no_text_and_no_bigram(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    asked = make_run(2.0).replace(accuracy=(Accuracy(length=64, pairs=4, accuracy=0.75, answers=8),))
    summary = make_summary(make_variant("a", runs=(asked,)), task="mqar", corpus=None, bigram_bits=None)
    outline = Outline(render_page(summary))
    assert "four-mixers: mqar" in outline.text
    assert "Right answers: a 75.0%." in outline.text
    assert "bigram" not in outline.text
    head, row = outline.rows[:2]
    assert row[head.index("accuracy")] == "75.0%"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("kind", "words"), [("flops", "as its own operations leave room"), ("seconds", "was timed")])
def test_the_budget_is_explained(kind: str, words: str, make_summary: Callable[..., StudySummary]) -> None:
    text = Outline(render_page(make_summary(budget="1e+15 of it", budget_kind=kind))).text
    assert "budget 1e+15 of it" in text
    assert words in text


def test_rows_are_sorted_by_numbers_not_by_how_they_are_written(page: str) -> None:
    assert 'data-value="1204102"' in page
    assert re.search(r'data-value="2.391"[^>]*>2\.391<', page)
