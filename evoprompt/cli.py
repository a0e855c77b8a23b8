"""The command line. Commands read options, call one function and print: data on stdout, words for people on stderr."""

from __future__ import annotations

import os
from typing import Any

import click

from evoprompt import __version__
from evoprompt.compare_commands import aggregate, compare, continual, evaluate
from evoprompt.data_commands import data
from evoprompt.errors import INTERRUPTED, EvopromptError
from evoprompt.options import fail
from evoprompt.prompt_commands import prompt
from evoprompt.run_commands import evolve, report, resume, train
from evoprompt.score_commands import score
from evoprompt.study_commands import study
from evoprompt.tool_commands import doctor, judge, recipes

SHARED = ("evolve", "train", "resume")
ISSUES = "This is a bug in evoprompt. Run 'evoprompt doctor' and open an issue with its output and the lines above."


class _Commands(click.Group):
    """A group that turns our errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EvopromptError as error:
            fail(f"Error: {error}", error.exit_code)
        except KeyboardInterrupt:
            fail("Interrupted.", INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.strerror:
                place = f"{error.filename}: " if error.filename else ""
                fail(f"Error: {place}{error.strerror}. See that the place exists, is yours and has room.", 1)
            click.echo(ISSUES, err=True)
            raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="evoprompt")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Evolve a pixel prompt for image quality assessment from unlabelled images, and score images with it."""
    # The tokenizer's own threads would be forked away from by data loaders, and it says so at length.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait make a busy machine many times slower; torch is not loaded yet, so this works.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1" and ctx.invoked_subcommand not in SHARED:
        fail(
            f"Error: every process of this job would do all of {ctx.invoked_subcommand!r}; several processes share the "
            f"work of {', '.join(SHARED)} only. Start it without torchrun, on a share of the images for each GPU.",
            2,
        )


for _command in (
    evolve,
    train,
    resume,
    score,
    evaluate,
    compare,
    aggregate,
    continual,
    prompt,
    study,
    data,
    judge,
    report,
    recipes,
    doctor,
):
    main.add_command(_command)
