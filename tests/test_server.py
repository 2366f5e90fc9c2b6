"""A real `vllm serve` with the tiny base in place of an engine in this process."""

from dataclasses import replace

import pytest
from conftest import TINY, aimo

from aimo.errors import AimoError
from aimo.inference.answer_kinds import Integer
from aimo.inference.server import Server
from aimo.inference.settings import resolve_settings
from aimo.inference.solver import solve_problem
from aimo.inference.vllm_process import serving

EASY = "A shop sells pens for 3 dollars and books for 4 dollars. How much do 2 pens and 5 books cost?"
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of a server that is ready."""
    with serving(TINY, resolve_settings(TINY), log=tmp_path_factory.mktemp("server") / "log") as (address, _):
        yield address


def test_the_solver_votes_with_a_server_as_with_the_engine(url):
    with Server([url, f"{url}/v1"], TINY) as server:
        s = solve_problem(server, EASY, num_samples=16, kind=Integer(0, 99999))
        assert s.votes and s.answer == max(s.votes, key=lambda a: (s.votes[a], -a)) and not s.note
        assert all(0 < c.tokens <= server.settings.max_tokens for c in s.ended)


def test_top_k_stop_texts_and_token_ids_work_as_in_the_engine(url):
    settings = replace(resolve_settings(TINY), top_k=1, stop=["<SOLUTION>"], max_tokens=60)
    with Server([url], TINY, settings) as server:
        one, other = (server.run(server.sample(server.encode(EASY), seed, settings)) for seed in (1, 2))
        assert server.tokenizer.decode(one.token_ids) == one.text == other.text
    assert one.finished and one.text.endswith("<end_working_out><SOLUTION>")


def test_a_test_file_is_answered_by_a_server(url, tmp_path):
    (tmp_path / "test.csv").write_text(f"id,problem\na,{EASY}\n")
    out = tmp_path / "a.csv"
    arguments = ["--model", str(TINY), "--test", str(tmp_path / "test.csv"), "--out", str(out)]
    done = aimo("solve", *arguments, "--server", url)
    assert done.returncode == 0, done.stderr
    assert out.read_text().startswith("id,answer\na,")


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(AimoError, match=r"http://127\.0\.0\.1:9/v1 does not answer"):
        Server(["http://127.0.0.1:9"], TINY)
