"""The command that compares prompting systems."""

from __future__ import annotations

import json
from pathlib import Path

import click

from evoprompt import __version__
from evoprompt.options import OUT_FOLDER, PATH, PROMPT_HELP, with_machine, with_seen


@click.command()
@click.option("--eval-mos", required=True, multiple=True, type=PATH, help="Images and human scores; repeatable.")
@click.option("--lower-better", is_flag=True, help="The human scores are better when lower (DMOS).")
@click.option("--references", type=PATH, help="Folder of undamaged images.  [default: where the labels find them]")
@click.option("--systems", default="", help="Names or patterns with commas between, such as 'double-*'; default: all.")
@click.option("-p", "--prompt", default="none", help=PROMPT_HELP)
@click.option("--difficult", type=click.IntRange(min=20), help="Ask about so many difficult images a set only.")
@click.option("--proxy", multiple=True, type=PATH, help="CSV of scores that says which are difficult; repeatable.")
@click.option("--partners", default=10, type=click.IntRange(min=2), help="Images each image is paired with.")
@click.option("--seed", default=0, type=click.IntRange(min=0), help="Of the pairs and groups of four.")
@with_seen
@click.option(
    "-o", "--out", required=True, type=OUT_FOLDER, help="Folder for answers and tables; continues what is there."
)
@click.option("--batch-size", default=16, type=click.IntRange(min=1), help="Questions at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@with_machine
def study(
    eval_mos: tuple[Path, ...],
    lower_better: bool,
    references: Path | None,
    systems: str,
    prompt: str,
    difficult: int | None,
    proxy: tuple[Path, ...],
    partners: int,
    seed: int,
    seen: str,
    out: Path,
    batch_size: int,
    as_json: bool,
    judge: str | None,
    device: str,
    dtype: str,
) -> None:
    """Compare prompting systems: one image, two or four at a time; at once, after an example, after a description.

    Where undamaged reference images are at hand for every set, each system is also asked with the reference shown.
    """
    if (difficult is None) == bool(proxy):
        raise click.UsageError("--difficult and --proxy go together: how many images, and scores that say which.")
    from evoprompt.labels import open_labels
    from evoprompt.scoring import judge_for, load_prompt
    from evoprompt.session import unseen
    from evoprompt.study import FOURS, plan_study, run_study, study_folder, work
    from evoprompt.study_questions import choose_systems
    from evoprompt.study_results import find, protocol_of, row_of, stated, write_study
    from evoprompt.study_sets import hardest, proxy_hardness, study_sets
    from evoprompt.tracking import Console

    console = Console()
    patterns = [name.strip() for name in systems.split(",") if name.strip()]
    choose_systems(patterns, references=True)  # a misspelt one is told before images are read
    loaded = load_prompt(prompt)
    remembered = loaded.origin.seen if loaded else ()
    labels = []
    for path in eval_mos:
        labels.append(unseen(open_labels(path, console, lower_better=lower_better), remembered, seen, console))
    sets = study_sets(labels, references)
    chosen = choose_systems(patterns, all(data.references is not None for data in sets))
    told = protocol_of(sets, labels)
    plans = [plan_study(data, partners, seed) for data in sets]
    hard = [proxy_hardness(data, proxy) for data in sets] if proxy else []
    study_folder(out)
    asked = judge_for([loaded], judge, device, dtype)
    asked.attach(None)
    if difficult is not None:
        with console.progress("look", sum(len(data.mos) for data in sets)) as advance:
            fewer = [hardest(*pair, asked, difficult, batch_size, advance) for pair in zip(sets, hard, strict=True)]
        plans = [plan_study(data, partners, seed) for data in fewer]
    asked.attach(loaded)
    identity = {
        "version": __version__,
        "judge": f"{asked.id}@{asked.revision}",
        "precision": asked.precision,
        "prompt": loaded.sha() if loaded else "none",
        "sets": {plan.data.name: plan.data.fingerprint() for plan in plans},
        "lower_better": lower_better,
        "partners": partners,
        "fours": FOURS,
        "seed": seed,
    }
    for plan in plans:
        shown = "with references" if plan.data.references is not None else "no references"
        console.say(
            f"set      {plan.data.name}: {len(plan.images)} images are asked about, {len(plan.examples.set_aside)} are "
            f"examples, {shown}"
        )
        if difficult is not None and plan.data.std is None:
            console.say(f"warning  {plan.data.name} has no deviations: people count as agreed on every image.")
    console.say(f"judge    {identity['judge']}, prompt {loaded.sha()[:12] if loaded else 'none'}")
    console.say(f"plan     {len(chosen)} systems, {work(plans, chosen, asked.family.views)} answers, in {out}")
    with console.progress("study", work(plans, chosen, asked.family.views)) as advance:
        answers = run_study(asked, plans, chosen, identity, out, batch_size, advance)
    found = {(system.name, plan.data.name): find(plan, system, answers) for plan in plans for system in chosen}
    rows = [row_of(plan, system, found[system.name, plan.data.name]) for plan in plans for system in chosen]
    write_study(out, identity, told, plans, answers, rows, found)
    console.say(f"files    {out}: table.md, study.html (plot), study.json, scores.csv, answers.csv")
    click.echo(json.dumps([row.to_dict() for row in rows], indent=2) if as_json else stated(identity, told, rows))
