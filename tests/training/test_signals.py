"""Signals: the step is finished and saved, a second one ends at once, and handlers are as they were afterwards."""

import os
import signal
import threading

import pytest

from zoo.errors import Interruption
from zoo.training import SilentProgress
from zoo.training.engine import Engine
from zoo.training.signals import watching_signals

from .test_loop import assert_same_run

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
every_signal = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture
def handlers():
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


class Sending(SilentProgress):
    """Sends a signal in the middle of a step, before its update, and counts the steps that end."""

    def __init__(self, monkeypatch, at, *numbers):
        self.ended = []
        step_of = Engine.step

        def step(engine, step):
            if step == at:
                for number in numbers:
                    send(number)
            return step_of(engine, step)

        monkeypatch.setattr(Engine, "step", step)

    def advance(self, step):
        self.ended.append(step)


@every_signal
@pytest.mark.parametrize("at", [1, 4, 6, 12])
def test_the_step_is_finished_and_saved(number, at, handlers, tmp_path, tiny_recipe, train_tiny, monkeypatch):
    recipe = tiny_recipe()
    with monkeypatch.context() as patch:
        sending = Sending(patch, at, number)
        with pytest.raises(Interruption) as caught:
            train_tiny(recipe, tmp_path / "stopped", progress=sending)
    assert sending.ended == list(range(1, at + 1))
    assert (caught.value.signal, caught.value.saved) == (number, at)
    assert str(caught.value) == f"stopped by {number.name} after step {at}, which is saved"
    assert (tmp_path / "stopped" / "checkpoints" / f"step-{at:08d}").is_dir()
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    train_tiny(recipe, tmp_path / "stopped")
    train_tiny(recipe, tmp_path / "straight")
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")


def test_a_second_signal_ends_at_once(handlers, tmp_path, tiny_recipe, train_tiny, monkeypatch):
    sending = Sending(monkeypatch, 6, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(Interruption, match=r"^stopped by SIGINT at once$"):
        train_tiny(tiny_recipe(), tmp_path, progress=sending)
    assert sending.ended == [1, 2, 3, 4, 5]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_before_the_first_step_there_is_nothing_to_save(handlers, tmp_path, tiny_recipe, train_tiny, monkeypatch):
    evaluate = Engine.evaluate

    def evaluation(engine):
        send(signal.SIGTERM)
        return evaluate(engine)

    monkeypatch.setattr(Engine, "evaluate", evaluation)
    with pytest.raises(Interruption, match=r"^stopped by SIGTERM$"):
        train_tiny(tiny_recipe(), tmp_path)


def test_outside_of_steps_a_signal_ends_at_once(handlers):
    with pytest.raises(Interruption, match=r"^stopped by SIGTERM$"), watching_signals():
        send(signal.SIGTERM)
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


def test_what_fails_of_ctrl_c_is_not_what_stopped_the_run(handlers):
    def step():
        send(signal.SIGINT)
        raise RuntimeError("the compiler's own process ended")

    with pytest.raises(Interruption), watching_signals() as signals, signals.holding():
        step()


def test_a_watch_inside_of_another_is_the_same(handlers):
    with watching_signals() as outer:
        with watching_signals() as inner:
            assert inner is outer
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


def test_a_program_s_own_handlers_stay(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    signal.signal(signal.SIGTERM, own := lambda *_: None)
    with watching_signals():
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGINT) != signal.default_int_handler


def test_off_the_main_thread_nothing_is_installed(handlers, tmp_path, tiny_recipe, train_tiny):
    results, found = [], []

    class Looking(SilentProgress):
        def advance(self, step):
            found.append([signal.getsignal(each) for each in SIGNALS])

    def run():
        results.append(train_tiny(tiny_recipe(), tmp_path, progress=Looking()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert results[0].steps == 12
    assert all(each == handlers for each in found)
