"""What the journal keeps of a sample, and what a kernel that starts again takes from it."""

from dataclasses import asdict, replace

import pytest

from aimo.inference.errors import AimoError
from aimo.inference.journal import Journal, JournalHeader, parse_line
from aimo.inference.sample import End, Sample
from aimo.inference.settings import Settings
from aimo.inference.storage import read_lines
from aimo.inference.voting import Stop

SAMPLE = Sample(
    3, "2 \u2028 x", 7, End.ANSWERED, 2, 0.5, begin_s=1.0, end_s=3.5, seed=11, turns=2, errors=1,
    printed=[None, 2], malformed=1, logprob=-0.2, tail_logprob=-0.1, entropy=0.4, tail_entropy=0.3,
)  # fmt: skip
STOPPED = replace(SAMPLE, index=4, end=End.STOPPED, answer=None)


def kept(path, *entries, model="m", settings=None):
    journal = Journal(path, model, "aimo3", settings)
    for entry in entries:
        journal.add("q", "1 + 1?", entry)
    return read_lines(path)


def test_a_journal_says_whose_it_is_and_keeps_every_value_of_a_sample(tmp_path):
    header, sample, answer = map(parse_line, kept(tmp_path / "j", SAMPLE, 2, settings={"samples": 8}))
    assert header == JournalHeader("m", "aimo3", {"samples": 8})
    assert (sample.id, sample.value) == ("q", SAMPLE)
    assert (answer.key, answer.value) == (sample.key, 2)


def test_a_second_start_goes_on_without_a_second_header_and_may_sample_again_what_was_stopped(tmp_path):
    kept(tmp_path / "j", SAMPLE, STOPPED)
    lines = kept(tmp_path / "j", 2)
    assert ["journal" in line for line in lines] == [True, False, False, False]
    assert parse_line(lines[2]).value == STOPPED, "for the replay"
    solution = Journal(tmp_path / "j", "m", "aimo3").recall("q", "1 + 1?")
    assert (solution.answer, solution.samples, solution.stop) == (2, [SAMPLE], Stop.KNOWN)
    assert Journal(tmp_path / "j", "m", "aimo3").recall("q", "1 + 2?").stop is None


@pytest.mark.parametrize("other", [{"model": "another"}, {"settings": {"temperature": 0.5}}])
def test_samples_of_another_model_or_other_settings_are_left_out(tmp_path, capsys, other):
    kept(tmp_path / "j", SAMPLE, 2)
    model, settings = other.get("model", "m"), other.get("settings")
    assert Journal(tmp_path / "j", model, "aimo3", settings).recall("q", "1 + 1?").samples == []
    assert "2 lines of another model or other settings are left out" in capsys.readouterr().out
    kept(tmp_path / "j", STOPPED, model=model, settings=settings)
    assert Journal(tmp_path / "j", "m", "aimo3").recall("q", "1 + 1?").samples == [SAMPLE]


@pytest.mark.parametrize("bad", ["\xff", "[1]", '{"key": 1}', '{"journal": []}', "", "{" * 9000])
def test_a_broken_line_is_left_out_of_a_kernels_journal_and_named_to_a_user(tmp_path, capsys, bad):
    path = tmp_path / "j"
    kept(path, SAMPLE)
    path.write_bytes(path.read_bytes() + bad.encode("latin-1") + b"\n")
    Journal(path, "m", "aimo3").add("q", "1 + 1?", 2)
    assert f"{path}, line 3 is left out" in capsys.readouterr().out
    assert Journal(path, "m", "aimo3").recall("q", "1 + 1?").answer == 2
    with pytest.raises(AimoError, match=r"j, line 3: .*; remove the line, or take another --out"):
        Journal(path, "m", "aimo3", other="--out")


def users(path, seed=0, weights="w", model="m", **settings):
    """A user's journal: of a model known by its content, with all settings."""
    return Journal(path, model, "aimo3", asdict(replace(Settings(), **settings)), weights, seed, "--out")


@pytest.mark.parametrize(
    "other, told",
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"weights": "v"}, "weights was 'w' and is now 'v'"),
        ({"temperature": 0.5}, "temperature was 1.0 and is now 0.5"),
        ({"vllm": {"quantization": "fp8"}}, "vllm.quantization was None and is now 'fp8'"),
    ],
)
def test_a_user_goes_on_with_samples_that_were_asked_alike_and_is_told_what_differs(tmp_path, other, told):
    first = users(tmp_path / "j")
    first.add("q", "1 + 1?", SAMPLE)
    first.close()
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(AimoError, match=rf"{told}; take another --out"):
        users(tmp_path / "j", **other)
    assert (tmp_path / "j").read_bytes() == before
    alike = {"gpu_memory": 0.5, "confidence": True, "vllm": {"max_num_seqs": 8}}
    again = users(tmp_path / "j", model="elsewhere", **alike)
    assert again.recall("q", "1 + 1?").samples == [SAMPLE]
    again.close()


def test_a_kernels_journal_that_cannot_be_written_is_told_and_raises_nothing(tmp_path, capsys):
    Journal(tmp_path / "no" / "folder" / "file", "m").add("q", "1 + 1?", 2)
    assert "what is not written is lost" in capsys.readouterr().out
