"""Time and memory of every phase of a run, as a Markdown table.

    scripts/start.sh runs/examples && .venv/bin/python scripts/phases.py runs/examples > docs/results/first_run.md
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import datetime
from pathlib import Path


def main() -> None:
    """Print the page of the run named on the command line."""
    run = Path(sys.argv[1])
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    rounds = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((run / "rounds").glob("[0-9]*/round.json"))]
    whole = datetime.fromisoformat(record["finished"]) - datetime.fromisoformat(record["started"])
    print("# Time and memory of the first command\n")
    print("Made by `scripts/start.sh RUN && .venv/bin/python scripts/phases.py RUN`, without the installation.")
    print(f"{record['images']} example images, judge {record['judge']['id']}@{record['judge']['revision']}, "
          f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {record['versions']['torch']}.\n")  # fmt: skip
    print("| round | look at the start, s | vote, s | train, s | gate, s | peak memory so far, MiB | verdict |")
    print("|--:|--:|--:|--:|--:|--:|---|")
    for r in rounds:
        seconds = r["seconds"]
        spent = [f"{seconds[stage]:.1f}" if stage in seconds else "" for stage in ("look", "vote", "train", "gate")]
        verdict = r["reason"] if not r["round"] else f"{'accepted' if r['accepted'] else 'rejected'}: {r['reason']}"
        print(f"| {r['round']} | {' | '.join(spent)} | {r['peak_memory_mib']:.0f} | {verdict} |")
    print(f"\nFrom the first look to the last verdict: {whole.total_seconds():.0f} s.")


if __name__ == "__main__":
    main()
