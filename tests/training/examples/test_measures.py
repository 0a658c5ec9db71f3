"""What is measured after the last step, against loops over single documents and sequences in float64."""

from itertools import pairwise
from math import log2

import numpy as np
import pytest
import torch
from torch.nn import functional

from zoo.data import ByteTokenizer, Corpus, TokenStream
from zoo.errors import CorpusError
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig
from zoo.recipe import EvaluationConfig, TrainingConfig
from zoo.tasks import held_back_sequences
from zoo.tasks.copying import Copying
from zoo.tasks.mqar import Mqar
from zoo.tasks.passkey import Passkey
from zoo.training.distributed import Processes
from zoo.training.engine import Engine
from zoo.training.examples import examples_of
from zoo.training.objective import NextTokenLoss

from ...tasks.solvers import SOLVERS

CONFIG = TrainingConfig(context_length=16, batch_size=2, evaluation_tokens=300, compile=False)
PROCESSES = Processes(torch.device("cpu"))


def small_model(name: str, vocab_size: int = 257) -> Decoder:
    config = DecoderConfig(
        vocab_size=vocab_size, width=16, layers=2, heads=2, positions="rotary", initializer_range=0.3
    )
    return Decoder(config, [mixers[name].config()] * 2)


def measured(model, material, evaluation=EvaluationConfig(), config=CONFIG):  # noqa: B008 (frozen)
    examples = examples_of(material, config, evaluation, PROCESSES)
    return Engine(NextTokenLoss(model), config, examples, PROCESSES).measure()


def corpus_of(tokens: np.ndarray, separator: int | None) -> Corpus:
    """The same tokens to train and to validate on."""
    streams = [TokenStream.of(tokens, separator, name=f"{side} data") for side in ("training", "validation")]
    return Corpus(*streams, hash="0" * 64, vocab_size=257, tokenizer=ByteTokenizer())


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    """Documents of 1 to 40 tokens behind a separator."""
    generator = np.random.default_rng(0)
    return [np.append(256, generator.integers(97, 123, size=size)) for size in (40, 1, 7, 25, 3, 12, 33, 2)]


@pytest.mark.parametrize("name", ["softmax", "gated-power", "mamba2", "rwkv7", "sliding-window"])
@pytest.mark.parametrize("longest", [16, 24, 100])
def test_the_loss_by_position_is_that_of_documents_one_by_one(documents, name, longest):
    model = small_model(name)
    evaluation = EvaluationConfig(positions=True, lengths=() if longest == 16 else (longest,))
    found = measured(model, corpus_of(np.concatenate(documents), 256), evaluation).positions
    exact = model.double()
    by_position: dict[int, list[float]] = {}
    for number, document in enumerate(documents):
        end = [256] if number + 1 < len(documents) else []
        inputs = torch.from_numpy(np.append(document, end))[None].long()
        inputs, targets = inputs[:, :-1][:, :longest], inputs[:, 1:][:, :longest]
        with torch.no_grad():
            losses = functional.cross_entropy(exact(inputs).logits[0], targets[0], reduction="none")
        for position, loss in enumerate(losses.tolist()):
            by_position.setdefault(position, []).append(loss)
    edges = [(entry["start"], entry["end"]) for entry in found]
    doubled = [(0, 1)] + [(2**power, min(2 ** (power + 1), longest)) for power in range(int(log2(longest - 1)) + 1)]
    assert edges == doubled
    for entry in found:
        losses = [loss for place in range(entry["start"], entry["end"]) for loss in by_position.get(place, [])]
        assert entry["tokens"] == len(losses)
        assert entry["loss"] == (pytest.approx(np.mean(losses), rel=2e-5) if losses else None)
    assert (found[-1]["loss"] is None) == (longest == 100)  # no document reaches 64 tokens: said, not left out


def test_without_marks_positions_are_those_in_the_window():
    tokens = np.random.default_rng(0).integers(97, 123, size=100)
    model = small_model("linear")
    found = measured(model, corpus_of(tokens, None), EvaluationConfig(positions=True)).positions
    assert [entry["tokens"] for entry in found] == [6, 6, 12, 24, 48]
    with torch.no_grad():
        windows = torch.from_numpy(tokens[: 6 * 16 + 1])
        logits = model(windows[:96].view(6, 16)).logits
        losses = functional.cross_entropy(logits.flatten(0, 1), windows[1:], reduction="none").view(6, 16)
    assert found[0]["loss"] == pytest.approx(losses[:, 0].mean().item(), rel=1e-5)
    assert found[-1]["loss"] == pytest.approx(losses[:, 8:].mean().item(), rel=1e-5)


def test_the_loss_at_a_length_is_that_of_windows_of_it(documents):
    model, corpus = small_model("softmax"), corpus_of(np.concatenate(documents * 3), 256)
    found = measured(model, corpus, EvaluationConfig(lengths=(8, 40))).lengths
    assert [(entry["length"], entry["tokens"]) for entry in found] == [(8, 288), (40, 280)]
    for entry in found:
        again = measured(model, corpus, EvaluationConfig(lengths=(entry["length"],))).lengths
        assert again == [entry]
        assert entry["bits_per_byte"] > entry["loss"] / np.log(2)  # separators are of no bytes


def test_a_loss_that_is_not_finite_is_none(documents):
    model = small_model("softmax")
    torch.nn.init.constant_(model.norm.weight, torch.inf)
    found = measured(model, corpus_of(np.concatenate(documents), 256), EvaluationConfig(positions=True, lengths=(8,)))
    assert {entry["loss"] for entry in [*found.positions, *found.lengths]} == {None}
    assert found.lengths[0]["bits_per_byte"] is None
    assert found.positions[0]["tokens"] == 8


def test_a_context_longer_than_the_validation_text_is_refused(documents):
    corpus = corpus_of(np.concatenate(documents), 256)
    with pytest.raises(CorpusError, match=r"evaluation\.lengths: the 131 tokens of validation data are too few for a"):
        examples_of(corpus, CONFIG, EvaluationConfig(lengths=(131,)), PROCESSES)


class Solver(torch.nn.Module):
    """A model that says what an exact solver says, or always the same token."""

    def __init__(self, task, cases, knows: bool) -> None:
        super().__init__()
        self.task, self.knows = task, knows
        self.cases = {case.length: case for case in cases}
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def score(self, tokens, targets, *, resets=None):
        said = torch.full_like(targets, 10**6)
        for row, out in zip(tokens.tolist(), said, strict=True):
            answers = SOLVERS[self.task.kind](self.task, self.cases[len(row)], row) if self.knows else {}
            for place, answer in answers.items():
                out[place] = answer
        asked = targets != -100
        return asked.double(), (said == targets) & asked


def test_a_solver_has_an_accuracy_of_one_and_what_knows_nothing_of_none():
    task = Mqar(train_lengths=(16,), test_lengths=(16, 32), pairs=3, vocab_size=64)
    cases = task.test_cases(task.test_lengths)
    for knows in (True, False):
        found = measured(Solver(task, cases, knows), task).accuracy
        assert {entry["accuracy"] for entry in found} == {float(knows)}
        totals = [entry for entry in found if entry["distance"] is None]
        assert [(entry["length"], entry["pairs"], entry["answers"]) for entry in totals] == [(16, 3, 54), (32, 3, 27)]
        assert all(entry["depth"] is None for entry in found)
        for total in totals:
            parts = [each for each in found if each["length"] == total["length"] and each["distance"] is not None]
            assert sum(each["answers"] for each in parts) == total["answers"]
            assert all(log2(each["distance"]).is_integer() for each in parts)


@pytest.mark.parametrize("lengths", [(), (20, 64)])
def test_the_accuracy_of_a_model_is_that_of_its_likeliest_tokens(lengths):
    task = Passkey(train_lengths=(16,), test_lengths=(16, 24), depths=(0.0, 0.7), digits=2, vocab_size=16)
    model = small_model("gated-linear", 16)
    found = measured(model, task, EvaluationConfig(lengths=lengths)).accuracy
    assert [(entry["length"], entry["depth"]) for entry in found] == [
        (length, depth) for length in lengths or (16, 24) for depth in (0.0, 0.7)
    ]
    for entry, case in zip(found, task.test_cases(lengths or (16, 24)), strict=True):
        sequences = held_back_sequences(task, case, 300 // case.length)
        with torch.no_grad():
            said = model(torch.from_numpy(sequences.tokens)).logits.argmax(-1).numpy()
        asked = sequences.targets != -100
        assert entry["answers"] == asked.sum()
        assert entry["accuracy"] == pytest.approx((said == sequences.targets)[asked].mean())


def test_a_task_is_evaluated_by_its_answers():
    task = Copying(train_lengths=(8, 16), test_lengths=(16,), symbols=5)
    model = small_model("softmax", 6)
    examples = examples_of(task, CONFIG, EvaluationConfig(), PROCESSES)
    found = Engine(NextTokenLoss(model), CONFIG, examples, PROCESSES).evaluate()
    nats = hits = answers = 0.0
    for tokens, targets, resets in examples._validation:
        for row in range(len(tokens)):
            starts = [*torch.nonzero(resets[row]).flatten().tolist(), 16]
            for start, end in pairwise(starts):
                with torch.no_grad():
                    logits = model(tokens[row : row + 1, start:end]).logits[0]
                asked = targets[row, start:end] != -100
                wanted = targets[row, start:end][asked]
                nats += functional.cross_entropy(logits[asked], wanted, reduction="sum").item()
                hits += (logits[asked].argmax(-1) == wanted).sum().item()
                answers += len(wanted)
    assert found.loss == pytest.approx(nats / answers, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(found.loss / np.log(2))
    assert found.accuracy == hits / answers
