"""Several processes of one gateway: what each left of its figures, and what all of them come to."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway.telemetry.figures import FIGURES, Figure, Values


class Collected(Collector):
    """What some processes left, added up. Of those that have ended, only what they counted."""

    def __init__(self, left: Sequence[dict[str, Any]]) -> None:
        self._left = left

    def collect(self) -> Iterator[Metric]:
        """Yield each figure of all processes, the release, and what the system knows of each process."""
        living = [_is_alive(each["pid"], each["started"]) for each in self._left]
        for figure in FIGURES:
            total: Values = {}
            for each, is_alive in zip(self._left, living, strict=True):
                if figure.kind != "gauge" or is_alive:
                    for labels, values in each["values"].get(figure.name, ()):
                        so_far = total.get(tuple(labels), figure.zero())
                        total[tuple(labels)] = [one + other for one, other in zip(so_far, values, strict=True)]
            yield figure.family(total)
        yield Figure("gauge", "tollgate_info", "The release that runs.", ("version",)).family(
            {(version("tollgate"),): [1.0]}
        )
        yield from _of_processes([each["pid"] for each, is_alive in zip(self._left, living, strict=True) if is_alive])


def _of_processes(pids: Sequence[int]) -> Iterator[Metric]:
    """Yield the memory, processor time and open files of each process, as the library does of one."""
    metrics: dict[str, Metric] = {}
    for pid in sorted(set(pids)):
        for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            merged = metrics.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                merged.add_sample(sample.name, {**sample.labels, "pid": str(pid)}, sample.value)
    yield from metrics.values()


def left_in(file: Path) -> dict[str, Any]:
    """Return what a process left there. Raises what reading anything else comes to."""
    left: dict[str, Any] = orjson.loads(file.read_bytes())
    figures_fit = all(
        len(labels) == len(figure.labels) and len(values) == len(figure.zero())
        for figure in FIGURES
        for labels, values in left["values"].get(figure.name, ())
    )
    if not (figures_fit and isinstance(left["pid"], int) and isinstance(left["started"], str)):
        raise ValueError(file)
    return left


def start_time(pid: int) -> str:
    """Return when the process began, as Linux counts it; a number that is free again may go to another process.

    One that has ended, and whose parent has not yet seen it, has begun no more.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return rest[18] if state not in {"Z", "X"} else ""


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is there, and may not be asked.
    return start_time(pid) == started
