"""What model servers answer in the field in place of a stream, from a stand-in on loopback."""

import json
from contextlib import ExitStack
from functools import cache, partial

import pytest
from conftest import TINY
from model_server import standing

from aimo.inference import chat_format, server
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.server import Server
from aimo.inference.settings import Settings

TOKENIZER = cache(partial(read_tokenizer, TINY))  # it takes half a second


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


def sample(client):
    return client.run(client.sample([1, 2, 3], 0, Settings(max_tokens=8)))


@pytest.fixture
def serving(monkeypatch):
    """A client of servers that send these replies in order, the last one again, and the first server."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(chat_format, "read_tokenizer", lambda *_, **__: TOKENIZER())
    with ExitStack() as started:

        def start(*replies):
            behaviours = [lambda _, n, own=own: own[min(n, len(own) - 1)] for own in replies]
            stands = [started.enter_context(standing(behave)) for behave in behaviours]
            return started.enter_context(Server([stand.url for stand in stands], TINY)), stands[0]

        yield start


@pytest.mark.parametrize("fault", BAD)
def test_a_reply_that_is_no_stream_is_asked_for_again_and_a_server_of_such_told_in_one_line(serving, fault):
    client, stand = serving([BAD[fault], WHOLE])
    found = sample(client)
    assert (found.text, found.token_ids, found.finished) == ("42", [1, 2], True) and len(stand.bodies) == 2
    client, stand = serving([BAD[fault]])
    with pytest.raises(AimoError, match=r"server http://127.*look at the servers' logs"):
        sample(client)
    assert 2 <= len(stand.bodies) <= server.TRIES * (server.RETRIES + 1)


@pytest.mark.parametrize("fault", ["an error body with HTTP 200", "HTTP 503", "HTTP 429"])
def test_of_two_servers_the_one_in_health_answers_and_null_texts_are_empty(serving, fault):
    client, _ = serving([BAD[fault]], [event(text=None) + WHOLE])
    assert [sample(client).text for _ in range(2)] == ["42"] * 2


def test_a_request_that_is_refused_is_not_repeated_and_has_the_key_without_its_line_break(
    serving, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-key\n")
    client, stand = serving([('{"error": {"message": "too long"}}', 400, {})])
    with pytest.raises(AimoError, match="too long"):
        sample(client)
    assert len(stand.bodies) == 1 and stand.keys == ["Bearer sk-key"] * 2
