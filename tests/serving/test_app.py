"""OpenAI's interface: answers, streams, what is refused and how, and clients that go away."""

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import uvicorn

import zoo
import zoo.hf
from zoo.data import ByteTokenizer
from zoo.errors import InputError
from zoo.models import Decoder
from zoo.serving import Engine, Speech, load_served, make_app
from zoo.training import load_run, train

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant:' if add_generation_prompt }}"
)
PROMPTS = ["Line 3 of", "a", "é \U0001f600 b", "def main(" * 4]


class Client:
    """Requests to a server in this process."""

    def __init__(self, engine: Engine, server: Any, port: int) -> None:
        self.engine, self.server, self.port = engine, server, port

    def send(self, path: str, body: Any = None, method: str = "") -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body)
        connection.request(method or ("GET" if body is None else "POST"), path, content)
        return connection

    def ask(self, path: str, body: Any = None, method: str = "") -> tuple[int, Any, Any]:
        """Return status, values and headers of an answer."""
        connection = self.send(path, body, method)
        response = connection.getresponse()
        content = response.read().decode()
        connection.close()
        return response.status, json.loads(content), response.headers

    def complete(self, prompt: Any, **options: Any) -> dict[str, Any]:
        status, values, _ = self.ask("/v1/completions", {"prompt": prompt, "temperature": 0, **options})
        assert status == 200, values
        return values

    def stream(self, path: str, body: dict[str, Any]) -> list[Any]:
        """Return the events of an answer."""
        connection = self.send(path, body | {"stream": True})
        response = connection.getresponse()
        assert response.headers["content-type"].startswith("text/event-stream")
        *events, done, end = response.read().decode().split("\n\n")
        connection.close()
        assert (done, end) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def wait_for_load(self, *load: int) -> None:
        until = time.monotonic() + 60
        while self.ask("/health")[1] != {"status": "ok", "running": load[0], "waiting": load[1]}:
            assert time.monotonic() < until
            time.sleep(0.01)


def started(model: Decoder, speech: Speech, **options: Any) -> Iterator[Client]:
    engine = Engine(model, **options)
    server = uvicorn.Server(uvicorn.Config(make_app(engine, speech, "little"), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield Client(engine, server, server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()
    assert not engine._thread.is_alive()


def build(mixer: str) -> Decoder:
    torch.manual_seed(0)
    recipe = zoo.shrink(zoo.load_recipe("tiny", ["model.initializer_range=0.3"]))
    return zoo.build(recipe, mixer=mixer).double().eval()


def speech(template: str | None = None) -> Speech:
    return Speech(zoo.hf.to_hf_tokenizer(ByteTokenizer()), frozenset((256,)), template)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return build("gated-power")


@pytest.fixture(scope="module")
def client(decoder: Decoder) -> Iterator[Client]:
    yield from started(decoder, speech(TEMPLATE), rows=3, context_length=64, waiting=16)


@pytest.fixture
def narrow() -> Iterator[Client]:
    """One row, in which an answer takes as long as it is wanted."""
    yield from started(build("gated-power"), speech(), rows=1, context_length=100_000, waiting=1)


@pytest.mark.parametrize("mixer", ["softmax", "gated-power"])
def test_answers_side_by_side_are_what_each_is_alone(mixer: str) -> None:
    model = build(mixer)
    for client in started(model, speech(), rows=3, context_length=64, waiting=16):

        def ask(index: int, client: Client = client) -> str:
            time.sleep(index / 100)
            return client.complete(PROMPTS[index % 4], max_tokens=2 + index)["choices"][0]["text"]

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, range(8)))
        assert found == [zoo.generate(model, PROMPTS[index % 4], 2 + index) for index in range(8)]


def test_an_answer_says_what_it_is(client: Client, decoder: Decoder) -> None:
    found = client.complete("Line 3", max_tokens=5)
    assert found["object"] == "text_completion"
    assert found["model"] == "little"
    text = zoo.generate(decoder, "Line 3", 5)
    assert found["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}]
    assert found["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    ids = [256, *b"Line 3"]
    assert client.complete(ids, max_tokens=5)["choices"] == found["choices"]
    assert client.complete("Line 3", max_tokens=5, n=1, user="me", logit_bias=None)["choices"] == found["choices"]


def test_sampling_is_the_zoos(client: Client, decoder: Decoder) -> None:
    options: dict[str, Any] = {"temperature": 1.3, "top_p": 0.9, "seed": 7}
    found = [client.complete("ab", max_tokens=12, **options)["choices"][0]["text"] for _ in range(2)]
    assert found == [zoo.generate(decoder, "ab", 12, **options)] * 2
    assert client.complete("ab", max_tokens=12, **options | {"seed": 8})["choices"][0]["text"] != found[0]


def test_a_stop_ends_an_answer(client: Client, decoder: Decoder) -> None:
    whole = zoo.generate(decoder, "Line 3", 12)
    stop = whole[4:6]
    found = client.complete("Line 3", max_tokens=12, stop=["~~", stop])
    assert found["choices"][0]["text"] == whole[: whole.index(stop)]
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] < 12


def test_a_stream_is_the_answer_in_pieces(client: Client) -> None:
    whole = client.complete("Line 3", max_tokens=9)
    body = {"prompt": "Line 3", "max_tokens": 9, "temperature": 0, "stream_options": {"include_usage": True}}
    *events, last = client.stream("/v1/completions", body)
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["length"]
    assert len({event["id"] for event in events}) == 1
    assert len(events) > 1
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


def test_a_chat_goes_through_the_template(client: Client, decoder: Decoder) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "user", "content": "there"}]
    body = {"messages": messages, "temperature": 0, "max_completion_tokens": 6}
    status, found, _ = client.ask("/v1/chat/completions", body)
    assert status == 200
    text = zoo.generate(decoder, "user: Hi\nuser: there\nassistant:", 6)
    assert found["object"] == "chat.completion"
    assert found["choices"][0]["message"] == {"role": "assistant", "content": text}
    first, *events = client.stream("/v1/chat/completions", body)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant"}
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == text
    found = client.ask("/v1/chat/completions", {"messages": messages[1:], "temperature": 0})[1]
    assert found["usage"]["total_tokens"] <= 64


def test_models_and_health_are_told(client: Client) -> None:
    client.wait_for_load(0, 0)
    (model,) = client.ask("/v1/models")[1]["data"]
    assert (model["id"], model["object"]) == ("little", "model")


@pytest.mark.parametrize(
    ("path", "body", "status", "line"),
    [
        ("/v1/completions", {"prompt": "a", "model": "big"}, 404, "model: expected 'little', was 'big'"),
        ("/v1/nothing", None, 404, "Not Found"),
        ("/v1/completions", None, 405, "Method Not Allowed"),
        ("/v1/completions", b"{", 400, "request: expected JSON, Expecting"),
        ("/v1/completions", b"[" * 100_000, 400, "request: expected JSON, "),
        ("/v1/completions", b"\xff", 400, "request: expected JSON, "),
        ("/v1/completions", b" " * (2**23 + 1), 413, "request: expected at most 8,388,608 bytes"),
        ("/v1/completions", [], 400, "request: expected a JSON object with prompt"),
        ("/v1/completions", {"messages": []}, 400, "request: expected a JSON object with prompt"),
        ("/v1/completions", {"prompt": 3}, 400, "prompt: expected a text or a list of ids from 0 to 256"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "prompt: expected a text or a list of ids"),
        ("/v1/completions", {"prompt": [257]}, 400, "prompt: expected a text or a list of ids from 0 to 256"),
        (
            "/v1/completions",
            {"prompt": []},
            400,
            "prompt: expected 1 to 64 tokens with those of the answer, was 0 and 16",
        ),
        ("/v1/completions", {"prompt": "a", "max_tokens": 63}, 400, "prompt: expected 1 to 64 .*, was 2 and 63"),
        ("/v1/completions", {"prompt": "a" * 64}, 400, "prompt: expected 1 to 64 .*, was 65 and 16"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens: must be greater than or equal to 1"),
        (
            "/v1/completions",
            {"prompt": "a", "temperature": -1},
            400,
            "temperature: expected a number from 0 on, was -1",
        ),
        (
            "/v1/completions",
            {"prompt": "a", "temperature": "hot"},
            400,
            "temperature: must be a valid number, got 'hot'",
        ),
        ("/v1/completions", {"prompt": "a", "top_p": 0}, 400, "top_p: expected above 0 and at most 1, was 0"),
        (
            "/v1/completions",
            {"prompt": "a", "temperatur": 1},
            400,
            "temperatur: unknown key .did you mean 'temperature'",
        ),
        ("/v1/completions", {"prompt": "a", "n": 2}, 400, "n: expected 1, all that there is here"),
        ("/v1/completions", {"prompt": "a", "stop": ["a"] * 17}, 400, "stop: must have at most 16 items"),
        ("/v1/completions", {"prompt": "a", "stop": "a" * 257}, 400, "stop.0: must have at most 256 characters"),
        ("/v1/completions", {"prompt": "a", "stop": 3}, 400, "stop: must be a list, got 3"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user"}]},
            400,
            "messages: expected each with a role and a content",
        ),
        ("/v1/chat/completions", {"messages": ["hi"]}, 400, "messages"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a" * 90}]},
            400,
            "prompt: expected 1 to 64",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(client: Client, path: str, body: Any, status: int, line: str) -> None:
    found, values, _ = client.ask(path, body)
    assert found == status
    assert re.match(line, values["error"]["message"]), values
    assert "\n" not in values["error"]["message"]
    assert values["error"]["code"] == status


def test_a_model_without_a_template_has_no_chats(narrow: Client) -> None:
    status, values, _ = narrow.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
    assert status == 400
    assert values["error"]["message"] == "messages: this model has no template for chats; ask for completions"


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_go_away_free_their_row(narrow: Client, stream: bool) -> None:
    connection = narrow.send("/v1/completions", {"prompt": "a", "max_tokens": 90_000, "stream": stream, "seed": 0})
    narrow.wait_for_load(1, 0)
    connection.close()
    narrow.wait_for_load(0, 0)
    assert narrow.complete("a", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_more_than_may_wait_are_told_to_come_back(narrow: Client) -> None:
    body = {"prompt": "a", "max_tokens": 90_000, "seed": 0}
    connections = [narrow.send("/v1/completions", body)]
    narrow.wait_for_load(1, 0)
    connections.append(narrow.send("/v1/completions", body))
    narrow.wait_for_load(1, 1)
    status, values, headers = narrow.ask("/v1/completions", body)
    assert (status, headers["retry-after"]) == (429, "1")
    assert values["error"]["message"] == "requests: expected at most 1 that wait; try again later"
    for connection in connections:
        connection.close()
    narrow.wait_for_load(0, 0)


def test_an_error_of_the_model_is_one_of_the_server() -> None:
    model = build("softmax")
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    for client in started(model, speech(), rows=1, context_length=20):
        status, values, _ = client.ask("/v1/completions", {"prompt": "a"})
        assert (status, values["error"]["type"]) == (500, "server_error")
        assert values["error"]["message"] == "model: its logits are NaN after 2 tokens"
        connection = client.send("/v1/completions", {"prompt": "a", "stream": True})
        assert "logits are NaN" in connection.getresponse().read().decode()
        connection.close()


def test_a_run_is_served(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"Line {number} of a text about lines.\n" for number in range(400)))
    recipe = zoo.shrink(zoo.load_recipe("tiny", [f"data.source={tmp_path / 'text.txt'}", "training.compile=false"]))
    train(recipe.override(["training.steps=1", "training.warmup_steps=0"]), tmp_path / "run", device="cpu")
    decoder, loaded, context = load_served(tmp_path / "run", device="cpu")
    assert (context, loaded.ends) == (recipe.training.context_length, {256})
    assert zoo.generate(decoder, "Line", 5) == zoo.generate(load_run(tmp_path / "run")[1], "Line", 5)


def test_folders_of_transformers_are_served(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=48, eos_token_id=[7, 9])
    llama = transformers.LlamaForCausalLM(config).eval()
    llama.save_pretrained(tmp_path / "llama")
    tokenizer = zoo.hf.to_hf_tokenizer(ByteTokenizer())
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "llama")
    decoder, loaded, context = load_served(tmp_path / "llama", device="cpu")
    assert (context, loaded.ends) == (48, {7, 9, 256})
    ids = torch.tensor([loaded.encode("abc")])
    torch.testing.assert_close(decoder(ids).logits, llama(ids).logits, rtol=1e-4, atol=1e-4)
    assert loaded.decode(loaded.encode_chat([{"role": "user", "content": "Hi"}])) == "user: Hi\nassistant:"

    own = build("gated-power").float()
    zoo.hf.to_hf(own, eos_token_id=256).save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    decoder, loaded, context = load_served(tmp_path / "own", device="cpu", template="{{ messages[0].nothing() }}")
    assert torch.equal(decoder(ids).logits, own(ids).logits)
    assert (context, loaded.ends) == (2048, {256})
    with pytest.raises(InputError, match="messages: the template for chats refuses them: "):
        loaded.encode_chat([{"role": "user", "content": "Hi"}])

    zoo.hf.convert(llama, "gated-power")
    llama.save_pretrained(tmp_path / "converted")
    tokenizer.save_pretrained(tmp_path / "converted")
    with pytest.raises(InputError, match=r"path: expected a zoo model or one of llama, .*, was zoo_llama"):
        load_served(tmp_path / "converted", device="cpu")
