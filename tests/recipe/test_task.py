"""The `task` and `evaluation` sections: short forms, the vocabulary that follows, and what does not fit."""

import pytest

from zoo.builder import shrink
from zoo.errors import ConfigError
from zoo.recipe import EvaluationConfig, Recipe, load_recipe
from zoo.tasks import tasks
from zoo.tasks.mqar import Mqar

MODEL = {"width": 16, "layers": 1, "heads": 1, "positions": "rotary"}


@pytest.mark.parametrize("kind", tasks)
def test_a_kind_stands_for_a_task_with_its_defaults(kind):
    recipe = load_recipe("tiny", [f"task={kind}"])
    assert recipe.task == tasks[kind]()
    assert recipe.model.vocab_size == recipe.task.vocabulary
    assert recipe == load_recipe("tiny", [f"task.kind={kind}"])
    assert recipe == Recipe.from_yaml(recipe.to_yaml())


def test_another_kind_replaces_the_whole_section():
    recipe = load_recipe("tiny", ["task=mqar", "task.pairs=8"])
    assert recipe.task == Mqar(pairs=8)
    copying = recipe.override(["task.symbols=4", "task=copy"])
    assert (copying.task.kind, copying.task.symbols, copying.model.vocab_size) == ("copy", 4, 5)


@pytest.mark.parametrize("override", ["task=text", "task=null", "task.kind=text", "task={kind: text}"])
def test_text_is_no_task(override):
    assert load_recipe("tiny", ["task=mqar"]).override([override]).task is None
    assert load_recipe("tiny", [override]) == load_recipe("tiny")


def test_the_vocabulary_follows_the_task_unless_it_is_stated():
    assert load_recipe("tiny", ["task=mqar", "task.vocab_size=1024"]).model.vocab_size == 1024
    stated = load_recipe("tiny", ["task=s5", "model.vocab_size=128"])
    assert stated.model.vocab_size == 128
    assert stated.override(["task.train_lengths=[16]"]).model.vocab_size == 128
    recipe = Recipe.from_mapping({"name": "mine", "model": MODEL, "task": "parity"})
    assert recipe.model.vocab_size == 2
    with pytest.raises(ConfigError, match=r"model\.vocab_size: missing"):
        Recipe.from_mapping({"name": "mine", "model": MODEL})


def test_a_shrunk_recipe_is_of_text():
    recipe = shrink(load_recipe("tiny", ["task=mqar", "evaluation.lengths=[512]"]))
    assert (recipe.task, recipe.evaluation, recipe.model.vocab_size) == (None, EvaluationConfig(), 257)


LEARNED = ["model.positions=learned", "model.max_positions=300"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=mqra"], r"task\.kind: must be one of 'mqar', .*, got 'mqra' \(did you mean 'mqar'\?\)"),
        (["task.pairs=8"], r"task\.kind: missing"),
        (["task=3"], r"task: must be a task's kind, such as mqar, or a mapping .*, got 3"),
        (["task=copy", "task.pears=8"], r"task\.pears: unknown key"),
        (["task=mqar", "task.pairs=80"], r"task: train_lengths: must be at least 4 tokens a pair, 320 for pairs 80"),
        (
            ["task=mqar", "training.context_length=64"],
            r"training\.context_length: must be at least the longest of task\.train_lengths 256, got 64",
        ),
        (
            ["task=mqar", "model.vocab_size=257"],
            r"model\.vocab_size: must be at least the 8192 of task mqar, got 257",
        ),
        (["task=mqar", *LEARNED], r"task\.test_lengths: must be at most model\.max_positions 300, .*, got 1024"),
        (["evaluation.lengths=[301]", *LEARNED], r"evaluation\.lengths: must be at most model\.max_positions 300"),
        (["task=copy", "evaluation.lengths=[33]"], r"evaluation\.lengths: must be even"),
        (["task=copy", "evaluation.positions=true"], r"evaluation\.positions: is of text, and task copy is none"),
        (["evaluation.lengths=[64, 64]"], r"lengths: 64 stands 2 times"),
        (["evaluation.lengths=[0]"], r"evaluation\.lengths\.0: must be greater than or equal to 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_recipe("tiny", overrides)


def test_lengths_of_the_evaluation_stand_in_for_those_of_the_task():
    recipe = load_recipe("tiny", ["task=mqar", "evaluation.lengths=[64, 256]", *LEARNED])
    assert recipe.evaluation.lengths == (64, 256)
