"""mmcv without its compiled extension: one operator works, the others say what they need."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from aal_bench.toolkits import mmcv_ops


def greedy_nms(boxes, scores, threshold, offset):
    """Non-maximum suppression as its definition reads, one pair of boxes at a time."""
    kept = []
    for i in scores.argsort(descending=True).tolist():
        x1, y1, x2, y2 = boxes[i]
        clear = True
        for j in kept:
            a1, b1, a2, b2 = boxes[j]
            width = (torch.min(x2, a2) - torch.max(x1, a1) + offset).clamp(min=0)
            height = (torch.min(y2, b2) - torch.max(y1, b1) + offset).clamp(min=0)
            area = (x2 - x1 + offset) * (y2 - y1 + offset)
            other = (a2 - a1 + offset) * (b2 - b1 + offset)
            overlap = width * height
            clear &= bool(overlap / (area + other - overlap) <= threshold)
        if clear:
            kept.append(i)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_follows_its_definition(offset):
    mmcv_ops.repair()
    from mmcv.ops import nms

    generator = torch.Generator().manual_seed(offset)
    corners = torch.rand(40, 2, generator=generator) * 12
    boxes = torch.cat([corners, corners + 1 + torch.rand(40, 2, generator=generator) * 6], dim=1)
    scores = torch.rand(40, generator=generator)
    kept, indices = nms(boxes, scores, iou_threshold=0.3, offset=offset)

    expected = greedy_nms(boxes, scores, 0.3, offset)
    assert indices.tolist() == expected
    assert 1 < len(expected) < 40
    torch.testing.assert_close(kept[:, 4], scores[expected])


def test_offset_changes_the_answer():
    """Two boxes that overlap by a third in the plane, by more when widths count pixels."""
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
    scores = torch.tensor([0.9, 0.8])
    assert mmcv_ops.nms(boxes, scores, 0.4, 0).tolist() == [0, 1]  # 2 / 6
    assert mmcv_ops.nms(boxes, scores, 0.4, 1).tolist() == [0]  # 6 / 12


def test_other_operators_are_named_when_called():
    mmcv_ops.repair()
    from mmcv.ops import RoIAlign, soft_nms
    from mmcv.utils import collect_env

    with pytest.raises(NotImplementedError, match=r"'softnms' needs mmcv's compiled extension"):
        soft_nms(torch.rand(2, 4), torch.rand(2))
    with pytest.raises(NotImplementedError, match="'roi_align_forward'"):
        RoIAlign(2)(torch.rand(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]))
    assert collect_env()["MMCV Compiler"] == "n/a (not compiled)"


def test_compiled_extension_is_never_replaced(monkeypatch):
    import mmcv

    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    monkeypatch.delattr(mmcv, "_ext", raising=False)
    assert mmcv_ops.fault_present()
    compiled = ModuleType("mmcv._ext")
    compiled.__spec__ = ModuleSpec("mmcv._ext", loader=None)
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    assert not mmcv_ops.fault_present()
    mmcv_ops.repair()
    assert sys.modules["mmcv._ext"] is compiled


def test_fault_is_real():
    done = subprocess.run(
        [sys.executable, "-c", "import mmcv.ops"], capture_output=True, text=True, check=False
    )
    assert "No module named 'mmcv._ext'" in done.stderr
