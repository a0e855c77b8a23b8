"""Measure speed and memory, each as a ratio to a straightforward way in the same process, on the same images.

    python scripts/bench.py                                    # the embedded judge on a CPU, a few minutes
    python scripts/bench.py --device cuda --architecture 7b    # random weights of the released shape, drawn on the GPU
    python scripts/bench.py --architecture 7b --parts votes --group 6 --pairs 1 --repeats 1  # on a CPU: an hour

Writes docs/results/performance.json and a table of it, performance.md; another architecture than nano has its name in
theirs. Parts: votes, step, score, scaling, hardware, memory, profile; processes (needs idle cores) is run when named.
What is not measured again stays in the file, if judge, machine and torch are the same.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import bench_plain as plain  # noqa: E402
from bench_report import report  # noqa: E402

from evoprompt.config import Recipe, VoteConfig  # noqa: E402
from evoprompt.costs import Costs  # noqa: E402
from evoprompt.images import fit_image, read_image  # noqa: E402
from evoprompt.judge import NANO, OwlJudge, load_judge, to_pixels  # noqa: E402
from evoprompt.owl2 import load_owl2  # noqa: E402
from evoprompt.planning import Texts  # noqa: E402
from evoprompt.processes import resident_peak  # noqa: E402
from evoprompt.prompts import PixelPrompt, PromptConfig  # noqa: E402
from evoprompt.scoring import Scorer  # noqa: E402
from evoprompt.small_cards import Quantization, checkpoint_layers, layers_of, quantization_config  # noqa: E402
from evoprompt.steps import Batch, Steps  # noqa: E402
from evoprompt.training import PromptedRating  # noqa: E402
from evoprompt.voting import Seen, collect_votes, count_votes, pairs_of  # noqa: E402

PARTS = ("votes", "step", "score", "scaling", "hardware", "memory", "profile", "processes")
WEIGHTS: tuple[Quantization, ...] = ("none", "8bit", "4bit")
GROUP, SLOW_PAIRS = 12, 24
VOTE = VoteConfig(wordings=1, views=1, min_confidence=0.5)
EXAMPLES = sorted((ROOT / "examples").glob("*.jpg"))


class Bench:
    """A judge, and images fitted for it: the examples, or noise where the judge is random."""

    def __init__(self, judge: OwlJudge, pairs: int, group: int = GROUP, repeats: int = 3) -> None:
        self.judge, self.slow_pairs, self.group, self.repeats = judge, pairs, group, repeats
        self.device = judge.device
        # The straightforward way keeps the states of both images of every pair; a 7B judge's take 3.4 GiB an image.
        self.slow_group = group if judge.id == NANO else group // 3
        rng = np.random.default_rng(0)
        if judge.id == NANO:
            chosen = [EXAMPLES[k] for k in rng.permutation(len(EXAMPLES))]
            self.images = np.stack([fit_image(read_image(path), "tiles", judge.image_size, 1) for path in chosen])
        else:
            shape = (4 * group, 1, 3, judge.image_size, judge.image_size)
            self.images = rng.integers(0, 256, shape, dtype=np.uint8)

    def votes(self) -> dict[str, Any]:
        """Pairs a second of three ways to ask, and whether they agree on the labels."""
        judge, question = self.judge, self.judge.family.compare[0]
        judge.attach(None)
        pairs = pairs_of(np.arange(self.group))
        seconds, labels = self.timed(lambda: self._ours(1), self.repeats, warm=self.repeats > 1)
        ours = {(x.a, x.b): x.share for x in labels}
        chosen = pairs[np.random.default_rng(1).permutation(len(pairs))[: self.slow_pairs]]
        pixels = to_pixels(judge, self.images[: self.group])
        with torch.no_grad():
            seen = judge.encode(pixels)
        torch.manual_seed(0)
        ways: dict[str, Callable[[int, int], tuple[float, int]]] = {
            "generate": lambda a, b: plain.generated_share(judge, question, pixels[a], pixels[b]),
            "forward": lambda a, b: plain.repeated_share(judge, question, pixels[a], pixels[b], encoded=False),
            "forward, encoded once": lambda a, b: plain.repeated_share(judge, question, seen[a], seen[b], encoded=True),
        }
        found: dict[str, Any] = {"group": self.group, "draws": plain.DRAWS, "slow_pairs": len(chosen)}
        found["ours"] = {"pairs_per_second": len(pairs) / seconds}
        for name, way in ways.items():
            taken, answers = self.timed(lambda way=way: [way(int(a), int(b)) for a, b in chosen], warm=False)
            truth = np.array([ours[int(a), int(b)] for a, b in chosen])
            shares, said = np.array(answers).T
            found[name] = {
                "pairs_per_second": len(chosen) / taken,
                "answers": float(said.mean()),
                "ours_is_faster": (len(pairs) / seconds) / (len(chosen) / taken),
                "same_label": float(np.mean((shares > 0.5) == (truth > 0.5))),
                "same_label_expected": float(np.mean(majority_chance(truth, said.astype(int)))),
            }
        return found

    def step(self) -> dict[str, Any]:
        """Time and peak memory of one optimiser step on a group, ours and the straightforward ways."""
        item, pixels, pairs, targets = self._batch(self.slow_group)
        found: dict[str, Any] = {"n_images": len(pixels), "n_pairs": len(pairs)}
        gradients = {}
        ways = {"ours": "sdpa", "pairs": "eager", "accumulated": "eager", "batch": "eager"}
        for way, attention in ways.items():
            self.judge.model.set_attn_implementation(attention)
            prompt = self._prompt()
            optimizer = torch.optim.AdamW(prompt.parameters(), lr=1e-9)  # so that all ways see the same prompt
            model = PromptedRating(self.judge, prompt, Recipe())

            def once(
                way: str = way, prompt: PixelPrompt = prompt, model: Any = model, optimizer: Any = optimizer
            ) -> None:
                optimizer.zero_grad()
                if way == "ours":
                    model(**item)["loss"].backward()
                else:
                    plain.plain_step(self.judge, prompt, pixels, pairs, targets, way)
                optimizer.step()

            seconds, _ = self.timed(once, repeats=3 if way in ("ours", "batch") else 1)
            found[way] = {"seconds": seconds, "peak_mib": self.peak_mib(once)}
            gradients[way] = prompt.theta.grad.clone()
        for way in ways:
            found[way]["ours_is_faster"] = found[way]["seconds"] / found["ours"]["seconds"]
            found[way]["ours_takes"] = found["ours"]["peak_mib"] / found[way]["peak_mib"]
            gap = (gradients[way] - gradients["ours"]).norm() / gradients["ours"].norm()
            found[way]["gradient_differs_by"] = float(gap)
        self.judge.model.set_attn_implementation("sdpa")
        self.judge.attach(None)
        return found

    def score(self) -> dict[str, Any]:
        """Images a second of the scorer and of a loop over files."""
        scorer = Scorer(self.judge)
        ours, scores = self.timed(lambda: [score.score for score in scorer(EXAMPLES)], repeats=3)
        theirs, expected = self.timed(lambda: plain.plain_scores(self.judge, EXAMPLES), warm=False)
        n = len(EXAMPLES)
        return {
            "images": n, "views": self.judge.family.views,
            "ours": {"images_per_second": n / ours}, "loop": {"images_per_second": n / theirs},
            "ours_is_faster": theirs / ours, "largest_difference": float(np.abs(np.subtract(scores, expected)).max()),
        }  # fmt: skip

    def scaling(self) -> dict[str, Any]:
        """Time against images and pairs, memory against images."""
        scorer = Scorer(self.judge)
        scorer(EXAMPLES[:16])
        images = {n: self.timed(lambda n=n: scorer((EXAMPLES * 4)[:n]), 2, warm=False)[0] for n in (32, 64, 128)}
        of_group = self.group * (self.group - 1) // 2
        pairs = {n * of_group: self.timed(lambda n=n: self._ours(n), 2)[0] for n in (1, 2, 4)}
        memory = {n: peak_of_scoring(n) for n in (64, 512)}
        return {
            "seconds_by_images": images, "seconds_by_pairs": pairs, "peak_mib_by_images": memory,
            "images_exponent": exponent(images), "pairs_exponent": exponent(pairs),
            "memory_growth": memory[512] / memory[64],
        }  # fmt: skip

    def processes(self) -> dict[str, Any]:
        """Seconds of a round against the number of processes that share it, one thread each."""
        found = {}
        for n in (1, 2):
            with tempfile.TemporaryDirectory() as place:
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
                evolve = ["-m", "evoprompt", "evolve", "--unlabeled", str(ROOT / "examples"), "-o", f"{place}/run"]
                sizes = [w for key in ("pairs.per_round=528", "train.steps=12", "rounds=1") for w in ("-s", key)]
                command = [*launch, *evolve, "--force", "--device", "cpu", *sizes]
                subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                found[n] = json.loads(Path(place, "run", "rounds", "001", "round.json").read_text())["seconds"]
        return {"seconds_by_processes": found}

    def hardware(self) -> dict[str, Any]:
        """Share of the machine's matmul rate that voting and a training step reach, and what they take."""
        rate = self.matmul_rate()
        item, _, pairs, _ = self._batch(self.group)
        model = PromptedRating(self.judge, self._prompt(), Recipe())
        weights = sum(p.numel() * p.element_size() for p in self.judge.model.parameters()) / 2**30

        def step() -> None:
            model.zero_grad()
            model(**item)["loss"].backward()

        def vote() -> None:
            self.judge.attach(None)
            self._ours(1)
            self.judge.attach(model.prompt)

        found: dict[str, Any] = {
            "on_gpu": self.device.type == "cuda",
            "matmul_tflops": rate / 1e12,
            "weights_gib": weights,
        }
        works = {"vote": vote, "step": step, "step, checkpointing": step}
        for name, work in works.items():
            if name == "step, checkpointing":
                checkpoint_layers(self.judge.model)
            seconds, _ = self.timed(work, repeats=3)
            with FlopCounterMode(display=False) as counter:
                work()
            flops = counter.get_total_flops()
            if name != "step, checkpointing":
                useful = flops  # and what is then done again is of no use
            found[name] = {
                "seconds": seconds, "tflop": flops / 1e12, "utilisation": useful / seconds / rate,
                "peak_mib": self.peak_mib(work), "pairs_per_second": len(pairs) / seconds,
            }  # fmt: skip
        for layer in layers_of(self.judge.model):
            del layer.forward  # other parts compute it once
        self.judge.attach(None)
        return found

    def memory(self) -> dict[str, Any]:
        """Memory in bfloat16 of the weights, whole and in fewer bits, and of a step on a group; what was planned."""
        judge, found = self.judge, {}
        cuda = self.device.type == "cuda"
        costs, text = Costs(judge.model.config, 2), Texts.of(judge).rate
        with tempfile.TemporaryDirectory() as folder:
            judge.model.save_pretrained(folder)
            judge.processor.save_pretrained(folder)
            for kind in WEIGHTS if importlib.util.find_spec("bitsandbytes") else WEIGHTS[:1]:
                bits = None if kind == "none" else quantization_config(kind, torch.bfloat16)
                before = torch.cuda.memory_allocated() if cuda else 0
                model, processor = load_owl2(folder, dtype=torch.bfloat16, device=self.device, quantization=bits)
                held = torch.cuda.memory_allocated() - before if cuda else model.get_memory_footprint()
                loaded = OwlJudge(model, processor, judge.id, judge.revision, judge.family)
                found[kind] = {"weights_gib": held / 2**30, "weights_gib_planned": weights_bytes(model, kind) / 2**30}
                item, rating = self._batch(self.group)[0], PromptedRating(loaded, self._prompt(), Recipe())

                def step(rating: Any = rating, item: Any = item) -> None:
                    rating(**item)["loss"].backward()

                for way in ("step", "step, checkpointing"):
                    if way != "step":
                        checkpoint_layers(model)
                    step()
                    found[kind][way] = {
                        "peak_mib": self.peak_mib(step),
                        "planned_mib": self.group * costs.kept(text, way != "step") / 2**20,
                    }
                del model, loaded, rating, step
                gc.collect()
        return {"n_images": self.group, "on_gpu": cuda, "weights": found}

    def profile(self) -> dict[str, Any]:
        """Where the time of the two hot paths goes, before and after: milliseconds a pair, and operators' shares."""
        judge, question = self.judge, self.judge.family.compare[0]
        item, pixels, pairs, targets = self._batch(self.slow_group)
        prompt, cuda = self._prompt(), self.device.type == "cuda"
        model = PromptedRating(judge, prompt, Recipe())
        found: dict[str, Any] = {}

        works: dict[str, Callable[[], Any]] = {
            "votes before: generate, one pair": lambda: plain.generated_share(judge, question, *pixels[:2]),
            "votes after: a group": lambda: self._ours(1),
            "step before: one pair a forward": lambda: plain.plain_step(judge, prompt, pixels, pairs, targets, "pairs"),
            "step after: a dense batch": lambda: model(**item)["loss"].backward(),
        }
        for name, work in works.items():
            judge.model.set_attn_implementation("eager" if "step before" in name else "sdpa")
            work()
            with torch.profiler.profile() as record:
                work()
            clock = "self_device_time_total" if cuda else "self_cpu_time_total"
            spent = {e.key: getattr(e, clock) for e in record.key_averages() if e.device_type == DeviceType.CPU}
            total, most = sum(spent.values()), sorted(spent, key=lambda key: -spent[key])[:6]
            votes = {"votes before": 1, "votes after": len(pairs_of(np.arange(self.group)))}
            asked = votes.get(name.split(":")[0], len(pairs))
            found[name] = {"ms_a_pair": total / 1e3 / asked, "shares": {key: spent[key] / total for key in most}}
        judge.model.set_attn_implementation("sdpa")
        judge.attach(None)
        return found

    def _batch(self, size: int) -> tuple[dict[str, Tensor], Tensor, np.ndarray, Tensor]:
        """What a training step gets, and its pixels (B, 3, S, S), pairs (P, 2) and targets (P,)."""
        pairs = pairs_of(np.arange(size))
        targets = np.linspace(0.05, 0.95, len(pairs), dtype=np.float32)
        item = Steps([Batch(lambda rows: self.images[rows], pairs, targets, size)], 1, (0, 1))[0]
        return item, item["pixels"], pairs, item["targets"]

    def _ours(self, groups: int) -> list[Any]:
        """Pseudo-labels of the pairs of some groups, from images read to votes counted."""
        members = [np.arange(k * self.group, (k + 1) * self.group) for k in range(groups)]
        seen = Seen(self.judge, members, self.images.__getitem__, self.group, 1)
        return [
            label
            for group in members
            for label in count_votes(collect_votes(seen, pairs_of(group), VOTE, ("compare",), (0,)), VOTE)
        ]

    def _prompt(self) -> PixelPrompt:
        side = self.judge.image_size
        prompt = PixelPrompt(PromptConfig(image_size=side, size=side // 10, blocks=side // 10, strength=0.6))
        prompt.theta.data = 0.3 * torch.randn(prompt.theta.shape, generator=torch.Generator().manual_seed(0))
        return prompt.to(self.device)

    def matmul_rate(self) -> float:
        """FLOP a second of a large matrix product, the best of some."""
        side = 8192 if self.device.type == "cuda" else 1024
        a, b = (torch.randn(side, side, device=self.device).to(self.judge.model.dtype) for _ in range(2))
        return 2 * side**3 / self.timed(lambda: a @ b, repeats=8)[0]

    def timed(self, work: Callable[[], Any], repeats: int = 1, warm: bool = True) -> tuple[float, Any]:
        """Seconds of the fastest of some runs, and what the last one gave."""
        result = work() if warm else None
        times = []
        for _ in range(repeats):
            started = self.now()
            result = work()
            times.append(self.now() - started)
        return min(times), result

    def now(self) -> float:
        """Seconds: of a GPU when it has done all it was told to, of a CPU those that this process has computed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def peak_mib(self, work: Callable[[], Any]) -> float:
        """Memory that tensors made meanwhile take at most, MiB."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            return float((torch.cuda.max_memory_allocated() - before) / 2**20)
        with torch.profiler.profile(profile_memory=True) as record:
            work()
        events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
        events.sort(key=lambda e: e.start_ns())
        return float(max(np.cumsum([e.nbytes() for e in events])) / 2**20)


def majority_chance(share: np.ndarray, draws: np.ndarray | int) -> np.ndarray:
    """Chance that the majority of so many draws, a tie counting against the first, is on the likelier side."""
    rng = np.random.default_rng(0)
    wins = rng.binomial(draws, share, size=(4000, len(share)))
    return np.asarray(((wins * 2 > draws) == (share > 0.5)).mean(0))


def weights_bytes(model: Any, kind: Quantization) -> float:
    """What weights take by arithmetic; in 4 bits, 64 of them share a scale of a byte, and 256 scales one of 4 bytes."""
    linear = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    fewer = sum(m.in_features * m.out_features for m in linear)
    whole = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) - sum(m.weight.nbytes for m in linear)
    return whole + fewer * {"none": 2, "8bit": 1, "4bit": 0.5 + 1 / 64 + 4 / 64 / 256}[kind]


def exponent(seconds: dict[int, float]) -> float:
    """Slope of log time over log size: 1 = linear."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def peak_of_scoring(images: int) -> float:
    """Peak resident memory of a process that scores so many images, MiB."""
    command = [sys.executable, __file__, "--score-and-exit", str(images)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def score_and_exit(images: int) -> None:
    """Score the examples over and over, and print the peak memory of this process."""
    scorer = Scorer.load(None, device="cpu")
    times = -(-images // len(EXAMPLES))
    for _ in scorer.stream((EXAMPLES * times)[:images]):
        pass
    print(resident_peak() / 2**20)


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--architecture", choices=("nano", "tiny", "7b"), default="nano")
    parser.add_argument("--parts", default="", help=f"of {','.join(PARTS)}")
    parser.add_argument("--pairs", type=int, default=SLOW_PAIRS, help="pairs asked the straightforward ways")
    parser.add_argument("--group", type=int, default=GROUP, help="images that are compared with each other")
    parser.add_argument("--repeats", type=int, default=3, help="runs of our votes; of several the fastest counts")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder")
    parser.add_argument("--score-and-exit", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.score_and_exit:
        score_and_exit(args.score_and_exit)
        return
    device = torch.device(args.device)
    if args.architecture == "nano":
        judge = load_judge(NANO, None, "auto", "float32", args.device)
    else:
        small = args.architecture == "tiny" and device.type == "cpu"
        judge = plain.random_judge(args.architecture, torch.float32 if small else torch.bfloat16, device)
    others = () if args.architecture == "nano" else ("score", "scaling")  # a random judge reads no files
    usual = [part for part in PARTS if part not in ("processes", *others)]
    parts = args.parts.split(",") if args.parts else usual
    bench = Bench(judge, args.pairs, args.group, args.repeats)
    head = {
        "judge": f"{judge.id}@{judge.revision}", "dtype": str(judge.model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, one thread",
        "torch": torch.__version__,
    }  # fmt: skip
    stem = args.out / ("performance" if args.architecture == "nano" else f"performance_{args.architecture}")
    for part in parts:
        print(f"{part} ...", file=sys.stderr)
        write({**head, part: getattr(bench, part)()}, stem)  # at once: a later part may not fit the card


def write(found: dict[str, Any], stem: Path) -> None:
    """Write JSON and page; parts that were measured before with the same judge, machine and torch stay."""
    file = stem.with_suffix(".json")
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    same = all(before.get(key) == value for key, value in found.items() if key not in PARTS)
    found = {**before, **found} if same else found
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(report(found), encoding="utf-8")


if __name__ == "__main__":
    main()
