"""How much of the rooms the tests run: `make coverage` prints it, and fails where it is too little of the rules.

Run it with the file that `coverage json` wrote.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOMS = ("gateway", "schema", "resolvers", "storage")

#: The least percentage of branches that the tests run of a room.
MIN_BRANCHES = {"resolvers": 98.0}


def percentages(files: Mapping[str, Any], room: str) -> tuple[float, float]:
    """Return the percentages of a room's lines and branches that were run."""
    summaries = [file["summary"] for name, file in files.items() if name.startswith(f"{room}/")]
    return (
        _percentage(summaries, "covered_lines", "num_statements"),
        _percentage(summaries, "covered_branches", "num_branches"),
    )


def _percentage(summaries: list[dict[str, int]], part: str, whole: str) -> float:
    return 100 * sum(each[part] for each in summaries) / sum(each[whole] for each in summaries)


def main(report: str) -> int:
    """Print the percentages of each room, and where a room has too few, the branches that were not run."""
    files = json.loads(Path(report).read_text("utf-8"))["files"]
    too_few = []
    sys.stdout.write("room         lines  branches\n")
    for room in ROOMS:
        lines, branches = percentages(files, room)
        sys.stdout.write(f"{room:10} {lines:6.1f} % {branches:6.1f} %\n")
        if branches < MIN_BRANCHES.get(room, 0):
            too_few.append(room)
    for room in too_few:
        sys.stdout.write(f"\n{room}: at least {MIN_BRANCHES[room]} % of the branches must be run. These are not:\n")
        for name, file in sorted(files.items()):
            if name.startswith(f"{room}/"):
                for line, to in file["missing_branches"]:
                    sys.stdout.write(f"{name}:{line} -> {to if to > 0 else 'its end'}\n")
    return 1 if too_few else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
