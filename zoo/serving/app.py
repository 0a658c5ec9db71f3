"""OpenAI's interface over HTTP: completions, chats, streams (https://platform.openai.com/docs/api-reference)."""

import asyncio
import json
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import uvicorn
from pydantic import Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from zoo.config import Config
from zoo.errors import InputError, ZooError
from zoo.generation.sampling import Sampling
from zoo.serving.engine import Engine, FullError, Job, Piece
from zoo.serving.speech import Speech
from zoo.serving.text import TextStream

__all__ = ["make_app", "run_app"]

_LARGEST = 2**23  # bytes of a request
_NEUTRAL: Mapping[str, Any] = {
    "n": 1, "best_of": 1, "echo": False, "suffix": "", "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {},
    "logprobs": False, "tools": [], "response_format": {"type": "text"},
}  # fmt: skip
"""What of OpenAI's is refused, unless it asks for nothing."""

_IGNORED = {"user", "metadata", "store", "service_tier", "parallel_tool_calls"}


class _StreamOptions(Config):
    include_usage: bool = False


class _Asked(Config):
    """A request; exactly one of `prompt` and `messages` is there."""

    prompt: Any = None
    messages: tuple[dict[str, Any], ...] | None = Field(None, min_length=1)
    model: str = ""
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: tuple[Annotated[str, Field(max_length=256)], ...] = Field((), max_length=16)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()


class _Service:
    """The routes over an engine, its model's tokenizer and the name of the model."""

    def __init__(self, engine: Engine, speech: Speech, name: str) -> None:
        self.engine, self.speech, self.name = engine, speech, name
        self.model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "zoo"}

    async def health(self, _request: Request) -> Response:
        running, waiting = self.engine.load
        return JSONResponse({"status": "ok", "running": running, "waiting": waiting})

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self.model]})

    async def completions(self, request: Request) -> Response:
        asked = await self._read(request, "prompt")
        prompt, size = asked.prompt, len(self.speech.tokenizer)
        ids = self.speech.encode(prompt) if isinstance(prompt, str) else prompt
        if not isinstance(ids, list | tuple) or not all(type(each) is int and 0 <= each < size for each in ids):
            raise InputError(f"prompt: expected a text or a list of ids from 0 to {size - 1}")
        return await self._answer(request, asked, list(ids), asked.max_tokens or 16)

    async def chat(self, request: Request) -> Response:
        asked = await self._read(request, "messages")
        ids = self.speech.encode_chat([_message(message) for message in asked.messages or ()])
        most = asked.max_completion_tokens or asked.max_tokens or max(1, self.engine.context_length - len(ids))
        return await self._answer(request, asked, ids, most)

    async def _read(self, request: Request, needed: str) -> _Asked:
        asked = _Asked.from_mapping(await _body(request, needed))
        if asked.model not in ("", self.name):
            raise HTTPException(404, f"model: expected {self.name!r}, was {asked.model!r:.90}")
        return asked

    async def _answer(self, request: Request, asked: _Asked, ids: list[int], most: int) -> Response:
        if not ids or len(ids) + most > self.engine.context_length:
            raise InputError(
                f"prompt: expected 1 to {self.engine.context_length} tokens with those of the answer, was {len(ids)} "
                f"and {most}"
            )
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece]()

        def deliver(piece: Piece) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        sampling = Sampling(asked.temperature, asked.top_k, asked.top_p, len(self.speech.tokenizer))
        text = TextStream(self.speech.decode, ids, asked.stop)
        job = Job(ids, most, sampling, asked.seed, self.speech.ends, text, deliver)
        self.engine.submit(job)
        chat = asked.messages is not None
        kind = "chat.completion" if chat else "text_completion"
        head = {"id": f"{kind}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.name}
        if asked.stream:
            return _Stream(_events(job, pieces, asked, head), job)
        answer = ""
        try:
            async for piece in _until_finished(pieces):
                answer += piece.text
                if await request.is_disconnected():
                    raise ClientDisconnect
        finally:
            job.cancelled = True
        said = {"message": {"role": "assistant", "content": answer}} if chat else {"text": answer}
        return JSONResponse(_with_choice(head, said, piece.finish) | _usage(job))


class _Stream(StreamingResponse):
    """Server-sent events of an answer, whose row is free however they end."""

    def __init__(self, events: AsyncIterator[str], job: Job) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.job = job

    async def __call__(self, *arguments: Any) -> None:
        try:
            await super().__call__(*arguments)
        finally:
            self.job.cancelled = True


async def _until_finished(pieces: asyncio.Queue[Piece]) -> AsyncIterator[Piece]:
    """Yield the pieces of an answer, or raise what it ended with."""
    while True:
        piece = await pieces.get()
        if piece.finish == "error":
            raise HTTPException(500, piece.text)
        yield piece
        if piece.finish is not None:
            return


async def _events(job: Job, pieces: asyncio.Queue[Piece], asked: _Asked, head: dict[str, Any]) -> AsyncIterator[str]:
    """Yield an answer as server-sent events."""
    if asked.messages is not None:
        head = head | {"object": "chat.completion.chunk"}
        yield _event(_with_choice(head, {"delta": {"role": "assistant"}}, None))
    try:
        async for piece in _until_finished(pieces):
            if piece.text or piece.finish:
                said = {"text": piece.text} if asked.messages is None else {"delta": {"content": piece.text}}
                yield _event(_with_choice(head, said, piece.finish))
        if asked.stream_options.include_usage:
            yield _event(head | {"choices": []} | _usage(job))
        yield "data: [DONE]\n\n"
    except HTTPException as error:
        yield _event(_error(error.status_code, error.detail))


def _event(values: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"


def _with_choice(head: dict[str, Any], said: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return head | {"choices": [{"index": 0, **said, "logprobs": None, "finish_reason": finish}]}


def _usage(job: Job) -> dict[str, Any]:
    read, written = len(job.ids), job.tokens
    return {"usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with its content as one text."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(message.get("role"), str) or not isinstance(content, str):
        raise InputError("messages: expected each with a role and a content that is text")
    return {**message, "content": content}


async def _body(request: Request, needed: str) -> dict[str, Any]:
    """Return what a request asks for, without what says nothing."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _LARGEST:
            raise HTTPException(413, f"request: expected at most {_LARGEST:,} bytes")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"request: expected JSON, {error}") from None
    if not isinstance(values, dict) or values.get(needed) is None or {"prompt", "messages"} <= values.keys():
        raise InputError(f"request: expected a JSON object with {needed}")
    values = {key: value for key, value in values.items() if value is not None and key not in _IGNORED}
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    for key in sorted(_NEUTRAL.keys() & values.keys()):
        if values.pop(key) != _NEUTRAL[key]:
            raise InputError(f"{key}: expected {_NEUTRAL[key]!r}, all that there is here")
    return values


def _error(status: int, message: str) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def _refuse(_request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # which nobody reads
    if isinstance(error, HTTPException):
        return JSONResponse(_error(error.status_code, error.detail), error.status_code, error.headers)
    status, headers = (429, {"Retry-After": "1"}) if isinstance(error, FullError) else (400, None)
    return JSONResponse(_error(status, " ".join(str(error).split())), status, headers)


def make_app(engine: Engine, speech: Speech, name: str) -> Starlette:
    """Return the application; when it ends, so does the engine."""
    service = _Service(engine, speech, name)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    routes = [
        Route("/health", service.health),
        Route("/v1/models", service.models),
        Route("/v1/completions", service.completions, methods=["POST"]),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
    ]
    refused: dict[Any, Any] = dict.fromkeys((HTTPException, ClientDisconnect, ZooError), _refuse)
    return Starlette(routes=routes, exception_handlers=refused, lifespan=lifespan)


class _Server(uvicorn.Server):
    """uvicorn's server, which ends at a signal and does not send it to itself once more."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_app(app: Starlette, place: socket.socket, grace: int) -> None:
    """Serve at a socket until SIGTERM or Ctrl-C.

    Answers that are being made have `grace` seconds then; a second signal cuts them off at once.
    """
    _Server(uvicorn.Config(app, timeout_graceful_shutdown=grace, log_level="warning")).run([place])
