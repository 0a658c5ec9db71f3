"""`zoo serve`."""

import socket
from pathlib import Path

import click

from zoo.cli.options import Folder
from zoo.report.terminal import say

__all__ = ["serve"]


@click.command()
@click.argument("path", type=Folder())
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: for other machines too.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--name", help="What the model is called.  [default: the folder's name]")
@click.option("--rows", default=8, show_default=True, type=click.IntRange(1), help="Answers that are made at a time.")
@click.option("--waiting", default=64, show_default=True, type=click.IntRange(0), help="Requests that may wait.")
@click.option(
    "--context",
    type=click.IntRange(2),
    help="Tokens of a prompt and its answer.  [default: what it was trained at, at most 8192]",
)
@click.option(
    "--chat-template",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A Jinja file that makes a prompt of a chat.",
)
@click.option("--grace", default=30, show_default=True, type=click.IntRange(0), help="Seconds to finish at the end.")
@click.option("--device", help="For example cpu or cuda:1.  [default: a GPU if there is one]")
def serve(
    path: Path,
    host: str,
    port: int,
    name: str | None,
    rows: int,
    waiting: int,
    context: int | None,
    chat_template: Path | None,
    grace: int,
    device: str | None,
) -> None:
    """Answer requests of OpenAI's clients with the model in PATH, until Ctrl-C or SIGTERM.

    PATH is a run, what `zoo export --hf` wrote, or a folder whose weights `zoo.hf.import_weights` reads. There is no
    password: whoever reaches the port is served.

    \b
    Example:
      zoo serve runs/tiny --port 8000
      curl localhost:8000/v1/completions -d '{"prompt": "import ", "max_tokens": 32}'
    """
    try:
        from zoo.serving import Engine, load_served, make_app, run_app
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    from zoo.errors import InputError
    from zoo.generation import compile_decoder
    from zoo.report.numbers import size
    from zoo.states import state_bytes

    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as place:
        template = None if chat_template is None else chat_template.read_text()
        decoder, speech, trained_at = load_served(path, device=device, template=template)
        length, limit = context or min(trained_at, 8192), decoder.config.max_positions
        if decoder.config.positions == "learned" and length > limit:
            raise InputError(f"context: expected at most {limit}, the positions of the model, was {length}")
        states = size(state_bytes(decoder.decoding_state(rows, max_len=length, device="meta")))
        model = compile_decoder(decoder) if decoder.token_embedding.weight.is_cuda else decoder
        engine = Engine(model, rows=rows, context_length=length, waiting=waiting)
        name, (host, port) = name or path.resolve().name, place.getsockname()[:2]
        say(f"{name}: {rows} rows of {length:,} tokens, {states} of states, at http://{host}:{port}/v1")
        run_app(make_app(engine, speech, name), place, grace)
    say(f"{name}: stopped")
