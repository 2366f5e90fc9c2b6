"""A dress rehearsal of a competition: each command from wheels to score, against a stand-in for Kaggle.

    python benchmarks/rehearsal.py [--out FOLDER]

The stand-in is that of the tests, on loopback; Kaggle's own client talks to it. What is pushed is executed
with papermill from an empty folder, laid out as on Kaggle, without this repository and, but for `wheels` and
`train`, without a network. A submission is run again for hidden problems, with a gateway in another process,
as often as the competition answers them, and scored by its points. The page FOLDER/rehearsal.html has each
step with its time, its requests and what it left. Exits with 1 when a step fails.

It differs from Kaggle in that the machine has no GPU and has all packages installed: `wheels` collects and
checks a small set of them only.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from aimo.config import ROOT, RUNS

sys.path.insert(0, str(ROOT / "tests"))
import machine
from stand_in import Kaggle, Version

from aimo.data import sources
from aimo.evaluation.submission import score_file
from aimo.inference import competitions
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.errors import AimoError
from aimo.kaggle import kernels
from aimo.report import page, pages, tables
from aimo.report.page import Section

RULES = COMPETITIONS["aimo3"]
HIDDEN_SEED = 2026  # of the hidden problems, and one more of those for `evaluate`
SMALL_SET = ("latex2mathml", "packaging", "pyyaml", "six")
SMALL = [
    "model.base=/kaggle/input/aimo-tiny-base",
    "data.sft.rows=400",
    "data.grpo.rows=400",
    "data.heldout.rows=20",
    "sft.epochs=1",
    "grpo.max_steps=60",
    "grpo.save_steps=8",
    "grpo.probe_steps=8",
    "grpo.num_generations=8",
]
ADAPTER = """
slug: tiny-reasoning
answer: {kind: nemotron}
rules: Put the final answer in \\boxed{}.
artefact:
  kind: adapter
  lora:
    bases: [aimo-tiny-base]
    rank: 32
    targets: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
scoring: nemotron
"""
# Competitions that take a file: what their pages say of the metric. The rest is drafted from their data.
FILES = {"csv": "An answer within 1 % of ours is right.", "parquet": "Accuracy."}
FEW_PROOFS = ("provers=2", "verifiers=1", "refiners=1", "selectors=1", "proof_tokens=96", "verdict_tokens=48")
# The commands as they are, but for Kaggle's address, and for where the records and outputs go. A status is
# looked at each second in place of each twenty. The wheels of a small set do not cover all imports, so the
# check of a kernel does not see them.
COMMAND = """
import sys
from pathlib import Path
from kagglesdk import kaggle_env
url, out = sys.argv[1:3]
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = url
from aimo.commands import run
from aimo.kaggle import client, competition, kernels, versions
competition.RUNS = Path(out)
versions.POLL_S = client.LOOK_S = 1.0
kernels.OUTPUT = Path(out, "unseen")
versions.OUTPUT, client.RECORDS = Path(out, "output"), Path(out, "kaggle.jsonl")
sys.argv = ["aimo", *sys.argv[3:]]
run.main()
"""


class Executed(Version):
    """A version of a kernel that a machine runs in a thread."""

    state = "QUEUED"

    def status(self) -> str:
        return self.state


class Host(Kaggle):
    """The stand-in for Kaggle's API, with a machine that runs what is pushed, one version after the other."""

    def __init__(self, folder: Path, hidden_csv: Path):
        super().__init__()
        self.competitions.clear()
        self.folder, self.hidden_csv = folder, hidden_csv
        self.temporary = tempfile.TemporaryDirectory()
        self.machine = Path(self.temporary.name) / "machine"
        """Outside the repository, of which a notebook sees nothing; one place, as on Kaggle."""
        self.busy = threading.Lock()

    def SaveKernel(self, request: Any) -> dict[str, Any]:
        versions = self.kernels.setdefault(request.slug, [])
        inputs, lost = self.inputs(request)
        version = Executed(request, {"log": [], "files": {}})
        versions.append(version)
        left = self.folder / request.slug.split("/")[1] / str(len(versions))
        threading.Thread(target=self.execute, args=(version, inputs, left), daemon=True).start()
        return {"ref": request.slug, "versionNumber": len(versions)} | lost

    def execute(self, version: Executed, inputs: dict[str, bytes], left: Path) -> None:
        """Run a version; its output is what it leaves."""
        with self.busy:
            version.state = "RUNNING"
            self.lay_out(version.request, inputs)
            internet, working = version.request.enable_internet, self.machine / "working"
            ran = machine.run(version.request.text, self.machine / "input", working, internet=internet)
            version.log = ran.log
            version.failure = "" if ran else [line for line in ran.log if line.strip()][-1]
            version.files = {name: path.read_bytes() for name, path in machine.outputs(working).items()}
            shutil.copytree(working, left)
        version.state = "COMPLETE" if ran else "ERROR"

    def inputs(self, request: Any) -> tuple[dict[str, bytes], dict[str, list[str]]]:
        """What a kernel has attached, by its path below /kaggle/input; and what does not exist, by kind."""
        found: dict[str, bytes] = {}
        lost: dict[str, list[str]] = {}
        for kind in ("model", "dataset", "kernel"):
            for source in getattr(request, f"{kind}_data_sources"):
                try:
                    content = self.content(kind, source)
                except (KeyError, IndexError, StopIteration):
                    lost.setdefault(f"invalid{kind.title()}Sources", []).append(source)
                    continue
                found |= {f"{source.split('/', 1)[1]}/{name}": data for name, data in content.items()}
        return found, lost

    def content(self, kind: str, source: str) -> dict[str, bytes]:
        """The files of a model's version, a data set or a kernel's last output."""
        if kind == "dataset":
            return dict(self.datasets[source][-1])
        if kind == "kernel":
            return dict(next(v for v in reversed(self.kernels[source]) if v.state == "COMPLETE").files)
        owner, slug, _, variation, number = source.split("/")
        return dict(self.models[f"{owner}/{slug}"][variation][int(number) - 1])

    def lay_out(self, request: Any, inputs: dict[str, bytes]) -> None:
        """Empty the machine and put a kernel's inputs there."""
        empty(self.machine)
        for name, data in inputs.items():
            path = self.machine / "input" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for slug in request.competition_data_sources:
            for name, data in self.competitions.get(slug, {}).get("files", {}).items():
                path = self.machine / "input" / slug / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            if slug == RULES.slug:
                machine.attach_competition(self.machine / "input", RULES, self.folder / "public.csv")

    def DownloadDataFiles(self, request: Any) -> bytes:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.write(self.folder / "public.csv", "test.csv")
            package = ROOT / "tests" / "competition"
            for path in package.rglob("*.py"):
                file.write(path, path.relative_to(package))
        return archive.getvalue()

    def CreateCodeSubmission(self, request: Any) -> dict[str, Any]:
        """Take a submission, and run its kernel for the hidden problems."""
        taken = super().CreateCodeSubmission(request)
        row = self.submissions[0]
        row |= {"status": "PENDING", "publicScore": ""}
        version = self.kernels[f"{request.kernel_owner}/{request.kernel_slug}"][request.kernel_version - 1]
        rerun = self.rerun if request.competition_name == RULES.slug else self.rerun_for_file
        threading.Thread(target=rerun, args=(version, row), daemon=True).start()
        return taken

    def rerun_for_file(self, version: Executed, row: dict[str, Any]) -> None:
        """Answer the hidden problems in place of the public ones, and score the file as the host does."""
        (slug,) = version.request.competition_data_sources
        rules = competitions.read_competition(self.folder.parent / f"{slug}.yaml")
        working = self.machine / "working"
        with self.busy:
            self.lay_out(version.request, self.inputs(version.request)[0])
            hidden = (line.rpartition(",")[0] for line in self.hidden_csv.read_text().splitlines())
            text = "\n".join(hidden).replace("id,problem", "row_id,question", 1)
            (self.machine / "input" / slug / "test.csv").write_text(text)
            ran = machine.run(
                version.request.text, self.machine / "input", working, KAGGLE_IS_COMPETITION_RERUN="1"
            )
            try:
                found = score_file(rules, working / rules.artefact.file, self.hidden_csv)
            except AimoError as e:
                row |= {"status": "ERROR", "errorDescription": str(e)}
                return
        state = "COMPLETE" if ran else "ERROR"
        row |= {"status": state, "publicScore": found.split()[0].rstrip(",")}

    def rerun(self, version: Executed, row: dict[str, Any]) -> None:
        """Answer the hidden problems in the competition's passes, and score them."""
        passes = []
        text, inputs = version.request.text, self.machine / "input"
        for number in range(1, RULES.passes + 1):
            out = self.folder / f"hidden-{number}.parquet"
            with self.busy:
                self.lay_out(version.request, self.inputs(version.request)[0])
                ran, said = machine.rerun(
                    text, inputs, self.machine / "working", inputs / RULES.slug, self.hidden_csv, out
                )
            if not ran or said != "submission written":
                row |= {"status": "ERROR", "errorDescription": said}
                return
            passes.append(dict(pl.read_parquet(out)["id", "answer"].rows()))
        table = pl.read_csv(self.hidden_csv, infer_schema=False)
        found = competitions.score_of(RULES, competitions.known_answers(table, RULES), passes)
        row |= {"status": "COMPLETE", "publicScore": f"{found:g}"}


class Rehearsal:
    """The steps, what each printed, and its requests."""

    def __init__(self, out: Path):
        self.out = out
        self.host = Host(out / "kaggle", write_problems(out / "kaggle" / "hidden.csv", HIDDEN_SEED))
        self.rows: list[dict[str, Any]] = []
        self.sections: list[Section] = []
        (out / "home").mkdir()
        self.environment = os.environ | {
            "HOME": str(out / "home"),
            "KAGGLE_API_TOKEN": "good-token",
            "COLUMNS": "160",
        }

    def step(self, what: str, *command: str, leaves: Path | None = None) -> str:
        """Give one command and return what it printed. Raises SystemExit when it fails."""
        shown = " ".join(["aimo", *command]).replace(str(self.out), "OUT")
        print(f"$ {shown}", flush=True)
        seen, begun = len(self.host.requests), time.monotonic()
        called = [sys.executable, "-c", COMMAND, self.host.url, str(self.out), *command]
        done = subprocess.run(
            called,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds = time.monotonic() - begun
        asked = Counter(name for name, _ in self.host.requests[seen:])
        print(f"{done.stdout.rstrip()}\n({seconds:.0f} s)\n", flush=True)
        self.rows.append(
            {
                "step": what,
                "command": shown,
                "seconds": round(seconds, 1),
                "requests": ", ".join(f"{count} {name}" for name, count in asked.items()),
                "left": self.link(leaves) if leaves else "",
                "exit code": done.returncode,
            }
        )
        self.sections.append(
            Section(page.fold("what it printed", page.verbatim(done.stdout)), f"{what}", shown)
        )
        self.write()
        if done.returncode:
            sys.exit(f"step {what!r} failed with exit code {done.returncode}")
        return done.stdout

    def await_score(self, what: str) -> None:
        begun = time.monotonic()
        while self.host.submissions[0]["status"] == "PENDING":
            time.sleep(1)
        seconds = round(time.monotonic() - begun, 1)
        self.rows.append({"step": what, "command": "(Kaggle)", "seconds": seconds})
        if self.host.submissions[0]["status"] == "ERROR":
            sys.exit(f"{what}: {self.host.submissions[0]}")

    def link(self, path: Path) -> Any:
        name = str(path.relative_to(self.out))
        return page.link(name, name)

    def write(self, score: str = "") -> None:
        seconds = sum(row["seconds"] for row in self.rows)
        lead = f"{len(self.rows)} steps in {seconds / 60:.1f} minutes. {score}"
        head = Section(tables.table(self.rows))
        page.write_page(self.out / "rehearsal.html", "A dress rehearsal", lead, [head, *self.sections])
        record = {"headline": lead, "seconds": seconds, "steps": [row | {"left": ""} for row in self.rows]}
        (self.out / "rehearsal.json").write_text(json.dumps(record, indent=1) + "\n")
        pages.write_index(self.out)


def empty(folder: Path) -> None:
    """Make a folder empty; what is read-only in it goes too."""
    if folder.exists():
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def write_problems(path: Path, seed: int, rows: int = 10, answers: bool = True) -> Path:
    """Write built-in problems as a test file in AIMO 3's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    problems = enumerate(sources.generate(rows, "heldout", seed))
    table = pl.DataFrame(
        [{"id": f"{seed}-{i}", "problem": p.problem, "answer": p.answer} for i, p in problems]
    )
    table.select("id", "problem", *["answer"] * answers).write_csv(path)
    return path


def kernel_folder(out: Path, name: str, parameters: dict[str, Any], **metadata: Any) -> Path:
    """A kernel's folder with other parameters and metadata, as its user would edit them."""
    folder = out / "kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    source = ROOT / "kernels" / name
    described = json.loads((source / "kernel-metadata.json").read_text()) | metadata
    (folder / "kernel-metadata.json").write_text(json.dumps(described, indent=2))
    kernels.build_kernel(name, folder, "tiny" if name in kernels.kernels_of("tiny") else None)
    path = folder / described["code_file"]
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            changed = [f"\n{key} = {value!r}" for key, value in parameters.items()]
            cell["source"] = "".join([*cell["source"], *changed])
    path.write_text(json.dumps(notebook))
    return folder


def lock_file(path: Path) -> Path:
    """A lock file of a few packages, in the versions of requirements-cpu.txt."""
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    kept = [line for line in lines if re.split(r"[=;\[ ]", line)[0].lower() in SMALL_SET]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(kept) + "\n")
    return path


def submit_file(run: Rehearsal, kind: str, model: str) -> str:
    """Go from a competition's address to the score of a file of answers; return it."""
    out, slug, sample = run.out, f"tiny-{kind}", io.BytesIO()
    asked = pl.read_csv(out / "kaggle" / "public.csv").rename({"id": "row_id", "problem": "question"})
    given = asked.select("row_id", prediction=pl.lit(7))
    given.write_csv(sample) if kind == "csv" else given.write_parquet(sample)
    run.host.competitions[slug] = {
        "about": {"title": f"Answers in {kind}", "maxDailySubmissions": 5},
        "pages": {"evaluation": FILES[kind], "code": "GPU Notebooks run for 9 hours."},
        "files": {"test.csv": asked.write_csv().encode(), f"sample_submission.{kind}": sample.getvalue()},
    }
    rules, folder = out / f"{slug}.yaml", out / "kernels" / slug
    folder.mkdir()
    run.step(f"{kind}: draft", "competition", "new", slug, "--out", str(rules), leaves=rules)
    built = ("kernel", "build", "submission", "--profile", "tiny", "--competition", str(rules))
    run.step(f"{kind}: kernel", *built, "--out", str(folder))
    left = out / "output" / f"aimo-{slug}" / "1" / f"submission.{kind}"
    run.step(f"{kind}: push", "kaggle", "push", str(folder), "--model", model, "--wait", leaves=left)
    submitted = ("kaggle", "submit", f"aimo-{slug}", "--message", kind, "--competition", str(rules))
    run.step(f"{kind}: submit", *submitted)
    run.await_score(f"{kind}: the hidden problems")
    run.step(f"{kind}: scores", "kaggle", "scores", str(rules))
    return f"{kind} {run.host.submissions[0]['publicScore']}"


def rehearse(out: Path) -> str:
    """Do all steps and return the line with the score."""
    folder = out / "kernels"
    write_problems(out / "kaggle" / "public.csv", HIDDEN_SEED, rows=3, answers=False)
    run = Rehearsal(out)
    push, dataset = ("kaggle", "push"), ("kaggle", "dataset", "push")
    run.step("sign in", "kaggle", "login-check")
    lock_file(out / "lock" / "requirements.txt")
    run.step("lock file", *dataset, str(out / "lock"), "--name", "aimo-lock")
    lock = {"requirements": "/kaggle/input/aimo-lock/requirements.txt"}
    kernel_folder(out, "wheels", lock, dataset_sources=["INSERT_YOUR_KAGGLE_NAME/aimo-lock"])
    left = out / "output" / "aimo-wheels" / "1" / "wheels.json"
    run.step("wheels", *push, str(folder / "wheels"), "--wait", leaves=left)
    run.step("data", "kaggle", "data", "aimo3", "--to", str(out / "input"), leaves=out / "input" / RULES.slug)
    run.step("base model", *dataset, str(ROOT / "data" / "tiny-base"), "--name", "aimo-tiny-base")
    train = {"dataset_sources": ["INSERT_YOUR_KAGGLE_NAME/aimo-tiny-base"]}
    kernel_folder(out, "train", {"overrides": SMALL, "session_s": 75}, **train)
    report = out / "output" / "aimo-train"
    left = report / "1" / "run" / "report.html"
    run.step("train, until the session ends", *push, str(folder / "train"), "--wait", leaves=left)
    own = ["INSERT_YOUR_KAGGLE_NAME/aimo-wheels", "INSERT_YOUR_KAGGLE_NAME/aimo-train"]
    kernel_folder(out, "train", {"overrides": SMALL, "session_s": 3600}, kernel_sources=own, **train)
    left = report / "2" / "run" / "report.html"
    run.step("train, gone on from that", *push, str(folder / "train"), "--wait", leaves=left)
    model = "me/aimo-tiny/transformers/default"
    run.step("model", "kaggle", "model", "push", str(report / "2" / "run"), "--to", model)
    write_problems(out / "problems" / "reference.csv", HIDDEN_SEED + 1)
    run.step("problems", *dataset, str(out / "problems"), "--name", "aimo-problems")
    kernel_folder(out, "evaluate", {"time_limit_s": 600})
    left = out / "output" / "aimo-evaluate" / "1" / "evaluation.html"
    run.step("evaluate", *push, str(folder / "evaluate"), "--model", f"{model}/1", "--wait", leaves=left)
    kernel_folder(out, "submission", {"time_limit_s": 600})
    left = out / "output" / "aimo-submission" / "1" / "submission.parquet"
    run.step("submission", *push, str(folder / "submission"), "--model", f"{model}/1", "--wait", leaves=left)
    run.step("submit", "kaggle", "submit", "aimo-submission", "--message", "dress rehearsal")
    run.await_score("the hidden problems, twice")
    run.step("scores", "kaggle", "scores")
    score = run.host.submissions[0]["publicScore"]
    # The other artefacts: files of answers, an adapter, and texts.
    others = [submit_file(run, kind, f"{model}/1") for kind in FILES]
    (out / "adapter.yaml").write_text(ADAPTER)
    pack = ("kaggle", "pack", str(report / "2" / "run" / "sft"), "--competition", str(out / "adapter.yaml"))
    run.step("adapter", *pack, "--no-serve", leaves=report / "2" / "run" / "submission.zip")
    given = ("--test", str(out / "kaggle" / "public.csv"), "--out", str(out / "submission.csv"))
    few = [part for value in FEW_PROOFS for part in ("--set", f"inference.proofs.{value}")]
    trained = str(report / "2" / "run" / "grpo" / "model")
    proofs = ("solve", "--model", trained, *given, "--competition", "proof-pilot", *few)
    run.step("proofs", *proofs, leaves=out / "submission.csv")
    if wrong := run.host.wrong:
        sys.exit(f"requests that Kaggle would refuse: {wrong}")
    said = f"Score: {score or 'none'} of 10. Files: {', '.join(others)}."
    run.write(said)
    run.host.close()
    if not score or not all(others):
        sys.exit(f"the submission failed: {run.host.submissions[0]}")
    return said


def main(
    out: Annotated[Path, typer.Option(help="A folder, which is emptied.")] = RUNS / "rehearsal",
) -> None:
    """Do all steps, and print where their page is."""
    begun, out = time.monotonic(), out.absolute()
    empty(out)
    print(f"{rehearse(out)} {time.monotonic() - begun:.0f} s: {out / 'rehearsal.html'}")


if __name__ == "__main__":
    typer.run(main)
