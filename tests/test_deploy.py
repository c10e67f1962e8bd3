"""What `deploy/` says agrees with the program and with itself. `make examples` runs the steps of the image."""

import configparser
import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml

from gateway.settings import Settings
from schema.engine.documents import MAX_KEPT_BYTES
from schema.engine.limits.room import MAX_WEIGHT
from tests import dockerfile
from tests.dockerfile import ROOT

DEPLOY = ROOT / "deploy"


def composed() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return loaded


def test_the_image_is_of_two_stages_and_runs_as_a_user_without_rights() -> None:
    build, last = [step.rest.split() for step in dockerfile.steps() if step.word == "FROM"]
    assert build == [*last, "AS", "build"]
    assert dockerfile.last("USER") == "10001"
    assert "--uid 10001" in dockerfile.last("RUN")
    assert dockerfile.command("CMD") == ["tollgate", "serve"]


def test_images_of_others_are_named_by_tag_and_digest() -> None:
    base = dockerfile.last("FROM")
    images = [service["image"] for service in composed()["services"].values() if service["image"] != "tollgate"]
    assert len(images) == 2
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
    composition = (DEPLOY / "compose.yaml").read_text("utf-8")
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
    for name in ("deploy/Dockerfile", "deploy/compose.yaml", ".devcontainer/devcontainer.json"):
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


def test_the_composition_begins_in_order_and_holds_no_secret() -> None:
    services = composed()["services"]
    assert set(services) == {"postgresql", "migrate", "gateway-1", "gateway-2", "proxy"}
    assert services["gateway-1"] == services["gateway-2"]
    conditions = {
        (name, on): wanted["condition"]
        for name, service in services.items()
        for on, wanted in service.get("depends_on", {}).items()
    }
    assert conditions == {
        ("migrate", "postgresql"): "service_healthy",
        ("gateway-1", "migrate"): "service_completed_successfully",
        ("gateway-2", "migrate"): "service_completed_successfully",
        ("proxy", "gateway-1"): "service_healthy",
        ("proxy", "gateway-2"): "service_healthy",
    }
    # Each service that must be healthy first has a check: PostgreSQL here, the gateways by the image's own check.
    assert "healthcheck" in services["postgresql"]
    assert dockerfile.command("HEALTHCHECK")[0] == "python"
    passwords = [service["environment"] for service in services.values() if "environment" in service]
    for variables in passwords:
        for name, value in variables.items():
            if "PASSWORD" in name:
                assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?.*\}", value)
    # PostgreSQL is asked by its address, where the server that only sets it up does not listen.
    asked = services["postgresql"]["healthcheck"]["test"]
    assert asked[asked.index("--host") + 1] == "127.0.0.1"
    # Only the proxy is reached from outside.
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert services["proxy"]["ports"] == ["80:80", "443:443"]
    # Its certificates outlive it, and each volume that is used is declared.
    used = {
        volume.partition(":")[0]
        for service in services.values()
        for volume in service.get("volumes", ())
        if not volume.startswith(".")
    }
    assert used == set(composed()["volumes"]) == {"database", "caddy"}
    assert "caddy:/data" in services["proxy"]["volumes"]


def test_the_compositions_gateways_have_no_rights_and_settings_that_are_settings() -> None:
    gateway = composed()["services"]["gateway-1"]
    assert (gateway["read_only"], gateway["init"]) == (True, True)
    # Only the proxy reaches it, and is believed whether TLS was used.
    assert gateway["environment"]["FORWARDED_ALLOW_IPS"] == "*"
    assert "ports" not in gateway
    assert gateway["cap_drop"] == ["ALL"]
    assert gateway["security_opt"] == ["no-new-privileges:true"]
    settings = Settings.read({**dockerfile.environment(), **gateway["environment"]})
    assert settings.database_url == "postgresql+asyncpg://tollgate@postgresql/tollgate"
    assert settings.has_graphiql is False
    # It is given the time to drain, and then to finish.
    assert settings.drain_seconds + 10 <= int(gateway["stop_grace_period"].removesuffix("s"))


def test_a_gateway_has_the_memory_that_its_limits_let_it_take() -> None:
    unit = (DEPLOY / "tollgate.service").read_text("utf-8")
    limits = re.findall(r"^MemoryMax=(\d+)M$", unit, re.MULTILINE)
    limits += [composed()["services"][name]["mem_limit"].removesuffix("m") for name in ("gateway-1", "gateway-2")]
    at_the_start, taken = 100_000_000, MAX_WEIGHT + MAX_KEPT_BYTES + Settings().max_unread_bytes
    for limit in limits:
        # Python gives back only a part of what it no longer needs.
        assert int(limit) * 1024 * 1024 > 1.5 * (at_the_start + taken)
    assert len(limits) == 3


def test_the_proxies_lead_to_the_gateways_and_ask_whether_they_are_ready() -> None:
    services = composed()["services"]
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


def test_the_proxies_wait_for_a_gateways_refusal_and_use_no_connection_that_it_closes() -> None:
    caddy, nginx = ((DEPLOY / name).read_text("utf-8") for name in ("Caddyfile", "nginx.conf"))
    drains = re.findall(r"TOLLGATE_DRAIN_SECONDS\W+(\d+)", (DEPLOY / "compose.yaml").read_text("utf-8"))
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
