"""Level 4: anybody's adversarials. A proof lowers the entry; anything else leaves it as it is."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

from aal_bench.errors import UserError
from aal_bench.hashing import sha256_file
from aal_bench.record import percent
from aal_bench.verification.challenge import challenge


@pytest.fixture
def false(liar):
    """An entry with three survivors that are none, their rows, and images that prove it."""
    return liar(3)


def write(path: Path, proofs, which=slice(None), **changes) -> Path:
    np.savez(path, **{name: values[which] for name, values in (proofs | changes).items()})
    return path


def files(case):
    return case.path.read_bytes(), case.entry.evidence_path.read_bytes()


def test_images_that_fall_lower_the_entry_and_history_keeps_what_it_was(false, tmp_path):
    case, rows, proofs = false
    before, standing = case.entry, case.entry.evidence().robust()
    stood = int(standing.sum())
    path = write(tmp_path / "mine.npz", proofs, slice(2))
    finding, lowered = challenge(before, case.rebuilt(), path, "a stranger")
    assert finding.ok
    assert finding.level == 4
    record, lower = case.entry.result, percent((stood - 2) / 60)
    assert finding.text == "2 images that stood fell to mine.npz"
    assert lowered.text == (
        f"external lowered {before.result.autoattack_acc} (AutoAttack) -> {lower} %, written; the"
        " entry stays at level 1"
    )
    assert record.external == lower
    assert record.run_hash == before.result.run_hash
    table, stage = case.entry.evidence(), record.evaluation[-1]
    assert stage.attack == "challenge-1"
    assert stage.implementation.package == "submitted adversarials"
    assert stage.params == {"eps": "2/255", "sha256": sha256_file(path), "images": 2}
    np.testing.assert_array_equal(
        np.flatnonzero(standing & ~table.column("challenge-1", "ok")), rows[:2]
    )
    with torch.no_grad():
        pred = case.rebuilt().model(torch.from_numpy(proofs["x"][:2])).argmax(1)
    np.testing.assert_array_equal(table.column("challenge-1", "pred")[rows[:2]], pred)
    *_, event = record.verification.history
    assert (event.event, event.by, event.fallen, event.external) == (
        *("challenged", "a stranger", 2, None),
    )
    assert record.verification.level == 1  # it was not attacked again before


def test_a_second_challenge_adds_to_the_first(false, tmp_path):
    case, rows, proofs = false
    challenge(case.entry, case.rebuilt(), write(tmp_path / "a.npz", proofs, slice(2)), "one")
    first = case.entry.result.external
    stale = case.entry, case.rebuilt()
    # All three, of which two have fallen: one is new.
    finding, lowered = challenge(*stale, write(tmp_path / "b.npz", proofs), "two")
    assert finding.text == "1 image that stood fell to b.npz"
    assert lowered.text.startswith(f"external lowered {first} -> {case.entry.result.external} %")
    events = case.entry.result.verification.history[-2:]
    assert [(event.stage, event.fallen, event.external) for event in events] == [
        ("challenge-1", 2, None),
        ("challenge-2", 1, first),
    ]
    assert not case.entry.evidence().robust()[rows].any()
    # The same once more proves nothing new.
    after = files(case)
    (finding,) = challenge(case.entry, case.rebuilt(), tmp_path / "b.npz", "three")
    assert not finding.ok
    assert finding.text == (
        "none of the 3 images newly falls: the entry holds against them (3 had fallen already,"
        " 0 stand)"
    )
    assert files(case) == after


def test_our_own_file_of_adversarials_is_accepted_and_is_nothing_new(submitted):
    case = submitted()
    before = files(case)
    count = len(case.kept()["index"])
    (finding,) = challenge(case.entry, case.rebuilt(), case.adversarials, "somebody")
    assert not finding.ok
    assert finding.text == (
        f"none of the {count} images newly falls: the entry holds against them ({count} had fallen"
        " already, 0 stand)"
    )
    assert files(case) == before


def test_images_that_fool_nobody(submitted, tmp_path):
    """The clean images of all survivors."""
    case = submitted()
    rebuilt, before = case.rebuilt(), files(case)
    rows = np.flatnonzero(rebuilt.evidence.robust())
    x = (rebuilt.adapter.test.pixels(torch.from_numpy(rows)) / 255).numpy()
    path = write(tmp_path / "a.npz", {"index": rebuilt.evidence.index[rows], "x": x})
    (finding,) = challenge(case.entry, rebuilt, path, "somebody")
    assert not finding.ok
    assert finding.text.startswith(f"none of the {len(rows)} images newly falls: the entry holds")
    assert finding.text.endswith(f"(0 had fallen already, {len(rows)} stand)")
    assert files(case) == before


@pytest.mark.parametrize("excess", ["ball", "box"])
def test_one_image_out_of_bounds_refuses_the_whole_file(false, tmp_path, excess):
    case, _, proofs = false
    rebuilt, before, x = case.rebuilt(), files(case), proofs["x"].copy()
    if excess == "ball":
        x[1, 2, 3, 3] = abs(x[1, 2, 3, 3] - 0.5)
        match = r"exceeds eps by \d\.\d\de-01; the whole file is"
    else:
        original = rebuilt.adapter.test.pixels(torch.from_numpy(false[1])).numpy()
        pixel = tuple(np.argwhere(original[1] == 0)[0])
        x[(1, *pixel)] = -2e-6
        match = r"leaves the box \[0, 1\] by 2\.00e-06; the whole file"
    # Backwards, so that the image's row in the file is not its rank among the test images.
    path = write(tmp_path / "a.npz", proofs | {"x": x}, slice(None, 0, -1))
    where = rf"image {proofs['index'][1]} of the test split \(row 1 of the file\) "
    with pytest.raises(UserError, match=where + match):
        challenge(case.entry, rebuilt, path, "somebody")
    assert files(case) == before


def test_an_image_that_the_task_does_not_have_refuses_the_whole_file(false, tmp_path):
    """The other two would lower the entry; positions are those of the test split, not of a row."""
    case, _, proofs = false
    before, index = files(case), proofs["index"].copy()
    index[1] = 10**6
    path = write(tmp_path / "a.npz", proofs, index=index)
    with pytest.raises(UserError) as error:
        challenge(case.entry, case.rebuilt(), path, "somebody")
    assert str(error.value) == f"{path}: index 1000000 is none of the test images"
    assert files(case) == before


def test_what_float32_rounds_is_no_excess(false, tmp_path):
    case, _, proofs = false
    x = np.nextafter(proofs["x"], np.float32(2))
    path = write(tmp_path / "a.npz", proofs, x=x)
    finding, _ = challenge(case.entry, case.rebuilt(), path, "me")
    assert finding.ok


def test_an_entry_that_was_replaced_meanwhile(false, tmp_path):
    case, _, proofs = false
    entry, rebuilt = case.entry, case.rebuilt()
    case.edit(run_hash="0" * 64)
    before = files(case)
    with pytest.raises(UserError, match="was replaced meanwhile"):
        challenge(entry, rebuilt, write(tmp_path / "a.npz", proofs), "somebody")
    assert files(case) == before


def test_two_challenges_at_once_are_both_kept(false, tmp_path):
    """Both have read the entry before either writes; whoever is second adds to the first."""
    case, rows, proofs = false
    stood = int(case.entry.evidence().robust().sum())
    parts = {"one": slice(0, 2), "two": slice(1, 3)}
    read = {name: (case.entry, case.rebuilt()) for name in parts}
    together = Barrier(2)

    def challenger(name):
        path = write(tmp_path / f"{name}.npz", proofs, parts[name])
        together.wait()
        return challenge(*read[name], path, name)[0]

    with ThreadPoolExecutor(2) as pool:
        assert all(finding.ok for finding in pool.map(challenger, parts))
    record = case.entry.result
    assert record.external == percent((stood - 3) / 60)
    stages = [stage for stage in record.evaluation if stage.attack.startswith("challenge")]
    assert [stage.attack for stage in stages] == ["challenge-1", "challenge-2"]
    assert [stage.n_in - stage.n_out for stage in stages] == [2, 1]
    assert not case.entry.evidence().robust()[rows].any()
