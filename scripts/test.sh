#!/usr/bin/env bash
# Install evoprompt with its development tools and run every check.   Usage: scripts/test.sh [PYTEST OPTION...]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/mypy evoprompt
.venv/bin/python -m pytest "$@"
