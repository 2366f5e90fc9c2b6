"""What model servers answer in the field in place of a stream, from a stand-in on loopback."""

import json
from contextlib import ExitStack

import model_server
import pytest
from conftest import TINY

from aimo.errors import AimoError
from aimo.inference import server
from aimo.inference.server import Server
from aimo.inference.settings import Settings


def event(**choice):
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


HALF = event(text="4", token_ids=[1])
WHOLE = HALF + event(text="2", token_ids=[2], finish_reason="stop") + "data: [DONE]\n\n"
ERROR = '{"error": {"message": "overloaded", "code": 500}}'
JSON = {"Content-Type": "application/json"}
BAD = {
    "an error body with HTTP 200": ERROR,
    "an error event": f"event: error\ndata: {ERROR}\n\n",
    "an error as data": f"{HALF}data: {ERROR}\n\n",
    "empty choices": 'data: {"choices": []}\n\ndata: [DONE]\n\n',
    "no choices": 'data: {"choices": null}\n\n',
    "a stream that breaks off": HALF,
    "a cut event": HALF + 'data: {"choices": [{"te',
    "a page": "<html><body>Bad gateway</body></html>",
    "nothing": "",
    "broken JSON": "data: {]\n\n",
    "HTTP 500": (500, {}, "oops"),
    "HTTP 503": (503, {"Retry-After": "0"}, "busy"),
    "HTTP 429": (429, {"Retry-After": "0"}, "slow down"),
    "a cut connection": None,
}


class Stand:
    """A server that sends its replies in order, the last one again and again."""

    def __init__(self):
        self.replies, self.requests, self.keys = [WHOLE], [], []

    def handler(self):
        stand = self

        class Model(model_server.Handler):
            def do_GET(self):
                stand.keys.append(self.headers["Authorization"])
                self.reply(json.dumps({"data": [{"id": "m", "max_model_len": 1000}]}))

            def do_POST(self):
                stand.keys.append(self.headers["Authorization"])
                stand.requests.append(self.asked())
                reply = stand.replies.pop(0) if len(stand.replies) > 1 else stand.replies[0]
                if isinstance(reply, str):
                    self.reply(reply)
                elif reply is not None:
                    status, headers, text = reply
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(text)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(text.encode())

        return Model


@pytest.fixture(scope="module")
def stands():
    """Two servers with their addresses, and a client of the first and of both."""
    with ExitStack() as started:
        both = [Stand(), Stand()]
        urls = [started.enter_context(model_server.on_loopback(one.handler())) for one in both]
        yield both, urls, [started.enter_context(Server(urls[:count], TINY)) for count in (1, 2)]


@pytest.fixture
def serving(stands, monkeypatch):
    """Let servers give these replies. Returns a client of them, and the first server."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    both, _, clients = stands

    def start(*replies):
        for stand, own in zip(both, replies, strict=False):
            stand.replies, stand.requests, stand.keys = own, [], []
        return clients[len(replies) - 1], both[0]

    return start


def sample(client):
    return client.run(client.sample([1, 2, 3], 0, Settings(max_tokens=8)))


@pytest.mark.parametrize("fault", BAD)
def test_a_reply_that_is_no_stream_is_asked_for_again_and_a_server_of_such_told_in_one_line(serving, fault):
    client, stand = serving([BAD[fault], WHOLE])
    found = sample(client)
    assert (found.text, found.token_ids, found.finished) == ("42", [1, 2], True) and len(stand.requests) == 2
    client, stand = serving([BAD[fault]])
    with pytest.raises(AimoError, match=r"server http://127.*look at the servers' logs") as e:
        sample(client)
    assert "\n" not in str(e.value) and 2 <= len(stand.requests) <= server.TRIES * (server.RETRIES + 1)


def test_of_two_servers_the_one_in_health_answers_and_null_texts_are_empty(serving):
    for fault in ("an error body with HTTP 200", "HTTP 503", "HTTP 429"):
        client, _ = serving([BAD[fault]], [event(text=None) + WHOLE])
        assert [sample(client).text for _ in range(2)] == ["42"] * 2


def test_a_request_that_is_refused_is_not_repeated(serving):
    client, stand = serving([(400, JSON, '{"error": {"message": "too long"}}')])
    with pytest.raises(AimoError, match="too long"):
        sample(client)
    assert len(stand.requests) == 1


def test_the_key_of_the_environment_is_sent_without_its_line_break(serving, stands, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-key\n")
    _, stand = serving([WHOLE])
    with Server(stands[1][:1], TINY) as client:
        sample(client)
    assert stand.keys == ["Bearer sk-key"] * 2
