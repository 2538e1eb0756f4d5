"""The embedded digits: real images, upscaled the same on every machine, split for good."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from aal_bench.config import read_task
from aal_bench.data import digits
from aal_bench.data.load import load
from aal_bench.paths import data_folder


@pytest.mark.parametrize("size", [8, 16, 20, 32])
def test_upscaling_is_bilinear_interpolation(size: int) -> None:
    original = load_digits().images
    ours = digits.upscale(original.astype(np.int64), size)
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(original)[:, None], size=(size, size), mode="bilinear"
    )[:, 0]
    # Rounded once, correctly: never further off than half a level.
    difference = torch.from_numpy(ours).double() - reference * 255 / 16
    assert float(difference.abs().max()) <= 0.5 + 1e-9


def test_the_split_is_balanced_disjoint_and_complete() -> None:
    found = digits.read(8)
    assert np.bincount(found.test.labels).tolist() == [36] * 10
    assert len(found.train.labels) == 1437
    pixels = np.concatenate([found.train.images, found.test.images])
    labels = np.concatenate([found.train.labels, found.test.labels])
    bundle = load_digits()
    expected = np.floor(bundle.images * 255 / 16 + 0.5).astype(np.uint8).reshape(1797, -1)
    key = [(image.tobytes(), int(y)) for image, y in zip(expected, bundle.target, strict=True)]
    ours = [(image[0].tobytes(), int(y)) for image, y in zip(pixels, labels, strict=True)]
    assert sorted(ours) == sorted(key)


def test_the_task_loads_three_equal_channels_and_a_pinned_fingerprint() -> None:
    data = load(read_task(data_folder("tasks") / "digits.toml"), None)
    images = data.test.pixels(torch.arange(360))
    assert images.shape == (360, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 2])
    assert int(images.min()) == 0
    assert int(images.max()) == 255
    assert data.source == "embedded"
    assert data.class_names == tuple("0123456789")
    # The same on every machine: whole numbers all the way. A change makes old rows another task.
    assert data.fingerprint == {
        "pixels": "04130a5c4067055273351272d3f17361dec4821409547da37f51ad9445b92597",
        "labels": "ff0edfe979d21189d5abcb12a0eb2b12b4b289bc0fedb474d0a2d3af8522bdca",
        "count": "360",
    }
