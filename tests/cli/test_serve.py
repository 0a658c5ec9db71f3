"""`zoo serve` as a process: the page's commands, signals, and what is missing or taken."""

import http.client
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import Result

import zoo.hf as zoo_hf
from zoo.builder import build, shrink
from zoo.data import ByteTokenizer
from zoo.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text().partition("## Serving\n")[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "runs" / "tiny"
    zoo_hf.to_hf(build(shrink(load_recipe("tiny")), mixer="gated-power"), eos_token_id=None).save_pretrained(folder)
    zoo_hf.to_hf_tokenizer(ByteTokenizer()).save_pretrained(folder)
    return folder


def started(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "zoo", "serve", *arguments, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        command, cwd=folder.parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"^tiny: \d+ rows of [\d,]+ tokens, .* of states, at http://127\.0\.0\.1:(\d+)/v1$", line)
    assert found is not None, line + process.communicate()[1]
    return process, int(found[1])


@contextmanager
def asked(port: int, path: str, body: str | None) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with closing(connection):
        connection.request("GET" if body is None else "POST", path, body)
        with connection.getresponse() as response:
            yield response


def test_the_commands_of_the_page_run_and_an_answer_outlives_the_signal(folder: Path) -> None:
    serve, *requests = re.search(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S)[1].splitlines()
    process, port = started(folder, *shlex.split(serve)[2:])
    for request in requests:
        _, url, *rest = shlex.split(request)
        with asked(port, url.removeprefix("localhost:8000"), rest[1] if rest else None) as response:
            assert response.status == 200
            said = response.read().decode()
            assert "text_completion" in said or '"id":"tiny"' in said
    body = {"prompt": "a", "max_tokens": 400, "stream": True, "seed": 0}
    with asked(port, "/v1/completions", json.dumps(body)) as response:
        response.readline()
        process.send_signal(signal.SIGTERM)
        assert response.read().decode().endswith("data: [DONE]\n\n")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "tiny: stopped\n"), errors
    assert "Traceback" not in errors


def test_answers_that_take_too_long_are_cut_off(folder: Path) -> None:
    process, port = started(folder, "runs/tiny", "--context", "1000000", "--rows", "1", "--grace", "0")
    body = json.dumps({"prompt": "a", "max_tokens": 900_000, "stream": True, "seed": 0})
    with asked(port, "/v1/completions", body) as first, asked(port, "/v1/completions", body) as second:
        first.readline()
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert time.monotonic() - begun < 20
        assert (process.returncode, output) == (0, "tiny: stopped\n"), errors
        for response in (first, second):
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                response.read()


def test_a_place_that_is_taken_is_named(zoo: Callable[..., Result], folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = zoo("serve", folder, "--port", str(other.getsockname()[1]))
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: Address already in use")


def test_what_is_missing_is_said(zoo: Callable[..., Result], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("zoo.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    done = zoo("serve", folder)
    assert done.exit_code == 1
    assert "needs an optional library (starlette): pip install 'mixer-zoo[serve]'" in done.stderr


def test_what_cannot_be_served_is_refused(
    zoo: Callable[..., Result], refused: Callable[..., str], tmp_path: Path
) -> None:
    assert "path: expected a folder with config.json" in refused("serve", tmp_path, "--port", "0")
    (tmp_path / "config.json").write_text("{")
    assert "config.json: cannot be read: " in refused("serve", tmp_path, "--port", "0")
    learned = build(shrink(load_recipe("gpt2-124m")))
    zoo_hf.to_hf(learned).save_pretrained(tmp_path)
    zoo_hf.to_hf_tokenizer(ByteTokenizer()).save_pretrained(tmp_path)
    done = zoo("serve", tmp_path, "--port", "0", "--context", "2000")
    assert done.exit_code == 2
    assert done.stderr.endswith("Error: context: expected at most 1024, the positions of the model, was 2000\n")
