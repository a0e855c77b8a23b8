#!/usr/bin/env bash
# Install evoprompt and evolve a prompt on the example images, label-free, with the embedded judge; then the same with
# coin tosses for labels, the control: nothing should come of that. A run that was interrupted is continued.
# Usage: scripts/start.sh [RUN]
set -euo pipefail
cd "$(dirname "$0")/.."
run="${1:-runs/examples}"
scripts/setup.sh
evolve() {
    if [ -f "$1/run.json" ]; then
        .venv/bin/evoprompt resume "$1"
    else
        .venv/bin/evoprompt evolve --unlabeled examples --recipe nano --device cpu --out "$@"
    fi
}
evolve "$run"
evolve "$run-control" --control random-labels
