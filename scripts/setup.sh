#!/usr/bin/env bash
# Make .venv and install evoprompt into it.   Usage: scripts/setup.sh [EXTRA]
# The constraint only keeps the tested torch; a GPU machine that wants another build installs torch into .venv first.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt --editable ".${1:+[$1]}"
