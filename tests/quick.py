"""Which tests `--programs`, `--no-programs`, `--in-process`, `--quick` and `--once` run, without a list of them.

`--programs` runs what starts another process, PostgreSQL aside, and `--no-programs` the rest. Which that is is found in
the code: that of the test, of its fixtures, and of the functions and classes in `tests/` which these call.
`--in-process` leaves out what uses PostgreSQL, too. `--quick` also leaves out what is marked `slow`, and of a test with
many cases it runs the first. `--once` is `--in-process` with the tests that are about PostgreSQL alone.
"""

import dis
import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

FOLDER = str(Path(__file__).parent)

#: What starts a process or a browser, by the names in code.
STARTERS = frozenset(
    {
        "async_playwright",
        "create_subprocess_exec",
        "create_subprocess_shell",
        "fork",
        "multiprocessing",
        "Popen",
        "start_postgresql",
        "subprocess",
    }
)

#: The audit events of a process that starts another one.
STARTS = frozenset({"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"})


def programs(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Return the tests that start another process, PostgreSQL aside."""
    items = list(items)
    kept = set(functions(items))
    return [item for item in items if item not in kept]


def in_process(items: Iterable[pytest.Item]) -> list[pytest.Function]:
    """Return the tests that use neither PostgreSQL nor another process."""
    return [item for item in functions(items) if not uses_postgresql(item)]


def quick(items: Iterable[pytest.Item]) -> list[pytest.Function]:
    """Return of the tests in this process those that are not slow, and the first case of each."""
    first_cases: dict[Key, pytest.Function] = {}
    for item in in_process(items):
        if item.get_closest_marker("slow") is None:
            first_cases.setdefault(key_of(item), item)
    return list(first_cases.values())


def once(items: Iterable[pytest.Item]) -> list[pytest.Function]:
    """Return the tests that use SQLite or no database, and those that use PostgreSQL alone."""
    found = functions(items)
    elsewhere = {key_of(item) for item in found if not uses_postgresql(item)}
    return [item for item in found if not uses_postgresql(item) or key_of(item) not in elsewhere]


def on_citus(items: Iterable[pytest.Item]) -> list[pytest.Function]:
    """Return the tests that run on each kind of database, in their case of PostgreSQL, but for those of one server."""
    return [
        item
        for item in items
        if isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
        and item.callspec.params.get("dialect") == "postgresql"
        and item.get_closest_marker("one_server") is None
    ]


def left_out_on_citus(items: Iterable[pytest.Item]) -> Counter[str]:
    """Return why tests are left out there, and how many for each reason."""
    marks = [item.get_closest_marker("one_server") for item in items]
    return Counter(mark.args[0] for mark in marks if mark is not None)


#: What the cases of one test have in common.
Key = tuple[object, str]


def key_of(item: pytest.Function) -> Key:
    return item.parent, item.originalname


def functions(items: Iterable[pytest.Item]) -> list[pytest.Function]:
    """Return the tests that start no other process, PostgreSQL aside."""
    return [item for item in items if isinstance(item, pytest.Function) and not any(map(starts_process, code_of(item)))]


def uses_postgresql(item: pytest.Function) -> bool:
    callspec = getattr(item, "callspec", None)
    return (
        "postgresql" in item.fixturenames
        or (callspec is not None and "postgresql" in callspec.params.values())
        or any(map(makes_postgresql_database, code_of(item)))
    )


def code_of(item: pytest.Function) -> list[Any]:
    """Return the functions of the test and of its fixtures, without that of the server that all tests share."""
    definitions = item._fixtureinfo.name2fixturedefs
    return [item.function, *(each.func for name in definitions if name != "postgresql" for each in definitions[name])]


@cache
def makes_postgresql_database(function: Any) -> bool:
    """Return whether the function asks for a database by this name, rather than by that of its case."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    found = list(codes_in(code)) if code is not None else []
    return any("empty_database" in each.co_names and "postgresql" in each.co_consts for each in found)


@cache
def starts_process(function: Any) -> bool:
    """Return whether the function, or what it calls in `tests/`, names something that starts a process."""
    seen: set[int] = set()
    pending: list[Any] = [function]
    while pending:
        each = pending.pop()
        if not callable(each) or id(each) in seen:
            continue
        seen.add(id(each))
        # Such as a context manager's function, or one whose result is cached.
        each = inspect.unwrap(each)
        if isinstance(each, type) and each.__module__.startswith("tests."):
            pending += [member for member in vars(each).values() if isinstance(member, FunctionType)]
        elif isinstance(each, FunctionType) and each.__code__.co_filename.startswith(FOLDER):
            names, read_names = names_in(each.__code__)
            if names & STARTERS:
                return True
            read = [each.__globals__.get(name) for name in read_names]
            modules = [one for one in read if isinstance(one, ModuleType) and one.__name__.startswith("tests.")]
            pending += read + [getattr(module, name, None) for module in modules for name in names]
    return False


@cache
def names_in(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names in the code and in the functions within it, and which of them are read as globals."""
    codes = list(codes_in(code))
    return (
        frozenset(name for each in codes for name in each.co_names),
        frozenset(name for each in codes for name in globals_in(each)),
    )


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yield the code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def globals_in(code: CodeType) -> Iterator[str]:
    """Yield the global names that the code reads; one that is only an attribute is none."""
    return (each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL")


def refuse_processes() -> None:
    """From now on, raise an error where this process starts another one."""

    def refuse(event: str, _arguments: tuple[object, ...]) -> None:
        if event in STARTS:
            raise RuntimeError(
                f"{event}: a test that starts a process must name it, so that --in-process leaves it out"
            )

    sys.addaudithook(refuse)
