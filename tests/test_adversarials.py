"""The adversarials of fooled images: kept once, in parts, and merged in index order."""

from __future__ import annotations

import numpy as np
import pytest

from aal_bench.adversarials import Adversarials
from aal_bench.evidence import Evidence

INDEX = np.array([10, 4, 7, 2, 9, 0])


@pytest.fixture
def evidence():
    return Evidence(INDEX, np.zeros(6, int))


def x(*rows):
    """An image per row whose pixels say which row it is, in full float32 precision."""
    return np.stack([np.full((3, 2, 2), np.float32(1 / (row + 3))) for row in rows])


def merged(folder):
    with np.load(folder / "adversarials.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("index", "stage", "x")}


def test_one_adversarial_per_image_from_the_first_stage_under_which_it_fell(tmp_path, evidence):
    kept = Adversarials(tmp_path, 6)
    kept.keep("fgsm", np.array([1, 3]), x(1, 3))
    kept.keep("pgd-10", np.array([3, 4, 1]), 1 - x(3, 4, 1))
    kept.keep("square", np.array([4]), x(4) * 0)
    assert kept.merge(evidence) == 3
    found = merged(tmp_path)
    assert found["index"].tolist() == INDEX[[1, 3, 4]].tolist()
    assert found["stage"].tolist() == ["fgsm", "fgsm", "pgd-10"]
    assert found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], np.concatenate([x(1, 3), 1 - x(4)]))


def test_they_lie_in_the_order_of_the_rows_whatever_the_order_of_the_batches(tmp_path, evidence):
    kept = Adversarials(tmp_path, 6)
    kept.keep("fgsm", np.array([5, 4]), x(5, 4))
    kept.keep("fgsm", np.array([0]), x(0))
    kept.merge(evidence)
    found = merged(tmp_path)
    assert found["index"].tolist() == INDEX[[0, 4, 5]].tolist()
    np.testing.assert_array_equal(found["x"], x(0, 4, 5))


def test_another_process_continues_with_the_parts_on_the_disk(tmp_path, evidence):
    Adversarials(tmp_path, 6).keep("fgsm", np.array([2]), x(2))
    resumed = Adversarials(tmp_path, 6)
    resumed.keep("fgsm", np.array([2, 5]), 1 - x(2, 5))  # row 2 fell again
    assert resumed.merge(evidence) == 2
    np.testing.assert_array_equal(merged(tmp_path)["x"], np.concatenate([x(2), 1 - x(5)]))
    assert not (tmp_path / "adversarials").exists()


def test_merging_again_changes_nothing(tmp_path, evidence):
    kept = Adversarials(tmp_path, 6)
    kept.keep("fgsm", np.array([2, 5]), x(2, 5))
    kept.merge(evidence)
    before = (tmp_path / "adversarials.npz").read_bytes()
    assert Adversarials(tmp_path, 6).merge(evidence) == 2
    assert (tmp_path / "adversarials.npz").read_bytes() == before


def test_a_merge_that_was_killed_while_clearing_up_loses_nothing(tmp_path, evidence):
    """The merged file is there, and of the parts those that the kill had spared."""
    kept = Adversarials(tmp_path, 6)
    for row in (0, 2, 4):
        kept.keep("fgsm", np.array([row]), x(row))
    spared = sorted((tmp_path / "adversarials").iterdir())[2]
    content = spared.read_bytes()
    kept.merge(evidence)
    spared.parent.mkdir()
    spared.write_bytes(content)
    assert Adversarials(tmp_path, 6).merge(evidence) == 3
    assert sorted(merged(tmp_path)["index"]) == sorted(INDEX[[0, 2, 4]])
    assert not spared.parent.exists()


def test_a_write_that_was_killed_leaves_a_file_that_is_cleared_away(tmp_path, evidence):
    kept = Adversarials(tmp_path, 6)
    kept.keep("fgsm", np.array([0]), x(0))
    (tmp_path / "adversarials" / ".00001-fgsm.npz.ab12.tmp").write_bytes(b"half")
    assert Adversarials(tmp_path, 6).merge(evidence) == 1
    assert sorted(child.name for child in tmp_path.iterdir()) == ["adversarials.npz"]


def test_where_nothing_fell_there_is_no_file(tmp_path, evidence):
    assert Adversarials(tmp_path, 6).merge(evidence) == 0
    assert not any(tmp_path.iterdir())
