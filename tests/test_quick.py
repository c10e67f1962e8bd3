"""`--programs`, `--in-process` and `--quick` choose tests by whether they need another process."""

import subprocess
import sys
from functools import cache

import pytest

from tests import browsers, conftest, servers, steps
from tests.quick import functions, makes_postgresql_database, programs, starts_process


class Starter:
    def start(self) -> None:
        subprocess.run([sys.executable, "--version"], check=True)


def starts_by_a_class() -> None:
    Starter().start()


@cache
def starts_once() -> None:
    starts_by_a_class()


def asks_nothing() -> None:
    pass


async def starts_by_a_module() -> None:
    async with browsers.chromium():
        pass


def starts_within_a_function() -> None:
    def start() -> None:
        starts_by_a_class()

    start()


def has_an_attribute_of_that_name(server: servers.Server) -> object:
    return server.starts_by_a_class  # type: ignore[attr-defined]  # It is an attribute's name alone.


@pytest.mark.parametrize(
    ("function", "starts"),
    [
        (servers.serving, True),
        (browsers.chromium, True),
        (conftest.start_postgresql, True),
        (starts_by_a_class, True),
        (starts_within_a_function, True),
        (starts_once, True),
        (starts_by_a_module, True),
        (has_an_attribute_of_that_name, False),
        (conftest.gateway_on, False),
        (conftest.empty_database, False),
        (steps.make_meter, False),
    ],
)
def test_what_starts_a_process_is_found_in_the_code_that_is_called(function: object, *, starts: bool) -> None:
    assert starts_process(function) is starts


def test_a_test_that_starts_a_process_is_one_of_the_programs_and_no_other_is(request: pytest.FixtureRequest) -> None:
    starting, other = (
        pytest.Function.from_parent(request.node.parent, name=each.__name__, callobj=each)
        for each in (starts_by_a_class, asks_nothing)
    )
    assert programs([starting, other]) == [starting]
    assert functions([starting, other]) == [other]


def test_what_all_tests_of_both_databases_share_is_not_about_postgresql(request: pytest.FixtureRequest) -> None:
    shared = ("template", "database_url", "shared_gateway", "gateway")
    found = [request._fixturemanager.getfixturedefs(name, request.node) or () for name in shared]
    assert list(map(len, found)) == [1] * 4
    assert [each.argname for (each,) in found if makes_postgresql_database(each.func)] == []
