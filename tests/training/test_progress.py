"""Progress: a bar in a terminal, few lines elsewhere."""

import io

from rich.console import Console

from zoo.training.progress import LineProgress, TerminalProgress, make_progress


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=140, _environ={"TERM": "xterm"})


def train_record(step):
    return {"kind": "train", "step": step, "loss": 2.5, "tokens_per_second": 12345.6}


def run(progress, steps=100):
    progress.start(0, steps)
    progress.metrics({"kind": "validation", "step": 0, "bits_per_byte": 8.1})
    for step in range(1, steps + 1):
        progress.advance(step)
        if step % 10 == 0:
            progress.metrics(train_record(step))
    progress.finish()


def test_the_kind_follows_the_console():
    assert isinstance(make_progress("gpt", console(True)), TerminalProgress)
    assert isinstance(make_progress("gpt", console(False)), LineProgress)


def test_a_terminal_gets_a_bar_with_loss_bits_speed_and_time_left():
    screen = console(True)
    run(make_progress("softmax", screen))
    text = screen.file.getvalue()
    for part in ("softmax", "100/100", "loss 2.500", "validation 8.100 bits/byte", "12,346 tokens/s", "left"):
        assert part in text


def test_elsewhere_lines_come_at_the_start_the_end_and_rarely_between():
    screen = console(False)
    run(make_progress("[odd] name", screen))
    assert screen.file.getvalue().splitlines() == [
        "[odd] name  step 0/100  validation 8.100 bits/byte",
        "[odd] name  step 100/100  loss 2.500  validation 8.100 bits/byte  12,346 tokens/s",
    ]


def test_lines_say_how_much_time_is_left(monkeypatch):
    screen, now = console(False), 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = LineProgress("run", screen, interval=30)
    progress.start(10, 50)
    for step in range(11, 51):
        now += 10.0
        progress.metrics(train_record(step))
    progress.finish()
    lines = screen.file.getvalue().splitlines()
    assert len(lines) == 14
    assert lines[0].endswith("6:30 left")
    assert lines[1].startswith("run  step 14/50")
    assert lines[1].endswith("6:00 left")
    assert lines[-1] == "run  step 50/50  loss 2.500  12,346 tokens/s"


def test_an_interrupted_run_leaves_its_last_line():
    screen = console(False)
    progress = LineProgress("run", screen)
    progress.start(0, 50)
    for step in (10, 20):
        progress.metrics(train_record(step))
    progress.finish()
    assert screen.file.getvalue().splitlines()[-1].startswith("run  step 20/50")
