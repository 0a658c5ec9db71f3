"""`zoo evaluate`."""

import logging
import os
from pathlib import Path

import click

from zoo.cli.options import Folder, Names, names, output_option

__all__ = ["evaluate"]


@click.command()
@click.argument("path", type=Folder())
@click.option(
    "--tasks", required=True, callback=names,
    help="With commas: names of the harness, or paths of YAML files of tasks, or of folders of them.",
)  # fmt: skip
@click.option("--shots", type=click.IntRange(0), help="Solved examples before each question.  [default: the task's]")
@click.option("--limit", type=click.IntRange(1), help="So many questions of each task.  [default: all]")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Sequences at a time.")
@click.option("--context", type=click.IntRange(1), help="Tokens that are read at most.  [default: the model's]")
@click.option("--device", help="For example cpu or cuda:1.  [default: a GPU if there is one]")
@click.option("--download", is_flag=True, help="Fetch data that a task reads and that are not at hand.")
@output_option("json", "Also write this JSON file")
def evaluate(
    path: Path,
    tasks: Names,
    shots: int | None,
    limit: int | None,
    batch: int,
    context: int | None,
    device: str | None,
    download: bool,
    json_path: Path | None,
) -> None:
    """Evaluate the model in PATH on tasks of EleutherAI's lm-evaluation-harness.

    PATH is a run, or a folder of transformers with its tokenizer: exported, converted or any other causal model. The
    file of a task may name functions, which are run.

    \b
    Example:
      zoo evaluate runs/tiny --tasks tasks/letters.yaml,lambada_openai --json scores.json
    """
    if not download:  # said before the libraries that read it are imported
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        from zoo.hf.evaluation import evaluate as evaluate_model
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    from zoo.report.files import check_outputs, replace_file
    from zoo.report.tables import console_beside

    check_outputs(json=json_path)
    found = evaluate_model(
        path, tasks, shots=shots, limit=limit, batch_size=batch, context_length=context, device=device
    )
    console_beside(json_path).print(found.table())
    if json_path is not None:
        replace_file(json_path, found.to_json().encode())
