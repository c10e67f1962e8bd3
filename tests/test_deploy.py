"""What `deploy/` says agrees with the program and with itself. `make examples` runs the steps of the image."""

import configparser
import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from typing import Any

import pytest
import yaml

from gateway.settings import Settings
from schema.engine.documents import MAX_KEPT_BYTES
from schema.engine.limits.room import MAX_WEIGHT
from tests import dockerfile
from tests.dockerfile import ROOT

DEPLOY = ROOT / "deploy"


#: The compositions, each with its servers of PostgreSQL and with what runs before the gateways, in its order.
COMPOSITIONS = {
    "compose.yaml": (["postgresql"], ["migrate"]),
    "compose.citus.yaml": (["coordinator", "worker-1", "worker-2"], ["nodes", "migrate"]),
}


@pytest.fixture(params=COMPOSITIONS)
def composition(request: pytest.FixtureRequest) -> str:
    """The name of a composition's file."""
    return str(request.param)


def composed(name: str = "compose.yaml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text("utf-8"))
    return loaded


def test_the_image_is_of_two_stages_and_runs_as_a_user_without_rights() -> None:
    build, last = [step.rest.split() for step in dockerfile.steps() if step.word == "FROM"]
    assert build == [*last, "AS", "build"]
    assert dockerfile.last("USER") == "10001"
    assert "--uid 10001" in dockerfile.last("RUN")
    assert dockerfile.command("CMD") == ["tollgate", "serve"]


def test_images_of_others_are_named_by_tag_and_digest() -> None:
    base = dockerfile.last("FROM")
    services = [service for name in COMPOSITIONS for service in composed(name)["services"].values()]
    images = [service["image"] for service in services if service["image"] != "tollgate"]
    # That of Citus is not known here: the operator names it, by both.
    of_citus = [image for image in images if "CITUS" in image]
    assert len(of_citus) == 4
    assert {re.fullmatch(r"\$\{CITUS_IMAGE:\?.*@sha256:.*\}", image) is not None for image in of_citus} == {True}
    images = [image for image in images if image not in of_citus]
    assert len(images) == 3
    for image in (base, *images):
        assert re.fullmatch(r"(python:3\.13-slim|postgres:18|caddy:2)@sha256:[0-9a-f]{64}", image)
    # Python's is a release that is promised.
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    assert f"Programming Language :: Python :: {base.partition(':')[2].partition('-')[0]}" in promised


def test_the_page_says_how_the_digests_are_raised_of_each_image_and_where_they_stand() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    section = " ".join(page.partition("### The images of others\n")[2].partition("\n### ")[0].split())
    named = re.search(r"docker buildx imagetools inspect (\S+) --format '\{\{.Manifest.Digest\}\}'", section)
    others = re.search(r"likewise for `(.+?)` and `(.+?)`", section)
    assert named is not None
    assert others is not None
    composition = "".join((DEPLOY / name).read_text("utf-8") for name in COMPOSITIONS)
    container = (ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8")
    images = {
        name: set(re.findall(r"[\w/]+:[\w.-]+(?=@sha256:)", text))
        for name, text in (
            ("build", dockerfile.DOCKERFILE.read_text("utf-8")),
            ("run", composition),
            ("develop", container),
        )
    }
    assert images == {"build": {named[1]}, "run": set(others.groups()), "develop": {named[1]}}
    for name in (
        "deploy/Dockerfile",
        "deploy/compose.yaml",
        "deploy/compose.citus.yaml",
        ".devcontainer/devcontainer.json",
    ):
        assert f"`{name}`" in section


def test_contributors_develop_in_the_image_that_is_built_on() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    assert container["image"] == dockerfile.last("FROM")


def test_the_images_settings_are_settings() -> None:
    settings = Settings.read(dockerfile.environment())
    assert settings == Settings(
        host="0.0.0.0",  # noqa: S104  # Nothing listens here.
        database_url="sqlite+aiosqlite:////data/tollgate.db",
        drain_seconds=10,
    )


def test_the_images_check_asks_the_port_that_is_served(subtests: pytest.Subtests) -> None:
    _, _, code = dockerfile.command("HEALTHCHECK")
    printing = code.replace("r.urlopen(", "print(").replace(", timeout=2", "")
    for variables, port in (
        ({}, 8000),
        ({"TOLLGATE_PORT": "8080"}, 8080),
        # Both are no setting: `docs/settings.md` says so.
        ({"TOLLGATE_PORT": ""}, 8000),
        ({"TOLLGATE_PORT": "tcp://10.96.0.12:8080"}, 8000),
    ):
        with subtests.test(variables=variables):
            asked = subprocess.run([sys.executable, "-c", printing], env=variables, capture_output=True, check=True)
            assert asked.stdout == f"http://127.0.0.1:{port}/readyz\n".encode()


def test_what_the_image_copies_is_all_that_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for step in dockerfile.steps()
        if step.word == "COPY" and not step.rest.startswith("--from")
        for source in step.rest.split()[:-1]
    }
    assert copied == allowed
    assert lines[1] == "*"
    # And it is there.
    assert all((ROOT / source).exists() for source in copied)
    ignored = [line for line in lines[2:] if not line.startswith("!")]
    assert any(fnmatch.fnmatch("gateway/pages/graphiql/source", line) for line in ignored)


def test_the_composition_begins_in_order_and_holds_no_secret(composition: str) -> None:
    services = composed(composition)["services"]
    servers, before = COMPOSITIONS[composition]
    assert set(services) == {*servers, *before, "gateway-1", "gateway-2", "proxy"}
    conditions = {
        (name, on): wanted["condition"]
        for name, service in services.items()
        for on, wanted in service.get("depends_on", {}).items()
    }
    assert conditions == {
        **{(before[0], server): "service_healthy" for server in servers},
        **{(later, earlier): "service_completed_successfully" for earlier, later in pairwise(before)},
        ("gateway-1", "migrate"): "service_completed_successfully",
        ("gateway-2", "migrate"): "service_completed_successfully",
        ("proxy", "gateway-1"): "service_healthy",
        ("proxy", "gateway-2"): "service_healthy",
    }
    # Each service that must be healthy first has a check: PostgreSQL here, the gateways by the image's own check.
    assert [name for name, service in services.items() if "healthcheck" in service] == servers
    assert dockerfile.command("HEALTHCHECK")[0] == "python"
    passwords = [
        value
        for service in services.values()
        for name, value in service.get("environment", {}).items()
        if "PASSWORD" in name
    ]
    # Each server has its own, and with Citus that by which it connects to the others.
    assert len(passwords) == len(before) + 2 + len(servers) * (2 if len(servers) > 1 else 1)
    for value in passwords:
        assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?.*\}", value)
    # PostgreSQL is asked by its address, where the server that only sets it up does not listen.
    for server in servers:
        asked = services[server]["healthcheck"]["test"]
        assert asked[asked.index("--host") + 1] == "127.0.0.1"
    # Only the proxy is reached from outside.
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert services["proxy"]["ports"] == ["80:80", "443:443"]
    # Its certificates outlive it, each server has a volume of its own, and each volume that is used is declared.
    used = [
        volume.partition(":")[0]
        for service in services.values()
        for volume in service.get("volumes", ())
        if not volume.startswith(".")
    ]
    assert sorted(used) == sorted(composed(composition)["volumes"])
    assert len(used) == len(servers) + 1
    assert "caddy:/data" in services["proxy"]["volumes"]


def test_the_compositions_gateways_have_no_rights_and_settings_that_are_settings(composition: str) -> None:
    services = composed(composition)["services"]
    urls, others = [], []
    for name in ("gateway-1", "gateway-2"):
        gateway = services[name]
        assert (gateway["read_only"], gateway["init"]) == (True, True)
        # Only the proxy reaches it, and is believed whether TLS was used.
        assert gateway["environment"]["FORWARDED_ALLOW_IPS"] == "*"
        assert "ports" not in gateway
        assert gateway["cap_drop"] == ["ALL"]
        assert gateway["security_opt"] == ["no-new-privileges:true"]
        settings = Settings.read({**dockerfile.environment(), **gateway["environment"]})
        urls.append(settings.database_url)
        assert settings.has_graphiql is False
        # It is given the time to drain, and then to finish.
        assert settings.drain_seconds + 10 <= int(gateway["stop_grace_period"].removesuffix("s"))
        variables = [each for each in gateway["environment"].items() if each[0] != "TOLLGATE_DATABASE_URL"]
        others.append({**gateway, "environment": variables})
    # They differ in nothing but the URL.
    assert others[0] == others[1]
    # On Citus each is on a server of its own, so that one is left where a server is lost.
    servers, _ = COMPOSITIONS[composition]
    assert urls == [f"postgresql+asyncpg://tollgate@{server}/tollgate" for server in (servers * 2)[-2:]]


def test_the_compositions_have_the_same_proxy_and_migrate_first() -> None:
    one, several = (composed(name)["services"] for name in COMPOSITIONS)
    assert one["proxy"] == several["proxy"]
    assert one["migrate"]["command"] == ["tollgate", "migrate"]
    assert several["migrate"]["command"] == ["tollgate", "migrate", "--distribute", "--buckets", "8"]
    urls = [each["migrate"]["environment"]["TOLLGATE_DATABASE_URL"] for each in (one, several)]
    assert urls == [f"postgresql+asyncpg://tollgate@{name}/tollgate" for name in ("postgresql", "coordinator")]


def test_each_server_of_citus_is_made_known_to_the_coordinator() -> None:
    services = composed("compose.citus.yaml")["services"]
    workers = [name for name in services if name.startswith("worker-")]
    statements = (DEPLOY / "citus.sql").read_text("utf-8")
    # The extension is made in each before it is added, and the script ends at the first failure.
    assert re.findall(r"^\\connect - - (\S+)\nCREATE EXTENSION IF NOT EXISTS citus;$", statements, re.MULTILINE) == [
        *workers,
        "coordinator",
    ]
    assert re.findall(r"citus_add_node\('(\S+)', 5432\)", statements) == workers
    assert "SELECT citus_set_coordinator_host('coordinator', 5432);" in statements
    assert "\\set ON_ERROR_STOP on" in statements
    assert "./citus.sql:/citus.sql:ro" in services["nodes"]["volumes"]
    assert services["nodes"]["command"] == ["--file", "/citus.sql"]
    # Whichever PostgreSQL the image is of, its data are in the volume; and moving them blocks no writes.
    for name in ("coordinator", *workers):
        assert services[name]["environment"]["PGDATA"] == "/srv/postgresql/data"
        assert services[name]["volumes"] == [f"{name}:/srv/postgresql"]
        assert "wal_level=logical" in services[name]["command"]


def test_a_gateway_has_the_memory_that_its_limits_let_it_take() -> None:
    unit = (DEPLOY / "tollgate.service").read_text("utf-8")
    limits = re.findall(r"^MemoryMax=(\d+)M$", unit, re.MULTILINE)
    services = [composed(file)["services"][name] for file in COMPOSITIONS for name in ("gateway-1", "gateway-2")]
    limits += [service["mem_limit"].removesuffix("m") for service in services]
    at_the_start, taken = 100_000_000, MAX_WEIGHT + MAX_KEPT_BYTES + Settings().max_unread_bytes
    for limit in limits:
        # Python gives back only a part of what it no longer needs.
        assert int(limit) * 1024 * 1024 > 1.5 * (at_the_start + taken)
    assert len(limits) == 5


def test_the_proxies_lead_to_the_gateways_and_ask_whether_they_are_ready(composition: str) -> None:
    services = composed(composition)["services"]
    caddy = (DEPLOY / "Caddyfile").read_text("utf-8")
    (upstreams,) = re.findall(r"reverse_proxy (.*) \{", caddy)
    assert upstreams.split() == [f"{name}:8000" for name in services if name.startswith("gateway-")]
    assert "health_uri /readyz" in caddy
    # It asks at least so often that it knows before the gateway stops.
    (seconds,) = re.findall(r"health_interval (\d+)s", caddy)
    drains = int(services["gateway-1"]["environment"]["TOLLGATE_DRAIN_SECONDS"])
    assert 3 * int(seconds) <= drains
    nginx = (DEPLOY / "nginx.conf").read_text("utf-8")
    # A request that was sent may have been carried out.
    assert "non_idempotent" not in nginx
    assert "proxy_set_header X-Forwarded-Proto $scheme;" in nginx


def test_the_proxies_wait_for_a_gateways_refusal_and_use_no_connection_that_it_closes(composition: str) -> None:
    caddy, nginx = ((DEPLOY / name).read_text("utf-8") for name in ("Caddyfile", "nginx.conf"))
    drains = re.findall(r"TOLLGATE_DRAIN_SECONDS\W+(\d+)", (DEPLOY / composition).read_text("utf-8"))
    idle = min(Settings().keep_alive_seconds, *map(int, drains))
    (by_nginx,) = re.findall(r"^\s*keepalive_timeout (\d+)s;", nginx, re.MULTILINE)
    (by_caddy,) = re.findall(r"^\s*keepalive (\d+)s$", caddy, re.MULTILINE)
    assert 0 < int(by_nginx) < idle
    assert 0 < int(by_caddy) < idle
    (seconds,) = re.findall(r"^\s*proxy_read_timeout (\d+)s;", nginx, re.MULTILINE)
    assert int(seconds) >= Settings().request_seconds + 10


def test_the_unit_drains_and_writes_to_its_own_folder_alone() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "tollgate.service", "utf-8")
    service = unit["Service"]
    assert service["ExecStart"] == "/srv/tollgate/bin/tollgate serve"
    assert (service["ProtectSystem"], service["StateDirectory"]) == ("strict", "tollgate")
    assert (service["DynamicUser"], service["NoNewPrivileges"], service["CapabilityBoundingSet"]) == ("yes", "yes", "")
    variables = dict(part.split("=", 1) for part in service["Environment"].split() if part.startswith("TOLLGATE_"))
    settings = Settings.read(variables)
    assert settings.drain_seconds + 10 <= int(service["TimeoutStopSec"])
    # It listens on loopback, where a proxy of the same machine leads others to it.
    assert (settings.is_loopback, settings.has_graphiql) == (True, False)
    # It waits for its database for ever, and not for a setting to repair itself.
    assert (unit["Unit"]["StartLimitIntervalSec"], service["RestartPreventExitStatus"]) == ("0", "2")
    # The processes' figures are computed from the time of the machine's start, which is in /proc/stat.
    assert "ProcSubset" not in service
