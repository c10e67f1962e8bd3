"""A Dockerfile taken apart, so that its own steps can be looked at and run where there is no Docker."""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


class Step(NamedTuple):
    """One instruction: its word, such as `RUN`, and the rest of it. `stage` counts the `FROM`s before it, from 0."""

    stage: int
    word: str
    rest: str


def steps() -> list[Step]:
    """Return the instructions in their order."""
    lines = [
        line
        for line in DOCKERFILE.read_text("utf-8").replace("\\\n", " ").splitlines()
        if line and not line.startswith("#")
    ]
    found: list[Step] = []
    stage = -1
    for line in lines:
        word, _, rest = line.partition(" ")
        assert re.fullmatch("[A-Z]+", word), line
        stage += word == "FROM"
        found.append(Step(stage, word, rest))
    return found


def last(word: str) -> str:
    """Return the rest of the only instruction of the last stage with this word."""
    (found,) = [step.rest for step in steps() if step.word == word and step.stage == steps()[-1].stage]
    return found


def environment() -> dict[str, str]:
    """Return the variables that the image sets."""
    return dict(part.split("=", 1) for part in shlex.split(last("ENV")))


def command(word: str) -> list[str]:
    """Return the list of the only `CMD` or, of `HEALTHCHECK`, of its own."""
    listed: list[str] = json.loads(last(word).partition("CMD ")[2] if word == "HEALTHCHECK" else last(word))
    return listed
