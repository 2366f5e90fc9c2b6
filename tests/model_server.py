"""A stand-in model server: OpenAI-compatible, on loopback, its model a function of the test's."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serving(complete: Callable[[dict], list[dict]], max_length: int) -> Iterator[str]:
    """The server's address. `complete` takes a request and returns the choices that are streamed."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.reply(json.dumps({"data": [{"id": "m", "max_model_len": max_length}]}))

        def do_POST(self):
            choices = complete(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.reply("".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices))

        def reply(self, text):
            content = text.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
