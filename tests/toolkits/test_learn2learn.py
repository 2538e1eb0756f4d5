"""learn2learn imports quietly, samples episodes, adapts, and builds its network at any size."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from aal_bench.errors import UserError
from aal_bench.toolkits import learn2learn_import
from aal_bench.toolkits.learn2learn_vision import cnn4

REPAIRED = "from aal_bench.toolkits import learn2learn_import as r; r.repair(); r.repair();"


@pytest.fixture(scope="module")
def l2l():
    learn2learn_import.repair()
    import learn2learn

    return learn2learn


def run_python(code, path=None):
    paths = filter(None, [path, os.environ.get("PYTHONPATH")])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def test_import_is_silent_after_repair_only():
    assert "Gym has been unmaintained" in run_python("import gym").stderr
    done = run_python(f"{REPAIRED} import learn2learn; learn2learn.gym")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_real_errors_of_the_import_are_seen(tmp_path):
    (tmp_path / "gym.py").write_text("raise ImportError('gym is broken')")
    done = run_python(f"{REPAIRED} import learn2learn", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: gym is broken\n")


def test_repair_steps_aside_without_a_notice(monkeypatch):
    import gym_notices.notices

    monkeypatch.delitem(sys.modules, "gym", raising=False)
    monkeypatch.setattr(gym_notices.notices, "notices", {"0.26.2": "unmaintained"})
    assert learn2learn_import.fault_present()
    monkeypatch.setattr(gym_notices.notices, "notices", {})
    assert not learn2learn_import.fault_present()
    learn2learn_import.repair()
    assert gym_notices.notices.notices == {}


@pytest.mark.parametrize("name", ["Taskset", "TaskDataset"])  # the new name and the old
@pytest.mark.filterwarnings("ignore:TaskDataset is deprecated:DeprecationWarning")
def test_episodes_are_sampled_from_images_in_memory(l2l, name):
    """Six classes of eight images, whose pixels spell their class and number."""
    from learn2learn.data.transforms import (
        ConsecutiveLabels,
        FusedNWaysKShots,
        LoadData,
        RemapLabels,
    )

    ways, shots = 3, 4
    number = torch.arange(48)
    images = torch.stack([number // 8, number % 8, number]).T.float()[:, :, None, None]
    dataset = l2l.data.MetaDataset(TensorDataset(images, number // 8))
    transforms = [
        FusedNWaysKShots(dataset, n=ways, k=shots),
        LoadData(dataset),
        RemapLabels(dataset),
        ConsecutiveLabels(dataset),
    ]
    tasks = getattr(l2l.data, name)(dataset, task_transforms=transforms, num_tasks=20)

    seen = set()
    for _ in range(20):
        x, y = tasks.sample()
        x = x.squeeze()
        assert sorted(y.tolist()) == sorted([*range(ways)] * shots)
        classes = [set(x[y == way, 0].tolist()) for way in range(ways)]
        assert all(len(original) == 1 for original in classes)  # one true class for each label
        assert len(set.union(*classes)) == ways
        assert len(set(x[:, 2].tolist())) == ways * shots  # no image twice
        seen |= set.union(*classes)
    assert len(seen) == 6


def test_support_and_query_are_partitioned(l2l):
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    x = torch.arange(6.0)[:, None]
    (support, support_y), (query, query_y) = l2l.data.partition_task(x, y, shots=1)
    assert support.flatten().tolist() == [0, 3]
    assert support_y.tolist() == [0, 1]
    assert query.flatten().tolist() == [1, 2, 4, 5]
    assert query_y.tolist() == [0, 0, 1, 1]


def test_one_adaptation_step_is_gradient_descent(l2l):
    """For w*x with squared error, w' = w - lr * 2x(wx - y), by hand."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    learner = l2l.algorithms.MAML(model, lr=0.1).clone()
    x, y = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    learner.adapt(((learner(x) - y) ** 2).sum())
    assert learner.module.weight.item() == pytest.approx(0.5 - 0.1 * 2 * 2 * (0.5 * 2 - 3))
    assert model.weight.item() == 0.5


@pytest.mark.parametrize(("size", "width"), [(16, 8), (28, 8), (32, 32), (84, 200)])
def test_cnn4_fits_every_size(l2l, size, width):
    from learn2learn.vision.models import CNN4

    model = cnn4(classes=7, size=size, hidden=8)
    assert isinstance(model, CNN4)
    assert model.classifier.in_features == width  # 8 channels on the map that the poolings leave
    assert model(torch.rand(2, 3, size, size)).shape == (2, 7)


def test_cnn4_at_84_pixels_is_learn2learns_default(l2l):
    from learn2learn.vision.models import CNN4

    ours, theirs = cnn4(classes=5, size=84), CNN4(5)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


def test_cnn4_refuses_images_that_vanish(l2l):
    with pytest.raises(UserError, match="at least 16 pixels, not 15"):
        cnn4(classes=5, size=15)
    assert cnn4(2, 16, hidden=4, channels=1)(torch.rand(3, 1, 16, 16)).shape == (3, 2)
