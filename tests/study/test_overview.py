"""The page above those of a study's tasks."""

from collections.abc import Callable

from zoo.recipe.study import Study
from zoo.study.overview import render_overview
from zoo.study.results import Accuracy
from zoo.study.summary import StudySummary

from .test_page import Outline


def test_it_has_a_column_for_each_task_and_leads_to_its_page(
    make_summary: Callable[..., StudySummary], make_variant: Callable, make_run: Callable
) -> None:
    asked = make_run(2.0).replace(accuracy=(Accuracy(length=64, pairs=4, accuracy=0.75, answers=8),))
    study = Study(name="two", recipe="tiny", variants={"a": (), "b": ()}, tasks=("text", "mqar"))
    text = make_summary(make_variant("a", 2.5), make_variant("b", 2.25), planned=("a", "b"))
    recall = make_summary(
        make_variant("a", runs=(asked,)), planned=("a", "b"), task="mqar", corpus=None, bigram_bits=None,
        waiting={"b": 1},
    )  # fmt: skip
    outline = Outline(render_overview(study, [text, recall], ["text", "mqar pairs=8"]))
    assert outline.rows[1:] == [["a", "2.500", "75.0%"], ["b", "2.250", "-"]]
    assert outline.rows[0][1:] == ["textbits per byte", "mqaraccuracy"]
    links = [attributes["href"] for tag, attributes in outline.tags if tag == "a"]
    assert links == ["text/index.html", "mqar%20pairs%3D8/index.html"]
    assert "mqar: not finished yet: b." in outline.text
