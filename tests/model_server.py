"""Stand-ins for servers on loopback; one for an OpenAI-compatible model server."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any


class Server(ThreadingHTTPServer):
    """Clients may all connect at once: with socketserver's queue of 5, the next one waits a second."""

    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that leaves is no news."""


class Handler(BaseHTTPRequestHandler):
    """A quiet handler that reads a request's JSON and replies with a text."""

    def log_message(self, *_):
        pass

    def asked(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, text: str, status: int = 200, headers: dict[str, Any] | None = None) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def on_loopback(handler: type[Handler]) -> Iterator[str]:
    """The address of a server that answers by a handler."""
    http = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, args=[0.02], daemon=True).start()  # looks for shutdown often
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()  # not in a `finally`: one that lives as long as its process would wait for it for ever
    http.server_close()


@contextmanager
def standing(
    behave: Callable[[dict, int], Any], model: str | None = "m", max_length: int = 1024, delay: float = 0.0
) -> Iterator[SimpleNamespace]:
    """A model server that answers by `behave(body, n)` of the n-th completion, and keeps what it is asked.

    An answer is a dict, which becomes JSON, a text, (text, status, headers), the pieces of a stream, or None:
    the connection is cut. `keys` has those of every request.
    """
    stand, lock = SimpleNamespace(behave=behave, model=model, in_flight=0, most=0), threading.Lock()
    stand.bodies, stand.paths, stand.keys, stand.times = [], [], [], []

    class Model(Handler):
        def do_GET(self):
            stand.keys.append(self.headers["Authorization"])
            served = {"id": stand.model, "max_model_len": max_length}
            self.reply(json.dumps({"data": [served] if stand.model else []}))

        def do_POST(self):
            body = self.asked()
            with lock:
                n = len(stand.bodies)
                stand.bodies.append(body)
                stand.paths.append(self.path)
                stand.keys.append(self.headers["Authorization"])
                stand.times.append(time.monotonic())
                stand.in_flight += 1
                stand.most = max(stand.most, stand.in_flight)
            time.sleep(delay)
            answer = stand.behave(body, n)
            with lock:
                stand.in_flight -= 1
            if isinstance(answer, Iterator):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for piece in answer:
                    self.wfile.write(piece.encode())
            elif answer is not None:
                answer = json.dumps(answer) if isinstance(answer, dict) else answer
                self.reply(*((answer,) if isinstance(answer, str) else answer))

    with on_loopback(Model) as stand.url:
        stand.address = stand.url.removeprefix("http://")
        yield stand


@contextmanager
def serving(complete: Callable[[dict], list[dict]], max_length: int) -> Iterator[str]:
    """The model server's address. `complete` takes a request and returns the choices that are streamed."""

    def stream(body: dict, n: int) -> str:
        return "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in complete(body))

    with standing(stream, max_length=max_length) as stand:
        yield stand.url
