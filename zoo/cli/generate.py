"""`zoo generate`."""

from pathlib import Path

import click

from zoo.cli.options import Folder
from zoo.report.terminal import say

__all__ = ["generate"]


@click.command()
@click.argument("run_folder", type=Folder())
@click.option("--prompt", default="", help="Beginning of the text.  [default: none, a new document]")
@click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(0))
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    help="0 always takes the likeliest token; higher is more varied.  [default: 0.8, with a draft 0]",
)
@click.option("--top-k", type=click.IntRange(1), help="Choose among the k likeliest tokens only.")
@click.option("--top-p", type=float, help="Choose among the likeliest tokens that together have this probability.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Another seed, another text.")
@click.option("--prefill-chunk", type=click.IntRange(1), help="Read the prompt in pieces of so many tokens.")
@click.option("--draft", type=Folder(), help="Run of a smaller model that guesses tokens, which this one then checks.")
@click.option("--device", help="For example cpu or cuda:1.  [default: cpu]")
def generate(
    run_folder: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    prefill_chunk: int | None,
    draft: Path | None,
    device: str | None,
) -> None:
    """Print a text that begins with the prompt and goes on as the newest checkpoint in RUN_FOLDER would have it.

    \b
    Example:
      zoo generate runs/tiny --prompt "def main(" --max-new-tokens 200
    """
    from zoo.data import tokenizer_of
    from zoo.errors import InputError
    from zoo.generation import Draft
    from zoo.generation import generate as continue_text
    from zoo.training import load_run

    recipe, model = load_run(run_folder, device=device)
    if recipe.task is not None:
        raise InputError(f"run_folder: expected a run on text, was one on task {recipe.task.kind}")
    helper = None if draft is None else Draft(load_run(draft, device=device)[1])
    if temperature is None:
        temperature = 0.8 if helper is None else 0.0
    text = continue_text(
        model,
        prompt,
        max_new_tokens,
        tokenizer=tokenizer_of(recipe.data),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        prefill_chunk=prefill_chunk,
        draft=helper,
    )
    say(prompt + text)
    if helper is not None:
        click.echo(f"{helper.accepted} of {helper.guessed} drafted tokens were accepted", err=True)
