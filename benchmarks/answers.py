"""Whether the contestants answer the same: nobody is to be quicker by doing less."""

import http.client
import itertools
import random
from datetime import datetime
from typing import Any

import orjson

from benchmarks.arena import Arena
from benchmarks.load import Load
from benchmarks.scenario import BEFORE, Scenario
from benchmarks.servers import Server, takes_part


class AnswersDiffer(Exception):
    """Two contestants answer a query in different ways."""


def check(arena: Arena, scenarios: list[Scenario], servers: list[Server]) -> None:
    """Ask all of them the same, before anything is written. Raises `AnswersDiffer`.

    Another release has filled its database with its own data set, so that only the form of its answers is compared.
    """
    for scenario in scenarios:
        if not scenario.is_query:
            continue
        answers = {}
        for server in servers:
            if takes_part(server.name, scenario):
                answer = ask(arena.load(scenario, server, 0))
                # GraphQL has its answer under a name of its own.
                answers[server.name] = _in_common(answer.get("data", answer))
        for (one, found), (other, expected) in itertools.pairwise(answers.items()):
            alike = _form(found) == _form(expected) if BEFORE in {one, other} else found == expected
            if not alike:
                raise AnswersDiffer(f"{scenario.name}: {one} answers {found!s:.2000}, {other} {expected!s:.2000}")


def ask(load: Load) -> Any:
    """Send the first request of the load, the same one each time, and return what its body says."""
    connection = http.client.HTTPConnection("127.0.0.1", load.port, timeout=60)
    body, *_ = load.bodies(random.Random("the same for all"), itertools.count())  # noqa: S311  # Not a secret.
    headers = {"authorization": f"Bearer {load.key}", "content-type": "application/json"}
    connection.request("POST", load.parts[0].path, body, headers)
    answer = orjson.loads(connection.getresponse().read())
    connection.close()
    return answer


def _in_common(value: Any, name: str = "") -> Any:
    """Return the value with its moments read: `Z` and `+00:00` mean the same."""
    match value:
        case dict():
            return {key: _in_common(each, key) for key, each in value.items()}
        case list():
            return [_in_common(each) for each in value]
        case str() if name.endswith("At"):
            return datetime.fromisoformat(value)
    return value


def _form(value: Any) -> Any:
    """Return the value with the type of each of its leaves in its place."""
    match value:
        case dict():
            return {key: _form(each) for key, each in value.items()}
        case list():
            return [_form(each) for each in value]
    return type(value)
