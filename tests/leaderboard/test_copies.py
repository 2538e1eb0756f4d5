"""Copied evidence is told from models that agree."""

import itertools

import numpy as np
import pytest

from aal_bench.evidence import Evidence
from aal_bench.leaderboard import copies, entries
from aal_bench.paths import data_folder


def table(verdicts: np.ndarray, seed: int = 0) -> Evidence:
    """Rows that `verdicts` says fall to one stage; wrong classes and passes by the seed."""
    rng = np.random.default_rng(seed)
    n = len(verdicts)
    made = Evidence(np.arange(n), np.zeros(n, int))
    made.record("clean", np.arange(n), pred=np.zeros(n, int))
    pred = np.where(verdicts, 0, rng.integers(1, 10, n))
    passes = np.where(verdicts, 920, rng.integers(1, 9, n) * 102 + 2)
    made.record("apgd-t", np.arange(n), pred=pred, forwards=passes)
    return made


def fallen(n: int, count: int, seed: int = 0) -> np.ndarray:
    standing = np.ones(n, bool)
    standing[np.random.default_rng(seed).choice(n, count, replace=False)] = False
    return standing


def test_the_same_table_is_a_copy_of_itself():
    assert copies.overlap(table(fallen(200, 50)), table(fallen(200, 50))) == 1.0


def test_two_models_that_both_stand_almost_everywhere_are_no_copies():
    """99.4 % of all rows agree; of the 15 that tell them apart, none."""
    a, b = table(fallen(1000, 3, seed=1), seed=1), table(fallen(1000, 12, seed=2), seed=2)
    assert np.mean(a.column("apgd-t", "ok") == b.column("apgd-t", "ok")) > 0.98
    share = copies.overlap(a, b)
    assert share is not None
    assert share < 0.2


@pytest.mark.parametrize(("changed", "found"), [(0, True), (3, True), (50, True), (51, False)])
def test_a_copy_with_some_rows_changed(changed, found):
    """Of 200 fallen rows: a quarter changed is still a copy, 51 are 74.5 %."""
    verdicts = fallen(1000, 200)
    own, other = table(verdicts), table(verdicts)
    rows = np.flatnonzero(~verdicts)[:changed]
    other._blocks["apgd-t"]["forwards"][rows] += 102
    finding = copies.finding(own, "a" * 64, {"theirs": ("b" * 64, other)})
    assert finding.ok is not found
    assert ("theirs" in finding.text) is found


def test_models_that_err_alike_without_attack_are_no_copies():
    """Nothing but a class is known of such a row: 400 agree, of the 50 that were attacked none."""
    tables = [table(fallen(500, 50, seed=1), seed=seed) for seed in (1, 2)]
    for own in tables:
        own.clean_pred[50:450] = 1
        block = own._blocks["apgd-t"]
        block[50:450] = np.zeros(1, block.dtype)
        block["recorded"][50:450], block["pred"][50:450] = True, -1
    share = copies.overlap(*tables)
    assert share is not None
    assert share < 0.5


def test_no_two_committed_entries_are_near_the_threshold():
    """Honest runs, two weak models of one seed among them."""
    for board in sorted({path.parent for path in entries.find(data_folder("leaderboards"))}):
        tables = [Evidence.load(path) for path in sorted(board.glob("*.npz"))]
        shares = [copies.overlap(a, b) or 0.0 for a, b in itertools.combinations(tables, 2)]
        assert max(shares) < 0.6


def test_two_perfect_models_cannot_be_told_apart_but_one_file_twice_can():
    perfect = np.ones(50, bool)
    own, other = table(perfect), table(perfect)
    assert copies.overlap(own, other) is None
    assert copies.finding(own, "a" * 64, {"x": ("b" * 64, other)}).ok
    assert not copies.finding(own, "a" * 64, {"x": ("a" * 64, other)}).ok


def test_tables_about_other_images_are_not_compared():
    own, other = table(fallen(100, 50)), table(fallen(100, 50))
    other.index += 1
    assert copies.overlap(own, other) is None
