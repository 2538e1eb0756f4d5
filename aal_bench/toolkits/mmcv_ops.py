"""Fault: ``import mmdet.models`` fails with "No module named 'mmcv._ext'".

mmcv's operators are a compiled extension, and neither mmcv nor its maintained fork onedl-mmcv
ships wheels with it (open-mmlab/mmcv #3310, #3155); building takes 6 to 25 minutes.
``mmdet.models`` looks up 113 of these operators when it is imported, while a single-stage
detector runs just one: nms.

Repair: a module ``mmcv._ext`` whose ``nms`` is ``torchvision.ops.nms`` and whose every other
operator raises an error that names it when *called*. A compiled extension is never replaced.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NAME = "mmcv._ext"


def fault_present() -> bool:
    """Whether mmcv is installed and has no operators (imports mmcv)."""
    if find_spec("mmcv") is None:
        return False
    return find_spec(NAME) is None


def repair() -> None:
    """Provide ``mmcv._ext`` for the rest of this process."""
    if not fault_present():
        return
    extension = _Operators(NAME, doc="Provided by aal_bench.toolkits.mmcv_ops.")
    extension.__spec__ = ModuleSpec(NAME, loader=None)
    sys.modules[NAME] = extension
    importlib.import_module("mmcv")._ext = extension  # pyright: ignore


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression with the calling convention of ``mmcv._ext.nms``.

    Args:
        bboxes: (N,4) corners x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: A box goes when its overlap with a kept one is larger, in [0,1].
        offset: 0, or 1 where widths count pixels (x2 - x1 + 1).

    Returns:
        (M,) indices of the kept boxes, by falling score.
    """
    from torchvision.ops import nms as torchvision_nms

    # x2 - x1 + offset is the width of the box whose far corner lies `offset` further out
    far = bboxes.new_tensor([0, 0, offset, offset])
    return torchvision_nms(bboxes + far, scores, iou_threshold)


class _Operators(ModuleType):
    """``mmcv._ext`` without a compiler: mmcv asks for each operator by name and finds one."""

    nms = staticmethod(nms)

    @staticmethod
    def get_compiler_version() -> str:
        return "n/a (not compiled)"

    @staticmethod
    def get_compiling_cuda_version() -> str:
        return "n/a (not compiled)"

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name.startswith("__"):  # the import system's own questions
            raise AttributeError(name)

        def missing(*args: object, **options: object) -> object:
            raise NotImplementedError(
                f"mmcv operator '{name}' needs mmcv's compiled extension, which is not installed; "
                "only 'nms' is provided without it. Build mmcv from its source to use it."
            )

        return missing
