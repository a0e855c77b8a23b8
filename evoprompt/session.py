"""What every command that costs something says first and last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import click

from evoprompt.catalogue import Catalogue, index_file
from evoprompt.config import Recipe
from evoprompt.errors import INTERRUPTED, listed
from evoprompt.evolution import TABLE_HEAD
from evoprompt.images import ImageSet, scan_images
from evoprompt.judge import NANO, OwlJudge, load_judge
from evoprompt.labels import Labels, without_seen
from evoprompt.processes import rank
from evoprompt.prompts import PixelPrompt, SeenFile
from evoprompt.report import verdict, write_report
from evoprompt.scoring import judge_for
from evoprompt.tracking import Console, Mirror, start_mirror
from evoprompt.voting import check_vote


def open_images(sources: Sequence[Path], skip: bool, console: Console) -> ImageSet:
    """Scan the images and say what was found; what is known of files that have not changed is used again."""
    with console.counted("images") as progress:
        images = scan_images(sources, skip_unreadable=skip, progress=progress, index=index_file(sources))
    console.say(
        f"images   {len(images) + images.duplicates + len(images.skipped)} found, {len(images)} distinct, "
        f"{len(images.skipped)} unreadable"
        + (f": {listed([f'{n} ({why})' for n, why in images.skipped])}" if images.skipped else "")
    )
    return images


def open_judge(recipe: Recipe, device: str, console: Console) -> OwlJudge:
    """Load the judge that a recipe names and say what it is."""
    wanted = recipe.judge
    loaded = load_judge(
        wanted.id, wanted.revision, wanted.family, wanted.dtype, device, wanted.question, wanted.preprocess,
        wanted.quantization, wanted.checkpointing, wanted.compile, recipe.eval.memory_mib,
    )  # fmt: skip
    return _introduced(loaded, recipe, console)


def open_judge_of(
    prompt: PixelPrompt, name: str | None, recipe: Recipe, device: str, dtype: str, console: Console
) -> OwlJudge:
    """Load the judge a prompt belongs to, see ``scoring.judge_for``, for the votes of a recipe, and say what it is."""
    return _introduced(judge_for([prompt], name, device, dtype), recipe, console)


def _introduced(loaded: OwlJudge, recipe: Recipe, console: Console) -> OwlJudge:
    total = sum(p.numel() for p in loaded.model.parameters())
    note = ", the small embedded judge (docs/nano.md says what it can do)" if loaded.id == NANO else ""
    check_vote(recipe.vote, loaded)
    console.say(
        f"judge    {loaded.id}@{loaded.revision}{note}; {loaded.precision}, {loaded.device}; "
        f"0 of {total / 1e6:,.1f} M parameters trained"
    )
    return loaded


def unseen(labels: Labels, seen: Iterable[str], what: str, console: Console) -> Labels:
    """The labels that may be measured on; says so when some of their images were seen while evolving."""
    left, n_seen = without_seen(labels, seen, what)
    if n_seen and what == "keep":
        console.say(f"warning  {n_seen} of the {len(labels)} evaluation images were seen; this is not a test.")
    return left


def seen_by(run: Path) -> Iterator[str]:
    """What a run has seen: its images, those with human scores included, and what its warm start, if any, has seen."""
    yield from SeenFile(run / "start" / "seen.txt")
    files = [path for name in ("images", "mos") if (path := run / f"{name}.parquet").is_file()]
    yield from (key for path in files for record in Catalogue(path) for key in record.keys)


def open_mirror(kind: str, out: Path, recipe: Recipe, console: Console) -> Mirror:
    """Where metrics go besides the run directory."""
    mirror, line = start_mirror(kind, out.name, recipe.to_dict(), str(out.parent))
    if line:
        console.say(line)
    return mirror


def finish(out: Path, console: Console, go: Callable[[], Path]) -> None:
    """Run, and end with what came of it and what to type next; of several processes the first alone does that."""
    if rank():
        go()
        return
    console.say(TABLE_HEAD)
    try:
        go()
    except KeyboardInterrupt:
        if (out / "run.json").is_file():
            console.say(f"interrupted; nothing is lost. Continue with: evoprompt resume {out}")
            raise click.exceptions.Exit(INTERRUPTED) from None
        raise
    page = write_report(out)
    console.say()
    for line in verdict(out):
        console.say(line)
    console.say(f"files    {out}: prompt/ (the accepted prompt), rounds/, metrics.jsonl")
    console.say(f"report   {page}")
    console.say(f"next     evoprompt score IMAGES -p {out}")
