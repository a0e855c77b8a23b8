"""Human scores: brought to one scale, refused when they cannot be used, batched set by set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SIDE, ScriptedJudge, write_toy_images

from evoprompt.catalogue import ImageRecord
from evoprompt.config import MosConfig, Recipe
from evoprompt.errors import DataError, RecipeError
from evoprompt.health import split_images
from evoprompt.images import ImageSet
from evoprompt.ladder import Pool
from evoprompt.mos import (
    MosImages,
    MosSet,
    check_mixture,
    heldout_srcc,
    images_of,
    plan_batches,
    read_sets,
    said_of,
    trainable,
)
from evoprompt.recipe_files import load_recipe
from evoprompt.steps import Batch, Steps, mos_steps

N = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_toy_images(tmp_path, n=N)
    return tmp_path


def _csv(folder: Path, mos: list[object], name: str = "labels.csv", head: str = "image,mos", more: str = "") -> Path:
    rows = [f"toy{k:02d}.png,{value}{more}" for k, value in enumerate(mos)]
    (folder / name).write_text("\n".join([head, *rows]) + "\n")
    return folder / name


def _set(folder: Path, config: MosConfig | None = None, mos: list[object] | None = None, **more: str) -> MosSet:
    return read_sets([_csv(folder, mos or list(range(10, 10 * N + 1, 10)), **more)], config or MosConfig())[0]


def test_the_ends_of_a_scale_become_1_and_5_and_deviations_shrink_alike(folder: Path) -> None:
    auto = _set(folder, head="image,mos,std", more=",22")
    assert (auto.mos[0], auto.mos[-1], auto.mos[1]) == (1, 5, pytest.approx(1 + 40 / 110))
    assert auto.std is not None and auto.std == pytest.approx(np.full(N, 22 * 4 / 110))
    wide = _set(folder, MosConfig(range="0..200"))
    assert wide.mos == pytest.approx(1 + np.arange(10, 10 * N + 1, 10) / 50)
    assert wide.std is None


def test_where_lower_is_better_the_scale_is_turned_round(folder: Path) -> None:
    plain, turned = _set(folder, MosConfig(range="0..200")), _set(folder, MosConfig(range="0..200", better="lower"))
    assert turned.mos == pytest.approx(6 - plain.mos)
    assert _set(folder, MosConfig(better="lower")).mos == pytest.approx(6 - _set(folder).mos)


def test_every_file_has_its_own_scale_and_direction(folder: Path) -> None:
    files = [_csv(folder, list(range(N))), _csv(folder, [100 - k for k in range(N)], "b.csv")]
    first, second = read_sets(files, MosConfig(range="auto,0..100", better="higher,lower"))
    assert (first.mos[0], first.mos[-1]) == (1, 5)
    assert second.mos == pytest.approx(1 + np.arange(N) / 25)
    with pytest.raises(RecipeError, match="mos.range has 3 values for 2 label files; give one for all, or one for eac"):
        read_sets(files, MosConfig(range="auto,auto,auto"))


@pytest.mark.parametrize(
    ("mos", "message"),
    [
        ([3] * (N - 2) + [9, 0.5], r"has 2 human scores outside mos.range 1..5: toy10.png \(9\); toy11.png \(0.5\)"),
        ([3] * N, "all 12 human scores in .*labels.csv are 3, so there is nothing to learn"),
        ([3, *["nan"] * 11], "column 'mos' has 11 unusable values: line 3 'nan'"),
        ([3], "names 1 image; to learn from human scores takes at least two"),
    ],
)
def test_scores_that_cannot_be_used_get_one_sentence(folder: Path, mos: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _set(folder, MosConfig(range="1..5"), mos)


def test_a_missing_column_is_named_with_what_is_there(folder: Path) -> None:
    with pytest.raises(DataError, match="has no column 'mos' .*; found: image, quality"):
        _set(folder, head="image,quality")


def test_problems_of_all_files_are_told_at_once(folder: Path) -> None:
    files = [_csv(folder, [1] * N), _csv(folder, [7, *range(1, N)], "b.csv")]
    with pytest.raises(DataError, match="nothing to learn from them.*b.csv has .* outside mos.range"):
        read_sets(files, MosConfig(range="1..5"))


def test_parts_of_one_table_are_sets_of_their_own_and_rows_given_twice_are_refused(folder: Path) -> None:
    table = folder / "parts.csv"
    rows = [f"toy{k:02d}.png,{k},{'train' if k % 3 else 'val'}" for k in range(N)]
    table.write_text("\n".join(["image,mos,split", *rows]) + "\n")
    parts = [Path(f"{table}#train"), Path(f"{table}#val")]
    assert [(chosen.name, len(chosen)) for chosen in read_sets(parts, MosConfig())] == [
        (f"{table}#train", 8),
        (f"{table}#val", 4),
    ]
    with pytest.raises(DataError, match="^12 rows of .*parts.csv are already in .*parts.csv, so they would count twic"):
        read_sets([table, folder / "." / ".." / folder.name / "parts.csv"], MosConfig())
    with pytest.raises(DataError, match="^4 rows of .*parts.csv#val are already in .*parts.csv, so"):
        read_sets([table, parts[1]], MosConfig())


@pytest.mark.parametrize("text", ["1-5", "5..1", "1..", "1..inf", "auto,x"])
def test_a_range_that_is_none_is_refused_with_the_recipe(text: str) -> None:
    with pytest.raises(RecipeError, match="must be auto, or two rising numbers such as 1..5"):
        load_recipe(None, [f"mos.range={text}"])
    with pytest.raises(RecipeError, match="mos.better: best; must be higher or lower"):
        Recipe(mos=MosConfig(better="best"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["mos.fraction=0"], "mos.fraction is 0, so no human score would be used"),
        (["mos.weight=0"], "mos.weight is 0, so no human score would be used"),
        (["mos.fraction=0.2", "train.steps=4"], "mos.fraction 0.2 of 4 steps is less than one step, so no human score"),
        (["mos.fraction=1"], "mos.fraction 1 leaves no step for votes; .* with 'evoprompt train'"),
    ],
)
def test_a_mixed_run_that_would_not_learn_from_both_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_mixture(load_recipe(None, settings))
    check_mixture(load_recipe(None, ["mos.fraction=0.25", "train.steps=4"]))


def _ready(chosen: MosSet, heldout: set[str] | None = None, control: str = "none") -> MosImages:
    pool = Pool(chosen.images, "squash", SIDE, 1, 0)
    return MosImages(chosen, pool, trainable(chosen, heldout or set()), control, np.random.default_rng(1))


def test_batches_hold_one_set_each_in_turn_and_every_image_before_any_again(folder: Path) -> None:
    small = _set(folder, mos=list(range(5)))
    large = _set(folder)
    planned = plan_batches([_ready(large), _ready(small)], 7, 4, 0.5, np.random.default_rng(0))
    assert [len(batch.mos) for batch in planned] == [4] * 7
    of_large = {round(m, 6) for m in large.mos}
    assert all({round(m, 6) for m in batch.mos} <= of_large for batch in planned[::2])
    assert all({round(m, 6) for m in batch.mos} <= {1, 2, 3, 4, 5} for batch in planned[1::2])
    uses = Counter(float(m) for batch in planned[::2] for m in batch.mos)
    assert len(uses) == N and max(uses.values()) - min(uses.values()) <= 1
    assert {batch.weight for batch in planned} == {0.5}


def test_a_batch_holds_the_pixels_of_its_scores(folder: Path) -> None:
    ready = _ready(_set(folder))
    batch = ready.batch(np.array([7, 2]), 1.0)
    assert np.array_equal(batch.views(np.arange(2)), np.stack([ready.pool(7), ready.pool(2)]))
    assert batch.mos.tolist() == ready.set.mos[[7, 2]].tolist()


def test_held_out_images_are_not_trained_on(folder: Path) -> None:
    chosen = _set(folder)
    heldout = {chosen.records[k].sha256 for k in (0, 5)}
    assert _ready(chosen, heldout).rows.tolist() == [k for k in range(N) if k not in (0, 5)]
    with pytest.raises(DataError, match="0 of the 12 images in .*labels.csv are left to train on"):
        trainable(chosen, {record.sha256 for record in chosen.records})


def _copies(references: list[str]) -> ImageSet:
    names = [str(k) for k in range(len(references))]
    return ImageSet(
        records=tuple(
            ImageRecord(path=Path(name), name=name, sha256=name, width=1, height=1, reference=reference)
            for name, reference in zip(names, references, strict=True)
        ),
        sources=(),
    )


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_reference_image_are_held_out_together_or_not_at_all(seed: int) -> None:
    references = [name for name in "abcdefgh" for _ in range(5)]
    kept, out = split_images(_copies(references), 0.25, seed)
    assert sorted([*kept, *out]) == list(range(40)) and len(out) == 10
    assert not {references[k] for k in kept} & {references[k] for k in out}
    plain, single = (split_images(_copies([name] * 10), 0.25, seed) for name in ("", "a"))
    assert len(plain[1]) == 2 and plain[1].tolist() == single[1].tolist()


def test_controls_shuffle_or_toss_the_scores_of_training_images(folder: Path) -> None:
    chosen = _set(folder, head="image,mos,std", more=",22")
    heldout, rows = {chosen.records[0].sha256}, np.arange(1, N)
    shuffled = _ready(chosen, heldout, "shuffled-labels").batch(rows, 1.0).mos
    assert sorted(shuffled) == sorted(chosen.mos[1:]) and not (shuffled == chosen.mos[1:]).any()
    tossed = _ready(chosen, heldout, "random-labels").batch(rows, 1.0).mos
    assert not set(tossed) & set(chosen.mos) and tossed.min() >= 1 and tossed.max() <= 5


def test_the_direction_of_a_scale_shows_in_the_scores_of_the_bare_judge(folder: Path) -> None:
    truth = (-np.linspace(0, 1, N)).tolist()
    judge = ScriptedJudge()
    right = _ready(_set(folder, mos=truth)).direction(judge, 4)
    wrong = _ready(_set(folder, MosConfig(better="lower"), truth)).direction(judge, 4)
    assert right.value == pytest.approx(-wrong.value)


def test_the_gate_of_a_supervised_run_averages_sets_and_takes_the_weakest_bound(folder: Path) -> None:
    chosen = _set(folder)
    hashes = [record.sha256 for record in chosen.records]
    good = dict(zip(hashes, range(N), strict=True))
    bad = dict(zip(hashes, [k % 3 for k in range(N)], strict=True))
    srcc, gain, low = heldout_srcc([chosen], good, bad, 0.9, 0)
    assert srcc == pytest.approx(1) and gain > 0 and low <= gain
    assert heldout_srcc([chosen, chosen], good, bad, 0.9, 0) == pytest.approx((srcc, gain, low))
    assert all(np.isnan(heldout_srcc([chosen], {hashes[0]: 1.0}, {hashes[0]: 1.0}, 0.9, 0)))


def test_a_bound_that_one_set_lacks_is_not_defined_in_whatever_order_the_sets_come(folder: Path) -> None:
    chosen, hashes = _set(folder), [record.sha256 for record in _set(folder).records]
    good, bad = dict(zip(hashes, range(N), strict=True)), dict(zip(hashes, [k % 3 for k in range(N)], strict=True))
    few = replace(chosen, records=chosen.records[:2], mos=chosen.mos[:2])  # most resamples of two are one image twice
    for sets in ([chosen, few], [few, chosen]):
        srcc, gain, low = heldout_srcc(sets, good, bad, 0.9, 0)
        assert np.isfinite([srcc, gain]).all() and np.isnan(low)


def test_sets_are_named_by_how_many_and_what_they_hold(folder: Path) -> None:
    chosen, other = _set(folder), _set(folder, MosConfig(range="0..200"))
    assert said_of([chosen]).startswith(f"MOS of {N} images (")
    assert said_of([chosen]) != said_of([other])
    assert len(images_of([chosen, other])) == N


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1 / 3, 0.5, 0.75, 1.0])
def test_human_steps_are_spread_evenly_and_come_back_the_same(folder: Path, fraction: float) -> None:
    ready, steps = _ready(_set(folder)), 60
    n = mos_steps(steps, fraction)
    assert n == round(steps * fraction)
    planned = plan_batches([ready], n, 4, 1.0, np.random.default_rng(0)) if n else []
    voted = [
        Batch(lambda rows, k=k: ready.pool(k)[None].repeat(2, 0)[rows], np.array([[0, 1]]), np.array([1.0]), 2)
        for k in range(5)
    ]
    data = Steps(voted, steps, (3, 1), planned, fraction)
    kinds = ["mos" in data[k] for k in range(steps)]
    assert sum(kinds) == n
    assert all(abs(sum(kinds[:k]) - k * fraction) < 1 for k in range(steps))
    again = Steps(voted, steps, (3, 1), planned, fraction)
    for k in (59, 3, 30):  # asked for in any order: there is no running state
        first, second = data[k], again[k]
        assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)
