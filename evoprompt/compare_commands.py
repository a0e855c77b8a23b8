"""Commands that hold scores against human ones: one prompt, several, over seeds and splits, over domains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evoprompt.errors import DataError
from evoprompt.options import OUT_FILE, OUT_FOLDER, PATH, SOME_UNUSABLE, combine, fail, with_machine, with_seen

if TYPE_CHECKING:
    from evoprompt.measuring import Request

STATISTICS = ("srcc", "plcc", "krcc", "plcc_logistic4")
"""What a sequence of domains may be summarised by."""

with_protocol = combine(
    click.option("--lower-better", is_flag=True, help="The human scores are better when lower (DMOS)."),
    click.option("--images", type=PATH, help="Folder of the images that the table of human scores names."),
    click.option("--column", help="Header of the human scores.  [default: the usual ones]"),
    click.option("--mos-range", help="Ends of the MOS scale, such as 1..5; default: the set's, or those in it."),
    click.option(
        "--min-gap", type=float, help="Least MOS difference of counted pairs; default: one standard deviation."
    ),
    click.option("--n-boot", default=2000, type=click.IntRange(min=100), help="Bootstrap resamples."),
    click.option("--seed", default=0, type=click.IntRange(min=0), help="Of the resamples, and of pairs voted on."),
    with_seen,
    click.option("--batch-size", default=8, type=click.IntRange(min=1), help="Images at a time."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table."),
    with_machine,
)


@click.command()
@click.argument("prompts", nargs=-1)
@click.option("--eval-mos", type=PATH, help="Images and human scores; not needed for a scores.csv that has them.")
@click.option("-o", "--out", type=OUT_FOLDER, help="Folder for evaluation.json, scores.csv, table.md and table.tex.")
@with_protocol
def evaluate(prompts: tuple[str, ...], out: Path | None, as_json: bool, **options: Any) -> None:
    """Agreement with human scores: SRCC, PLCC, KRCC, RMSE with intervals.

    PROMPTS are run folders, prompt folders, Hub ids, owl2-nano (the prompt in the package), or scores.csv files (then
    no model is loaded). The bare judge is always measured, too.
    """
    from evoprompt.comparison import write_results
    from evoprompt.measuring import measure, said
    from evoprompt.result_tables import document
    from evoprompt.tracking import Console

    console, request = Console(), request_of(prompts, **options)
    measured = measure(request, console)
    if out:
        write_results(out, "evaluation", measured.body, measured.target, measured.columns)
    console.say(said(measured.body))
    click.echo(json.dumps(measured.body, indent=2) if as_json else document(measured.body).rstrip())
    report_left_out(measured.body)


@click.command()
@click.argument("prompts", nargs=-1, required=True)
@click.option("--eval-mos", type=PATH, help="Images and human scores; not needed for a scores.csv that has them.")
@click.option(
    "-o", "--out", type=OUT_FOLDER, help="Folder for comparison.json and .html, scores.csv, table.md and .tex."
)
@click.option(
    "--vote-pairs",
    default=2000,
    type=click.IntRange(min=0),
    help="Pairs voted on for the row without training; 0 leaves it out.",
)
@with_protocol
def compare(prompts: tuple[str, ...], out: Path | None, vote_pairs: int, as_json: bool, **options: Any) -> None:
    """Which prompt is better, by how much, how surely.

    PROMPTS are run folders, prompt folders, Hub ids, owl2-nano (the prompt in the package), none, or scores.csv files
    (then no model is loaded). NAME=PROMPT names a row; prompts of one name are its seeds. The bare judge and its votes
    without training are always beside.
    """
    from evoprompt.comparison import comparison_page, gain_shares, summarise_methods, write_results
    from evoprompt.measuring import measure, said
    from evoprompt.result_tables import document
    from evoprompt.runs import write_text
    from evoprompt.tracking import Console

    console, request = Console(), request_of(prompts, vote_pairs=vote_pairs, **options)
    measured = measure(request, console)
    body = measured.body
    body["shares"] = gain_shares(measured.target, measured.columns, request.protocol)
    body["summaries"] = summarise_methods(body["rows"])
    if out:
        write_results(out, "comparison", body, measured.target, measured.columns)
        write_text(out / "comparison.html", comparison_page(body))
    console.say(said(body))
    click.echo(json.dumps(body, indent=2) if as_json else document(body).rstrip())
    report_left_out(body)


@click.command()
@click.argument("results", nargs=-1, required=True, type=PATH)
@click.option("-o", "--out", type=OUT_FILE, help="Markdown file to write the table to, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def aggregate(results: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Median, mean and standard deviation over seeds and splits.

    RESULTS are evaluation.json or comparison.json files, or folders with one; rows of one method are put together.
    """
    from evoprompt.comparison import summarise_methods
    from evoprompt.result_tables import markdown, summary_table
    from evoprompt.runs import write_text

    bodies = [read_results(path) for path in results]
    summaries = summarise_methods([row for body in bodies for row in body["rows"]])
    splits = "; ".join(f"{body['labels']} (n = {body['n']}, split: {body['split']})" for body in bodies)
    text = f"Over {len(bodies)} result files: {splits}.\n\n{markdown(summary_table(summaries))}"
    if out:
        write_text(out, text + "\n")
    click.echo(json.dumps(summaries, indent=2) if as_json else text)


@click.command()
@click.argument("stages", nargs=-1, required=True)
@click.option(
    "--eval-mos",
    multiple=True,
    type=PATH,
    help="Images and human scores of a domain, in training order; repeatable.",
)
@click.option("-o", "--out", type=OUT_FOLDER, help="Folder for continual.json and table.md.")
@click.option("--statistic", default="srcc", type=click.Choice(STATISTICS), help="What R, ACC, BWT and FWT are of.")
@with_protocol
def continual(
    stages: tuple[str, ...], eval_mos: tuple[Path, ...], out: Path | None, statistic: str, as_json: bool, **options: Any
) -> None:
    """A prompt trained on one domain after the other: R[i, j], ACC, BWT, FWT and forgetting.

    STAGES are the prompts after each domain, measured on every --eval-mos; or, without --eval-mos, one evaluation.json
    a domain, each with the bare judge and all stages.
    """
    from evoprompt.continual import continual_body, continual_table
    from evoprompt.measuring import measure_all
    from evoprompt.runs import write_json, write_text
    from evoprompt.tracking import Console

    console = Console()
    if eval_mos and len(eval_mos) != len(stages):
        raise DataError(
            f"{len(stages)} prompts and {len(eval_mos)} domains; give one prompt for each domain, in the order in "
            "which they were trained on."
        )
    if eval_mos and any(stage.endswith("=none") or stage == "none" for stage in stages):
        raise DataError(
            "the bare judge is no stage of training; it is measured on every domain anyway. Give the prompts only, one "
            "for each domain."
        )
    if eval_mos:
        request = request_of(stages, eval_mos=None, **options)
        bodies = [measured.body for measured in measure_all(request, eval_mos, console)]
    else:
        bodies = [read_results(Path(stage)) for stage in stages]
    body = continual_body(bodies, statistic)
    text = continual_table(body, bodies)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "continual.json", {**body, "evaluations": bodies})
        write_text(out / "table.md", text + "\n")
    click.echo(json.dumps(body, indent=2) if as_json else text)


def request_of(
    items: tuple[str, ...], mos_range: str | None, min_gap: float | None, n_boot: int, seed: int, **options: Any
) -> Request:
    """What the options of ``with_protocol`` ask for, as a ``measuring.Request``."""
    from evoprompt.evaluation import Protocol
    from evoprompt.measuring import Request
    from evoprompt.score_files import scale_ends

    ends = scale_ends(mos_range, "--mos-range") if mos_range else None
    return Request(items=items, protocol=Protocol(n_boot=n_boot, seed=seed, min_gap=min_gap, ends=ends), **options)


def read_results(path: Path) -> dict[str, Any]:
    """Content of an ``evaluation.json`` or ``comparison.json``, or of the one in a folder.

    Raises:
        DataError: when there is none, or it is of another kind.
    """
    names = ("evaluation.json", "comparison.json")
    file = next((path / name for name in names if (path / name).is_file()), path)
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        if not {"labels", "n", "split", "direction", "rows"} <= set(body):
            raise ValueError("another kind of file")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} is not a result of 'evoprompt evaluate -o' or 'evoprompt compare -o' of this version. "
            "Give its folder, or the evaluation.json or comparison.json in it."
        ) from error
    return dict(body)


def report_left_out(body: dict[str, Any]) -> None:
    """Exit with a word when images had no score."""
    if body["left_out"]:
        fail(f"{body['left_out']} images have no score by some prompt and were left out of all rows.", SOME_UNUSABLE)
