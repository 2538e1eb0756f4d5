"""Pixel space: to [0, 1] and back, the box, padding and the order of the channels."""

import numpy as np
import pytest
import torch

from aal_bench.detection.pixels import PixelSpace, inside_of

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.fixture(scope="module")
def detector(small_detector):
    return small_detector()


def test_pixels_are_the_files_own_and_normalising_again_gives_the_same_inputs(detector, make_batch):
    noise = torch.randint(256, (2, 3, 264, 264), dtype=torch.uint8)
    inputs, _ = make_batch(detector, images=list(noise))
    space = PixelSpace(detector.data_preprocessor)
    x = space.pixels(inputs)
    torch.testing.assert_close(255 * x, noise.flip(1).float(), rtol=0, atol=1e-4)  # BGR was read
    torch.testing.assert_close(space.inputs(x), inputs, rtol=0, atol=1e-5)


def test_a_preprocessor_that_does_not_normalise_has_pixels_all_the_same(small_detector, make_batch):
    bare = small_detector(mean=None, std=None)
    noise = torch.randint(256, (2, 3, 264, 264), dtype=torch.uint8)
    inputs, _ = make_batch(bare, images=list(noise))
    assert inputs.max() > 200
    space = PixelSpace(bare.data_preprocessor)
    torch.testing.assert_close(space.pixels(inputs), noise.flip(1) / 255)
    torch.testing.assert_close(space.inputs(space.pixels(inputs)), inputs)


def test_one_step_in_pixels_is_another_step_for_each_channel_of_the_inputs(detector):
    space = PixelSpace(detector.data_preprocessor)
    x = torch.full((1, 3, 4, 4), 0.5)
    moved = space.inputs(x + 8 / 255) - space.inputs(x)
    expected = torch.tensor([8 / std for std in STD]).view(1, 3, 1, 1).expand_as(moved)
    torch.testing.assert_close(moved, expected)
    assert len({round(value, 4) for value in moved[0, :, 0, 0].tolist()}) == 3


def distorted(seed):
    """What MMDetection's photometric augmentation makes of an image."""
    from mmdet.datasets.transforms import PhotoMetricDistortion

    image = np.random.default_rng(seed).integers(0, 256, (264, 264, 3), dtype=np.uint8)
    transform = PhotoMetricDistortion(
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18,
    )
    np.random.seed(seed)  # noqa: NPY002  the generator that it draws from
    return torch.from_numpy(transform({"img": image})["img"].transpose(2, 0, 1).copy())


def test_photometric_distortion_leaves_the_box_and_the_clean_image_is_clamped(detector, make_batch):
    images = [distorted(seed) for seed in (1, 3)]
    assert min(image.min() for image in images) < -5
    assert max(image.max() for image in images) > 260
    inputs, _ = make_batch(detector, images=images)
    x = PixelSpace(detector.data_preprocessor).pixels(inputs)
    assert x.min() == 0
    assert x.max() == 1
    expected = torch.stack(images).flip(1).clamp(0, 255)
    torch.testing.assert_close(255 * x, expected.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("bgr_to_rgb", [True, False])
def test_a_saved_image_has_its_colours_whichever_way_the_network_takes_them(
    small_detector, make_batch, bgr_to_rgb
):
    net = small_detector(bgr_to_rgb=bgr_to_rgb)
    blue_as_read = torch.zeros(3, 264, 264, dtype=torch.uint8)
    blue_as_read[0] = 200
    inputs, _ = make_batch(net, images=[blue_as_read] * 2)
    space = PixelSpace(net.data_preprocessor)
    shown = space.rgb(space.pixels(inputs))[0, :, 0, 0]
    torch.testing.assert_close(shown, torch.tensor([0, 0, 200 / 255]), rtol=0, atol=1e-6)


class TestPadding:
    SIZES = [(264, 200), (200, 264)]  # noqa: RUF012

    def test_images_of_one_size_have_none(self, detector, make_batch):
        inputs, samples = make_batch(detector)
        assert inside_of(samples, inputs.shape, inputs.device) is None

    def test_what_is_image_is_what_was_not_padded(self, small_detector, make_batch):
        net = small_detector(pad_size_divisor=32)
        ones = [torch.full((3, h, w), 255, dtype=torch.uint8) for h, w in self.SIZES]
        inputs, samples = make_batch(net, images=ones)
        assert inputs.shape == (2, 3, 288, 288)
        inside = inside_of(samples, inputs.shape, inputs.device)
        assert torch.equal(inside.expand_as(inputs), inputs > 0)
        assert [int(one.sum()) for one in inside] == [264 * 200, 200 * 264]

    def test_borders_stay_at_the_paddings_value_and_have_no_gradient(
        self, small_detector, make_batch
    ):
        net = small_detector(pad_size_divisor=32)
        inputs, samples = make_batch(net, self.SIZES)
        inside = inside_of(samples, inputs.shape, inputs.device)
        space = PixelSpace(net.data_preprocessor)
        x = torch.rand(inputs.shape).requires_grad_()
        made = space.inputs(x, inside)
        border = ~inside.expand_as(made)
        assert (made[border] == 0).all()
        torch.testing.assert_close(made[~border], space.inputs(x)[~border])
        made.sum().backward()
        assert (x.grad[border] == 0).all()
        assert (x.grad[~border] > 0).all()


def test_statistics_follow_the_detector_to_another_type(small_detector):
    net = small_detector().double()
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    space = PixelSpace(net.data_preprocessor)
    inputs = space.inputs(x)
    assert inputs.dtype == torch.float64
    by_hand = (255 * x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(inputs, by_hand, rtol=0, atol=1e-5)
