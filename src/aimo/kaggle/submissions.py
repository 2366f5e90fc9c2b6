"""Submit a finished version of a kernel, and list the scores with what made them.

Out of scope: pushing the version (`kernel_runs`); the records that the table is joined with (`records`).
"""

from typing import Any

from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest
from kagglesdk.kernels.types.kernels_enums import KernelWorkerStatus

from aimo.errors import AimoError
from aimo.kaggle import kernel_runs, records
from aimo.kaggle.check import slug_of
from aimo.kaggle.client import Api, filled, pages
from aimo.kaggle.kernel_runs import Version

ANSWERS = ("submission.parquet", "submission.csv")


def submit(api: Api, kernel: str, number: int | None, message: str, competition: str | None) -> int:
    """Submit a version of a kernel (the last one if no number is given) and return the submission's number.

    The competition is the one that the kernel has as input, if no other is named. AimoError when the
    version is not complete or left no answers, or when no submission is left for today.
    """
    version, metadata = kernel_runs.latest(api, kernel)
    if number:
        version = Version(version.owner, version.slug, number)
    status, _ = kernel_runs.ask_status(api, version)
    names = kernel_runs.list_output(api, version)
    if api.dry_run:
        slug, answers = slug_of(competition) if competition else "COMPETITION", ANSWERS[0]
    else:
        if status != KernelWorkerStatus.COMPLETE:
            raise AimoError(f"{version} is {status.name.lower()}, not complete; submit a version that is")
        answers = next((name for name in ANSWERS if name in names), "")
        if not answers:
            raise AimoError(
                f"{version} left no {ANSWERS[0]}, only {', '.join(names) or 'nothing'}; see its log"
            )
        attached = metadata.competition_data_sources
        if not competition and len(attached) != 1:
            named = ", ".join(attached) or "none"
            raise AimoError(f"{version} has {named} as competitions; name one with --competition")
        slug = slug_of(competition or attached[0])
    limits = api.competition_get_submission_limits(slug)
    if not api.dry_run and limits.num_allowed_now <= 0:
        raise AimoError(
            f"competition {slug}: no submission is left ({limits.num_today} made today); wait for 0:00 UTC"
        )
    answer = api.competition_submit_code(
        answers, message, slug, f"{version.owner}/{version.slug}", version.number, quiet=True
    )
    if api.dry_run:
        return 0
    if not answer.ref:
        raise AimoError(
            f"competition {slug}: {version} was not taken ({answer.message or 'no reason given'})"
        )
    made = {"kernel": f"{version.owner}/{version.slug}", "version": version.number, "message": message}
    records.record("submit", ref=answer.ref, competition=slug, **made)
    return int(answer.ref)


def scores(api: Api, competition: str) -> list[dict[str, Any]]:
    """A row for each submission to a competition, with what made it where that is recorded."""
    request = filled(ApiListSubmissionsRequest, competition_name=slug_of(competition))
    rows = []
    with api.build_kaggle_client() as kaggle:
        for answer in pages(kaggle.competitions.competition_api_client.list_submissions, request):
            for submission in answer.submissions:
                made = records.origin(submission.ref)
                rows.append(
                    {
                        "date": f"{submission.date:%Y-%m-%d %H:%M}" if submission.date else "",
                        "ref": submission.ref,
                        "public score": submission.public_score or submission.status.name.lower(),
                        **{key: made.get(key, "") for key in ("kernel", "version", "run", "profile")},
                        "message": submission.description,
                    }
                )
    return rows
