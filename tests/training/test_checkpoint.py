"""Checkpoints: what goes in comes out; damaged, foreign and hostile files are refused."""

import os
import pickle
import random
import resource
import zipfile

import numpy as np
import pytest
import torch

from aal_bench.errors import UserError
from aal_bench.training import checkpoint

CPU = torch.device("cpu")
STATE = {
    "weights": {"conv.weight": torch.arange(24.0).view(1, 2, 3, 4)},
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    "rows": '[{"loss": 0.5}]',
    "best": None,
    "counted": [1408, 1408, 128],
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoints" / "state.pt"
    checkpoint.save(path, STATE)
    return path


def test_tensors_and_plain_values_come_back(path):
    state = checkpoint.load(path)
    assert torch.equal(state["weights"]["conv.weight"], STATE["weights"]["conv.weight"])
    assert torch.equal(state["optimizer"]["state"][0]["momentum_buffer"], torch.ones(3))
    assert {key: state[key] for key in ("rows", "best", "counted")} == {
        key: STATE[key] for key in ("rows", "best", "counted")
    }
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_a_cut_file_is_refused(path):
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"not a readable checkpoint .*; delete it"):
            checkpoint.load(path)


def test_a_flipped_bit_never_changes_what_is_loaded(path):
    """torch.load alone returns other weights for about a third of the flips in the tensors."""
    whole = path.read_bytes()
    refused = silent = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:
            state = checkpoint.load(path)
        except UserError:
            refused += 1
            continue
        silent += not torch.equal(state["weights"]["conv.weight"], STATE["weights"]["conv.weight"])
        silent += state["rows"] != STATE["rows"]
    assert silent == 0
    assert refused > 50


def test_files_of_another_kind_are_refused(tmp_path, path):
    kinds = {
        "page.pt": b"<!DOCTYPE html><html><body>404</body></html>",
        "empty.pt": b"",
        "old.pt": pickle.dumps({"weights": 1}),
        "noise.pt": random.Random(0).randbytes(5000),
    }
    for name, content in kinds.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "foreign.pt")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in (*kinds, "foreign.pt", "tensor.pt", "archive.pt", "checkpoints", "absent.pt"):
        with pytest.raises(UserError) as raised:
            checkpoint.load(tmp_path / name)
        assert str(raised.value).startswith(f"{tmp_path / name}: not a readable checkpoint (")
        assert "\n" not in str(raised.value)


class Bomb:
    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, as_zip):
    path, crater = tmp_path / "state.pt", tmp_path / "crater"
    hostile = {"format": checkpoint.FORMAT, "weights": Bomb(crater)}
    torch.save(hostile, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(path)
    assert not crater.exists()
    torch.load(path, weights_only=False)  # it is live
    assert crater.exists()


def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(path):
    """A limit on the size of files fails the write as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        for count in (1 << 15, 1 << 22):
            with pytest.raises(UserError, match=r"state\.pt: cannot be written: File too large"):
                checkpoint.save(path, {"weights": torch.ones(count)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_what_cannot_be_written_at_all_is_an_error_of_its_own(path):
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        checkpoint.save(path, {"hook": lambda: None})
    assert checkpoint.load(path)["rows"] == STATE["rows"]
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_every_generator_continues_where_it_was(tmp_path):
    def draw():
        return (
            torch.rand(5).tolist(),
            torch.randn(17).tolist(),
            np.random.rand(3).tolist(),  # noqa: NPY002  a method's own code may use it
            float(np.random.randn()),  # noqa: NPY002
            random.random(),
            random.gauss(0, 1),
        )

    draw()
    np.random.randn()  # noqa: NPY002  leaves a second normal number in store
    random.gauss(0, 1)
    checkpoint.save(tmp_path / "rng.pt", {"rng": checkpoint.rng_state(CPU)})
    expected = draw()
    assert draw() != expected
    checkpoint.set_rng_state(checkpoint.load(tmp_path / "rng.pt")["rng"], CPU)
    assert draw() == expected
