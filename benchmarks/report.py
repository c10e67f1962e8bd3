"""The tables: medians over the rounds, beside the limit's, and what there is to reach."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console

from benchmarks.load import Measured
from benchmarks.m2_record_usage import WITH_GRANTS, WITHOUT_GRANTS
from benchmarks.scenario import BEFORE, LIMIT, TOLLGATE, Scenario
from benchmarks.servers import OTHER_CPUS

Number = float | None

out = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One contestant in one scenario. Times are of a request; in M3 and I1 of an event."""

    database: str
    scenario: str
    contestant: str
    a_second: float
    p50_ms: Number = None
    p99_ms: Number = None
    # CPU times.
    server_us: float
    database_us: float
    client_us: Number = None
    server_mib: Number = None

    @property
    def both_us(self) -> float:
        """The CPU time of server and database."""
        return self.server_us + self.database_us


def medians(database: str, scenario: Scenario, contestant: str, rounds: Sequence[Measured]) -> Result:
    """Return the medians over the rounds."""

    def of(value: Callable[[Measured], float]) -> float:
        return median(map(value, rounds))

    def us(cpu: Callable[[Measured], float]) -> float:
        return of(lambda each: cpu(each) * 1e6 / each.requests / scenario.items)

    return Result(
        database=database,
        scenario=scenario.name,
        contestant=contestant,
        a_second=of(lambda each: each.requests * scenario.items / each.seconds),
        p50_ms=of(lambda each: each.p50_ms),
        p99_ms=of(lambda each: each.p99_ms),
        server_us=us(lambda each: each.server_cpu),
        database_us=us(lambda each: each.database_cpu),
        client_us=us(lambda each: each.client_cpu),
        server_mib=of(lambda each: each.server_bytes / 2**20),
    )


@dataclass(frozen=True)
class Target:
    """What Tollgate is to reach: at most so much CPU, or at least so many a second."""

    scenario: str
    measure: str
    bound: float
    databases: tuple[str, ...] = ("sqlite", "postgresql")
    # Whose figure the bound is a multiple of, and of another scenario than the target's where one is named; None: of
    # nobody's.
    of: str | None = LIMIT
    of_scenario: str | None = None

    def row(self, results: Sequence[Result], database: str) -> list[str] | None:
        """Return the target's line, or None where the run did not measure it."""
        seen: Number = getattr(_find(results, database, self.scenario, TOLLGATE), self.measure, None)
        unit = ""
        if self.of is not None:
            base = _find(results, database, self.of_scenario or self.scenario, self.of)
            seen = _multiple(seen, getattr(base, self.measure, None))
            unit = f" x {self.of_scenario}" if self.of_scenario else f" x {_NAMES[self.of]}"
        if seen is None:
            return None
        is_rate = self.measure == "a_second"
        return [
            f"{self.scenario}: {_MEASURES[self.measure]}",
            database,
            f"{'at least' if is_rate else 'at most'} {self.bound:,g}{unit}",
            f"{seen:,.0f}" if self.of is None else f"{seen:,.2f}{unit}",
            "yes" if (seen >= self.bound if is_rate else seen <= self.bound) else "no",
        ]


_NAMES = {LIMIT: "the limit", BEFORE: "before"}

_MEASURES = {"server_us": "CPU of the server", "both_us": "CPU of server and database", "a_second": "a second"}

TARGETS = [
    Target("Q1, 16 clients", "server_us", 4),
    Target("Q2, 4 clients", "server_us", 1.5),
    Target("Q2, 4 clients", "both_us", 1.5),
    Target("Q3, 16 clients", "server_us", 2.5),
    Target("M1, 16 clients", "server_us", 5),
    Target("M2, 16 clients", "server_us", 5),
    Target("M2, 64 clients", "a_second", 1.5, ("sqlite",)),
    Target("M2, 64 clients, one hot meter", "a_second", 1.5, ("postgresql",)),
    Target("M3, 2 clients", "a_second", 12_000, of=None),
    Target("I1, tollgate import", "a_second", 20_000, ("sqlite",), of=None),
    Target("I1, tollgate import", "a_second", 10_000, ("postgresql",), of=None),
    Target(WITH_GRANTS, "both_us", 1.5, of=TOLLGATE, of_scenario=WITHOUT_GRANTS),
    # What a meter costs that has neither grants nor holds, beside a release that knows none.
    *[
        Target(scenario, "both_us", 1.05, of=BEFORE)
        for scenario in (
            *("Q1, 16 clients", "M1, 16 clients", "M2, 16 clients", "M2, 64 clients"),
            *("M2, 64 clients, one hot meter", "M3, 2 clients"),
        )
    ],
]


def show(results: Sequence[Result], console: Console = out) -> None:
    """Print the results."""
    console.print(f"{platform.machine()}, {len(OTHER_CPUS) + 1} cores, Python {platform.python_version()}\n")
    limit = "x limit"
    table(
        [
            *("database", "scenario", "contestant", "a second", limit, "p50 ms", "p99 ms"),
            *("server us", limit, "DB us", "both us", limit, "MiB"),
        ],
        [
            [
                *(result.database, result.scenario, result.contestant),
                *(number(result.a_second), number(_ratio(results, result, "a_second"), 2)),
                *(number(result.p50_ms, 1), number(result.p99_ms, 1)),
                *(number(result.server_us), number(_ratio(results, result, "server_us"), 2)),
                *(number(result.database_us), number(result.both_us), number(_ratio(results, result, "both_us"), 2)),
                number(result.server_mib),
            ]
            for result in results
        ],
        console,
    )


def show_targets(results: Sequence[Result]) -> None:
    """Print what there is to reach, beside what was seen."""
    rows = [target.row(results, database) for target in TARGETS for database in target.databases]
    table(["to reach", "database", "target", "seen", "met"], [row for row in rows if row is not None])


def table(columns: list[str], rows: list[list[str]], console: Console = out) -> None:
    """Print a table as Markdown knows them, so that it can be pasted."""
    lines = [columns, ["---"] * len(columns), *rows]
    console.print("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n", highlight=False, markup=False)


def number(value: Number, digits: int = 0) -> str:
    """Return the number as a table has it."""
    return "" if value is None else f"{value:,.{digits}f}"


def _find(results: Sequence[Result], database: str, scenario: str, contestant: str) -> Result | None:
    wanted = (database, scenario, contestant)
    return next((each for each in results if (each.database, each.scenario, each.contestant) == wanted), None)


def _ratio(results: Sequence[Result], result: Result | None, measure: str) -> Number:
    """Return the result's multiple of the limit's, or None where there is no limit."""
    limit = result and _find(results, result.database, result.scenario, LIMIT)
    return _multiple(getattr(result, measure, None), getattr(limit, measure, None))


def _multiple(seen: Number, base: Number) -> Number:
    return seen / base if seen is not None and base else None
