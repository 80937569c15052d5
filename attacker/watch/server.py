"""The local page of a watch: bound to 127.0.0.1, behind a token, and reading from a process of its own.

FastAPI and uvicorn come with Flower.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import attacker.report
from attacker.watch.board import Board
from attacker.watch.events import from_line
from attacker.watch.follow import CHEAP

LOOPBACK: Final = "127.0.0.1"
TOKEN_HEADER: Final = "x-watch-token"
_TEMPLATES = (Path(__file__).parent / "templates", Path(attacker.report.__file__).parent / "templates")


def make_app(board: Board, *, token: str, port: int) -> FastAPI:
    """The application; everything but requests with the token, for this machine by name, is refused with 403.

    Args:
        board: What is shown.
        token: Of this watch; as ``?token=`` of the page, as a header of what its script asks for.
        port: That the socket is bound to. Other names in the Host header are refused, so that no web page elsewhere
            can reach this one by pointing its own name here.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page, policy = _page()
    hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get(TOKEN_HEADER) or request.query_params.get("token", "")
        known = hmac.compare_digest(given.encode(), token.encode())
        if not known or request.headers.get("host") not in hosts:
            return PlainTextResponse("This page needs the address that `fl-precode watch` printed.", status_code=403)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = policy
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/state")
    async def state(seen: int = -1) -> Response:
        found = board.state(seen)
        return Response(status_code=204) if found is None else JSONResponse(found)

    return app


def _page() -> tuple[str, str]:
    """The page, and the policy that lets nothing but its own style and script work."""
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=False, undefined=StrictUndefined)
    style = environment.get_template("watch.css.j2").render()
    script = (_TEMPLATES[0] / "watch.js").read_text()
    text = environment.get_template("watch.html.j2").render(style=style, script=script)
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@contextmanager
def following(tape: Path, board: Board, *, attacks: Sequence[str] = CHEAP, seed: int = 0) -> Iterator[int]:
    """Run the process that attacks, and fill the board with what it says; gives its process id."""
    command = [sys.executable, "-m", "attacker.watch.worker", str(tape), str(seed), *attacks]
    # Its own session: an interrupt from the keyboard is for the server, which then ends it.
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    threading.Thread(target=_read, args=(worker.stdout, board), daemon=True).start()
    try:
        yield worker.pid
    finally:
        # It holds nothing that could be lost. On a busy machine its low priority lets it end late; nobody waits.
        worker.kill()
        with suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=5)


def _read(lines: Any, board: Board) -> None:
    for line in lines:
        event = from_line(line)
        if event is not None:
            board.take(event)
    board.end()


def serve(
    tape: Path, *, port: int = 0, attacks: Sequence[str] = CHEAP, seed: int = 0, ready: Callable[[str], None]
) -> None:
    """Serve the page until interrupted.

    Args:
        tape: Folder of the tape, now or later; it is only read.
        port: On 127.0.0.1; 0 takes a free one.
        attacks: Specs, tried in turn on every update until one fits.
        seed: Of the attacks.
        ready: Told the address, token included, once the page can be opened.

    Raises:
        OSError: If the port is taken.
    """
    token, board = secrets.token_urlsafe(32), Board()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        # From here on a browser that is quicker than uvicorn waits instead of being refused.
        listener.listen()
        bound = listener.getsockname()[1]
        app = make_app(board, token=token, port=bound)
        # No access log: addresses hold the token.
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        with following(tape, board, attacks=attacks, seed=seed):
            ready(f"http://{LOOPBACK}:{bound}/?token={token}")
            uvicorn.Server(config).run(sockets=[listener])
