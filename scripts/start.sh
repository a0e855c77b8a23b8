#!/usr/bin/env bash
# Install evoprompt and evolve a prompt on the example images, label-free, with the embedded judge.   Usage: scripts/start.sh [RUN]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
.venv/bin/evoprompt evolve --unlabeled examples --recipe nano --device cpu --out "${1:-runs/examples}"
