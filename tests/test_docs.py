"""The documentation cannot lag behind the code: what it shows is run here, and what it lists is compared."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx
import pytest
import typer.main
import yaml
from graphql import GraphQLInterfaceType, GraphQLSchema, parse, validate

from gateway.cli.main import app
from gateway.server.flow import IN_VAIN_BYTES_PER_SECOND
from gateway.server.protocol import (
    LINGER_SECONDS,
    MAX_CHUNKS,
    MAX_IN_VAIN_BYTES,
    MAX_PIPELINED,
)
from gateway.settings import BadSetting, Settings, database_url, variable_of
from gateway.telemetry.requests import REASONS
from resolvers import errors
from resolvers.api_keys import MAX_LOOK_UPS
from resolvers.values import METADATA_BYTES, NAME_LENGTH, USAGE_NAME_LENGTH
from schema import errors as refusals
from schema.engine.documents import MAX_ERRORS, MAX_IN_LOOP, MAX_KEPT_BYTES, MAX_KEPT_DOCUMENTS
from schema.engine.engine import MAX_FIELD_ERRORS
from schema.engine.execution.plans import MAX_PLANS
from schema.engine.faults import MAX_MESSAGE_LENGTH
from schema.engine.limits.room import MAX_WEIGHT, SMALL_WEIGHT
from schema.engine.operations import LARGE_VALUES
from schema.relay import DEFAULT_PAGE
from schema.root import schema
from tests.doc_pages import ROOT, blocks_of, rows_after

README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "guide.md"
ERRORS = ROOT / "docs" / "errors.md"
GRANTS = ROOT / "docs" / "grants.md"
HOLDS = ROOT / "docs" / "holds.md"
LIMITS = ROOT / "docs" / "limits.md"
PAGINATION = ROOT / "docs" / "pagination.md"
SETTINGS = ROOT / "docs" / "settings.md"

#: Every page that is ours, as a path from the top.
PAGES = sorted(
    str(page.relative_to(ROOT))
    for place in ROOT.iterdir()
    # What is built or fetched is not ours.
    if not place.name.startswith(".") and place.name not in {"build", "dist"}
    for page in ([place] if place.suffix == ".md" else place.rglob("*.md"))
    # Not those of packages that are installed for an example.
    if not {"node_modules", ".venv"} & set(page.parts)
)

#: What the commands of the README name, and what a test puts in its place.
ADDRESS = "http://127.0.0.1:8000"
KEY = "$(cat tollgate-demo.key)"
#: What stands for a cursor: in an answer for any, in a command for that of the answer before.
CURSOR = "Y3Vz…"
#: What stands for the id of a credit grant, and the end that it has.
GRANT, GRANT_END = "grt_…", "2030-01-01T00:00:00Z"


def examples_of(page: Path, command: str) -> list[tuple[str, Any]]:
    """Return the shell blocks that hold the command, each with the JSON of the block after it, its answer."""
    blocks = blocks_of(page)
    found = []
    for block, answer in pairwise(blocks):
        if block.language == "sh" and command in block.text:
            assert answer.language == "json", f"no answer is shown to: {block.text}"
            found.append((block.text, json.loads(answer.text)))
    return found


class Demo(NamedTuple):
    """A running `tollgate serve --demo`: its folder, its address, and what it printed until it served."""

    folder: Path
    address: str

    def printed(self) -> str:
        return (self.folder / "out").read_text() + (self.folder / "err").read_text()

    def key(self) -> str:
        return (self.folder / "tollgate-demo.key").read_text().strip()

    def curl(self, command: str, *, status: int = 200) -> Any:
        """Send what the curl command would send, to this server and with its key, and return the answer's JSON."""
        sent = command.replace("\\\n", " ").replace(KEY, self.key()).replace(ADDRESS, self.address)
        program, *arguments = shlex.split(sent)
        assert program == "curl"
        url, body, headers = "", "", {}
        while arguments:
            argument = arguments.pop(0)
            if argument == "-H":
                name, _, value = arguments.pop(0).partition(": ")
                headers[name] = value
            elif argument == "-d":
                body = arguments.pop(0)
            elif argument != "-s":
                assert argument.startswith(self.address), f"{argument} is no option that this test knows"
                url = argument
        response = httpx.post(url, content=body, headers=headers)
        assert response.status_code == status
        return response.json()

    def node(self, page: Path) -> None:
        """Run the page's program, the one that it has, and find that it prints what is shown after it."""
        ((program, shown),) = [
            (block.text, output.text) for block, output in pairwise(blocks_of(page)) if block.language == "js"
        ]
        (self.folder / "program.mjs").write_text(program.replace(ADDRESS, self.address))
        done = self.shell(f"{shlex.quote(str(Path(sys.executable).with_name('node')))} program.mjs")
        assert (done.stdout, done.stderr, done.returncode) == (shown, "", 0)

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run the script as it stands, in the server's folder."""
        return subprocess.run(
            ["/bin/sh", "-e", "-c", script],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def environment() -> dict[str, str]:
    """Return the environment without anything that sets Tollgate."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}


@contextmanager
def served_demo(folder: Path) -> Iterator[Demo]:
    """Serve the demo from the folder, which looks like a checkout's to the commands of the README."""
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands / "tollgate").symlink_to(Path(sys.executable).with_name("tollgate"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    demo = Demo(folder, f"http://127.0.0.1:{port}")
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        server = subprocess.Popen(
            [commands / "tollgate", "serve", "--demo", "--port", str(port)],
            cwd=folder,
            env=environment(),
            stdout=out,
            stderr=err,
        )
        try:
            wait_until_ready(demo, server)
            yield demo
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_until_ready(demo: Demo, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, demo.printed()
        try:
            httpx.get(f"{demo.address}/readyz").raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.05)  # Until the next look, within the deadline.
        else:
            return
    pytest.fail(f"The demo is not ready: {demo.printed()}")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo as the README's reader has it, which has not been asked anything."""
    with served_demo(tmp_path_factory.mktemp("readme")) as demo:
        yield demo


def test_the_demo_prints_what_the_readme_shows(demo: Demo) -> None:
    (shown,) = [block.text for block in blocks_of(README) if block.language == "text"]
    printed = demo.printed().replace(demo.address, ADDRESS).replace(demo.key(), "sk_test_…")
    # What is no line of the log.
    assert "".join(line for line in printed.splitlines(keepends=True) if not line.startswith("{")) == shown
    assert (demo.folder / "tollgate-demo.key").stat().st_mode & 0o777 == 0o600
    assert (demo.folder / "tollgate.db").exists()


def test_the_readmes_commands_answer_what_it_shows_and_repeat_it(demo: Demo) -> None:
    asked = examples_of(README, "curl ")
    assert [list(answer["data"]) for _, answer in asked] == [
        ["customerByExternalId"],
        ["createBillingMeter"],
        ["recordUsage"],
        ["recordUsage"],
    ]
    assert [demo.curl(command) for command, _ in asked] == [answer for _, answer in asked]
    # What had made or recorded something says so, and answers the same.
    again = [json.loads(json.dumps(answer).replace('"replayed": false', '"replayed": true')) for _, answer in asked]
    assert [demo.curl(command) for command, _ in asked] == again
    assert str(again).count("'replayed': True") == 2


def test_the_readmes_import_counts_what_it_shows_and_replays_it(demo: Demo) -> None:
    ((script, counts),) = examples_of(README, "tollgate import")
    done = demo.shell(script)
    assert (json.loads(done.stdout), done.returncode) == (counts, 0), done.stderr
    again = demo.shell(script)
    assert json.loads(again.stdout) == counts | {"accepted": 0, "replayed": counts["accepted"]}
    assert again.returncode == 0


def test_the_pages_graphql_is_answered_without_an_error(demo: Demo) -> None:
    operations = [
        block.text for page in (GUIDE, PAGINATION) for block in blocks_of(page) if block.language == "graphql"
    ]
    assert len(operations) == 6

    def answer(operation: str) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {demo.key()}"}
        response = httpx.post(f"{demo.address}/graphql", json={"query": operation}, headers=headers)
        return dict(response.json())

    found = answer('{ customerByExternalId(externalId: "acme-robotics") { id } }')
    customer_id = found["data"]["customerByExternalId"]["id"]
    for operation in operations:
        body = answer(operation.replace("cus_…", customer_id))
        assert "errors" not in body, body
        assert "UserError" not in operation or "code" not in json.dumps(body), body


def test_the_errors_examples_answer_what_is_shown(demo: Demo) -> None:
    asked = examples_of(ERRORS, "curl ")
    statuses = [200, 200, 200, 200, 200, 401]
    assert [demo.curl(command, status=status) for (command, _), status in zip(asked, statuses, strict=True)] == [
        answer for _, answer in asked
    ]
    demo.node(ERRORS)


def test_the_paginations_examples_answer_what_is_shown(demo: Demo) -> None:
    asked = examples_of(PAGINATION, "curl ")
    assert [f"{command}{answer}".count(CURSOR) for command, answer in asked] == [1, 0, 2, 2, 1]
    cursor = ""
    for command, shown in asked:
        text = json.dumps(demo.curl(command.replace(CURSOR, cursor)))
        for found in re.findall(r'"(?:start|end)Cursor": "(.+?)"', text):
            assert found.startswith(CURSOR.rstrip("…"))
            cursor = found
        assert json.loads(text.replace(cursor, CURSOR) if cursor else text) == shown
    demo.node(PAGINATION)


def test_the_walk_of_grants_is_answered_as_is_shown(demo: Demo) -> None:
    asked = examples_of(GRANTS, "curl ")
    assert [f"{command}{answer}".count(GRANT) for command, answer in asked] == [0, 1, 1, 1, 0, 1]
    end = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%dT%H:%M:%SZ}"
    grant_id = GRANT
    for command, shown in asked:
        text = json.dumps(demo.curl(command.replace(GRANT, grant_id).replace(GRANT_END, end)))
        grant_id = next(iter(re.findall(r"grt_\w+", text)), grant_id)
        assert json.loads(text.replace(grant_id, GRANT).replace(end, GRANT_END)) == shown


def test_the_walk_of_holds_is_answered_as_is_shown_and_its_commit_replayed(demo: Demo) -> None:
    asked = examples_of(HOLDS, "curl ")
    assert [demo.curl(command) for command, _ in asked] == [answer for _, answer in asked]
    command, answer = asked[-1]
    assert demo.curl(command) == {"data": {"commitHold": answer["data"]["commitHold"] | {"replayed": True}}}


def test_the_pages_that_are_refused_are_refused_as_is_shown(demo: Demo) -> None:
    rows = rows_after(PAGINATION, "What is refused")
    assert len(rows) == 5
    for cell, message in rows:
        arguments = cell.partition("`")[0]
        query = f"{{ customers({arguments}) {{ nodes {{ id }} }} }}"
        headers = {"authorization": f"Bearer {demo.key()}"}
        (error,) = httpx.post(f"{demo.address}/graphql", json={"query": query}, headers=headers).json()["errors"]
        assert (error["message"], error["extensions"]) == (message, {"code": "BAD_USER_INPUT"}), arguments


def test_every_refusal_is_documented_with_its_code_and_its_facts() -> None:
    core: GraphQLSchema = schema._schema
    refused = core.get_implementations(cast("GraphQLInterfaceType", core.type_map["UserError"])).objects
    codes = {refusal.__name__: refusal.code for refusal in refusals._TABLE}
    assert {(name, code, facts.replace("`", "")) for name, code, facts, *_ in rows_after(ERRORS, "Refusals")} == {
        (type_.name, codes[type_.name], ", ".join(sorted(set(type_.fields) - {"code", "message"}))) for type_ in refused
    }


def test_every_code_of_a_top_level_error_is_documented() -> None:
    sources = [file.read_text("utf-8") for room in ("gateway", "schema") for file in (ROOT / room).rglob("*.py")]
    codes = {fault.code for fault in errors.Fault.__subclasses__()}
    codes |= {code for source in sources for code in re.findall(r'\bcode(?:: str)? ?= ?"([A-Z_]+)"', source)}
    codes |= {code for _, code in REASONS.values()}
    assert {row[0] for row in rows_after(ERRORS, "Faults")} == codes


def test_every_status_of_the_endpoint_is_documented() -> None:
    sources = [
        (ROOT / "gateway" / name).read_text("utf-8") for name in ("http/graphql.py", "http/messages.py", "app.py")
    ]
    pattern = r"(?:HTTPProblem\(|body = |return )(\d{3})\b"
    statuses = {status for source in sources for status in re.findall(pattern, source)}
    statuses |= {str(status) for status, _ in REASONS.values()}
    # The statuses of a missing key and of a database that is away come with the errors of the rules.
    assert {row[0] for row in rows_after(ERRORS, "Statuses")} == statuses | {"401", "503"}


def test_what_the_server_refuses_is_documented_by_its_reason_and_status() -> None:
    section = (ROOT / "docs" / "observability.md").read_text("utf-8").partition("| `refusal` | what | status |\n")[2]
    rows = re.findall(r"^\| (`.+?`) \| .+ \| (\d{3}|none) \|$", section.partition("\n\n")[0], re.MULTILINE)
    documented = {reason: status for reasons, status in rows for reason in re.findall("[A-Z_]+", reasons)}
    # A client that does not read is not answered, and one that waits for other answers has those.
    unanswered = {"ANSWER_UNREAD": "none", "TOO_MANY_PIPELINED": "none"}
    assert documented == {reason: str(status) for reason, (status, _) in REASONS.items()} | unanswered


def test_what_goes_wrong_names_every_status_of_what_the_server_refuses() -> None:
    rows = rows_after(ROOT / "docs" / "operations.md", "What goes wrong")
    (seen,) = [row[0] for row in rows if "`refusal`" in row[0]]
    assert set(re.findall("[0-9]{3}", seen)) == {str(status) for status, _ in REASONS.values()}


def test_the_rejects_file_becomes_lines_to_import_as_the_guide_says(demo: Demo) -> None:
    line = '{"workspaceId": "readme", "externalMeterId": "nowhere", "eventId": "line-1", "amount": "10"}'
    importing = ".venv/bin/tollgate import usage.jsonl --org demo --environment sandbox"
    done = demo.shell(f"printf '%s\\n' '{line}' '[]' > usage.jsonl; {importing} --json")
    assert done.returncode == 1
    counts = json.loads(done.stdout)
    assert (counts["read"], counts["refused"], counts["invalid"]) == (2, 1, 1)
    rejects = (demo.folder / "usage.jsonl.rejects.jsonl").read_text().splitlines()
    assert {rejected["line"]: rejected["input"] for rejected in map(json.loads, rejects)} == {1: line, 2: "[]"}
    assert {frozenset(json.loads(rejected)) for rejected in rejects} == {
        frozenset({"line", "code", "message", "input"})
    }


@pytest.mark.parametrize("page", PAGES)
def test_graphql_in_the_documentation_fits_the_schema(page: str) -> None:
    core: GraphQLSchema = schema._schema
    for block in blocks_of(ROOT / page):
        if block.language == "graphql":
            assert validate(core, parse(block.text)) == []


def settings_table() -> dict[str, tuple[str, str]]:
    """Return the default and the values of each setting as the page shows them."""
    rows = re.findall(r"^\| `(TOLLGATE_\w+)` \| `(.+?)` \| (.+?) \| .+ \|$", SETTINGS.read_text("utf-8"), re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (default, values) for name, default, values in rows}


def test_every_setting_is_documented_with_its_default_and_no_other() -> None:
    documented = {name: default for name, (default, _) in settings_table().items()}
    assert documented == {
        variable_of(each.name): "none" if each.default in {None, ()} else str(each.default) for each in fields(Settings)
    }


@pytest.mark.parametrize("variable", settings_table())
def test_a_setting_takes_the_values_that_are_documented(variable: str) -> None:
    default, values = settings_table()[variable]
    name = next(each.name for each in fields(Settings) if variable_of(each.name) == variable)
    assert getattr(Settings.read({variable: default}), name) == getattr(Settings(), name)
    bounds = re.fullmatch(r"([0-9]+) to ([0-9]+)", values)
    if bounds is not None:
        least, most = map(int, bounds.groups())
        assert [getattr(Settings.read({variable: str(value)}), name) for value in (least, most)] == [least, most]
        refused = [str(least - 1), str(most + 1)]
    else:
        for choice in re.findall(r"`(.+?)`", values):
            assert getattr(Settings.read({variable: choice}), name) == choice
        refused = []
        # What is empty is not set.
        assert Settings.read({variable: ""}) == Settings()
    for value in refused:
        with pytest.raises(BadSetting, match=f"^{variable} must "):
            Settings.read({variable: value})


def limits_table() -> dict[str, tuple[int, str]]:
    """Return the default of each setting in the tables of limits, and what is beyond it."""
    rows = re.findall(r"^\| .+? \| ([0-9]+) \| `(TOLLGATE_\w+)` \| (.+?) \|", LIMITS.read_text("utf-8"), re.MULTILINE)
    return {variable: (int(default), beyond) for default, variable, beyond in rows}


def test_every_limit_is_listed_with_its_default() -> None:
    defaults = {variable_of(each.name): each.default for each in fields(Settings)}
    listed = {variable: default for variable, (default, _) in limits_table().items()}
    assert listed == {variable: defaults[variable] for variable in listed}
    # The cost has a section of its own.
    assert {name for name in defaults if name.startswith("TOLLGATE_MAX_")} - set(listed) == {"TOLLGATE_MAX_COST"}


@pytest.mark.parametrize("page", PAGES)
def test_a_default_that_is_named_in_passing_is_the_setting_s(page: str) -> None:
    defaults = {variable_of(each.name): each.default for each in fields(Settings)}
    text = " ".join((ROOT / page).read_text("utf-8").split())
    named = re.findall(r"`(TOLLGATE_\w+)`, ([0-9,]+)(?: seconds)? by default", text)
    named += re.findall(r"`(TOLLGATE_\w+)`: [^.`|]*?, ([0-9,]+) seconds by default", text)
    assert [(name, int(value.replace(",", ""))) for name, value in named] == [
        (name, defaults[name]) for name, _ in named
    ]


#: The reasons of what the server refuses by itself, by the settings of these limits.
REFUSED_BY_SERVER = {
    "TOLLGATE_MAX_BODY_BYTES": "BODY_TOO_LARGE",
    "TOLLGATE_MAX_HEAD_BYTES": "HEAD_TOO_LARGE",
    "TOLLGATE_MAX_HEADERS": "TOO_MANY_HEADERS",
    "TOLLGATE_HEAD_SECONDS": "HEAD_TOO_SLOW",
    "TOLLGATE_BODY_SECONDS": "BODY_TOO_SLOW",
    "TOLLGATE_MAX_CONNECTIONS": "TOO_MANY_CONNECTIONS",
}


def test_what_the_server_refuses_beyond_a_limit_has_the_status_that_is_shown() -> None:
    shown = {variable: beyond[:3] for variable, (_, beyond) in limits_table().items() if variable in REFUSED_BY_SERVER}
    assert shown == {variable: str(REASONS[reason][0]) for variable, reason in REFUSED_BY_SERVER.items()}


#: What the page of limits says in numbers that are no settings.
NUMBERS = (
    f"at most {MAX_ERRORS} errors are returned, each of them once",
    f"a message of at most {MAX_MESSAGE_LENGTH} characters",
    f"returns at most {MAX_FIELD_ERRORS} errors",
    f"A page has {DEFAULT_PAGE} rows without `first` or `last`",
    f"| look-ups at once of keys that are not known yet | {MAX_LOOK_UPS} |",
    f"| requests that wait on one connection for the one before them | {MAX_PIPELINED} |",
    f"| chunks of a body that comes in chunks | {MAX_CHUNKS} |",
    f"is passed over for {LINGER_SECONDS} seconds at most",
    f"answered already is passed over too, {MAX_IN_VAIN_BYTES // 1024**2} MiB at most",
    f"read at {IN_VAIN_BYTES_PER_SECOND // 1024**2} MiB a second",
    f"Documents of more than {MAX_IN_LOOP:,} characters",
    f"An answer of more than {LARGE_VALUES:,} values",
    f"{MAX_KEPT_DOCUMENTS} at most, and as many as take {MAX_KEPT_BYTES // 1024**2} MB with their plans",
    f"that recurs, {MAX_PLANS} at most",
    f"{SMALL_WEIGHT // 1024**2} MB with what it takes until it is sent",
    f"take {MAX_WEIGHT // 1024**2} MB together",
    f"a usage name of {USAGE_NAME_LENGTH} characters, a text of {NAME_LENGTH}",
    f"metadata of {METADATA_BYTES // 1024} KiB",
)


@pytest.mark.parametrize("statement", NUMBERS)
def test_a_number_of_the_page_of_limits_is_that_of_the_code(statement: str) -> None:
    assert statement in " ".join(LIMITS.read_text("utf-8").split())


@pytest.mark.parametrize(
    "url", re.findall(r"^\| .+ \| `((?:sqlite|postgresql).+)` \|$", SETTINGS.read_text("utf-8"), re.MULTILINE)
)
def test_a_documented_database_url_is_accepted(url: str) -> None:
    # A file that the page only supposes need not be here.
    assert database_url(url.partition("&sslrootcert=")[0]).partition("?")[0] == url.partition("?")[0]


def test_an_option_wins_over_its_variable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [Path(sys.executable).with_name("tollgate"), "serve", "--port", port],
            cwd=tmp_path,
            env=environment() | {"TOLLGATE_PORT": "9000"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    # The port that it could not have is the option's.
    assert done.stderr.startswith(f"Error: Cannot listen on 127.0.0.1:{port}")


def test_every_option_of_serve_that_is_a_setting_is_named() -> None:
    section = SETTINGS.read_text("utf-8").partition("## What wins\n")[2].partition("\n\n")[0]
    options = {name for parameter in COMMANDS["serve",].params for name in parameter.opts}
    settings = {f"--{each.name.replace('_', '-')}" for each in fields(Settings)}
    assert {name for name in re.findall("`(--[a-z-]+)`", section) if name in settings} == options & settings


def commands_of(command: Any, *path: str) -> dict[tuple[str, ...], Any]:
    """Return the command's innermost commands by their names."""
    inner: Mapping[str, Any] = getattr(command, "commands", {})
    if not inner:
        return {path: command}
    found: dict[tuple[str, ...], Any] = {}
    for name, each in inner.items():
        found |= commands_of(each, *path, name)
    return found


COMMANDS = commands_of(typer.main.get_command(app))


def test_every_command_is_mentioned() -> None:
    text = README.read_text("utf-8") + GUIDE.read_text("utf-8")
    assert [path for path in COMMANDS if f"`tollgate {' '.join(path)}`" not in text] == []


def command_lines() -> list[str]:
    """Return what follows `tollgate` in each command line of the documentation, in blocks and in the text."""
    texts = [(ROOT / page).read_text("utf-8") for page in PAGES]
    found = [line for text in texts for line in re.findall(r"^(?:\S+/)?tollgate (.+)$", text, re.MULTILINE)]
    found += [line for text in texts for line in re.findall(r"`tollgate ([^`]+)`", text)]
    return sorted(set(found))


@pytest.mark.parametrize("line", command_lines())
def test_a_command_line_names_commands_and_options_that_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    path = next((path for path in COMMANDS if words[: len(path)] == list(path)), None)
    if path is None:
        assert words == ["--help"]
        return
    options = {name for parameter in COMMANDS[path].params for name in parameter.opts} | {"--help"}
    assert [word for word in words if word.startswith("-") and len(word) > 1 and word not in options] == []


def make_targets() -> list[str]:
    return re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_every_hook_before_a_commit_is_a_task_of_the_makefile() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [each["repo"] for each in config["repos"]] == ["local"]
    hooks = [hook["entry"].split() for each in config["repos"] for hook in each["hooks"]]
    assert {words[0] for words in hooks} == {"make"}
    assert {target for _, *targets in hooks for target in targets} <= set(make_targets())


def test_every_make_target_that_is_shown_exists() -> None:
    targets = make_targets()
    texts = [(ROOT / page).read_text("utf-8") for page in PAGES]
    shown = {target for text in texts for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)}
    assert {"run", "test"} <= shown
    assert shown <= set(targets)


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8"))
    relative = [target for target in targets if "://" not in target]
    assert [target for target in relative if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_every_decision_is_in_the_index_in_order() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(page.name for page in folder.glob("[0-9]*.md"))
    assert re.findall(r"^\| \[[0-9]{4}\]\((.+?)\)", (folder / "README.md").read_text("utf-8"), re.MULTILINE) == pages
    for number, name in enumerate(pages, start=1):
        lines = (folder / name).read_text("utf-8").splitlines()
        assert lines[0].startswith(f"# {number:04}: ")
        assert re.fullmatch(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}, \w+.*", lines[2])
        headings = [line for line in lines if line.startswith("## ")]
        assert headings == ["## Context", "## Decision", "## Consequences", "## Alternatives"]


#: What is nobody's business but of the machine, the tracker or the registry that it comes from.
FOREIGN = re.compile(
    r"(?<![\w.~/])/(?:home|root|Users|mnt|opt|tmp|work)/"  # a folder of somebody's machine
    r"|\b(?:pypi|pythonhosted|npmjs)\b|/simple/"  # a registry
    r"|(?<!\w)#[0-9]+\b"  # an issue
)


@pytest.mark.parametrize("page", PAGES)
def test_the_documentation_speaks_of_the_project_alone(page: str) -> None:
    assert FOREIGN.findall((ROOT / page).read_text("utf-8")) == []
