"""Time and memory of every phase of some runs, as a Markdown page.

scripts/start.sh RUN && .venv/bin/python scripts/phases.py RUN RUN-control > docs/results/first_run.md
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

HEADS = ("look at the start, s", "vote, s", "train, s", "gate, s", "peak memory so far, MiB", "verdict")


def table(run: Path, record: dict[str, Any]) -> list[str]:
    """One row for every round of a run, and the seconds of the whole."""
    rounds = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((run / "rounds").glob("[0-9]*/round.json"))]
    lines = [f"| round | {' | '.join(HEADS)} |", "|--:|--:|--:|--:|--:|--:|---|"]
    for r in rounds:
        spent = [f"{r['seconds'][s]:.1f}" if s in r["seconds"] else "" for s in ("look", "vote", "train", "gate")]
        verdict = f"{'accepted' if r['accepted'] else 'rejected'}: {r['reason']}" if r["round"] else r["reason"]
        lines.append(f"| {r['round']} | {' | '.join(spent)} | {r['peak_memory_mib']:.0f} | {verdict} |")
    whole = datetime.fromisoformat(record["finished"]) - datetime.fromisoformat(record["started"])
    return [*lines, "", f"From the first look to the last verdict: {whole.total_seconds():.0f} s."]


def main() -> None:
    """Print the page of the runs named on the command line."""
    runs = {run: json.loads((run / "run.json").read_text(encoding="utf-8")) for run in map(Path, sys.argv[1:])}
    first = next(iter(runs.values()))
    print("# Time and memory of the first command\n")
    print("Made by `scripts/start.sh RUN && .venv/bin/python scripts/phases.py RUN RUN-control`, without installing.")
    print(f"{first['images']} example images, judge {first['judge']['id']}@{first['judge']['revision']}, "
          f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {first['versions']['torch']}.")  # fmt: skip
    for run, record in runs.items():
        print(f"\n## {'labels: votes' if record['control'] == 'none' else 'control: ' + record['control']}\n")
        print("\n".join(table(run, record)))


if __name__ == "__main__":
    main()
