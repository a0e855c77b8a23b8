"""What people see while a run goes on: lines and progress bars on stderr, and a mirror of the metrics if asked for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import click
from tqdm import tqdm

Update = Callable[..., None]
Mirror = Callable[[Mapping[str, Any]], None]


class Console:
    """Lines and progress for people, on stderr; stdout is left to data.

    On a terminal a bar shows rate and time left; elsewhere one line appears at each tenth of the work or each minute.

    Args:
        quiet: say nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str = "") -> None:
        """One line."""
        if not self.quiet:
            click.echo(text, err=True)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Update]:
        """Progress of ``total`` units; the function given takes how many more are done and numbers to show."""
        if self.quiet:
            yield lambda n=1, **numbers: None
        elif sys.stderr.isatty():
            with tqdm(total=total, desc=label, file=sys.stderr, leave=False, dynamic_ncols=True) as bar:

                def advance(n: int = 1, **numbers: float) -> None:
                    bar.set_postfix({k: f"{v:.3g}" for k, v in numbers.items()}, refresh=False)
                    bar.update(n)

                yield advance
        else:
            yield self._lines(label, total)

    @contextmanager
    def counted(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Progress of units whose number is known with the first; the function takes how many are done, and all."""
        with ExitStack() as stack:
            bar: list[Update] = []

            def progress(done: int, total: int) -> None:
                if not bar:
                    bar.append(stack.enter_context(self.progress(label, total)))
                bar[0](1)

            yield progress

    def _lines(self, label: str, total: int) -> Update:
        started, state = time.monotonic(), {"done": 0, "tenth": 0, "said": time.monotonic()}

        def advance(n: int = 1, **numbers: float) -> None:
            state["done"] += n
            now, tenth = time.monotonic(), 10 * state["done"] // max(total, 1)
            if tenth == state["tenth"] and now - state["said"] < 60:
                return
            short = now - started < 5 and state["done"] < total
            state["tenth"] = tenth
            if short:
                return
            state["said"] = now
            rate = state["done"] / max(now - started, 1e-9)
            left = (total - state["done"]) / rate
            extra = "".join(f"  {k} {v:.3g}" for k, v in numbers.items())
            speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
            self.say(f"{label}  {state['done']}/{total}  {speed}/s  {left:,.0f} s left{extra}")

        return advance


def start_mirror(kind: str, name: str, config: Mapping[str, Any], folder: str) -> tuple[Mirror, str]:
    """Mirror metrics to Weights & Biases under the names of ``metrics.jsonl``.

    Without an API key it records offline instead of asking for one.

    Args:
        kind: ``none`` or ``wandb``.
        name: of the run; the same name continues the same run.
        config: the recipe.
        folder: where wandb keeps its files.

    Returns:
        The function that takes metrics, and one line that says where they go ("" for none).
    """
    if kind == "none":
        return lambda metrics: None, ""
    import wandb

    online = bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if online else "offline")
    run = wandb.init(
        project="evoprompt", id=name, name=name, resume="allow", config=dict(config), dir=folder, mode=mode
    )
    where = run.url if mode == "online" else f"offline, 'wandb sync {run.settings.sync_dir}' uploads it"
    return lambda metrics: run.log(dict(metrics)), f"wandb    {where}"
