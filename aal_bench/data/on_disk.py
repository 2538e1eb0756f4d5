"""A split too large for memory: files decoded by loader workers while the device computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aal_bench.data.augment import augment_with_crops, mixed_seed
from aal_bench.data.decode import open_image
from aal_bench.data.sources import Source
from aal_bench.data.splits import Images, cut
from aal_bench.errors import UserError

MAX_WORKERS = 8
FEW = 64
"""Up to so many images, starting workers takes longer than decoding."""


class OnDisk:
    """Images of any size and mode, resized and cropped to one size; as torchvision's pipelines do.

    ``resized-crop-flip`` is RandomResizedCrop + flip of the original image, in the workers. Every
    other augmentation starts from the evaluation's pixels: RGB, shorter side to `resize` (bilinear,
    Pillow), centre crop.

    Args:
        source: the encoded images.
        size: side of the images fed, in pixels.
        resize: shorter side before the centre crop, in pixels.
        workers: decoding processes; None: one per usable core, at most 8; 0: none.
    """

    def __init__(
        self, source: Source, size: int, resize: int, *, workers: int | None = None
    ) -> None:
        self.source, self.size, self.resize = source, size, resize
        self.workers = _usable_cores() if workers is None else workers
        self.labels = torch.from_numpy(source.labels)
        self.origin = torch.arange(len(source))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        augment: str,
        pad: int,
        seed: int,
        device: torch.device | str,
        start: int = 0,
    ) -> Iterator[Images]:
        """Yield batches as `Split.batches` says; image i of the pass has a seed of its own.

        Raises:
            UserError: an image cannot be decoded; names it.
        """
        device = torch.device(device)
        in_workers = augment == "resized-crop-flip"
        decoded = self._decoded(
            order, batch_size, seed if in_workers else None, device.type == "cuda", start
        )
        y, idx = self.labels[order].to(device), order.to(device)
        for (number, part), raw in zip(cut(order, batch_size, start), decoded, strict=True):
            images = raw.to(device, non_blocking=True)
            on_device = "none" if in_workers else augment
            x, crops = augment_with_crops(images, on_device, pad, seed, number)
            yield Images(x, y[part], idx[part], crops)

    def subset(self, idx: Tensor) -> OnDisk:
        """Return the split of positions `idx` of the same files."""
        part = object.__new__(OnDisk)
        part.__dict__.update(self.__dict__)
        part.labels, part.origin = self.labels[idx], self.origin[idx]
        return part

    def pixels(self, idx: Tensor) -> Tensor:
        """Return uint8 (n, 3, size, size) at positions `idx`, as the evaluation sees them."""
        if not len(idx):
            return torch.empty((0, 3, self.size, self.size), dtype=torch.uint8)
        return torch.cat(list(self._decoded(idx, FEW, None, False, 0)))

    def _decoded(
        self, order: Tensor, batch_size: int, seed: int | None, pin: bool, start: int
    ) -> Iterator[Tensor]:
        """Yield uint8 batches (B, 3, size, size); `seed` draws random resized crops, None none."""
        loader = DataLoader(
            _Decoding(self.source, self.size, self.resize),
            batch_sampler=_Jobs(self.origin[order], batch_size, seed, start),  # pyright: ignore[reportArgumentType]
            num_workers=self.workers if len(order) > FEW else 0,
            collate_fn=_stack,
            pin_memory=pin,
            # A generator of its own: the loader would take its seed from the global one, and a
            # resumed pass would then leave another global state behind.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, str):
                raise UserError(batch)
            yield batch


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MAX_WORKERS, cores or 1)


class _Jobs:
    """Batches of (row, seed of the image or None), from batch `start` on."""

    def __init__(self, rows: Tensor, batch_size: int, seed: int | None, start: int) -> None:
        self.rows, self.batch_size, self.seed, self.start = rows, batch_size, seed, start

    def __len__(self) -> int:
        return max(0, -(-len(self.rows) // self.batch_size) - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int | None]]]:
        for _, part in cut(self.rows, self.batch_size, self.start):
            yield [
                (row, None if self.seed is None else mixed_seed(self.seed, part.start + i))
                for i, row in enumerate(self.rows[part].tolist())
            ]


class _Decoding(Dataset[Tensor | str]):
    """Decode one image in a worker. A mistake comes back as text, not as a worker's traceback."""

    def __init__(self, source: Source, size: int, resize: int) -> None:
        from torchvision.transforms import v2

        self.source = source
        self.evaluate = v2.Compose([v2.Resize(resize), v2.CenterCrop(size), v2.PILToTensor()])
        self.train = v2.Compose(
            [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        )

    def __getitem__(self, job: tuple[int, int | None]) -> Tensor | str:
        row, seed = job
        try:
            image = open_image(self.source, row).convert("RGB")
        except UserError as error:
            return str(error)
        if seed is None:
            return self.evaluate(image)
        with _seeded(seed):
            return self.train(image)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's global generator, which torchvision draws from, and put it back after.

    Not ``torch.manual_seed``: that reseeds the accelerator's generators as well.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _stack(items: list[Tensor | str]) -> Tensor | str:
    images: list[Tensor] = []
    for item in items:
        if isinstance(item, str):
            return item
        images.append(item)
    return torch.stack(images)
