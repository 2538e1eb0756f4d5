"""Splits decoded by workers: the pipelines of torchvision, resumable, with readable errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from aal_bench.data import folders
from aal_bench.data.on_disk import OnDisk
from aal_bench.errors import UserError

EVAL = {"augment": "none", "pad": 0, "seed": 0, "device": "cpu"}
COUNT = 70  # more than are decoded without workers


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write JPEG files of all sizes, some grey, as ImageNet has them."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(COUNT):
            height, width = rng.integers(20, 60, 2)
            shape = (height, width) if i % 5 == 0 else (height, width, 3)
            file = tmp_path / split / "ab"[i % 2] / f"{i:03d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file)
    return tmp_path


def split_of(photos: Path, workers: int) -> OnDisk:
    return OnDisk(folders.read(photos, "val").test, 16, 20, workers=workers)


def everything(split: OnDisk, **options):
    return list(split.batches(torch.arange(len(split)), 16, **{**EVAL, **options}))


def test_evaluation_pixels_are_those_of_torchvisions_resize_and_centre_crop(photos: Path) -> None:
    split = split_of(photos, workers=0)
    files = sorted((photos / "val" / "a").iterdir()) + sorted((photos / "val" / "b").iterdir())
    pipeline = v2.Compose(
        [
            v2.Resize(20),
            v2.CenterCrop(16),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    x = torch.cat([batch.x for batch in everything(split)])
    for file, ours in zip(files, x, strict=True):
        reference = pipeline(Image.open(file).convert("RGB"))
        torch.testing.assert_close(ours, reference.as_subclass(torch.Tensor), atol=1e-7, rtol=0)
    assert split.labels.tolist() == [0] * 35 + [1] * 35
    assert torch.equal(split.pixels(torch.tensor([3, 1])), (x[[3, 1]] * 255).round().byte())


@pytest.mark.parametrize("augment", ["none", "crop-flip", "resized-crop-flip"])
def test_batches_are_the_same_from_any_start_with_and_without_workers(
    photos: Path, augment: str
) -> None:
    options = {"augment": augment, "pad": 2, "seed": 4}
    whole = everything(split_of(photos, workers=0), **options)
    rest = everything(split_of(photos, workers=2), **options, start=3)
    assert [len(batch.x) for batch in whole] == [16, 16, 16, 16, 6]
    assert len(rest) == 2
    for a, b in zip(whole[3:], rest, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)  # the crops included


def test_random_crops_differ_between_places_in_the_pass_and_between_seeds(photos: Path) -> None:
    split = split_of(photos, workers=0)
    options = {**EVAL, "augment": "resized-crop-flip"}
    repeated = torch.ones(8, dtype=torch.int64)
    first = split.batches(repeated, 4, **{**options, "seed": 1})
    other = split.batches(repeated, 4, **{**options, "seed": 2})
    crops = [x for batch in [*first, *other] for x in batch.x]
    assert len({x.numpy().tobytes() for x in crops}) == 16


def test_batches_leave_the_global_generator_alone(photos: Path) -> None:
    before = torch.get_rng_state()
    everything(split_of(photos, workers=0), augment="resized-crop-flip")
    everything(split_of(photos, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_subset_reads_its_own_files(photos: Path) -> None:
    split = split_of(photos, workers=0)
    part = split.subset(torch.tensor([50, 2]))
    assert part.labels.tolist() == [1, 0]
    assert part.origin.tolist() == [50, 2]
    assert torch.equal(part.pixels(torch.arange(2)), split.pixels(torch.tensor([50, 2])))
    (batch,) = part.batches(torch.tensor([1, 0]), 8, **EVAL)
    assert batch.idx.tolist() == [1, 0]
    assert batch.y.tolist() == [0, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_photo_is_named_even_when_a_worker_meets_it(photos: Path, workers: int) -> None:
    broken = photos / "val" / "b" / "069.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"val/b/069\.jpg: cannot be read \(.*truncated") as error:
        everything(split_of(photos, workers))
    assert "Traceback" not in str(error.value)
