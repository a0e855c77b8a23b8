"""The tables of scripts/bench.py in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

WAYS = {
    "generate": "(a) `generate`, {draws} sampled answers a pair, images encoded for each",
    "forward": "(b) {draws} one-token samples, each a row of a forward pass",
    "forward, encoded once": "(b) with images encoded once",
}
NO_GPU = (
    "Not measured, because it needs a GPU: the same with random weights of the released shape, throughput, use of the",
    "hardware and memory. `python scripts/bench.py --device cuda --architecture 7b` does all of it; until then only",
    "tests run it, with a very small model on a CPU (`tests/unit/test_bench.py`).",
    "",
)
STEPS = {
    "ours": "evoprompt: one dense batch",
    "pairs": "one pair a forward pass, one backward pass",
    "accumulated": "one pair a forward pass, a backward pass after each",
    "batch": "one dense batch, eager attention, logits of all positions",
}

WEIGHTS = {"none": "whole", "8bit": "8 bits", "4bit": "4 bits"}


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Speed and memory",
        "",
        "Made by `python scripts/bench.py`, which says how; the file beside it has every number. Ratios are within one",
        "process on the same images and judge, so they say more than the times, which are those of one machine. On a",
        "CPU times are those that the process computed, with one thread of torch, so that other work does not count.",
        "",
        f"Judge {found['judge']}, {found['dtype']}; {found['device']}; torch {found['torch']}.",
    ]
    for part, write in PARTS.items():
        lines += ["", *write(found[part])] if part in found else []
    return "\n".join(lines) + "\n"


def _votes(found: dict[str, Any]) -> list[str]:
    ours, n = found["ours"], found["group"] * (found["group"] - 1) // 2
    lines = [
        "## Votes",
        "",
        f"Ours: all {n} pairs of a group of {found['group']}, both orders, one wording, one view, from pixels to",
        f"pseudo-labels, images encoded once. The others: {found['slow_pairs']} of these pairs, half of the samples in",
        "either order. *Answers* is how many of these named one of the two images, on average. *Same label* is the",
        "share of pairs on whose winner they agree with ours; answers differ by chance, and *expected* is the share",
        "that as many draws from our probabilities would reach.",
        "",
        "| way | pairs/s | ours is faster | answers | same label | expected |",
        "|---|--:|--:|--:|--:|--:|",
        f"| evoprompt | {ours['pairs_per_second']:.3g} | | | | |",
    ]
    return lines + [
        f"| {text.format(**found)} | {way['pairs_per_second']:.3g} | {way['ours_is_faster']:.0f} x | "
        f"{way['answers']:.0f} | {way['same_label']:.2f} | {way['same_label_expected']:.2f} |"
        for name, text in WAYS.items()
        for way in [found[name]]
    ]


def _step(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Training step",
        "",
        f"One optimiser step of a border prompt on {found['n_images']} images and all {found['n_pairs']} pairs. The",
        "gradient is the same in every row, up to the difference stated. Memory is that of tensors made in the step.",
        "",
        "| way | seconds | ours is faster | peak MiB | ours takes | gradient differs by |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    return lines + [
        f"| {text} | {way['seconds']:.3g} | {way['ours_is_faster']:.1f} x | {way['peak_mib']:.0f} | "
        f"{way['ours_takes']:.2f} | {way['gradient_differs_by']:.0e} |"
        for name, text in STEPS.items()
        for way in [found[name]]
    ]


def _score(found: dict[str, Any]) -> list[str]:
    return [
        "## Scores",
        "",
        f"{found['images']} image files, {found['views']} views each: `evoprompt score` reaches "
        f"{found['ours']['images_per_second']:.1f} images/s, a loop over the files with transformers' forward "
        f"{found['loop']['images_per_second']:.1f}; {found['ours_is_faster']:.1f} x. Scores differ by "
        f"{found['largest_difference']:.0e} at most.",
    ]


def _scaling(found: dict[str, Any]) -> list[str]:
    def row(values: dict[Any, float], digits: str) -> str:
        return ", ".join(f"{size}: {value:{digits}}" for size, value in values.items())

    return [
        "## Scaling",
        "",
        f"- Seconds to score so many images: {row(found['seconds_by_images'], '.2f')}. Time grows as their number to "
        f"the power {found['images_exponent']:.2f}.",
        f"- Seconds to vote on so many pairs: {row(found['seconds_by_pairs'], '.2f')}; power "
        f"{found['pairs_exponent']:.2f}.",
        f"- Peak MiB of a process that scores so many images: {row(found['peak_mib_by_images'], '.0f')}; "
        f"{found['memory_growth']:.2f} times.",
    ]


def _processes(found: dict[str, Any]) -> list[str]:
    rows = found["seconds_by_processes"]
    stages = ("vote", "train", "gate")
    return [
        "## Processes",
        "",
        "Seconds of the stages of a round on the example images, shared by processes of one thread each.",
        "",
        "| processes | " + " | ".join(stages) + " |",
        "|--:|" + "--:|" * len(stages),
        *(f"| {n} | " + " | ".join(f"{taken[stage]:.2f}" for stage in stages) + " |" for n, taken in rows.items()),
    ]


def _hardware(found: dict[str, Any]) -> list[str]:
    works = [name for name in found if isinstance(found[name], dict)]
    return [
        "## Use of the hardware",
        "",
        *([] if found["on_gpu"] else NO_GPU),
        f"A large matrix product reaches {found['matmul_tflops']:.3g} TFLOP/s here; weights take "
        f"{found['weights_gib']:.3g} GiB. Utilisation is the FLOPs counted by torch, without those that checkpointing "
        "does again, over the time at that rate. One group: votes on its pairs in both orders, or one training step on "
        "them.",
        "",
        "| work | seconds | TFLOP | utilisation | pairs/s | peak MiB besides weights |",
        "|---|--:|--:|--:|--:|--:|",
        *(
            f"| {name} | {found[name]['seconds']:.3g} | {found[name]['tflop']:.3g} | "
            f"{found[name]['utilisation']:.0%} | {found[name]['pairs_per_second']:.3g} | {found[name]['peak_mib']:.0f} "
            "|"
            for name in works
        ),
    ]


def _memory(found: dict[str, Any]) -> list[str]:
    absent = [name for kind, name in WEIGHTS.items() if kind not in found["weights"]]
    return [
        "## Memory",
        "",
        f"In bfloat16: the weights, and the tensors made in a training step on {found['n_images']} images; beside",
        "each what is planned by arithmetic, which leaves out what passes and what quantised layers keep of their own.",
        "",
        "| weights | GiB | planned | MiB of a step | planned | with checkpointing | planned |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {WEIGHTS[kind]} | {row['weights_gib']:.3g} | {row['weights_gib_planned']:.3g} | "
            + " | ".join(
                f"{row[way]['peak_mib']:.0f} | {row[way]['planned_mib']:.0f}" for way in ("step", "step, checkpointing")
            )
            + " |"
            for kind, row in found["weights"].items()
        ),
        *(["", f"Not measured, because it needs bitsandbytes: {', '.join(absent)}."] if absent else []),
    ]


def _profile(found: dict[str, Any]) -> list[str]:
    return [
        "## Profile",
        "",
        "Time in torch's operators in milliseconds a pair, and the shares of those that take most of it.",
        "",
        "| path | ms a pair | operators |",
        "|---|--:|---|",
        *(
            f"| {name} | {row['ms_a_pair']:.3g} | "
            + ", ".join(f"{key.removeprefix('aten::')} {share:.0%}" for key, share in row["shares"].items())
            + " |"
            for name, row in found.items()
        ),
    ]


PARTS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "votes": _votes,
    "step": _step,
    "score": _score,
    "scaling": _scaling,
    "processes": _processes,
    "hardware": _hardware,
    "memory": _memory,
    "profile": _profile,
}
