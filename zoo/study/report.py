"""What a study leaves in its folder, apart from its runs; made anew at any moment from what is there."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from zoo.config import load_yaml
from zoo.errors import CheckpointError, InputError
from zoo.recipe.study import Study
from zoo.report.files import replace_file, writing
from zoo.report.plots import LIGHT
from zoo.report.tables import latex_text, markdown_text
from zoo.study.by_budget import budget_csv, budget_markdown, budget_plots
from zoo.study.collect import collect
from zoo.study.overview import render_overview
from zoo.study.page import render_page
from zoo.study.plots import numbers_of, plots_of, render
from zoo.study.resolve import resolve_study
from zoo.study.setting import read_setting
from zoo.study.summary import StudySummary
from zoo.study.table import text_rows
from zoo.study.variants import Part

__all__ = ["read_study", "report_study", "stored_parts", "write_overview", "write_report"]


def report_study(folders: Sequence[Path], output: Path) -> tuple[StudySummary, ...]:
    """Write the report of a study from what is in its folders by now, and return what each task came to.

    Nothing is computed on a device, and neither the text nor weights are read: of a run, `recipe.yaml`, `result.json`,
    `metrics.jsonl` and `machine.yaml` are enough; of the study, `study.yaml`, `recipe.yaml` and `setting.json`.

    Args:
        folders: of one study, parts of which may have been trained in each; a run counts once, from the first that has
            it.
        output: gets the report; made if missing.

    Raises:
        CheckpointError: a folder holds no study, another one, or damaged runs.
        InputError: there is no folder.
        TrainingError: a file cannot be written.
    """
    if not folders:
        raise InputError("folders: expected at least one")
    study = read_study(folders[0])
    for folder in folders[1:]:
        if read_study(folder) != study:
            raise CheckpointError(f"{folder}: holds another study than {folders[0]}; their study.yaml have to be equal")
    parts = stored_parts(study, folders[0])
    found = []
    for part in parts:
        setting = read_setting(folders[0] / part.folder)
        found.append(collect(setting, part, folders))
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    for summary, part in zip(found, parts, strict=True):
        if summary.variants:
            write_report(summary, output / part.folder)
    if len(parts) > 1:
        write_overview(study, found, parts, output)
    return tuple(found)


def read_study(folder: Path) -> Study:
    """Return the study that is in a folder.

    Raises:
        CheckpointError: there is none.
        ConfigError: it is damaged.
    """
    path = folder / "study.yaml"
    if not path.exists():
        raise CheckpointError(f"{folder}: holds no study; expected a folder that zoo study run or zoo ablate wrote")
    return Study.from_mapping(load_yaml(path), str(path))


def stored_parts(study: Study, folder: Path) -> tuple[Part, ...]:
    """Return what the study in a folder trains, of its recipe as it was when it was run, wherever that came from.

    Variants on a budget of seconds are not paced: each folder that has runs of theirs has its own pace.

    Raises:
        ConfigError: files in the folder are damaged.
    """
    recipe = folder / "recipe.yaml"
    return resolve_study(study.replace(recipe=str(recipe)) if recipe.exists() else study)


def write_report(summary: StudySummary, folder: Path) -> None:
    """Write `summary.json`, `.csv`, `.md` and `.tex`, `runs.csv`, the plots as PNG, PDF and CSV, and last the page.

    Each is whole or not there at all.

    Raises:
        TrainingError: a file cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "summary.json", summary.to_json().encode())
    replace_file(folder / "summary.csv", summary.to_csv().encode())
    replace_file(folder / "runs.csv", summary.runs_to_csv().encode())
    headings, rows = text_rows(summary)
    replace_file(folder / "summary.md", markdown_text(headings, rows, words=2).encode())
    replace_file(folder / "summary.tex", latex_text(headings, rows, words=2).encode())
    for plot in plots_of(summary):
        replace_file(folder / f"{plot.name}.png", render(plot, summary, LIGHT, "png"))
        replace_file(folder / f"{plot.name}.pdf", render(plot, summary, LIGHT, "pdf"))
        replace_file(folder / f"{plot.name}.csv", numbers_of(plot, summary).encode())
    replace_file(folder / "index.html", render_page(summary).encode())


def write_overview(study: Study, found: Sequence[StudySummary], parts: Sequence[Part], folder: Path) -> None:
    """Write the page that leads to those of a study's parts, and, of tasks with several budgets, what they came to.

    That is `by-budget.csv` and `.md`, and final losses over operations, seconds and tokens as PNG and PDF.

    Raises:
        TrainingError: a file cannot be written.
    """
    for _, same in groupby(zip(found, parts, strict=True), key=lambda each: each[1].task):
        summaries, of_task = zip(*same, strict=True)
        there = [summary for summary in summaries if summary.variants]
        if of_task[0].is_one_of_budgets and there:
            _write_by_budget(summaries, there[-1], (folder / of_task[0].folder).parent)
    replace_file(folder / "index.html", render_overview(study, found, [part.folder for part in parts]).encode())


def _write_by_budget(summaries: Sequence[StudySummary], last: StudySummary, folder: Path) -> None:
    replace_file(folder / "by-budget.csv", budget_csv(summaries).encode())
    replace_file(folder / "by-budget.md", budget_markdown(summaries).encode())
    for plot in budget_plots(summaries):
        replace_file(folder / f"{plot.name}.png", render(plot, last, LIGHT, "png"))
        replace_file(folder / f"{plot.name}.pdf", render(plot, last, LIGHT, "pdf"))
