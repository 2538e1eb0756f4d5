"""Mutated entries: what changes a number is caught at level 0 or 1, what is damaged is refused.

How many were tried and caught is printed at the end (pytest -s).
"""

import fnmatch
import json
import math
import os
import re
import zipfile
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aal_bench.errors import UserError
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard.recomputed import ATTESTED
from aal_bench.leaderboard.untrusted import LARGEST, read_evidence

TRIED: Counter[str] = Counter()
CAUGHT: Counter[str] = Counter()
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(/[1-9]\d*)?", re.ASCII)
Place = tuple[str | int, ...]


def quick(examples: int) -> settings:
    """So many examples, however slow the machine; fixtures are restored for each."""
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )


@pytest.fixture(autouse=True)
def restored(victim):
    """The entry as it was, before every test; `given` restores it for every example."""
    victim.restore()


@pytest.fixture(scope="module", autouse=True)
def tally():
    yield
    for kind in TRIED:
        print(f"\nmutations, {kind}: {CAUGHT[kind]} of {TRIED[kind]} caught", end="")
    print(f"\nmutations, all: {CAUGHT.total()} of {TRIED.total()} caught")


def counted(kind: str, caught: object) -> bool:
    TRIED[kind] += 1
    CAUGHT[kind] += bool(caught)
    return bool(caught)


# ---- numbers of the record -------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """A JSON number, or a string that is one: "34.17", "24/255"."""
    if isinstance(value, str):
        return NUMBER.fullmatch(value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(node: Any, place: Place = ()) -> list[tuple[Place, Any]]:
    """Every number of a JSON tree and where it stands."""
    if isinstance(node, dict):
        return [found for key, child in node.items() for found in numbers(child, (*place, key))]
    if isinstance(node, list):
        return [found for i, child in enumerate(node) for found in numbers(child, (*place, i))]
    return [(place, node)] if is_number(node) else []


def put(tree: Any, place: Place, value: Any) -> Any:
    node = tree
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    return tree


def attested(place: Place) -> bool:
    dotted = ".".join(map(str, place))
    return any(fnmatch.fnmatchcase(dotted, pattern) for pattern in ATTESTED)


def same_number(a: Any, b: Any) -> bool:
    return Fraction(str(a)) == Fraction(str(b))


def others(value: Any) -> st.SearchStrategy[Any]:
    """Other numbers of the same kind: near ones, others in sign or size, and any."""
    if isinstance(value, str):
        digits = [i for i, c in enumerate(value) if c.isdigit()]
        changed = st.builds(
            lambda i, d: value[:i] + d + value[i + 1 :],
            st.sampled_from(digits),
            st.sampled_from("0123456789"),
        )
        found = st.one_of(changed, changed.map(lambda text: f"{text}1"))
        found = found.filter(lambda text: NUMBER.fullmatch(text) is not None)
    elif isinstance(value, int):
        near = [value + 1, value - 1, -value - 1, 10 * value + 1, value // 2, 10**4000]
        found = st.one_of(st.sampled_from(near), st.integers(-(10**6), 10**9))
    else:
        near = [
            math.nextafter(value, math.inf),
            math.nextafter(value, -math.inf),
            value * (1 + 1e-9) + 1e-12,
            -value - 1.0,
            value / 2 + 1e-3,
            1.7e308,
        ]
        any_float = st.floats(allow_nan=False, allow_infinity=False)
        found = st.one_of(st.sampled_from(near), any_float)
    return found.filter(lambda other: not same_number(other, value))


def bump(value: Any) -> Any:
    """One other number near `value`."""
    if isinstance(value, str):
        last = max(i for i, c in enumerate(value) if c.isdigit())
        return f"{value[:last]}{(int(value[last]) + 1) % 10}{value[last + 1 :]}"
    return value + 1 if isinstance(value, int) else math.nextafter(value, math.inf)


def test_every_single_number_edited_breaks_the_seal_or_more(victim):
    tree = victim.tree()
    found = numbers(tree)
    assert len(found) > 150
    for place, value in found:
        victim.write(put(victim.original(), place, bump(value)), seal=False)
        assert counted("one number, seal left", victim.broken(0)), place


def test_every_single_number_forged_under_a_new_seal_is_caught_unless_attested(victim):
    """The smallest change there is: the next float, the next whole number, another last digit."""
    found = [(place, value) for place, value in numbers(victim.tree()) if not attested(place)]
    assert len(found) > 120
    for place, value in found:
        victim.write(put(victim.original(), place, bump(value)))
        assert counted("one number, new seal", victim.broken(1)), place


@quick(120)
@given(data=st.data())
def test_any_number_to_any_other_breaks_the_seal_or_more(victim, data):
    place, value = data.draw(st.sampled_from(numbers(victim.original())))
    victim.write(put(victim.original(), place, data.draw(others(value))), seal=False)
    assert counted("any other number, seal left", victim.broken(0))


@quick(120)
@given(data=st.data())
def test_any_number_to_any_other_under_a_new_seal_is_caught_unless_attested(victim, data):
    tree = victim.original()
    places = [found for found in numbers(tree) if not attested(found[0])]
    place, value = data.draw(st.sampled_from(places))
    victim.write(put(tree, place, data.draw(others(value))))
    assert counted("any other number, new seal", victim.broken(1))


@pytest.mark.parametrize(
    "place",
    [
        ("model", "parameters"),
        ("model", "checkpoint", "bytes"),
        ("training", "wall_seconds"),
        ("training", "passes", "forward"),
        ("evaluation", 3, "wall_seconds"),
        ("environment", "threads"),
    ],
)
def test_what_is_attested_only_the_seal_holds(victim, place):
    tree = victim.original()
    value = next(value for found, value in numbers(tree) if found == place)
    victim.write(put(tree, place, bump(value)), seal=False)
    assert victim.broken(1) == {"0 seal"}
    victim.write(tree, seal=True)
    assert victim.broken(1) == set()


# ---- numbers of the table --------------------------------------------------------------------

COLUMNS = ("recorded", "attacked", "pred", "ok", "norm", "forwards", "backwards")


@st.composite
def cells(draw: Any, arrays: dict[str, np.ndarray]) -> tuple[str, str | None, int, Any]:
    """A cell of the table and another value for it: (array, column, row, value)."""
    name = draw(st.sampled_from(sorted(set(arrays) - {"format"})))
    row = draw(st.integers(0, len(arrays["index"]) - 1))
    column = draw(st.sampled_from(COLUMNS)) if name.startswith("stage/") else None
    held = arrays[name][row] if column is None else arrays[name][column][row]
    if isinstance(held, np.bool_):
        return name, column, row, not held
    if isinstance(held, np.floating):
        near = [0.0, float(held) + 1e-6, float(held) / 2, 24.1 / 255, 1.0, -1.0, math.nan]
        return name, column, row, draw(st.sampled_from(near).filter(lambda v: v != held))
    near = [int(held) + 1, int(held) - 1, 0, 9, 10, 102, 909, 920, 5004, 32767, -1]
    return name, column, row, draw(st.sampled_from(near).filter(lambda v: v != held))


def changed(victim: Any, cell: tuple[str, str | None, int, Any]) -> dict[str, np.ndarray]:
    arrays = victim.arrays()
    name, column, row, value = cell
    if column is None:
        arrays[name][row] = value
    else:
        arrays[name][column][row] = value
    return arrays


def follows(victim: Any) -> bool:
    """Whether every number of the record is what the table that lies there gives."""
    tree = victim.tree()
    victim.recount(tree)
    return tree == victim.tree()


@quick(100)
@given(data=st.data())
def test_a_forged_table_is_caught_unless_every_number_still_follows(victim, data):
    """A cell is changed, sha256 and seal are renewed, the record's numbers are left."""
    victim.restore()
    victim.forge(changed(victim, data.draw(cells(victim.arrays()))))
    caught = victim.broken(1)
    if caught or not follows(victim):
        assert counted("one cell of the table, numbers left", caught)


@quick(100)
@given(data=st.data())
def test_a_forged_table_with_its_numbers_recounted_is_caught_but_for_what_fell(victim, data):
    """The best a forger can do with one cell: every number of the record follows from it.

    What remains says nothing about who stands: the wrong class of a row that erred or fell, its
    norm within eps, and what it spent before it fell. Level 2 asks the weights.
    """
    victim.restore()
    before = victim.arrays()
    cell = data.draw(cells(before))
    try:
        victim.forge(changed(victim, cell), victim.recount)
    except (UserError, ValueError):  # no table that numbers could be counted from
        victim.forge(changed(victim, cell))
    caught = counted("one cell of the table, numbers recounted", victim.broken(1))
    if not caught:
        name, column, row, _ = cell
        stood = column is not None and bool(before[name]["ok"][row])
        harmless = {"pred", "norm", "forwards", "backwards"}
        assert name == "clean_pred" or column in harmless
        assert column == "norm" or not stood
        assert victim.tree()["metrics"] == victim.original()["metrics"]


# ---- damaged files ---------------------------------------------------------------------------


def refused(victim: Any, kind: str, level: int = 1) -> None:
    """Every finding is one printable line, and one of them is a fault."""
    findings = victim.findings(level)
    assert all(found.text.isprintable() and len(found.text) < 400 for found in findings)
    assert counted(kind, any(not found.ok for found in findings))


@quick(60)
@given(data=st.data())
def test_a_record_cut_off_anywhere(victim, data):
    victim.restore()
    content = victim.path.read_bytes()
    # Without the last newline it is the same JSON still.
    victim.path.write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    refused(victim, "record cut off")


@quick(100)
@given(data=st.data())
def test_a_record_with_a_byte_changed_anywhere(victim, data):
    victim.restore()
    content = bytearray(victim.path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    victim.path.write_bytes(content)
    try:
        unchanged = json.loads(content) == victim.original()
    except ValueError:
        unchanged = False
    if not unchanged:  # white space for white space is the same record
        refused(victim, "record with a byte changed")


@quick(60)
@given(data=st.data())
def test_a_table_cut_off_or_with_bytes_changed_under_a_renewed_sha256(victim, data):
    """The archive's own checks hold where its hash was renewed."""
    victim.restore()
    before = victim.arrays()
    content = bytearray(victim.table_path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:where]
    else:
        content[where] ^= data.draw(st.integers(1, 255))
    victim.table_path.write_bytes(content)
    victim.change(lambda tree: tree["evidence"].update(sha256=sha256_file(victim.table_path)))
    if victim.broken(1) or not equal(victim.arrays(), before):
        refused(victim, "damaged archive")


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@quick(40)
@given(garbage=st.binary(max_size=300))
def test_anything_at_all_in_place_of_record_or_table(victim, garbage):
    victim.restore()
    victim.table_path.write_bytes(garbage)
    victim.change(lambda tree: tree["evidence"].update(sha256=sha256_file(victim.table_path)))
    refused(victim, "garbage")
    victim.path.write_bytes(garbage)
    refused(victim, "garbage")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a JSON record"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (b'\xef\xbb\xbf{"a": 1}', "not a JSON record"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "1e999 is no finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a JSON record"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested too deep"),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "nested too deep"),
        (b"[" * 1_000_000, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b'{"a": 1} trailing', "not a JSON record"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_files_that_are_no_record(victim, content, said):
    victim.path.write_bytes(content)
    refused(victim, "no record")
    assert said in victim.said("readable")


@pytest.mark.parametrize("which", ["record", "table"])
def test_a_gigabyte_is_not_read(victim, which):
    path = victim.path if which == "record" else victim.table_path
    with path.open("r+b") as handle:
        handle.truncate(1 << 30)
    refused(victim, "1 GB")
    assert "1,073,741,824 bytes" in victim.said("readable" if which == "record" else "evidence")


def test_a_large_record_within_the_bounds_is_answered(victim):
    """A mebibyte of keys that the schema does not know."""
    body = ", ".join(f'"k{i}": {i}' for i in range(LARGEST // 20))
    victim.path.write_text(f"{{{body}}}")
    refused(victim, "large record")


def bomb(path: Path, rows: int, megabytes: int) -> None:
    """A table of one array of `rows` int32 whose file is a thousandth of what it unpacks to."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("index.npy")
        info.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(info, "w") as member:
            header = {"descr": "<i4", "fortran_order": False, "shape": (rows,)}
            np.lib.format.write_array_header_1_0(member, header)
            for _ in range(megabytes):
                member.write(bytes(1 << 20))
    assert os.path.getsize(path) < 1 << 20


@pytest.mark.parametrize("rows", [360, 30_000_000])
def test_a_zip_bomb_is_not_unpacked(victim, rows):
    """A hundred kilobytes that would become a hundred megabytes."""
    bomb(victim.table_path, rows, 100)
    victim.change(lambda tree: tree["evidence"].update(sha256=sha256_file(victim.table_path)))
    refused(victim, "zip bomb")
    assert "unpacked" in victim.said("evidence") or "bytes" in victim.said("evidence")


def test_nor_one_whose_record_claims_the_rows(victim, tmp_path):
    """75 million rows of a set of which nobody knows the size: as large as the claim, too large."""
    rows = 75 << 20
    bomb(tmp_path / "table.npz", rows, 300)
    with pytest.raises(UserError, match="at most 268,435,456"):
        read_evidence(tmp_path / "table.npz", rows, 6)


def test_an_evidence_file_has_no_more_bytes_than_it_may_unpack_to(tmp_path):
    with (tmp_path / "table.npz").open("wb") as handle:
        handle.truncate((1 << 28) + 1)
    with pytest.raises(UserError, match="at most 268,435,456"):
        read_evidence(tmp_path / "table.npz", 1 << 40, 6)


@pytest.mark.parametrize("name", ["../evil", "..", "a/b", "/etc/passwd", "", ".hidden", "a" * 200])
def test_names_and_paths_that_lead_elsewhere(victim, name):
    for place in (
        ("submission_id",),
        ("evidence", "path"),
        ("adversarials", "path"),
        ("task", "id"),
        ("model", "name"),
    ):
        tree = put(victim.original(), place, name)
        if place == ("task", "id"):
            tree["dataset"] = name
        victim.write(tree)
        refused(victim, "path traversal")
