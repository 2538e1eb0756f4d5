"""The batched random resized crop, against torchvision's per-image one."""

import numpy as np
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from aal_bench.data.augment import draw_boxes, mixed_seed, resized_crop


def test_resized_crop_is_torchvisions_crop_and_resize_of_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 32, 32, generator=generator)
    boxes, flip = draw_boxes(40, images.shape[-2:], generator)
    ours = resized_crop(images, boxes, flip)
    for image, box, mirrored, x in zip(images, boxes, flip, ours, strict=True):
        top, left, height, width = (int(v) for v in box)
        reference = tv.resized_crop(image, top, left, height, width, [32, 32], antialias=False)
        reference = tv.hflip(reference) if mirrored else reference
        torch.testing.assert_close(x, reference, atol=2e-5, rtol=0)
    assert 0 < int(flip.sum()) < 40


def test_boxes_have_the_distribution_of_torchvision() -> None:
    torch.manual_seed(0)
    count, image = 4000, torch.zeros(3, 32, 32)
    params = [
        RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)
    ]
    theirs = np.array(params, float)
    ours = draw_boxes(count, image.shape[-2:], torch.Generator().manual_seed(1))[0].double().numpy()
    # A mean's standard error is at most 7 pixels / sqrt(4000) = 0.11, 0.16 for a difference.
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.5)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.5)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= 32).all()
    assert (ours[:, 1] + ours[:, 3] <= 32).all()


def test_seeds_of_neighbouring_batches_and_passes_do_not_meet() -> None:
    seeds = {mixed_seed(seed, number) for seed in range(50) for number in range(50)}
    assert len(seeds) == 2500
