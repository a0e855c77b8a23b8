"""Whether a judge is worth evolving: several trained alike, several prompts each with all controls, on unseen images.

    python scripts/nano_study.py DATA WORK NANO NANO NANO --out docs/results

NANO are folders that `train_nano.py` wrote with different seeds; DATA is described in `human_sets.py`. For every judge,
set and seed, prompts are trained on human scores, on the judge's votes, on these and degraded copies (the ladder), on
coin tosses and on shuffled votes, all alike otherwise and each accepted, through the command line of evoprompt;
`evoprompt compare` measures them on images that none has seen. Beside that, how often votes and ratings are right on
pairs of test images, by wording and view. Finished runs in WORK are not run again; several processes may share the
work, one per judge, with --no-page. Writes nano.md and .json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_nano import EVOLVE, RANDOM, SETTINGS, TRAIN, Methods, columns_of, ends, numbers_of, one_set
from human_sets import SETS, HumanSet, Parts, cut
from scipy import stats
from try_nano import encode, load_views, scores, votes

from evoprompt.judge import load_judge
from evoprompt.result_tables import shown
from evoprompt.score_files import read_scores
from evoprompt.stats import Reading, percentile_interval

SUPERVISED, FREE, LADDER, SHUFFLED = "supervised", "label-free", "label-free with ladder", "shuffled labels"
METHODS: Methods = {
    SUPERVISED: (TRAIN, "nano-supervised", ()),
    FREE: (EVOLVE, "nano", ()),
    LADDER: (EVOLVE, "nano-ladder", ()),
    RANDOM: (EVOLVE, "nano", ("control=random-labels",)),
    SHUFFLED: (EVOLVE, "nano", ("control=shuffled-labels",)),
}
CONTROLS = (RANDOM, SHUFFLED)
PAIRS, RESAMPLES = 1000, 1000
KNOWN = {
    "ladder": "votes less ratings, right on ladder steps (an image against a worse copy of itself)",
    "disagreement": "share of held-out pairs that ratings order otherwise than votes",
}


def pair_accuracy(judge_folder: Path, parts: Parts, work: Path) -> dict[str, Any]:
    """How often ratings and votes are right on random pairs of test images, and votes less ratings, paired.

    Both are asked of the bare judge. Votes are in both orders. The 95 % intervals resample images.
    """
    kept = work / "pairs.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    judge = load_judge(str(judge_folder), None, "nano", "float32", "cpu")
    views, mos, _ = load_views(parts.test, 0, judge.image_size)
    pairs = np.random.default_rng(1).integers(0, len(mos), (PAIRS, 2))
    pairs = pairs[mos[pairs[:, 0]] != mos[pairs[:, 1]]]
    truth = mos[pairs[:, 0]] > mos[pairs[:, 1]]
    rated, seen = scores(judge, views), encode(judge, views)
    right = {"ratings": (rated[pairs[:, 0]] > rated[pairs[:, 1]]) == truth}
    n_wordings = len(judge.family.compare)
    for n_views in (1, seen.shape[1]):
        for wordings in (1, n_wordings):
            share = votes(judge, seen[:, :n_views], pairs, wordings)
            right[f"votes, views {n_views}, wordings {wordings}"] = (share > 0.5) == truth
    rng = np.random.default_rng(2)
    times = [np.bincount(rng.integers(0, len(mos), len(mos)), minlength=len(mos)) for _ in range(RESAMPLES)]
    weights = [count[pairs[:, 0]] * count[pairs[:, 1]] for count in times]

    def interval(values: np.ndarray) -> dict[str, Any]:
        draws = np.array([np.average(values, weights=weight) for weight in weights])
        return percentile_interval(float(values.mean()), draws)._asdict()

    most = right[f"votes, views {seen.shape[1]}, wordings {n_wordings}"]
    result = {name: interval(hits.astype(float)) for name, hits in right.items()}
    result["votes less ratings"] = interval(most.astype(float) - right["ratings"])
    kept.write_text(json.dumps(result))
    return result


def estimates(work: Path, seeds: int) -> dict[str, float]:
    """What the label-free runs knew before they started, without labels, mean over seeds; see `KNOWN`."""
    metrics = [
        json.loads((work / f"{FREE}-{seed}" / "rounds" / "000" / "round.json").read_text())["metrics"]
        for seed in range(seeds)
    ]

    votes_right, ratings_right = ("health/ladder_vote_accuracy", "health/ladder_rate_accuracy")
    return {
        "ladder": float(np.mean([m[votes_right] - m[ratings_right] for m in metrics])),
        "disagreement": float(np.mean([1 - m["health/agree_compare"] for m in metrics])),
    }


def one_judge(base: Path, chosen: HumanSet, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one judge on one set."""
    parts = cut(args.data, chosen, args.work)
    work = args.work / base.name / chosen.name
    work.mkdir(parents=True, exist_ok=True)
    settings = [*SETTINGS, f"judge.id={base}"]
    body = one_set(parts, work, args.seeds, settings, METHODS)
    bare = next(c.scores for c in read_scores(work / "comparison" / "scores.csv").columns if c.kind == "bare")
    return {
        "revision": body["judge"].split("@")[-1],
        "n": body["n"],
        "methods": body["methods"],
        "minutes": {name: float(np.mean([c["minutes"] for c in cost])) for name, cost in body["cost"].items()},
        "pairs": pair_accuracy(base, parts, work),
        "estimates": estimates(work, args.seeds),
        "near ends": float(np.mean((bare < 1.25) | (bare > 4.75))),
        "levels": [float(np.mean(np.rint(bare) == level)) for level in range(1, 6)],
    }


def over_judges(folders: Sequence[Path]) -> dict[str, Any]:
    """Means over all judges and seeds of one set, paired, and the share of the supervised gain that votes reach.

    There is no share (None) where supervision itself does not gain; resamples in which it does not are left out.
    """
    readings = columns_of(folders)
    draws = {name: np.mean([one.draws for one in found], axis=0) for name, found in readings.items()}
    means = {name: float(np.mean([one.value for one in found])) for name, found in readings.items()}
    supervised = means[SUPERVISED] - means["none"]
    share = None
    if supervised > 0:
        gained = draws[SUPERVISED] > draws["none"]
        bare = draws["none"][gained]
        shares = (draws[FREE][gained] - bare) / (draws[SUPERVISED][gained] - bare)
        share = percentile_interval((means[FREE] - means["none"]) / supervised, shares)._asdict()
    runs = {control: run_by_run(readings[FREE], readings[control]) for control in CONTROLS}
    return {"methods": numbers_of(folders, CONTROLS), "share": share, "runs": runs}


def run_by_run(ours: Sequence[Reading], theirs: Sequence[Reading]) -> dict[str, float]:
    """SRCC of runs less that of others with the same judge and seed: how many are above, and p of no difference.

    The t-test takes the runs as the sample, where the intervals of the page take the images.
    """
    differences = np.array([one.value - other.value for one, other in zip(ours, theirs, strict=True)])
    p = stats.ttest_1samp(differences, 0).pvalue
    return {"above": int((differences > 0).sum()), "of": len(differences), "p": float(p)}


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("judges", type=Path, nargs="+", metavar="NANO")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-page", action="store_true", help="only run; for several processes, one per judge")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judges = {base.name: {name: one_judge(base, SETS[name], args) for name in args.sets} for base in args.judges}
    if args.no_page:
        return
    folders = {name: [args.work / base / name / "comparison" for base in judges] for name in args.sets}
    results = {"seeds": args.seeds, "judges": judges, "sets": {name: over_judges(folders[name]) for name in args.sets}}
    (args.out / "nano.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "nano.md").write_text(page(results), encoding="utf-8")


def page(results: Mapping[str, Any]) -> str:
    """The results as a Markdown page."""
    judges, seeds = results["judges"], results["seeds"]
    first = next(iter(judges.values()))
    revisions = ", ".join(f"{name} {next(iter(sets.values()))['revision']}" for name, sets in judges.items())
    lines = [
        "# Is the embedded judge worth evolving?", "",
        f"Made by `python scripts/nano_study.py DATA WORK NANO NANO NANO`: {len(judges)} judges trained by",
        f"`scripts/train_nano.py` with different seeds ({revisions}) x {seeds} run seeds, on CPU; all digits in",
        f"nano.json. Every recipe with {', '.join(SETTINGS)}; every round accepted.",
        "SRCC with MOS on images that no prompt has seen (split by content hash, avt_h265 by source), mean over",
        "judges and seeds, 95 % paired bootstrap over test images (sources). That holds for these judges and seeds: sd",
        "is over them, *single runs* are the least and largest gain of one. Controls are trained on coin tosses and on",
        "votes dealt to the wrong pairs.",
        "The judge's ratings lean by construction, its votes do not: see docs/nano.md before the gains.", "",
    ]  # fmt: skip
    for name, found in results["sets"].items():
        lines += [f"## {name}: {first[name]['n']} test images", "", *method_lines(found["methods"]), ""]
        share = "none to reach, supervision does not gain"
        if found["share"]:
            share = f"{shown(found['share'])} (over resamples in which supervision gains)"
        lines += [f"Share of the supervised gain reached without labels: {share}.", ""]
        told = [f"{c} in {r['above']} of {r['of']} (p = {r['p']:.3f})" for c, r in found["runs"].items()]
        lines += [f"Run by run, t-test over runs: label-free is above {', above '.join(told)}.", ""]
        lines += judge_lines(judges, name)
    lines += ["## The bar", "", "| line | asked | found | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(cells)} |" for cells in bar(results)]
    return "\n".join([*lines, "", *prediction_lines(judges), ""])


def method_lines(methods: Mapping[str, Any]) -> list[str]:
    """One row for the bare judge, its votes, and every way of training."""
    lines = ["| method | SRCC [95 %] | sd | gain [95 %] | single runs | over coin tosses | over shuffled votes |"]
    lines += ["|---|---|--:|---|---|---|---|"]
    for method, row in methods.items():
        label = {"none": "bare judge", "votes": "votes, without training"}.get(method, method)
        label = f"{label} (CONTROL)" if method in CONTROLS else label
        cells = [shown(row["srcc"], ""), f"{row['sd']:.3f}" if row["sd"] else "", shown(row["gain"], "+")]
        cells.append(ends(row["single"]))
        lines.append(f"| {' | '.join([label, *cells, *(shown(row[f'over {c}'], '+') for c in CONTROLS)])} |")
    return lines


def judge_lines(judges: Mapping[str, Any], name: str) -> list[str]:
    """The judges one by one: what they rate and vote, and what their prompts gain."""
    lines = ["| judge | bare SRCC | levels used, 1 to 5 | near the ends | pairs right: ratings | votes | difference |"]
    lines += ["|---|--:|---|--:|--:|--:|---|"]
    gains = ["| judge | " + " | ".join(METHODS) + " |", "|---|" + "--:|" * len(METHODS)]
    for base, sets in judges.items():
        one, pairs = sets[name], sets[name]["pairs"]
        votes_said = [key for key in pairs if key.startswith("votes, ")]
        levels = " ".join(f"{share:.2f}" for share in one["levels"])
        told = [f"{pairs['ratings']['value']:.3f}", f"{pairs[votes_said[-1]]['value']:.3f}"]
        cells = [f"{one['methods']['none']['srcc']['value']:.3f}", levels, f"{one['near ends']:.0%}", *told]
        lines.append(f"| {' | '.join([base, *cells, shown(pairs['votes less ratings'], '+')])} |")
        moved = [f"{one['methods'][method]['gain']['value']:+.3f}" for method in METHODS]
        gains.append(f"| {' | '.join([base, *moved])} |")
    means = {key: np.mean([sets[name]["pairs"][key]["value"] for sets in judges.values()]) for key in votes_said}
    which = "; ".join(f"{key.removeprefix('votes, ')} {value:.3f}" for key, value in means.items())
    return [
        *lines,
        "",
        f"Votes by what was asked, mean of the judges: {which}.",
        "",
        "Gains one by one:",
        "",
        *gains,
        "",
    ]


def bar(results: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The bar of the study, line by line: name, what was asked, what was found, met or not."""
    sets = results["sets"]
    methods = {name: found["methods"] for name, found in sets.items()}
    judges = results["judges"].values()
    rows = []

    def add(line: str, asked: str, found: str, met: bool) -> None:
        rows.append((line, asked, found, "met" if met else "**not met**"))

    for name, least in (("biq2021", 0.342), ("kadis100", 0.30), ("avt_h265", 0.75)):
        if name in methods:
            bare = methods[name]["none"]["srcc"]
            met = (bare["low"] if name == "biq2021" else bare["value"]) > least
            add("1 bare", f"{name} above {least}", shown(bare, ""), met)
    ends = max(one[name]["near ends"] for one in judges for name in sets)
    add("1 bare", "near the ends below 25 %", f"at most {ends:.0%}", ends < 0.25)
    rarest = min((min(one[name]["levels"]), base, name) for base, one in results["judges"].items() for name in sets)
    add("1 bare", "all five levels used", f"the rarest {rarest[0]:.1%} ({rarest[1]}, {rarest[2]})", rarest[0] > 0)
    gains = {name: {m: row["gain"] for m, row in found.items() if row["gain"]} for name, found in methods.items()}
    clear = {m: [name for name in sets if gains[name][m]["low"] > 0] for m in METHODS}
    add("2 supervised", "clear gain on two sets", ", ".join(clear[SUPERVISED]) or "none", len(clear[SUPERVISED]) > 1)
    if "biq2021" in sets:
        gain, final = gains["biq2021"][SUPERVISED]["value"], methods["biq2021"][SUPERVISED]["srcc"]["value"]
        add("2 supervised", "biq2021: gain .08, SRCC .52", f"{gain:+.3f}, {final:.3f}", gain >= 0.08 and final >= 0.52)
    add("3 label-free", "clear gain on two sets", ", ".join(clear[FREE]) or "none", len(clear[FREE]) > 1)
    shares = {name: found["share"]["value"] for name, found in sets.items() if found["share"]}
    told = [f"{name} {shares[name]:.2f}" if name in shares else f"{name}: none to reach" for name in sets]
    add("3 label-free", "70 % of the supervised gain", "; ".join(told), all(s >= 0.7 for s in shares.values()))
    harmed = [name for name in sets if gains[name][FREE]["high"] < 0]
    add("3 label-free", "below 0 nowhere", ", ".join(harmed) or "nowhere", not harmed)
    for control in CONTROLS:
        gained = clear[control]
        add(f"4 {control}", "no clear gain", ", ".join(gained) or "none", not gained)
        below = [name for name in sets if methods[name][FREE][f"over {control}"]["low"] > 0]
        add(f"4 {control}", "label-free clearly above", ", ".join(below) or "nowhere", len(below) == len(sets))
    known = {name: sum(one[name]["pairs"]["votes less ratings"]["low"] > 0 for one in judges) for name in sets}
    told = [f"{name} {count} of {len(judges)} judges" for name, count in known.items()]
    add("5 votes", "clearly better than ratings", "; ".join(told), min(known.values()) == len(judges))
    return rows


def prediction_lines(judges: Mapping[str, Any]) -> list[str]:
    """Whether what is known before a run, without labels, goes with what the run gains."""
    cells = [(base, name, one) for base, sets in judges.items() for name, one in sets.items()]
    gains = [one["methods"][FREE]["gain"]["value"] for _, _, one in cells]
    lines = [
        "## Known beforehand, without labels", "",
        "What a run can know of the bare judge before it starts, on images that it does not train on, and what the",
        "label-free prompt then gained on the test images:", "",
        *(f"- *{name}*: {meaning}" for name, meaning in KNOWN.items()), "",
        f"| judge | set | {' | '.join(KNOWN)} | gain |", "|---|---|" + "--:|" * (len(KNOWN) + 1),
    ]  # fmt: skip
    for (base, name, one), gain in zip(cells, gains, strict=True):
        told = " | ".join(f"{one['estimates'][key]:+.3f}" for key in KNOWN)
        lines.append(f"| {base} | {name} | {told} | {gain:+.3f} |")
    rho = [stats.spearmanr([one["estimates"][key] for _, _, one in cells], gains).statistic for key in KNOWN]
    told = ", ".join(f"{key} {value:+.2f}" for key, value in zip(KNOWN, rho, strict=True))
    return [*lines, "", f"Rank correlation with the gain over {len(cells)}: {told}."]


if __name__ == "__main__":
    main()
