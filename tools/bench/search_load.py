#!/usr/bin/env python3
"""Load test of ``speechclip serve``: good and malformed requests, idle connections and unfinished uploads.

It starts the server on this machine and sends --number requests, --parallel at a time. One third of them is malformed.
Meanwhile it holds --idle connections without a request and --unfinished uploads that never end, and opens a new one for
each that the server closes. It prints latency, memory of the server and its log, and exits with status 1 if a good
query is not answered, if the log has a traceback, or if the memory grows.

Usage: tools/bench/search_load.py --index INDEX --query QUERY.wav [--model MODEL] [--number 1000] [--parallel 8]
       [--idle 1000] [--unfinished 60] [--max_growth_mb 100] [--results FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError

TIMEOUT = 120.0  # seconds for one request
MEMORY_SAMPLES = 10
START_SECONDS = 300


def request(method: str, path: str, body: bytes = b"", length: int | None = None, kind: str = "audio/*") -> bytes:
    """Return an HTTP request. length: the announced length of the body. kind: its content type."""
    size = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


def malformed(query: bytes) -> dict[str, tuple[bytes, tuple[int, ...]]]:
    """Return malformed requests by name, with the statuses that are right. Without a status, the client disconnects."""
    return {
        "no audio": (request("POST", "/search", b"x" * 5000), (422,)),
        "half a recording": (request("POST", "/search", query[: len(query) // 2]), (200, 422)),
        "empty body": (request("POST", "/search"), (422,)),
        "no picture": (request("POST", "/search", query, kind="image/png"), (422,)),
        "JSON that is cut": (request("POST", "/search", b'{"text": "a', kind="application/json"), (422,)),
        "deep JSON": (request("POST", "/search", b"[" * 19_000, kind="application/json"), (422,)),
        "too large": (request("POST", "/search", length=10**12), (413,)),
        "length not a number": (b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n", (400,)),
        "no HTTP": (b"hello\r\n\r\n", (400,)),
        "long thumbnail id": (request("GET", f"/thumbnails/0/{'9' * 4301}"), (404,)),
        "parent folder": (request("GET", "/thumbnails/../index.json"), (404,)),
        "other method": (request("DELETE", "/search"), (405,)),
        "other host": (b"GET /info HTTP/1.1\r\nHost: other.example\r\n\r\n", (400,)),
        "long header": (b"GET /info HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000, (400,)),
        "disconnect in the body": (request("POST", "/search", query[:1000], length=len(query)), ()),
        "disconnect before the answer": (request("POST", "/search", query), ()),
    }


class Answer(NamedTuple):
    """The status of an answer, its headers, and the seconds that it took."""

    status: int
    head: str
    seconds: float


async def send(port: int, sent: bytes, read: bool = True) -> Answer:
    """Send bytes on a new connection and read the answer."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        with contextlib.suppress(ConnectionError):  # the server may refuse before it has read everything
            await writer.drain()
        if not read:
            return Answer(0, "", 0.0)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT)).decode("latin-1")
        if length := re.search(r"content-length: (\d+)", head, re.IGNORECASE):
            await asyncio.wait_for(reader.readexactly(int(length.group(1))), TIMEOUT)
        return Answer(int(head.split()[1]), head, time.perf_counter() - started)
    finally:
        writer.close()


async def ask(port: int, query: bytes) -> tuple[Answer, int]:
    """Send a good query, and again as long as the server is busy. Return the answer and the number of refusals."""
    refused = 0
    while True:
        answer = await send(port, request("POST", "/search", query))
        if answer.status != 503:
            return answer, refused
        refused += 1
        found = re.search(r"retry-after: (\d+)", answer.head, re.IGNORECASE)
        await asyncio.sleep(int(found.group(1)) if found else 1)


async def hold(port: int, sent: bytes, closed: Counter[str], name: str) -> None:
    """Hold a connection on which nothing more is sent, and open a new one when the server closes it."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(sent)
                while await reader.read(4096):
                    pass
                closed[name] += 1
            finally:
                writer.close()
        await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def held(port: int, idle: int, unfinished: int, size: int) -> AsyncIterator[Counter[str]]:
    """Hold idle connections and unfinished uploads. Yield the numbers of those that the server closed."""
    closed: Counter[str] = Counter()
    upload = request("POST", "/search", b"x" * 1000, length=size)
    tasks = [asyncio.create_task(hold(port, b"", closed, "idle")) for _ in range(idle)]
    tasks += [asyncio.create_task(hold(port, upload, closed, "unfinished")) for _ in range(unfinished)]
    await asyncio.sleep(2)
    try:
        yield closed
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Load(NamedTuple):
    """The result of the load: answers and refusals of good queries, wrong statuses, memory, closed connections."""

    good: list[Answer]
    refused: int
    wrong: list[str]
    memory: list[float]
    closed: Counter[str]
    seconds: float


async def run_load(port: int, pid: int, query: bytes, args: argparse.Namespace) -> Load:
    """Send all requests. Two of three are good queries, the others are the malformed requests in turn."""
    kinds = list(malformed(query).items())
    good: list[Answer] = []
    wrong: list[str] = []
    memory: list[float] = []
    numbers = iter(range(args.number))
    refused = 0

    async def client() -> None:
        nonlocal refused
        for number in numbers:
            if number % max(1, args.number // MEMORY_SAMPLES) == 0:
                memory.append(resident_mb(pid))
            if number % 3:
                answer, count = await ask(port, query)
                refused += count
                good.append(answer)
                continue
            name, (sent, right) = kinds[number // 3 % len(kinds)]
            try:
                status = (await send(port, sent, read=bool(right))).status
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                wrong.append(f"{name}: {type(error).__name__}")
                continue
            if right and status not in right:
                wrong.append(f"{name}: status {status}")

    await ask(port, query)  # the first query loads code and memory
    async with held(port, args.idle, args.unfinished, len(query)) as closed:
        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(args.parallel)))
        seconds = time.perf_counter() - started
    memory.append(resident_mb(pid))
    return Load(good, refused, wrong, memory, closed, seconds)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found.group(1)) * 1024 / 1e6 if found else 0.0


@contextlib.contextmanager
def serving(args: argparse.Namespace, log: Path) -> Iterator[tuple[int, int]]:
    """Run the server with its output in a file. Yield its port and process id."""
    command = [sys.executable, "-m", "speechclip.cli", "serve", "--index", args.index, "--model", args.model]
    with log.open("wb") as output:
        server = subprocess.Popen([*command, "--port", "0", "--device", "cpu"], stdout=output, stderr=output)
    try:
        end = time.monotonic() + START_SECONDS
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text(errors="replace"))):
            if server.poll() is not None or time.monotonic() > end:
                raise UserError(f"speechclip serve did not start: {log.read_text(errors='replace').strip()}")
            time.sleep(0.1)
        yield int(found.group(1)), server.pid
    finally:
        server.terminate()
        server.wait(30)


def figures(load: Load, log: str) -> dict[str, Any]:
    """Return the figures of a run."""
    times = sorted(1000 * answer.seconds for answer in load.good)
    return {
        "seconds": load.seconds,
        "good": len(times),
        "answered": sum(answer.status == 200 for answer in load.good),
        "refused": load.refused,
        "median_ms": statistics.median(times),
        "p95_ms": times[int(0.95 * (len(times) - 1))],
        "longest_ms": times[-1],
        "wrong": sorted(set(load.wrong)),
        "closed_idle": load.closed["idle"],
        "closed_unfinished": load.closed["unfinished"],
        "memory_mb": load.memory,
        "growth_mb": max(load.memory[1:]) - load.memory[0],
        "tracebacks": log.count("Traceback"),
    }


def show(found: dict[str, Any], log: str, args: argparse.Namespace) -> bool:
    """Print the figures. Return whether the server passed."""
    good, growth = found["good"], found["growth_mb"]
    median, late, longest = (f"{found[key]:.0f} ms" for key in ("median_ms", "p95_ms", "longest_ms"))
    print(f"{args.number} requests in {found['seconds']:.1f} s, {args.parallel} at a time")
    again = f"{found['refused']} times refused with 503 and sent again"
    print(f"good queries: {found['answered']} of {good} answered, {again}")
    print(f"latency: median {median}, 95% {late}, longest {longest}")
    print(f"malformed requests: {args.number - good}, wrong answers: {len(found['wrong'])} {found['wrong']}")
    closed = f"{found['closed_idle']} idle and {found['closed_unfinished']} unfinished"
    print(f"connections that the server closed: {closed}")
    memory = " ".join(f"{value:.0f}" for value in found["memory_mb"])
    print(f"memory of the server in MB: {memory} (growth {growth:.0f})")
    print(
        f"log of the server: {found['tracebacks']} tracebacks, {len(log.splitlines())} lines:\n{log[-2000:].rstrip()}"
    )
    right = found["answered"] == good and not found["wrong"] and not found["tracebacks"]
    return right and growth <= args.max_growth_mb


def record(path: Path, found: dict[str, Any], args: argparse.Namespace) -> None:
    """Write the figures to the results, as the section search_load."""
    from measure import machine

    from speechclip.common.provenance import commit

    words = ("number", "parallel", "idle", "unfinished")
    row = {**{word: getattr(args, word) for word in words}, **found}
    command = f"tools/bench/search_load.py {' '.join(f'--{word} {getattr(args, word)}' for word in words)}"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results["search_load"] = {"rows": [row], "machine": machine(), "commit": commit(), "command": command}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


@exit_on_user_error
def main() -> None:
    """Start the server, load it and print the figures."""
    parser = ArgumentParser(prog="search_load.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--index", required=True, help="folder that speechclip index wrote")
    parser.add_argument("--query", required=True, metavar="QUERY.wav", help="a good recording")
    parser.add_argument("--model", default="", help="place of the index's model, if it was moved")
    parser.add_argument("--number", type=int, default=1000, help="number of requests")
    parser.add_argument("--parallel", type=int, default=8, help="requests at the same time")
    parser.add_argument("--idle", type=int, default=1000, help="connections without a request")
    parser.add_argument("--unfinished", type=int, default=60, help="uploads that never end")
    parser.add_argument("--max_growth_mb", type=float, default=100.0, help="largest growth of the server's memory")
    parser.add_argument("--results", default="", metavar="FILE", help="write the figures to this file of results")
    args = parser.parse_args()
    if min(args.number, args.parallel) < 1 or min(args.idle, args.unfinished) < 0:
        parser.error("--number and --parallel must be at least 1, --idle and --unfinished at least 0")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with serving(args, log) as (port, pid):
            # only this process gets more files, so that the server has the usual limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
            load = asyncio.run(run_load(port, pid, Path(args.query).read_bytes(), args))
        text = log.read_text(errors="replace")
        found = figures(load, text)
        passed = show(found, text, args)
    if args.results:
        record(Path(args.results), found, args)
    if not passed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
