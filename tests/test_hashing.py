"""Canonical JSON and its sha256, against hashlib on text written by hand."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aal_bench.hashing import canonical, sha256_file, sha256_json, without_floats


def test_the_hash_is_that_of_sorted_compact_utf8():
    value = {"b": [1, True, None], "a": {"é": "8/255"}}
    by_hand = '{"a":{"é":"8/255"},"b":[1,true,null]}'
    assert canonical(value) == by_hand
    assert sha256_json(value) == hashlib.sha256(by_hand.encode("utf-8")).hexdigest()


def test_floats_are_refused_and_hashed_as_their_shortest_text():
    with pytest.raises(TypeError, match="no floats"):
        canonical({"eps": [8 / 255]})
    assert without_floats({"lr": (0.1, 5e-4)}) == {"lr": ["0.1", "0.0005"]}
    assert sha256_json({"lr": 0.1}) == sha256_json({"lr": "0.1"})


def test_what_is_no_json_is_refused():
    with pytest.raises(TypeError, match="string keys"):
        canonical({1: "a"})
    with pytest.raises(TypeError):
        canonical({"a": object()})


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def reordered(tree):
    """The same tree with every dictionary filled in the opposite order."""
    if isinstance(tree, dict):
        return {key: reordered(tree[key]) for key in reversed(list(tree))}
    return [reordered(child) for child in tree] if isinstance(tree, list) else tree


@settings(deadline=None, max_examples=50)
@given(TREES)
def test_the_order_of_keys_changes_nothing(tree):
    assert sha256_json(tree) == sha256_json(reordered(tree))


@settings(deadline=None, max_examples=50)
@given(TREES, TREES)
def test_other_trees_have_other_hashes(one, two):
    # repr tells True from 1, which == does not.
    assert (sha256_json(one) == sha256_json(two)) == (repr(sort(one)) == repr(sort(two)))


def sort(tree):
    if isinstance(tree, dict):
        return {key: sort(tree[key]) for key in sorted(tree)}
    return [sort(child) for child in tree] if isinstance(tree, list) else tree


def test_a_file_has_the_hash_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "weights").write_bytes(data)
    assert sha256_file(tmp_path / "weights") == hashlib.sha256(data).hexdigest()
