"""The programs of samples: sessions that are ready, what the model reads of an output, how a sample ends."""

import re
import threading
import time

import pytest
from conftest import wait_for

from aimo.inference import programs
from aimo.inference.programs import Programs

SECONDS = 30.0  # no program here comes near it


def test_sessions_are_ready_before_they_are_needed_and_each_one_taken_is_replaced():
    programs.warm(SECONDS)
    ready = programs.pool(SECONDS).ready
    wait_for(lambda: ready.qsize() == 16, 30)
    samples = [Programs(SECONDS) for _ in range(5)]
    assert [sample.run(f"{i} + 1").shown for i, sample in enumerate(samples)] == ["1", "2", "3", "4", "5"]
    wait_for(lambda: ready.qsize() == 16, 30)
    for sample in samples:
        sample.close()


def test_variables_live_on_in_a_sample_and_in_no_other():
    one, other = Programs(SECONDS), Programs(SECONDS)
    one.run("x = 7")
    assert one.run("x").shown == "7"
    failed = other.run("print('before')\nx")
    assert failed.shown.startswith("before") and "NameError" in failed.shown and not failed.ok
    one.close()
    other.close()


@pytest.mark.parametrize("library", ["numpy", "sympy", "mpmath", "networkx"])
def test_a_program_can_import_what_the_prompt_says_is_installed(library):
    sample = Programs(SECONDS)
    assert sample.run(f"import {library}; {library}.__name__").shown == f"'{library}'"
    sample.close()


def test_long_output_is_cut_in_the_middle_with_a_note():
    sample = Programs(SECONDS)
    shown = sample.run("print('a' * 5000 + 'b' * 5000)").shown
    assert re.fullmatch(r"a{2000}\n\[… 6,001 characters left out …\]\nb{1999}", shown)
    sample.close()


def test_closing_returns_at_once_and_ends_a_running_program():
    sample, outputs = Programs(SECONDS), []
    thread = threading.Thread(target=lambda: outputs.append(sample.run("import time; time.sleep(25)")))
    thread.start()
    wait_for(lambda: sample.session, 10)
    begun = time.monotonic()
    sample.close()
    thread.join(15)
    assert outputs and not outputs[0].ok and time.monotonic() - begun < 15
