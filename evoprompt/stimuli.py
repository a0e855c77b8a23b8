"""What a study shows: example images, pairs and groups of four, and a choice of difficult samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from evoprompt.errors import DataError
from evoprompt.logistic import logistic4
from evoprompt.study_questions import EXAMPLE_RANKS, Procedure

Groups = list[NDArray[np.int64]]
Images = Sequence[int] | NDArray[np.int64]
C1, C2 = 1.0, 0.01
"""Constants of the published choice of difficult samples, for scores of 0 to 100."""
EXAMPLES, EACH = 5, 10
"""Images set aside as examples where references are not shown; images of each reference among difficult samples."""


@dataclass(frozen=True)
class Examples:
    """Images for in-context examples, which are therefore not asked about.

    Attributes:
        shown: by procedure, the images in the order shown: one of middling quality; the better of two, then the worse;
            four, in the order that ``study_questions.EXAMPLE_RANKS`` makes true.
        set_aside: every image that is kept out of the questions.
    """

    shown: dict[Procedure, tuple[int, ...]]
    set_aside: frozenset[int]


def choose_examples(mos: NDArray[np.float64], groups: Sequence[str] | None) -> Examples:
    """Set images aside as examples: five, or, with references, one reference with all its images.

    Args:
        mos: (N,) human scores, higher is better.
        groups: the reference of every image when full-reference systems are asked, so that the images of an example
            share one; it is the reference with the most images, the first of these by name.

    Returns:
        The examples, the same for every system, so that all systems are asked about the same images.

    Raises:
        DataError: when there are too few images to take five away.
    """
    pool = np.arange(len(mos))
    if groups is not None:
        names, member = np.unique(np.asarray(groups), return_inverse=True)
        pool = np.flatnonzero(member == np.bincount(member).argmax())
        if len(names) < 2 or len(pool) < 5:
            raise DataError(
                f"full-reference systems need two references and one with at least 5 images; there are {len(names)}, "
                f"at most {len(pool)} images each. Leave --references out."
            )
    elif len(mos) < 10:
        raise DataError(f"{len(mos)} labelled images are too few for a study, five of them are examples; give 10.")
    order = pool[np.argsort(mos[pool], kind="stable")]
    four = [int(order[round(share * (len(order) - 1))]) for share in (0.9, 0.65, 0.35, 0.1)]
    rest = [int(i) for i in order if i not in four]
    middle = min(rest, key=lambda i: abs(mos[i] - (mos.min() + mos.max()) / 2))
    ranked = [0] * 4
    for image, place in zip(four, EXAMPLE_RANKS, strict=True):
        ranked[place] = image
    aside = frozenset(int(i) for i in pool) if groups is not None else frozenset([*four, middle])
    return Examples({"single": (middle,), "double": (four[0], four[-1]), "multiple": tuple(ranked)}, aside)


def plan_single(images: Images) -> Groups:
    """Every image on its own."""
    return [np.array([image]) for image in images]


def plan_pairs(images: Images, partners: int, rng: np.random.Generator) -> Groups:
    """Random pairs, none twice: every image meets ``partners`` others, or a few less where chance repeats a pair.

    Args:
        images: distinct indices; fewer than two make no pair.
        partners: others an image meets, rounded up to an even number; from N - 1 on, all pairs are made.
        rng: random stream.

    Returns:
        Pairs (2,), each shown in both orders.
    """
    if partners >= len(images) - 1:
        return [np.array(pair) for pair in combinations(rng.permutation(np.asarray(images, dtype=np.int64)), 2)]
    # Neighbours on a ring, dealt anew each time: every image has as many partners and all are connected.
    rings = [rng.permutation(np.asarray(images, dtype=np.int64)) for _ in range((partners + 1) // 2)]
    pairs = {frozenset((a, b)): (a, b) for ring in rings for a, b in zip(ring, np.roll(ring, 1), strict=True)}
    return [np.array(pair) for pair in pairs.values()]


def plan_fours(images: Images, rounds: int, rng: np.random.Generator) -> Groups:
    """Random groups of four: every image is in at least ``rounds`` of them.

    Args:
        images: distinct indices; fewer than four make no group.
        rounds: times the images are dealt; the last group of a deal is filled up from its beginning.
        rng: random stream.

    Returns:
        Groups (4,) of distinct images.
    """
    if len(images) < 4:
        return []
    deals = [rng.permutation(np.asarray(images, dtype=np.int64)) for _ in range(rounds)]
    return [deal[np.arange(k, k + 4) % len(deal)] for deal in deals for k in range(0, len(deal), 4)]


def to_hundred(mos: NDArray[np.float64], std: NDArray[np.float64] | None) -> tuple[NDArray[np.float64], ...]:
    """Human scores and deviations (N,) with the smallest score at 0 and the largest at 100; no deviation is 0."""
    span = float(mos.max() - mos.min()) or 1.0
    return (mos - mos.min()) * 100 / span, (np.zeros(len(mos)) if std is None else std * 100 / span)


def proxy_prediction(proxies: Sequence[ArrayLike], mos: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of what several scores predict, each after a four-parameter logistic fit to the human scores.

    Args:
        proxies: (N,) scores each, of any scale and direction.
        mos: (N,) human scores.

    Returns:
        (N,) predictions on the scale of ``mos``.

    Raises:
        DataError: when a fit has no optimum.
    """
    total = np.zeros(len(mos))
    for number, proxy in enumerate(proxies, 1):
        x = np.asarray(proxy, dtype=np.float64)
        fit = logistic4(x, mos)
        if math.isnan(fit.plcc):
            raise DataError(f"proxy {number} cannot be fitted to the human scores: {fit.reason}. Give another one.")
        high, low, middle, slope = fit.parameters
        total += (high - low) * expit((x - middle) / max(abs(slope), 1e-12)) + low
    return total / len(proxies)


def hardness(
    mos: NDArray[np.float64], std: NDArray[np.float64], predicted: NDArray[np.float64], c1: float = C1
) -> NDArray[np.float64]:
    """How far a proxy errs on images that people agree on: (predicted - mos)^2 / (std^2 + c1), all (N,)."""
    return np.asarray((predicted - mos) ** 2 / (std**2 + c1))


def difficult(
    hard: NDArray[np.float64], features: NDArray[np.float64], number: int, c2: float = C2
) -> NDArray[np.int64]:
    """Difficult and diverse samples, chosen greedily (Wu et al., ECCV 2024, arXiv 2403.10854).

    The next sample maximises hard(x) + c2 (1 - cos(f(x), mean of f over the chosen)); the first has no second term.

    Args:
        hard: (N,) see ``hardness``.
        features: (N, D), no row of zeros.
        number: how many to choose; all when there are fewer.
        c2: weight of diversity.

    Returns:
        Indices in the order chosen; the first of equals is taken.
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    chosen: list[int] = []
    total = np.zeros(features.shape[1])
    for _ in range(min(number, len(hard))):
        size = float(np.linalg.norm(total))
        gain = hard + c2 * (1 - unit @ total / size) if size else hard.copy()
        gain[chosen] = -np.inf
        best = int(gain.argmax())
        chosen.append(best)
        total = total + features[best]
    return np.array(chosen, dtype=np.int64)


def difficult_references(
    hard: NDArray[np.float64], features: NDArray[np.float64], groups: Sequence[str], number: int, each: int = EACH
) -> NDArray[np.int64]:
    """As ``difficult``, but references first, by the means of their images, then the hardest images of each.

    Returns:
        Indices, reference by reference: ``each`` of a reference, about ``number`` in all.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    rows = [np.flatnonzero(member == k) for k in range(len(names))]
    means = np.array([hard[r].mean() for r in rows]), np.stack([features[r].mean(axis=0) for r in rows])
    chosen = difficult(*means, max(1, round(number / each)))
    return np.concatenate([rows[k][difficult(hard[rows[k]], features[rows[k]], each)] for k in chosen])
