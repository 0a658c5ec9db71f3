"""`zoo export`."""

from pathlib import Path

import click

from zoo.cli.options import Folder
from zoo.report.terminal import say

__all__ = ["export"]


@click.command()
@click.argument("run_folder", type=Folder())
@click.argument("folder", type=Folder())
@click.option("--hf", is_flag=True, help="For Hugging Face transformers: weights, config and tokenizer.")
def export(run_folder: Path, folder: Path, hf: bool) -> None:
    """Write the model of the newest checkpoint in RUN_FOLDER into FOLDER, for another library to load.

    \b
    Example:
      zoo export --hf runs/tiny exported/tiny

    AutoModelForCausalLM.from_pretrained("exported/tiny") then loads it where `import zoo.hf` was said, or with
    trust_remote_code=True.
    """
    if not hf:
        raise click.UsageError("say which library it is for: --hf")
    try:
        from zoo.hf import export_run
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    export_run(run_folder, folder)
    say(f"{folder}: written")
