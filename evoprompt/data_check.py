"""What is understood of a set of images before anything is run on it: counts, scale, split, duplicates, bad files."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evoprompt.catalogue import ImageRecord, index_file
from evoprompt.containers import is_hub
from evoprompt.errors import DataError, counted, listed
from evoprompt.images import check_images, scan_images
from evoprompt.labels import find_named, repeated
from evoprompt.naming import KNOWN, scale_of
from evoprompt.readers import SCORE_COLUMNS, Reading, find_table, understand
from evoprompt.splits import PARTS, read_split, split_file, torn
from evoprompt.tables import TABLES, headers

_SCORES = (*SCORE_COLUMNS, "mos_image", "elo_score", "scaled_elo_score", "c_total")  # of all kinds of tables


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was understood.

    Attributes:
        facts: The same as numbers and texts, for machines.
        lines: (word, sentence) for people.
        problems: How many images cannot be used.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[tuple[str, str]] = field(default_factory=list)
    problems: int = 0


def has_scores(path: Path) -> bool:
    """Whether a path is a table or a folder with a known table of human scores, rather than images alone."""
    table = _table_at(path)
    return table is not None and _tells_scores(table)


def _table_at(path: Path) -> Path | None:
    """The table that a path is, or that a folder has by the name of a known one; None where there are images alone."""
    if is_hub(path):
        return None
    if path.is_dir():
        return find_table(path)
    is_table = path.suffix.lower() in (*TABLES, ".mat") or path.name in ("mos_with_names.txt", "csiq_label.txt")
    return path if is_table else None


def _tells_scores(table: Path) -> bool:
    """Whether one of the columns is known to hold human scores."""
    if table.is_dir() or table.suffix.lower() not in TABLES:
        return True
    columns = {column.lower() for column in headers(table)}
    in_its_ids = "id" in columns and ("conversations" in columns or table.suffix.lower() == ".json")
    return in_its_ids or not columns.isdisjoint(_SCORES)


def _why_none(path: Path) -> list[tuple[str, str]]:
    """What is said where a table is there and looked at as a list of images, or passed over."""
    table = _table_at(path)
    if table is None or _tells_scores(table):
        return []
    found = ", ".join(headers(table))
    known = ", ".join(f"'{name}'" for name in SCORE_COLUMNS)
    return [("scores", f"none: {table} has no column {known}; found: {found}. If one holds scores, add --column")]


def check_unlabeled(
    paths: Sequence[Path], index: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Checked:
    """Looks at images without scores.

    Args:
        paths: As for `images.scan_images`; so are the others.
        index: Where to keep what was found.
        progress: Called after each file.

    Raises:
        DataError: A source does not exist or holds no image that can be read.
    """
    images = scan_images(paths, skip_unreadable=True, index=index, progress=progress)
    total = len(images) + images.duplicates + len(images.skipped)
    facts = {
        "images": total,
        "distinct": len(images),
        "duplicates": images.duplicates,
        "unreadable": [f"{name} ({reason})" for name, reason in images.skipped],
        "fingerprint": images.fingerprint(),
        **_sizes(images.records),
    }
    skip = " --skip-unreadable" if images.skipped else ""
    lines = [
        *_why_none(paths[0]),
        ("images", f"{total} found, {len(images)} distinct, {counted(images.duplicates, 'duplicate')} (same content)"),
        ("unreadable", _counted(facts["unreadable"])),
        ("pixels", _pixels(facts)),
        ("content", f"fingerprint {facts['fingerprint']}"),
        ("next", f"evoprompt evolve --unlabeled {shlex.quote(str(paths[0]))}{skip}"),
    ]
    return Checked(facts=facts, lines=lines, problems=len(images.skipped))


def check_scores(
    path: Path,
    *,
    images: Path | None = None,
    lower_better: bool = False,
    column: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """Looks at a table of human scores and the images it names.

    Args:
        path: As for `labels.read_labels`, without a part.
        images: Folder of the images.
        lower_better: The scores are better when lower.
        column: Header of the score.
        progress: Called after each image.

    Raises:
        DataError: The table itself cannot be used.
    """
    reading = understand(path, column=column)
    named, missing, folders, notes = find_named(reading, images)
    there = [(name, file) for name, file in named if name not in set(missing)]
    records, bad = check_images(there, progress, index_file([reading.path]))
    twice = Counter(reading.names[first] for first, _ in repeated(named))
    repeats = [f"{name} ({n + 1} rows)" for name, n in twice.items()]
    contents = Counter(record.sha256 for record in records)
    doubles = sum(n - 1 for n in contents.values())
    facts: dict[str, Any] = {
        "table": str(reading.path),
        "dataset": reading.dataset,
        "rows": len(reading.names),
        "missing": missing,
        "unreadable": [f"{name} ({reason})" for name, reason in bad],
        "repeated_names": repeats,
        "duplicates": doubles,
        **_scale(reading, lower_better),
        **_structure(reading),
        **_sizes(records),
        "notes": [*reading.notes, *notes],
    }
    known = "recognised" if reading.dataset in KNOWN else "not one of the known sets"
    lines = [
        ("set", f"{reading.dataset} ({known}), from {reading.path}"),
        ("scores", _scores_line(facts)),
        ("groups", _groups_line(facts)),
        ("split", _split_line(reading, [r.sha256 for r in records] if len(records) == len(named) else None)),
        ("images", f"{len(named)} named, {len(records)} readable, {doubles} with the content of another"),
        ("missing", f"{_counted(missing)}{'; looked in ' + listed([str(f) for f in folders], 9) if missing else ''}"),
        ("unreadable", _counted(facts["unreadable"])),
        ("repeated", _counted(repeats)),
        ("pixels", _pixels(facts)),
        *(("note", note) for note in facts["notes"]),
    ]
    problems = len(missing) + len(bad) + len(repeats)
    again = "put right what is missing, unreadable or repeated, and check again"
    lines.append(("next", again if problems else f"evoprompt evaluate PROMPT --eval-mos {shlex.quote(str(path))}"))
    return Checked(facts=facts, lines=lines, problems=problems)


def _scale(reading: Reading, lower_better: bool) -> dict[str, Any]:
    if lower_better and reading.lower_better is False:
        raise DataError(f"{reading.dataset} is better when higher. Leave --lower-better out.")
    negated = lower_better or bool(reading.lower_better)
    ends = scale_of(reading.mos, KNOWN[reading.dataset].ranges) if reading.dataset in KNOWN else None
    return {
        "column": reading.column,
        "scale": ends,
        "low": float(reading.mos.min()),
        "high": float(reading.mos.max()),
        "distinct_scores": len(np.unique(reading.mos)),
        "better": "lower" if negated else "higher",
        "direction_from": "--lower-better"
        if lower_better
        else "the set"
        if reading.lower_better is not None
        else "you",
        "std": None if reading.std is None else [float(reading.std.min()), float(reading.std.max())],
    }


def _structure(reading: Reading) -> dict[str, Any]:
    return {
        "grouping": reading.grouping,
        "groups": len(set(reading.groups or ())),
        "distortions": len(set(reading.distortion or ())),
        "levels": sorted(set(reading.level or ())),
        "split": dict(Counter(str(part) for part in reading.split or ())),
    }


def _sizes(records: Sequence[ImageRecord]) -> dict[str, Any]:
    low, high = [1 << 30, 1 << 30], [0, 0]
    for record in records:
        low = [min(low[0], record.width), min(low[1], record.height)]
        high = [max(high[0], record.width), max(high[1], record.height)]
    return {"smallest": low, "largest": high} if records else {}


def _scores_line(facts: dict[str, Any]) -> str:
    ends = f" on a scale from {facts['scale'][0]:g} to {facts['scale'][1]:g}" if facts["scale"] else ""
    std = "no deviations" if facts["std"] is None else f"deviations {facts['std'][0]:g} to {facts['std'][1]:g}"
    why = {
        "you": "is assumed (add --lower-better if not)",
        "the set": "(known of this set)",
        "--lower-better": "(as you said)",
    }
    return (
        f"{facts['rows']} from column {facts['column']}: {facts['low']:g} to {facts['high']:g}{ends}; "
        f"{facts['better']} is better {why[facts['direction_from']]}; {std}"
    )


def _groups_line(facts: dict[str, Any]) -> str:
    levels = f", levels {facts['levels'][0]:g} to {facts['levels'][-1]:g}" if facts["levels"] else ""
    types = f"; {counted(facts['distortions'], 'type')} of distortion{levels}" if facts["distortions"] else ""
    groups = counted(facts["groups"], facts["grouping"]) if facts["groups"] else "no references or text prompts named"
    return groups + types


def _split_line(reading: Reading, sha256: Sequence[str] | None) -> str:
    file = split_file(reading.path)
    if file.is_file() and sha256 is not None:
        split = read_split(file, sha256)
        return f"{split.how}, seed {split.seed}, in {file}: {_parts([split.parts[sha] for sha in sha256])}"
    if reading.split is None:
        return f"none; make one with: evoprompt data split {shlex.quote(str(reading.path))}"
    leaks = [torn(reading.groups, reading.grouping, reading.split, part) for part in PARTS]
    leaky = next((f"; {leak}" for leak in reversed(leaks) if leak), "")
    return f"that of the table: {_parts(reading.split)}{leaky}; use one as {shlex.quote(f'{reading.path}#test')}"


def _parts(parts: Sequence[str | None]) -> str:
    return ", ".join(f"{part or 'none'} {n}" for part, n in sorted(Counter(parts).items(), key=lambda x: str(x[0])))


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)}: {listed(names)}" if names else "0"


def _pixels(facts: dict[str, Any]) -> str:
    if "smallest" not in facts:
        return "no image can be read"
    (left, top), (right, bottom) = facts["smallest"], facts["largest"]
    return f"{left} to {right} wide, {top} to {bottom} high"
