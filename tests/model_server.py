"""Stand-ins for servers on loopback; one for an OpenAI-compatible model server."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Clients may all connect at once: with socketserver's queue of 5, the next one waits a second."""

    request_queue_size = 64


class Handler(BaseHTTPRequestHandler):
    """A quiet handler that reads a request's JSON and replies with a text."""

    def log_message(self, *_):
        pass

    def asked(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, text: str) -> None:
        content = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def on_loopback(handler: type[Handler]) -> Iterator[str]:
    """The address of a server that answers by a handler."""
    http = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, args=[0.02], daemon=True).start()  # looks for shutdown often
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()


@contextmanager
def serving(complete: Callable[[dict], list[dict]], max_length: int) -> Iterator[str]:
    """The model server's address. `complete` takes a request and returns the choices that are streamed."""

    class Model(Handler):
        def do_GET(self):
            self.reply(json.dumps({"data": [{"id": "m", "max_model_len": max_length}]}))

        def do_POST(self):
            choices = complete(self.asked())
            self.reply("".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices))

    with on_loopback(Model) as address:
        yield address
