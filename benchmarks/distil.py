"""`aimo distil` against a model server on loopback that answers at a set speed.

Prints how much of the server's ceiling it reaches, how its memory grows over the problems, and whether a file
has each sample once after kills at random moments. Out of scope: a real model, whose speed varies.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

TEXT = "We add the two numbers step by step. " * 20 + "\\boxed{42}"


def serve(port: Any, latency: float) -> None:
    """A server that answers each request after `latency` seconds, however many there are."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "teacher"}]})

    reply = {
        "model": "teacher",
        "choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 50, "completion_tokens": 200},
    }
    body = json.dumps(reply).encode()

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(latency)
        return web.Response(body=body, content_type="application/json")

    async def run() -> None:
        app = web.Application()
        app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        port.value = runner.addresses[0][1]
        await asyncio.Event().wait()

    asyncio.run(run())


@contextlib.contextmanager
def server(latency: float) -> Iterator[str]:
    """The address of such a server in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    port = spawn.Value("i", 0)
    process = spawn.Process(target=serve, args=(port, latency))
    process.start()
    try:
        while not port.value:
            time.sleep(0.05)
        yield f"127.0.0.1:{port.value}"
    finally:
        process.terminate()
        process.join()


def command(folder: Path, address: str, generations: int, concurrent: int) -> subprocess.Popen:
    """Start `aimo distil` over the problems of a folder."""
    options = ["--dataset-name", str(folder / "problems.jsonl"), "--output-file", str(folder / "out.jsonl")]
    options += ["--api-addr", address, "--num-generations", str(generations)]
    options += ["--max-concurrent", str(concurrent)]
    aimo = Path(sys.executable).with_name("aimo")
    return subprocess.Popen([aimo, "distil", *options], stdout=subprocess.DEVNULL)


def write_problems(folder: Path, count: int) -> None:
    """Problems of 200 characters, as long as the competitions'."""
    rows = (
        {"problem": f"What is {i} + 1? " + "Explain each step. " * 10, "answer": i + 1} for i in range(count)
    )
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(folder: Path) -> int:
    out = folder / "out.jsonl"
    if not out.exists():
        return 0
    with out.open("rb") as file:
        return sum(1 for _ in file)


def throughput(folder: Path, problems: int, concurrent: int, latency: float) -> dict[str, float]:
    """Samples a second against the ceiling, and MiB at a tenth and at the end, of one long run.

    The rate is taken between the second and the last round of requests, without the start of Python.
    """
    write_problems(folder, problems)
    with server(latency) as address:
        process = command(folder, address, 1, concurrent)
        watched, marks = psutil.Process(process.pid), []
        while process.poll() is None:
            size = lines(folder)
            if size and process.poll() is None:
                with contextlib.suppress(psutil.Error):
                    marks.append((time.monotonic(), size, watched.memory_info().rss / 2**20))
            time.sleep(1)
    assert process.returncode == 0 and lines(folder) == problems
    middle = [mark for mark in marks if 2 * concurrent <= mark[1] <= problems - 2 * concurrent]
    (begin, first, _), (end, last, _) = middle[0], middle[-1]
    rate, ceiling = (last - first) / (end - begin), concurrent / latency
    early = next(mib for _, size, mib in marks if size >= problems / 10)
    return {
        "problems": problems,
        "in_flight": concurrent,
        "samples_per_second": rate,
        "ceiling": ceiling,
        "of_ceiling": rate / ceiling,
        "mib_at_a_tenth": early,
        "mib_at_the_end": marks[-1][2],
    }


def kills(folder: Path, count: int, problems: int, seed: int) -> dict[str, int]:
    """The samples of a file after kills with -9 at random moments while it is written."""
    write_problems(folder, problems)
    draw = random.Random(seed)
    with server(0.05) as address:
        done = 0
        while done < count:
            before = lines(folder)
            process = command(folder, address, 4, 20)
            while lines(folder) <= before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.5))
            assert process.poll() is None, "it ended before it was killed: take more problems"
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
        assert command(folder, address, 4, 200).wait() == 0
    found = [json.loads(line) for line in (folder / "out.jsonl").open()]
    counts = Counter((row["key"], row["sample"]) for row in found)
    return {
        "kills": done,
        "samples": 4 * problems,
        "lines": len(found),
        "missing": 4 * problems - len(counts),
        "repeated": sum(n - 1 for n in counts.values()),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=100_000)
    parser.add_argument("--concurrent", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds of each reply")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kill-problems", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        figures |= throughput(Path(folder), args.problems, args.concurrent, args.latency)
    with tempfile.TemporaryDirectory() as folder:
        figures |= kills(Path(folder), args.kills, args.kill_problems, args.seed)
    for name, value in figures.items():
        print(f"{name:20} {value:,.3f}" if isinstance(value, float) else f"{name:20} {value:,}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
