"""The command line: `zoo list`, `show`, `train` and the others, each imported when it is used."""

import click

from zoo.cli.group import LazyGroup
from zoo.version import __version__

__all__ = ["main"]


@click.group(
    cls=LazyGroup,
    lazy_commands={
        "list": ("zoo.cli.listing:list_command", "List recipes, mixers and studies."),
        "show": ("zoo.cli.show:show", "Show what a recipe is and what its model costs."),
        "wsfr": ("zoo.cli.wsfr:wsfr", "Show how work divides between weights and state."),
        "plan": ("zoo.cli.plan:plan", "Find models whose weights and state are in balance."),
        "train": ("zoo.cli.train:train", "Train a recipe, or go on with its run."),
        "ablate": ("zoo.cli.ablate:ablate", "Train one recipe with several mixers and compare them."),
        "study": ("zoo.cli.study:study", "Plan, run, watch and report a study."),
        "generate": ("zoo.cli.generate:generate", "Let a trained model continue a text."),
        "export": ("zoo.cli.export:export", "Write a trained model for Hugging Face transformers."),
        "convert": ("zoo.cli.convert:convert", "Put another mixer into a model of transformers, and train it."),
        "serve": ("zoo.cli.serve:serve", "Answer requests of OpenAI's clients with a model."),
        "evaluate": ("zoo.cli.evaluate:evaluate", "Evaluate a model on published tasks."),
        "data": ("zoo.cli.data:data", "Turn text into token shards."),
        "tokenizer": ("zoo.cli.tokenizer:tokenizer", "Train a byte-pair tokenizer."),
        "cache": ("zoo.cli.cache:cache", "Take compiled code to other machines."),
        "bench": ("zoo.cli.bench:bench", "Measure speed and memory."),
        "tune": ("zoo.cli.tune:tune", "Measure block sizes of the kernels for this GPU."),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="zoo")
def main() -> None:
    """Compare time mixers (softmax, linear and power attention, ...) in the same language model.

    A recipe describes a model, its data and its training. Any of its settings is changed by KEY=VALUE with dotted
    keys, the mixer by one word:

    \b
      zoo list                                    what there is
      zoo show gpt2-124m mixer=power mixer.p=2    what it would cost
      zoo train tiny mixer=gated-power            train it
      zoo ablate tiny --mixers softmax,power      train and compare several
    """
