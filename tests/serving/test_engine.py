"""Answers that join at different times are what each would be alone; rows are freed, and nobody waits in vain."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from zoo.data import ByteTokenizer
from zoo.generation.sampling import Sampling
from zoo.models import Decoder
from zoo.serving import Engine, FullError, Job, engine
from zoo.serving.text import TextStream

BYTES = ByteTokenizer()
MIXERS = ["softmax", "gated-power", "sliding-window", "mamba2", "rwkv7", "gated-delta"]


def build(mixer: str) -> Decoder:
    torch.manual_seed(0)
    recipe = zoo.shrink(zoo.load_recipe("tiny", ["model.initializer_range=0.3"]))
    return zoo.build(recipe, mixer=mixer).double().eval()


class Answer:
    """What was delivered of one job."""

    def __init__(self, prompt: str, most: int, **options: Any) -> None:
        self.prompt, self.most, self.options = prompt, most, options
        self.text, self.tokens, self.finish = "", 0, ""
        self.finished = threading.Event()
        self.heard: Callable[[], None] = lambda: None

    def job(self) -> Job:
        ids = [256, *self.prompt.encode()]
        options = dict(self.options)
        seed, stops = options.pop("seed", None), options.pop("stop", ())
        sampling = Sampling(**options, tokens=257)
        return Job(ids, self.most, sampling, seed, frozenset((256,)), TextStream(BYTES.decode, ids, stops), self.take)

    def take(self, piece: engine.Piece) -> None:
        self.text, self.tokens = self.text + piece.text, piece.tokens
        self.heard()
        if piece.finish is not None:
            self.finish = piece.finish
            self.finished.set()

    def alone(self, model: Decoder) -> str:
        return zoo.generate(model, self.prompt, self.most, **self.options)


options = st.fixed_dictionaries(
    {},
    optional={
        "stop": st.lists(st.text("abc", min_size=1, max_size=2), max_size=2),
        "top_k": st.integers(1, 300),
        "top_p": st.floats(0.05, 1),
    },
) | st.fixed_dictionaries(
    {"temperature": st.floats(0.2, 2), "seed": st.integers(0, 2**63 - 1)}, optional={"top_p": st.floats(0.05, 1)}
)
asked = st.tuples(st.text("abc ", max_size=9), st.integers(1, 9), options, st.integers(0, 20))


@pytest.mark.parametrize("mixer", MIXERS)
@settings(deadline=None, max_examples=12)
@given(rows=st.integers(1, 3), read=st.integers(1, 5), requests=st.lists(asked, min_size=1, max_size=6))
def test_answers_are_what_each_is_alone(mixer: str, rows: int, read: int, requests: list[Any]) -> None:
    model = build(mixer)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "_READ", read)
        running = Engine(model, rows=rows, context_length=32)
        waiting = sorted(
            ((after, Answer(prompt, most, **rest)) for prompt, most, rest, after in requests), key=lambda x: x[0]
        )
        answers, heard = [answer for _, answer in waiting], 0

        def join() -> None:
            """Submit those whose turn has come: after so many tokens of all answers together."""
            nonlocal heard
            heard += 1
            while waiting and waiting[0][0] <= heard:
                running.submit(waiting.pop(0)[1].job())

        for answer in answers:
            answer.heard = join
        while waiting:
            answer = waiting.pop(0)[1]
            running.submit(answer.job())
            assert answer.finished.wait(60)
        for answer in answers:
            assert answer.finished.wait(60)
            assert answer.finish in ("stop", "length"), answer.text
            assert answer.text == answer.alone(model)
            assert answer.tokens <= answer.most
        running.close()
        assert running.load == (0, 0)


@pytest.mark.parametrize("mixer", ["softmax", "gated-power"])
def test_rows_that_stay_free_do_not_run_out_of_room(mixer: str) -> None:
    model = build(mixer)
    running = Engine(model, rows=2, context_length=12)
    for prompt in ("ab", "c", "ba", "a"):  # one after the other, so that the second row is always free
        answer = Answer(prompt, 9)
        running.submit(answer.job())
        assert answer.finished.wait(60)
        assert answer.text == answer.alone(model)
    running.close()


@pytest.fixture
def running() -> Any:
    made = Engine(build("gated-power"), rows=1, context_length=10_000, waiting=2)
    yield made
    made.close()


def test_a_cancelled_answer_frees_its_row(running: Engine) -> None:
    long, short = Answer("a", 9_000), Answer("b", 2)
    begun = threading.Event()
    long.heard = begun.set
    job = long.job()
    running.submit(job)
    assert begun.wait(60)
    running.submit(short.job())
    assert not short.finished.wait(0.05)
    job.cancelled = True
    assert short.finished.wait(60)
    assert not long.finished.is_set()
    assert running.load == (0, 0)


def test_what_is_cancelled_while_it_waits_never_begins(running: Engine) -> None:
    answers = [Answer("a", 9_000), Answer("b", 2), Answer("c", 2)]
    jobs = [answer.job() for answer in answers]
    for job in jobs:
        running.submit(job)
        while running.load[0] == 0:
            pass
    jobs[1].cancelled = jobs[0].cancelled = True
    assert answers[2].finished.wait(60)
    assert answers[1].tokens == 0


def test_more_than_may_wait_are_refused(running: Engine) -> None:
    jobs = [Answer("a", 9_000).job() for _ in range(4)]
    running.submit(jobs[0])
    while running.load[1]:
        pass
    running.submit(jobs[1])
    running.submit(jobs[2])
    with pytest.raises(FullError, match="requests: expected at most 2 that wait; try again later"):
        running.submit(jobs[3])
    for job in jobs:
        job.cancelled = True


def test_logits_that_are_no_numbers_are_an_error() -> None:
    model = build("softmax")
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    running, answer = Engine(model, rows=1, context_length=20), Answer("ab", 3)
    running.submit(answer.job())
    assert answer.finished.wait(60)
    assert (answer.finish, answer.text) == ("error", "model: its logits are NaN after 3 tokens")
    running.close()


def test_an_error_ends_the_answers_that_are_being_made_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("softmax")
    step, broken = model.step, threading.Event()
    broken.set()

    def fail_once(*arguments: Any) -> Any:
        if broken.is_set():
            broken.clear()
            raise RuntimeError("out of\nmemory")
        return step(*arguments)

    monkeypatch.setattr(model, "step", fail_once)
    running, first, second = Engine(model, rows=2, context_length=20), Answer("ab", 3), Answer("cd", 3)
    running.submit(first.job())
    assert first.finished.wait(60)
    assert (first.finish, first.text[-13:]) == ("error", "out of memory")
    running.submit(second.job())
    assert second.finished.wait(60)
    assert second.text == second.alone(model)
    running.close()


def test_the_end_is_told_to_everybody() -> None:
    running = Engine(build("gated-power"), rows=1, context_length=10_000)
    answers = [Answer("a", 9_000), Answer("b", 2)]
    for answer in answers:
        running.submit(answer.job())
    running.close()
    assert all(answer.finished.is_set() and answer.text.endswith("the server is stopping") for answer in answers)
    with pytest.raises(FullError):
        running.submit(answers[0].job())
