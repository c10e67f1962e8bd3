"""The steps of `deploy/Dockerfile`, run in a clean folder: there is no Docker here, and the steps are read from it.

What this does not show: that the base image has what the steps need, and what the Docker engine itself does.
"""

import asyncio
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import dockerfile
from tests.dockerfile import ROOT
from tests.servers import PATIENCE_SECONDS, free_port

#: The user and group that own nothing.
NOBODY = 65_534


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """A folder that stands for the file system that the image's steps make."""
    folder = Path(tempfile.mkdtemp(prefix="tollgate-image-"))
    folder.chmod(0o755)
    try:
        build(folder)
        yield folder
    finally:
        shutil.rmtree(folder)


def build(folder: Path) -> None:
    """Run what the first stage runs, with the folder in the place of the root."""
    here = folder
    for step in dockerfile.steps():
        if step.stage > 0:
            break
        if step.word == "WORKDIR":
            here = folder / step.rest.lstrip("/")
            here.mkdir(parents=True)
        elif step.word == "COPY":
            *sources, place = step.rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    left_out = shutil.ignore_patterns("__pycache__", "source")
                    shutil.copytree(ROOT / source, here / place, ignore=left_out)
                else:
                    shutil.copy(ROOT / source, here / place)
        elif step.word == "RUN":
            run = step.rest.replace("/srv/tollgate", f"{folder}/srv/tollgate")
            run = run.replace("python -m venv", f"{shlex.quote(sys.executable)} -m venv", 1)
            subprocess.run(["/bin/sh", "-ec", run], cwd=here, env=clean_environment(), check=True)
        else:
            assert step.word == "FROM", step
    # The second stage takes this alone of it.
    (taken,) = [each.rest for each in dockerfile.steps() if each.word == "COPY" and each.rest.startswith("--from")]
    assert taken == "--from=build /srv/tollgate /srv/tollgate"
    shutil.rmtree(folder / "src")


def clean_environment() -> dict[str, str]:
    """Return what a process needs and what packages are installed by, and nothing of Tollgate's or of this checkout."""
    kept = ("HOME", "PATH", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_INDEX_URL", "PIP_CONFIG_FILE")
    proxies = [name for name in os.environ if name.lower().endswith("_proxy")]
    return {name: os.environ[name] for name in (*kept, *proxies) if name in os.environ}


def as_nobody(command: list[str]) -> list[str]:
    """Return the command as one that runs without rights, where this process may give its own up."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", *command]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


async def test_the_images_steps_make_a_gateway_that_is_healthy_and_writes_nowhere_else(image: Path) -> None:
    data = Path(tempfile.mkdtemp(prefix="tollgate-data-"))
    if os.geteuid() == 0:
        os.chown(data, NOBODY, NOBODY)
    port = str(free_port())
    variables = dockerfile.environment()
    path = f"{image}/srv/tollgate/bin:/usr/bin:/bin"
    environment = variables | {
        "PATH": path,
        "HOME": "/nonexistent",
        "TOLLGATE_PORT": port,
        "TOLLGATE_DATABASE_URL": variables["TOLLGATE_DATABASE_URL"].replace("/data/", f"{data}/"),
        "TOLLGATE_DRAIN_SECONDS": "0",
    }
    before = tree(image / "srv")
    assert len(before) > 1_000
    command = [shutil.which(each, path=path) or each for each in dockerfile.command("CMD")[:1]]
    command += dockerfile.command("CMD")[1:]
    if os.geteuid() == 0 and await ended(as_nobody([command[0], "--version"]), environment) != 0:
        # The interpreter of this machine is kept from other users, as the image's is not: so it is root without rights.
        command = ["setpriv", "--bounding-set=-all", "--no-new-privs", *command]
        os.chown(data, 0, 0)
    else:
        command = as_nobody(command)
    process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=data)
    check = dockerfile.command("HEALTHCHECK")
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await ended(check, environment) != 0:
                assert process.returncode is None
                await asyncio.sleep(0.1)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert (await client.get("/readyz")).json() == {"status": "ready"}
            assert (await client.post("/graphql", json={"query": "{ __typename }"})).status_code == 401
    finally:
        process.terminate()
        await process.wait()
    # Nobody is there any more, and the check says so.
    assert await ended(check, environment) == 1
    assert tree(image / "srv") == before
    assert {Path(path).name for path in tree(data)} <= {
        *("tollgate.db", "tollgate.db-wal", "tollgate.db-shm"),
        # What the secrets of webhooks are derived from, and which process sends them.
        *("tollgate.db.secrets-key", "tollgate.db.webhooks-lock"),
    }
    shutil.rmtree(data)


async def ended(command: list[str], environment: dict[str, str]) -> int | None:
    """Run the command and return its exit status."""
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=null, stderr=null)
    return await process.wait()


def test_the_image_holds_what_is_locked_and_no_installer(image: Path) -> None:
    python = f"{image}/srv/tollgate/bin/python"
    listing = "import importlib.metadata as m; print('\\n'.join(sorted(d.name.lower() for d in m.distributions())))"
    done = subprocess.run([python, "-c", listing], capture_output=True, text=True, check=True, env=clean_environment())
    installed = set(done.stdout.split())
    assert "tollgate" in installed
    assert not {"pip", "hatchling", "pytest"} & installed
