"""Class-balanced parts: balanced, reproducible for ever, and refused where they do not fit."""

import numpy as np
import pytest

from aal_bench.data.subset import balanced, hold_out
from aal_bench.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 50))


def test_every_class_gives_equally_many() -> None:
    chosen = balanced(LABELS, 200, seed=0)
    assert np.bincount(LABELS[chosen]).tolist() == [20] * 10
    assert (np.diff(chosen) > 0).all()


def test_an_uneven_count_differs_by_one_at_most() -> None:
    counts = np.bincount(LABELS[balanced(LABELS, 207, seed=3)])
    assert sorted(counts) == [20] * 3 + [21] * 7


def test_the_choice_depends_on_the_seed_and_on_nothing_else() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = balanced(LABELS, 100, seed=0)
    assert np.array_equal(first, balanced(LABELS, 100, seed=0))
    assert not np.array_equal(first, balanced(LABELS, 100, seed=1))
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_a_smaller_choice_lies_within_a_larger_one() -> None:
    assert set(balanced(LABELS, 100, seed=0)) < set(balanced(LABELS, 300, seed=0))


def test_the_choice_is_pinned_because_published_rows_rest_on_it() -> None:
    assert balanced(np.arange(40) % 4, 8, seed=0).tolist() == [
        2,
        3,
        11,
        13,
        18,
        20,
        21,
        32,
    ]


def test_every_image_is_chosen_equally_often() -> None:
    labels = np.repeat(np.arange(2), 10)
    hits = np.zeros(20)
    for seed in range(1000):
        hits[balanced(labels, 10, seed)] += 1
    # Each is chosen with probability 1/2: 500 hits, standard deviation 16.
    assert np.abs(hits - 500).max() < 80


def test_holding_out_cuts_the_training_images_in_two() -> None:
    train, held = hold_out(LABELS, 100, seed=0)
    assert np.bincount(LABELS[held]).tolist() == [10] * 10
    assert sorted([*train, *held]) == list(range(500))
    assert (np.diff(train) > 0).all()


def test_holding_out_nothing_keeps_everything() -> None:
    train, held = hold_out(LABELS, 0, seed=0)
    assert len(train) == 500
    assert len(held) == 0


@pytest.mark.parametrize("count", [0, -1, 501])
def test_a_count_that_does_not_fit_is_refused(count: int) -> None:
    with pytest.raises(UserError, match="does not fit 500"):
        balanced(LABELS, count, seed=0)


def test_a_class_that_is_too_small_is_named() -> None:
    labels = np.array([0] * 30 + [7] * 2)
    with pytest.raises(UserError, match=r"needs 5 of class 7, which has 2\. Ask for at most 4"):
        balanced(labels, 10, seed=0)


def test_something_must_be_left_to_train_on() -> None:
    with pytest.raises(UserError, match=r"lower train\.validation"):
        hold_out(LABELS, 500, seed=0)
