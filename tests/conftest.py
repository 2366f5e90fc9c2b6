"""What tests share: markers, the command line, the tiny base, one engine and one small run, public data.

Nothing heavy is imported here or at the top of a test file: `make fast` collects them all.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from markdown_it import MarkdownIt

from aimo.inference import startup
from aimo.inference.errors import AimoError

startup.collect_less()


def in_one_line(error: AimoError, *arguments: object) -> None:
    Exception.__init__(error, *arguments)
    assert "\n" not in str(error), error


AimoError.__init__ = in_one_line  # whatever is told to a user, in every test

ROOT = Path(__file__).parents[1]
TINY = ROOT / "data" / "tiny-base"
AIMO = Path(sys.executable).with_name("aimo")
MARKDOWN = MarkdownIt("commonmark").enable("table")  # as GitHub reads it
GUARD = Path(__file__).parent / "guard"
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers and all commands under test inherit it
    DESK = tempfile.TemporaryDirectory(prefix="aimo-tests-")
    os.environ["AIMO_RUNS"] = str(Path(DESK.name) / "runs")
pytest.register_assert_rewrite("stand_in")  # also a plugin, of the tests that name it as one
# The demo with few steps, in about a minute.
SMALL = [
    "data.sft.rows=200",
    "data.grpo.rows=100",
    "data.heldout.rows=20",
    "sft.max_steps=8",
    "sft.save_steps=4",
    "grpo.max_steps=4",
    "grpo.save_steps=2",
    "grpo.probe_steps=2",
    "grpo.num_generations=4",
    "inference.samples=4",
    "inference.test_rows=4",
]
# Files that import the same large packages, which takes ten seconds: `make fast` has them in one process.
TRL = ["arguments", "opd", "placement", "schema", "served", "training", "trl_compat", "worst_tokens"]
TRANSFORMERS = ["data", "engine", "evaluate", "extending", "kills", "prompts", "public_models", "tiny_models"]
MATH_VERIFY = ["answers", "compare", "distil", "hostile_pages", "rewards", "server_faults"]
MORE = ["sources", "public_reports", "startup"]
TOGETHER = {"trl": TRL, "transformers": TRANSFORMERS + MATH_VERIFY + MORE}
# Files whose slow tests take longest, the longest first.
LONGEST = ["smollm2", "launch", "kills", "pipeline", "serving", "stages", "engine", "faults", "cli"]
# Fixtures that are made once in each process of pytest-xdist that needs them, and what that makes a test.
ONCE = {"engine": "engine", "small_run": "train"}


def pytest_configure(config: pytest.Config) -> None:
    """`make fast`: this process, its workers and their subprocesses refuse engines and training."""
    if config.option.markexpr == "not slow" and str(GUARD) not in sys.path:
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(GUARD), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        sys.path.insert(0, str(GUARD))
        import sitecustomize  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the engine or trains as slow, and begin with the longest files: other processes have the
    rest meanwhile."""
    for item in items:
        for name in ONCE.keys() & getattr(item, "fixturenames", ()):
            item.add_marker(ONCE[name])
        if any(item.get_closest_marker(name) for name in ("engine", "train")):
            item.add_marker("slow")
    # Recipes come last, as Unsloth, once imported, changes how the tests after it train.
    order = {f"test_{name}": -i for i, name in enumerate(reversed(LONGEST), 1)} | {"test_recipes": 1}
    items.sort(key=lambda item: order.get(item.path.stem, 0))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`make fast`: give the files of a group to one process. (`--dist loadgroup` of pytest-xdist 3.8 reads no
    groups under pytest 9.2.)"""
    if config.option.markexpr != "not slow":
        return None
    from xdist.scheduler import LoadFileScheduling

    groups = {f"tests/test_{name}.py": group for group, names in TOGETHER.items() for name in names}

    class Grouped(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return groups.get(file := super()._split_scope(nodeid), file)

    return Grouped(config, log)


@pytest.fixture(autouse=True)
def fresh_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's time counts from its start; a process that runs tests is older than Kaggle's patience."""
    monkeypatch.setattr(startup, "STARTED", time.monotonic())


@pytest.fixture(scope="module", autouse=True)
def unlocked() -> Iterator[None]:
    """A file's tests leave no locked folder: later notebooks would think that `aimo run` has started them."""
    yield
    if runs := sys.modules.get("aimo.run.runs"):
        runs.unlock_all()
        os.environ.pop(runs.LOCKED, None)


def settings(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def aimo(*arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    return subprocess.run([str(AIMO), *arguments], capture_output=True, text=True, timeout=timeout)


def here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which is quicker."""
    from aimo.commands import run

    code, out, err = 0, io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["aimo", *map(str, arguments)])
        try:
            run.main()
        except SystemExit as e:
            code = e.code or 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def refused(*arguments: object, told: list[str]) -> None:
    """The command ends with 2 and one line that holds all of `told`."""
    done = here(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("aimo: "), done
    assert done.stderr.count("\n") == 1 and all(part in done.stderr for part in told), done.stderr


def lines(path: Path, *rows: dict) -> Path:
    """Write a file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def wait_for(condition: Callable[[], object], timeout: float = 300) -> None:
    end = time.time() + timeout
    while not condition():
        assert time.time() < end, "timed out"
        time.sleep(0.2)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def left_of(processes: list[psutil.Process], seconds: float = 5) -> list[psutil.Process]:
    """Return the processes that still run after some seconds."""
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not any(map(is_alive, processes)), seconds)
    return [process for process in processes if is_alive(process)]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Public data beside the checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the public data sets in {folder.name} beside the repository")
    return folder


@pytest.fixture(scope="session")
def engine() -> Iterator:
    """The tiny base in vLLM."""
    from aimo.inference.engine import Engine

    with Engine(TINY) as engine:
        yield engine


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """So small a model gains nothing from several threads, and on a busy machine they wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


PUBLIC_TEMPLATE = """\
{%- for message in messages -%}
  {{- message.content + (eos_token if message.role != 'user' else '') -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<think>' if enable_thinking | default(true) else '<think></think>' -}}
{%- endif -%}
"""
PUBLIC_TAGS = {
    "<start_working_out>": "<think>",
    "<end_working_out>": "</think>",
    "<SOLUTION>": "$\\boxed{",
    "</SOLUTION>": "}$",
}


@pytest.fixture(scope="session")
def public_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was not trained here: the tiny base, which thinks in <think> and answers in a box.

    It has a template and sampling of its own, and no aimo.json.
    """
    folder = tmp_path_factory.mktemp("public") / "model"
    shutil.copytree(TINY, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = PUBLIC_TAGS.get(token["content"], token["content"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(PUBLIC_TEMPLATE)
    sampling = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub that takes what is pushed: the repository, and the content of each file."""
    pushed: dict[str, Any] = {}

    class Hub:
        def create_repo(self, repo: str, **more: Any) -> None:
            pushed["repo"] = repo, more.get("repo_type", "model"), more["private"]

        def upload_folder(self, repo_id: str, folder_path: str) -> str:
            pushed.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return f"hub/{repo_id}"

        def create_commit(self, repo: str, parts: list[Any], **more: Any) -> SimpleNamespace:
            for part in parts:
                given = part.path_or_fileobj
                pushed[part.path_in_repo] = given if isinstance(given, bytes) else Path(given).read_bytes()
            return SimpleNamespace(commit_url=f"hub/{repo}")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    return pushed


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed with -9 during GRPO, then started again to its end. Copy it before you change it.

    `killed.json` has the time of SFT's weights at the kill, `stdout.txt` and `stderr.txt` the second start's.
    """
    folder = tmp_path_factory.mktemp("small") / "run"
    arguments = ["run", "--profile", "tiny", "--run-dir", str(folder), *settings(SMALL)]
    process = subprocess.Popen(
        [str(AIMO), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: list(folder.glob("grpo/checkpoint-2/trainer_state.json")) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    weights = folder / "sft/model/model.safetensors"
    (folder / "killed.json").write_text(json.dumps({"sft": weights.stat().st_mtime_ns}))
    assert not (folder / "grpo/model").exists()
    done = aimo(*arguments)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder
