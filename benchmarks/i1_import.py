"""I1: `tollgate import` of one hour of real requests to a language model, all on one meter."""

import gzip
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.load import cpu_seconds
from benchmarks.servers import environment


@dataclass(frozen=True)
class Imported:
    """What one import came to. `start_seconds` is what an import of nothing takes."""

    events: int
    seconds: float
    cpu: float
    database_cpu: float
    start_seconds: float
    start_cpu: float


def run(file: Path, database_url: str, folder: Path, databases: Sequence[int]) -> Imported:
    """Import the file into a fresh database and count what it took, from the command's start to its end."""
    nothing = folder / "nothing.jsonl.gz"
    nothing.write_bytes(gzip.compress(b""))
    _, start_seconds, start_cpu = _import(nothing, database_url, folder)
    before = sum(map(cpu_seconds, databases))
    accepted, seconds, cpu = _import(file, database_url, folder)
    return Imported(accepted, seconds, cpu, sum(map(cpu_seconds, databases)) - before, start_seconds, start_cpu)


def _import(file: Path, database_url: str, folder: Path) -> tuple[int, float, float]:
    command = [
        *(sys.executable, "-c", "from gateway.cli.main import app; app()", "import", str(file)),
        *("--org", "benchmark", "--environment", "live", "--backfill", "--create-meters", "--json"),
    ]
    started = time.perf_counter()
    # Not pinned: an import has the machine, and a thread of its own for SQLite.
    process = subprocess.Popen(command, cwd=folder, env=environment(database_url), stdout=subprocess.PIPE)
    output = process.stdout.read() if process.stdout is not None else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    counts = orjson.loads(output)
    if process.returncode or counts["accepted"] != counts["read"]:
        raise RuntimeError(f"the import went wrong: {counts}")
    return counts["accepted"], seconds, usage.ru_utime + usage.ru_stime
