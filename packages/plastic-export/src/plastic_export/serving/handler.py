"""mlx-lm's answers to requests over HTTP, for a model that has sizes."""

from __future__ import annotations

import json
import logging
import select
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mlx_lm import server

from plastic_export.model.library import brief
from plastic_export.serving.requests.failed_start import FailedStart
from plastic_export.serving.requests.request_checks import check_request
from plastic_export.serving.requests.request_error import RequestError
from plastic_export.serving.requests.size_names import FIELD

if TYPE_CHECKING:
    from plastic_export.serving.http_server import HttpServer

PAGE = Path(__file__).parent / "page.html"
HUNG_UP = -1
LONGEST = 64 * 2**20
"""Bytes of a request at most, which are held in memory."""
OUTCOMES = {200: "answered", HUNG_UP: "hung_up"}
_CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:"
)


class SizeHandler(server.APIHandler):  # type: ignore[misc]  # mlx-lm publishes no types
    """One request: mlx-lm answers it, once its size is known.

    It is made by the HTTP server, which holds what requests share.
    """

    server: HttpServer
    body: dict[str, Any]
    stream: bool
    requested_model: str
    max_tokens: int
    timeout = 60.0
    """Seconds that a client may take to send or to read on."""

    def do_GET(self) -> None:
        """Answer for metrics, the page and mlx-lm's own places."""
        place = self.path.partition("?")[0]
        if place == "/metrics":
            content, kind = self.server.metrics.text()
            self._answer(200, content, kind)
        elif place in ("/", "/index.html") and self.server.has_page:
            self._answer(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        """Answer as mlx-lm does; refuse what it cannot mean in a line."""
        self._status, self.stream = 0, False
        try:
            self._check_length()
            with ExitStack() as self._admission:
                super().do_POST()
        except RequestError as error:
            self._answer_json(error.status, {"error": str(error)})
        except FailedStart as failed:
            self._answer_json(failed.status, {"error": brief(failed.cause)})
        except (UnicodeError, RecursionError) as error:  # of the body, before it is understood
            self._answer_json(400, {"error": f"the request is no JSON in UTF-8: {brief(error)}"})
        except (ConnectionError, TimeoutError):
            self._status = HUNG_UP
            raise
        except Exception as error:
            if self.stream:  # its status is sent
                raise
            self._headers_buffer: list[bytes] = []
            self._answer_json(500, {"error": f"it could not be generated: {brief(error)}"})
        finally:
            self.server.metrics.requests.labels(OUTCOMES.get(self._status, "refused")).inc()

    def send_response(self, code: int, message: str | None = None) -> None:
        """Send the status, and remember it."""
        self._status = code
        super().send_response(code, message)

    def validate_model_parameters(self) -> None:
        """Check the fields of a request, as mlx-lm does, and take its size from them.

        Raises:
            RequestError: If one of them is wrong.
        """
        try:
            super().validate_model_parameters()
        except (ValueError, TypeError) as error:
            raise RequestError(str(error)) from error
        provider, demand = self.server.provider, self.server.demand
        check_request(self.body, provider.shown.vocabulary)
        keep = provider.sizes.asked(self.requested_model, self.body.get(FIELD))
        asked = self.body.get("messages") or self.body.get("prompt") or ""
        tokens = len(json.dumps(asked, ensure_ascii=False).encode()) + self.max_tokens
        chosen = self._admission.enter_context(demand.admitted(tokens, keep))
        self.requested_model = provider.sizes.called(chosen)

    def handle_completion(self, request: Any, stop_words: list[str]) -> None:
        """Answer as mlx-lm does, as long as the client is there."""
        request.check_client = self._check_client
        super().handle_completion(request, stop_words)

    def handle_models_request(self) -> None:
        """List the sizes, or tell of one."""
        models = self.server.models(self.created)
        wanted = unquote(self.path.partition("?")[0]).removeprefix("/v1/models").strip("/")
        if not wanted:
            self._answer_json(200, {"object": "list", "data": models})
            return
        found = [model for model in models if model["id"] == wanted]
        line = f'there is no model "{wanted}"; "/v1/models" lists them'
        self._answer_json(200 if found else 404, found[0] if found else {"error": line})

    def log_message(self, format: str, *args: Any) -> None:
        """Write to the log in the place of standard error."""
        logging.info(format, *args)

    def _check_length(self) -> None:
        """Refuse a body of no length or a huge one, before it is read."""
        stated = self.headers.get("Content-Length", "")
        if stated.lstrip("+-").isdecimal() and not 0 <= int(stated[:19]) <= LONGEST:
            line = f"Content-Length must be from 0 to {LONGEST:,} bytes, got {stated}"
            raise RequestError(line, 413)

    def _check_client(self) -> None:
        """Raise if the client hung up, which mlx-lm notices only where it streams."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        if readable and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionAbortedError("the client hung up")

    def _answer_json(self, status: int, content: dict[str, Any]) -> None:
        self._answer(status, json.dumps(content).encode(), "application/json")

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if kind.startswith("text/html"):
            self.send_header("Content-Security-Policy", _CONTENT_POLICY)
        self._set_cors_headers()
        self.end_headers()
        self.wfile.write(content)
