"""The pinned `tzdata` alone decides days, whatever zone files the machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path

#: Prints the days of a moment in zones, as the gateway computes them, and in what files it looked.
DAYS = """
import json, sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from datetime import UTC, datetime
from resolvers.values import day_of
instant = datetime(2026, 3, 16, 12, 0, tzinfo=UTC)
days = [str(day_of(instant, zone)) for zone in ("Pacific/Kiritimati", "Europe/Zurich", "America/Argentina/Salta")]
print(json.dumps([days, [each for each in opened if each.endswith(("Kiritimati", "Zurich", "Salta"))]]))
"""


def test_other_zone_files_change_no_day(tmp_path: Path) -> None:
    # Under every name, the zone that is a day behind.
    wrong = Path(sys.prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages", "tzdata", "zoneinfo")
    for name in ("Pacific/Kiritimati", "Europe/Zurich", "America/Argentina/Salta"):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((wrong / "Etc" / "GMT+12").read_bytes())
    for timezones in (str(tmp_path), ""):
        found = subprocess.run(
            [sys.executable, "-c", DAYS],
            env=os.environ | {"PYTHONTZPATH": timezones},
            capture_output=True,
            check=True,
            text=True,
        )
        days, opened = json.loads(found.stdout)
        assert days == ["2026-03-17", "2026-03-16", "2026-03-16"]
        assert all("site-packages/tzdata/" in each for each in opened)
        assert len(opened) == 3


def test_no_other_module_reads_zones() -> None:
    root = Path(__file__).parents[1]
    rooms = ("gateway", "schema", "resolvers", "storage", "benchmarks")
    users = {
        path.relative_to(root).as_posix()
        for room in rooms
        for path in (root / room).rglob("*.py")
        if "zoneinfo" in path.read_text(encoding="utf-8") and "node_modules" not in path.parts
    }
    assert users == {"resolvers/values.py"}
