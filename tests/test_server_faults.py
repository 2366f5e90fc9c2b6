"""What model servers answer in the field in place of a stream, from a stand-in on loopback."""

import json
from contextlib import ExitStack

import pytest
from conftest import TINY
from model_server import standing

from aimo.inference import server
from aimo.inference.errors import AimoError
from aimo.inference.server import Server
from aimo.inference.settings import Settings


def event(**choice):
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


HALF = event(text="4", token_ids=[1])
WHOLE = HALF + event(text="2", token_ids=[2], finish_reason="stop") + "data: [DONE]\n\n"
ERROR = '{"error": {"message": "overloaded", "code": 500}}'
BAD = {
    "an error body with HTTP 200": ERROR,
    "an error as data": f"{HALF}data: {ERROR}\n\n",
    "empty choices": 'data: {"choices": []}\n\ndata: [DONE]\n\n',
    "a stream that breaks off": HALF,
    "a cut event": HALF + 'data: {"choices": [{"te',
    "a page": "<html><body>Bad gateway</body></html>",
    "nothing": "",
    "HTTP 500": ("oops", 500, {}),
    "HTTP 503": ("busy", 503, {"Retry-After": "0"}),
    "HTTP 429": ("slow down", 429, {"Retry-After": "0"}),
    "a cut connection": None,
}


@pytest.fixture(scope="module")
def stands():
    """Two servers that send their replies in order, the last one again; a client of the first and of both."""

    def next_reply(of):
        return lambda body, n: of.replies.pop(0) if len(of.replies) > 1 else of.replies[0]

    with ExitStack() as started:
        both = [started.enter_context(standing(None)) for _ in range(2)]
        for one in both:
            one.behave = next_reply(one)
        urls = [one.url for one in both]
        yield both, [started.enter_context(Server(urls[:count], TINY)) for count in (1, 2)]


@pytest.fixture
def serving(stands, monkeypatch):
    """Let servers give these replies. Returns a client of them, and the first server."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    both, clients = stands

    def start(*replies):
        for stand, own in zip(both, replies, strict=False):
            stand.replies, stand.bodies, stand.keys = own, [], []
        return clients[len(replies) - 1], both[0]

    return start


def sample(client):
    return client.run(client.sample([1, 2, 3], 0, Settings(max_tokens=8)))


@pytest.mark.parametrize("fault", BAD)
def test_a_reply_that_is_no_stream_is_asked_for_again_and_a_server_of_such_told_in_one_line(serving, fault):
    client, stand = serving([BAD[fault], WHOLE])
    found = sample(client)
    assert (found.text, found.token_ids, found.finished) == ("42", [1, 2], True) and len(stand.bodies) == 2
    client, stand = serving([BAD[fault]])
    with pytest.raises(AimoError, match=r"server http://127.*look at the servers' logs"):
        sample(client)
    assert 2 <= len(stand.bodies) <= server.TRIES * (server.RETRIES + 1)


def test_of_two_servers_the_one_in_health_answers_and_null_texts_are_empty(serving):
    for fault in ("an error body with HTTP 200", "HTTP 503", "HTTP 429"):
        client, _ = serving([BAD[fault]], [event(text=None) + WHOLE])
        assert [sample(client).text for _ in range(2)] == ["42"] * 2


def test_a_request_that_is_refused_is_not_repeated(serving):
    client, stand = serving([('{"error": {"message": "too long"}}', 400, {})])
    with pytest.raises(AimoError, match="too long"):
        sample(client)
    assert len(stand.bodies) == 1


def test_the_key_of_the_environment_is_sent_without_its_line_break(serving, stands, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-key\n")
    _, stand = serving([WHOLE])
    with Server([stand.url], TINY) as client:
        sample(client)
    assert stand.keys == ["Bearer sk-key"] * 2
