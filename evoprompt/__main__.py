"""``python -m evoprompt`` is the command line."""

from evoprompt.cli import main

main()
