"""What a run found, from its files alone: its records, its health, and the verdict in a few lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import parquet

from evoprompt.config import Recipe
from evoprompt.errors import listed
from evoprompt.recipe_files import load_recipe
from evoprompt.runs import read_record, read_rounds
from evoprompt.stats import binomial_above_chance

Numbers = Mapping[str, float]


class Measure(NamedTuple):
    """A health measure for people: what it is, when to worry, and whether that is the case.

    ``worrying`` takes the measures of a prompt and those of the start of the run.
    """

    means: str
    worry: str
    worrying: Callable[[Numbers, Numbers], bool]


def _chance(name: str) -> Callable[[Numbers, Numbers], bool]:
    def worrying(now: Numbers, start: Numbers) -> bool:
        steps = int(now["ladder_steps"])
        return binomial_above_chance(round(now[name] * steps), steps, 0.9) <= 0.5

    return worrying


def _below(name: str, least: float) -> Callable[[Numbers, Numbers], bool]:
    return lambda now, start: now[name] < least


def _biased(now: Numbers, start: Numbers) -> bool:
    share = min(max(now["vote_share"], 0.5), 1 - 1e-9)
    return abs(now["position_bias"]) > 2 * math.log(share / (1 - share))


MEASURES: dict[str, Measure] = {
    "ladder_vote_accuracy": Measure(
        "share of neighbouring ladder steps whose votes prefer the less degraded image",
        "not clearly better than a coin (90 % confidence): the votes may know nothing",
        _chance("ladder_vote_accuracy"),
    ),
    "ladder_rate_accuracy": Measure(
        "the same for the ratings of the two images; ties count half",
        "not clearly better than a coin (90 % confidence)",
        _chance("ladder_rate_accuracy"),
    ),
    "ladder_compare_accuracy": Measure(
        "the same for the comparing votes alone",
        "not clearly better than a coin (90 % confidence)",
        _chance("ladder_compare_accuracy"),
    ),
    "ladder_steps": Measure(
        "how many steps these three shares are of", "below 50: the shares are rough", _below("ladder_steps", 50)
    ),
    "vote_share": Measure(
        "mean share of the votes for the winner of a held-out pair, 0.5 to 1; the vote margin is 2 share - 1",
        "below 0.55: the votes are undecided",
        _below("vote_share", 0.55),
    ),
    "swap_consistency": Measure(
        "share of comparisons whose winner stays when the order of the two images is swapped",
        "below 0.7",
        _below("swap_consistency", 0.7),
    ),
    "position_bias": Measure(
        "mean log-odds for the image shown first; asking in both orders removes it",
        "its size is above twice the log-odds of vote_share: the order decides more than the images",
        _biased,
    ),
    "triad_consistency": Measure(
        "Kendall and Babington Smith's zeta: 1 = no circular triads (A over B over C over A), 0 = as many as possible",
        "below 0.5; coin flips in groups of 12 give about 0.2",
        _below("triad_consistency", 0.5),
    ),
    "kept_fraction": Measure(
        "share of held-out pairs whose votes pass vote.min_confidence",
        "below 0.3: little is left to learn from",
        _below("kept_fraction", 0.3),
    ),
    "agree_compare": Measure(
        "share of held-out pairs whose ratings agree with the comparing votes; ties count half",
        "below 0.55: ratings and votes have little in common",
        _below("agree_compare", 0.55),
    ),
    "agree_rate": Measure(
        "the same for the rating votes", "below 0.55: the ratings contradict themselves", _below("agree_rate", 0.55)
    ),
    "score_mean": Measure(
        "mean score of the held-out images, 1 to 5",
        "below 1.5 or above 4.5: the scale is used at one end only",
        lambda now, start: not 1.5 <= now["score_mean"] <= 4.5,
    ),
    "score_std": Measure(
        "standard deviation of these scores",
        "below half of what it was at the start, or below 0.05: the scores collapse",
        lambda now, start: now["score_std"] < max(0.5 * start["score_std"], 0.05),
    ),
    "ends_fraction": Measure(
        "share of these scores within 0.25 of 1 or 5",
        "above 0.25: the scale is used up",
        lambda now, start: now["ends_fraction"] > 0.25,
    ),
}
"""The measures of ``health.Health`` under their names there, in their order."""


@dataclass(frozen=True)
class RunFiles:
    """A run directory as it is on disk, finished or not.

    Args:
        path: The run directory.
    """

    path: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """``run.json``."""
        return read_record(self.path)

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """Records of the published rounds, round 0 first; empty when none is."""
        return read_rounds(self.path)

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return load_recipe(self.path / "recipe.yaml")

    @cached_property
    def images(self) -> list[dict[str, Any]]:
        """The user's images in the order of their keys; empty when the run was killed before it wrote them."""
        file = self.path / "images.parquet"
        return parquet.read_table(file).to_pylist() if file.is_file() else []

    @property
    def supervised(self) -> bool:
        """Whether human scores alone were trained on, and held-out ones decided what was accepted."""
        return self.record.get("kind") == "train"

    @property
    def objectives(self) -> dict[str, str]:
        """What steps were trained on, in words, with the objective there; two where human scores were mixed in."""
        found: dict[str, str] = {}
        if not self.supervised:
            found["the pseudo-labels of the round"] = self.recipe.train.objective
        if self.record.get("train_mos"):
            found["human scores"] = self.recipe.mos.objective
        return found

    @property
    def heldout(self) -> int:
        """How many images only the gate sees."""
        return sum(row["role"] == "heldout" for row in self.images)

    @property
    def now(self) -> dict[str, Any]:
        """The record of the last accepted round; that of round 0 when nothing was accepted."""
        return max((r for r in self.rounds if r["accepted"]), key=lambda r: int(r["round"]), default=self.rounds[0])

    @property
    def origin(self) -> str:
        """What the run started from, in words."""
        return "the prompt it started from" if self.record["init_prompt"] else "the bare judge"

    def folder(self, number: int) -> Path:
        """Folder of a published round."""
        return self.path / "rounds" / f"{number:03d}"

    def evaluation(self, number: int) -> dict[str, Any]:
        """What was measured against human scores after a round; empty when nothing was."""
        file = self.folder(number) / "eval.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def health(record: Mapping[str, Any]) -> dict[str, float]:
    """The health measures of a round by their own names, without those that could not be measured."""
    metrics = record["metrics"]
    found = {name: metrics.get(f"health/{name}", math.nan) for name in MEASURES}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def worries(now: Numbers, start: Numbers) -> list[str]:
    """Names of the measures in their range of worry, in order."""
    return [name for name, measure in MEASURES.items() if name in now and measure.worrying(now, start)]


def _worry(name: str, now: Numbers) -> str:
    """Why a measure is in its range of worry."""
    accuracy = name.startswith("ladder_") and name.endswith("_accuracy")
    if accuracy and _chance(name)({**now, name: 1.0}, now):  # a coin may well be right in all of so few
        return "too few steps to tell"
    return MEASURES[name].worry


def health_lines(now: Numbers) -> list[str]:
    """The measures of one look as lines of text: value, a mark where it is in its range of worry, and that range."""
    named = worries(now, now)
    values = {name: f"{now[name]:.4g}" if name in now else "none" for name in MEASURES}
    return [
        f"{name:<25}{values[name]:>9} {'!' if name in named else ' '} worry when {measure.worry}"
        for name, measure in MEASURES.items()
    ]


def verdict(run: Path) -> list[str]:
    """What came of a run, in a few plain lines; the first says whether it helped and by which measure.

    Args:
        run: Run directory, finished or not.

    Raises:
        RunError: When it is not a run directory, or of a newer version.
    """
    files = RunFiles(run)
    if not files.rounds:
        return [f"nothing to say yet: not even {files.origin} was measured{_state(files)}."]
    found = [_headline(files) + _state(files) + ".", _evidence(files), _teacher(files)]
    if human := _human(files):
        found.append(human)
    here, start = health(files.now), health(files.rounds[0])
    if named := worries(here, start):
        texts = [f"{name} {here[name]:.3g} ({_worry(name, here)})" for name in named]
        found.append(f"worry    {listed(texts, 3)}")
    return found


def _headline(files: RunFiles) -> str:
    tried = files.rounds[1:]
    kept = [r for r in tried if r["accepted"]]
    so_far = "" if files.record["status"] == "finished" else "so far "
    if not tried:
        return f"nothing to say yet: only {files.origin} was measured"
    count = f"{len(tried)} round{'s' * (len(tried) > 1)}"
    if files.recipe.control != "none":
        return (
            f"{so_far}a control run ({files.recipe.control}): {count}, each accepted whatever came of it; a gain here "
            "is not learning"
        )
    if files.recipe.gate.accept == "always":
        passed = sum(bool(r["metrics"]["gate/evidence"]) for r in tried)
        return f"{so_far}{count}, each accepted as gate.accept asks; on evidence {passed} would have been"
    if not kept:
        none = "no round was accepted" if len(tried) > 1 else "the one round was rejected"
        return f"{so_far}nothing helped: {none}; {files.origin} is as good as anything found here"
    gain = sum(r["metrics"]["gate/gain"] for r in kept)
    lows = [r["metrics"]["gate/gain_low"] for r in kept]
    least = f"{'each round ' * (len(kept) > 1)}at least {min(lows):+.3f}"
    least = least if all(map(math.isfinite, lows)) else "at least how much, so few images cannot tell"
    fell = _srcc(files, 0)["value"] > _srcc(files, files.now["round"])["value"]
    by = "it helped by the label-free gate but not by human scores" if fell else "it helped"
    if files.supervised:
        sure = any(r["metrics"]["gate/gain_low"] > 0 for r in kept)
        by = "it helped" if sure else "no clear help"
        by = f"{by} on held-out images and none on those of --eval-mos" if fell else by
        return (
            f"{so_far}{by}: {len(kept)} of {count} accepted; SRCC with the human scores of {files.heldout} held-out "
            f"images is {gain:.3f} higher than at the start ({least})"
        )
    return (
        f"{so_far}{by}: {len(kept)} of {count} accepted; on {files.heldout} held-out images the ratings agree with the "
        f"judge's votes in {gain:.3f} more of the pairs than at the start ({least})"
    )


def _state(files: RunFiles) -> str:
    """How far an unfinished run is and how to go on; empty for a finished one."""
    record = files.record
    if record["status"] == "finished":
        return ""
    done = max(0, len(files.rounds) - 1)
    why = f": {record['error'].rstrip('.')}" if record["status"] == "failed" else ""
    how = "" if why else f", 'evoprompt resume {files.path}' continues it"
    return f" [{record['status']} after {done} of {record['rounds']} rounds{why}{how}]"


def _evidence(files: RunFiles) -> str:
    start, now = health(files.rounds[0]), health(files.now)
    source = "agree_rate" if files.recipe.vote.source == "rate" else "agree_compare"
    kind = "rating" if source == "agree_rate" else "comparing"

    def both(name: str) -> str:
        if name not in now or name not in start:
            return "unknown"
        was = f" (start {start[name]:.3f})" if files.now["round"] else ""
        return f"{now[name]:.3f}{was}"

    return (
        f"held out ratings agree with the {kind} votes taken along with them in {both(source)} of pairs; "
        f"ladder accuracy {both('ladder_rate_accuracy')}; score spread {both('score_std')}"
    )


def _teacher(files: RunFiles) -> str:
    start = health(files.rounds[0])
    right, steps = start["ladder_vote_accuracy"], start["ladder_steps"]
    text = f"votes    right about {right:.3f} of the {steps:.0f} known degradations"
    if "swap_consistency" in start:
        text += f"; the same winner in both orders in {start['swap_consistency']:.3f} of comparisons"
    return text


def _human(files: RunFiles) -> str:
    first, last = _srcc(files, 0), _srcc(files, files.now["round"])
    if not math.isfinite(first["value"]):
        return ""
    text = f"human    SRCC {interval(first)} at the start"
    if files.now["round"] and math.isfinite(last["value"]):
        text += f", {interval(last)} now"
    return f"{text}; {files.evaluation(0)['n']} images, 95 % intervals"


def _srcc(files: RunFiles, number: int) -> dict[str, float]:
    """SRCC with its bounds after a round; NaN where it was not measured or is not defined."""
    measured = files.evaluation(number).get("srcc", {})
    found = {key: measured.get(key) for key in ("value", "low", "high")}
    return {key: math.nan if value is None else float(value) for key, value in found.items()}


def interval(number: Mapping[str, float], digits: int = 3) -> str:
    """A value with its bounds, such as ``0.713 [0.601, 0.802]``; without bounds when there are none."""
    text = f"{number['value']:.{digits}f}"
    if math.isfinite(number["low"]) and math.isfinite(number["high"]):
        text += f" [{number['low']:.{digits}f}, {number['high']:.{digits}f}]"
    return text


def srcc_by_round(files: RunFiles) -> list[dict[str, float]]:
    """SRCC with its bounds of every published round; empty when none was measured."""
    found = [_srcc(files, record["round"]) for record in files.rounds]
    return found if any(math.isfinite(number["value"]) for number in found) else []
