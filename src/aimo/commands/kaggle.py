"""`aimo kaggle …` and `aimo competition …`: each command is one call, and a line on what it did."""

from pathlib import Path
from typing import Annotated

import typer

from aimo.commands.options import arg, check_folder, opt, show_rows
from aimo.config.profile import STAGES
from aimo.evaluation import served, submission
from aimo.inference import competitions, local, proofs
from aimo.inference.answers import Proof, write_kind
from aimo.inference.competitions import COMPETITIONS, UNSURE, find_competition, name_of
from aimo.inference.errors import AimoError
from aimo.inference.storage import write_whole
from aimo.kaggle import client, competition, kernels, versions
from aimo.run.runs import find_run, quiet

HELP = "From the repository to Kaggle and back: push, follow, submit, scores."
app = typer.Typer(no_args_is_help=True, help=HELP)
model = typer.Typer(no_args_is_help=True, help="Models on Kaggle.")
dataset = typer.Typer(no_args_is_help=True, help="Datasets on Kaggle.")
app.add_typer(model, name="model")
app.add_typer(dataset, name="dataset")

Kernel = Annotated[str, arg("A folder of kernels/, OWNER/SLUG, or a SLUG of the token's user.")]
Competition = Annotated[str, arg("aimo1, aimo2, aimo3, Kaggle's slug, or a YAML file.", "COMPETITION")]
Number = Annotated[int | None, opt("The version; the last if not given.", "--version", min=1)]
DryRun = Annotated[bool, opt("Print the requests without sending them.", "--dry-run")]


@app.command("login-check")
def login_check(dry_run: DryRun = False) -> None:
    """Print whose token is used, and what is left of the week's GPU time."""
    with client.sign_in(dry_run) as api:
        quota = api.quota_view()
        print(f"signed in as {api.user}, with {api.token_source}")
        if gpu := quota.gpu_quota:
            total, used = (t.total_seconds() / 3600 for t in (gpu.total_time_allowed, gpu.time_used))
            left = f"{max(0, total - used):.1f} of {total:.1f} hours left"
            print(f"GPU: {left} until {quota.quota_refresh_time}")


@app.command()
def data(
    name: Competition,
    inputs: Annotated[Path | None, opt("The folder of inputs; /kaggle/input or data/kaggle.", "--to")] = None,
    dry_run: DryRun = False,
) -> None:
    """Download and unpack a competition's data, with its kaggle_evaluation."""
    with client.sign_in(dry_run) as api:
        folder = client.download_competition(api, name, inputs)
        print(f"data: {folder}")
        if not (folder / "kaggle_evaluation").is_dir():
            print("it holds no kaggle_evaluation")
        elif folder.parent != client.INPUTS:
            print(f"the local gateway finds its kaggle_evaluation with KAGGLE_INPUT={folder.parent}")


@app.command()
def push(
    kernel: Annotated[str, arg("A folder of kernels/, or a path.")],
    wait: Annotated[bool, opt("Follow it to its end and download its output.", "--wait")] = False,
    source: Annotated[str | None, opt("The model to attach, OWNER/…/VERSION.", "--model")] = None,
    no_run: Annotated[bool, opt("Save the version without running it.", "--no-run")] = False,
    dry_run: DryRun = False,
) -> None:
    """Check and push a kernel, which Kaggle then runs. Exit code 1 if the run failed."""
    if wait and no_run:
        raise AimoError("--wait goes without --no-run: a version that does not run has no end")
    if faults := kernels.check_kernel(kernel):
        raise AimoError(f"kernel {kernel}: {'; '.join(faults)}")
    with client.sign_in(dry_run) as api:
        version, metadata = versions.push_kernel(api, kernel, source, no_run)
        print(f"pushed {version}: https://www.kaggle.com/code/{version.ref}")
        if wait:
            try:
                versions.follow_version(api, version, metadata)
            except KeyboardInterrupt:
                raise AimoError(
                    f"interrupted; {version} goes on at Kaggle: `aimo kaggle status {version.ref}`, then "
                    f"`aimo kaggle output {version.ref}`"
                ) from None
            print(f"output: {versions.download_output(api, version)}")


@app.command()
def status(kernel: Kernel, number: Number = None, dry_run: DryRun = False) -> None:
    """Print the state of a kernel's version."""
    with client.sign_in(dry_run) as api:
        version, _ = versions.find_version(api, kernel, number)
        state, message = versions.ask_state(api, version)
        api.end_dry_run()
        print(f"{version}: {state.name.lower()}" + (f", {message}" if message else ""))


@app.command()
def logs(kernel: Kernel, number: Number = None, dry_run: DryRun = False) -> None:
    """Print a version's log, live while it runs."""
    with client.sign_in(dry_run) as api:
        version, _ = versions.find_version(api, kernel, number)
        api.end_dry_run()
        line = None
        for line in versions.read_log(api, version):
            print(line, flush=True)
        if line is None:
            print(f"{version} has no log yet; see `aimo kaggle status`")


@app.command()
def output(kernel: Kernel, number: Number = None, dry_run: DryRun = False) -> None:
    """Download a version's output and log to runs/kaggle, and compare each file with what Kaggle lists."""
    with client.sign_in(dry_run) as api:
        version, _ = versions.find_version(api, kernel, number)
        print(f"output: {versions.download_output(api, version)}")


@model.command("push")
def push_model_command(
    run: Annotated[str, arg("A run: a name in runs/, or a path.")],
    to: Annotated[str | None, opt("OWNER/MODEL/FRAMEWORK/VARIATION, if the profile names none.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Push a run's last model as a new version, and compare its sizes and hashes with Kaggle's."""
    folder, profile = find_run(run)
    if not profile.trained:
        raise AimoError(f"run {run}: profile {profile.profile} trains no model, so there is none to push")
    trained = folder / STAGES[profile.trained[-1]].product
    with client.sign_in(dry_run) as api:
        print(f"model: {client.push_version(api, trained, to, profile, folder)}")


@dataset.command("push")
def push_dataset_command(
    folder: Annotated[Path, arg("The folder, for example of wheels.")],
    name: Annotated[str | None, opt("SLUG or OWNER/SLUG, instead of the folder's.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Push a folder as a new version of a private dataset, and compare it with what Kaggle then lists."""
    with client.sign_in(dry_run) as api:
        print(f"dataset: {client.push_folder(api, folder, name)}")


@app.command("pack")
def pack_adapter_command(
    run: Annotated[str, arg("A run, by name or path; RUN/STAGE for a stage before the last.")],
    competition: Annotated[str, opt("A competition that takes an adapter: its name, or a YAML file.")],
    questions: Annotated[Path | None, opt("Questions to forecast from, if not the held-out ones.")] = None,
    serve: Annotated[bool, opt("First serve base and adapter with vLLM.", "--serve/--no-serve")] = True,
) -> None:
    """Check a run's adapter, forecast its score as the host serves it, and pack it as submission.zip."""
    quiet()
    print(*served.pack_run(run, competition, questions, serve), sep="\n")


@app.command()
def submit(
    kernel: Annotated[str, arg("As for `status`; or a file to upload.")],
    message: Annotated[str, opt("What Kaggle shows beside the score.")],
    number: Number = None,
    competition: Annotated[str | None, opt("Instead of the kernel's: a name, slug or file.")] = None,
    wait: Annotated[bool, opt("Wait for the score.", "--wait")] = False,
    dry_run: DryRun = False,
) -> None:
    """Submit a complete version of a kernel with answers, or a file if the competition takes uploads."""
    path = Path(kernel)
    if path.is_file():
        if not competition:
            raise AimoError(f"--competition is missing: name the one that takes {kernel}")
        if competition in COMPETITIONS or competition.endswith((".yaml", ".yml")):  # its rules are known
            rules = find_competition(competition)
            if path.name != rules.artefact.file:
                raise AimoError(
                    f"{path}: {name_of(competition)} takes a file {rules.artefact.file}; rename it"
                )
            if rules.artefact.lora:
                print(f"adapter: {served.check_archive(rules.artefact.lora, path)}")
            else:
                for name, answer in submission.read_submission(rules, path).items():
                    kind = rules.answer
                    if isinstance(kind, Proof) and (fault := proofs.fault_of_form(answer, kind.pages)):
                        print(f"{name}: {fault}")
    with client.sign_in(dry_run) as api:
        print(versions.submit_version(api, kernel, message, competition, number, wait))


@app.command()
def scores(name: Competition = "aimo3", dry_run: DryRun = False) -> None:
    """Print the submissions to a competition beside their models' hold-out figures, and what made them."""
    with client.sign_in(dry_run) as api:
        found, told = competition.write_table(api, name)
        if found:
            show_rows([one.row for one in found])
        print(*(told if found else ["no submissions yet", *told[1:]]), sep="\n")


@app.command()
def choose(
    name: Competition = "aimo3",
    count: Annotated[int, opt("How many final submissions the competition takes.", min=1)] = 2,
) -> None:
    """Name the final submissions by their models' hold-out figures, and say how sure that is."""
    with client.sign_in(False) as api:
        found = competition.list_submissions(api, kernels.slug_of(name))
        print(*competition.choose_submissions(found, count), sep="\n")


# ---- aimo competition

competition_app = typer.Typer(no_args_is_help=True, help="Draft and check rules, score a file of answers.")
Rules = Annotated[str, arg("aimo1, aimo2, aimo3, another name, or a YAML file.")]


@competition_app.command()
def new(
    name: Annotated[str, arg("Its slug or its address on kaggle.com.", "COMPETITION")],
    out: Annotated[Path | None, opt("The file; SLUG.yaml if not given.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Draft a competition's file from its pages and data on Kaggle; `# ?` marks what they do not say."""
    path = out or Path(f"{kernels.slug_of(name)}.yaml")
    check_folder("--out", path)
    if path.exists():
        raise AimoError(f"--out {path}: it exists; remove it, or name another file")
    with client.sign_in(dry_run) as api:
        text = competition.draft_competition(api, name)
        write_whole(path, text)
        told = f"{text.count(f'  {UNSURE} ')} lines are marked {UNSURE}"
        print(f"{path}: {told}; look at them, then `aimo competition check {path}`")


@competition_app.command("check")
def check_competition(
    competition: Rules,
    test: Annotated[Path | None, opt("A test file; print its first question as the model gets it.")] = None,
) -> None:
    """Check a competition's file, and say what it asks, takes and submits."""
    rules = find_competition(competition)
    inputs, artefact, lora = rules.inputs, rules.artefact, rules.artefact.lora
    holds = f"with {', '.join([artefact.id, artefact.answer, *artefact.others])}"
    if lora:
        holds = f"a LoRA adapter of {lora.bases[0]}, of rank {lora.rank} at most"
    keys = ", ".join(f"{key} {value}" for key, value in write_kind(rules.answer).items() if value is not None)
    print(f"competition: {name_of(competition)}, {rules.slug}")
    options = f", options {', '.join(inputs.options)}" if inputs.options else ""
    print(f"asks: {inputs.problem} of {inputs.id}{options}")
    print(f"takes: {rules.answer}, else {rules.answer.fallback!r}; {keys}")
    through = f", through {artefact.server}" if artefact.server else ""
    print(f"submits: {artefact.file} {holds}{through}")
    print(f"scored by: {rules.scoring}; passes over the questions: {rules.passes}")
    path = Path(competition)
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    if marked := [str(i) for i, line in enumerate(lines, 1) if UNSURE in line.lstrip("#")]:
        print(f"not certain yet: the lines with `# ?` ({', '.join(marked)}); look, and remove the mark")
    if test:
        find_competition(competition, asks=True)
        _, table = local.read_questions(test, competition)
        golds = competitions.known_answers(table, rules)
        print(f"test file: {len(table)} questions, {len(golds)} known answers; the first:")
        print(table[rules.inputs.problem][0])


@competition_app.command("score")
def score_command(
    competition: Rules,
    answered: Annotated[Path, arg("The file that would be submitted.")],
    answers: Annotated[Path, arg("A file with the right answers, in a column `answer`.")],
) -> None:
    """Score a file of answers by the competition's metric."""
    rules = find_competition(competition)
    print(f"score: {submission.score_file(rules, answered, answers)}")
