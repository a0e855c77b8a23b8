#!/usr/bin/env bash
# Install evoprompt and evolve a prompt on the example images, label-free, with the embedded judge; then the same with
# coin tosses for labels, the control: nothing should come of that.   Usage: scripts/start.sh [RUN]
set -euo pipefail
cd "$(dirname "$0")/.."
run="${1:-runs/examples}"
scripts/setup.sh
evolve=(.venv/bin/evoprompt evolve --unlabeled examples --recipe nano --device cpu)
"${evolve[@]}" --out "$run"
"${evolve[@]}" --control random-labels --out "$run-control"
