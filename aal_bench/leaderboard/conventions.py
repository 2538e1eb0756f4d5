"""How mean average precisions are taken, in words. No torch."""

from __future__ import annotations

from aal_bench.config import Convention

CONVENTIONS: dict[Convention, str] = {
    "map50_voc11": "IoU 0.5, interpolated at 11 recalls (VOC 2007)",
    "map50_area": "IoU 0.5, area under the curve (VOC 2010 on)",
    "map_coco": "mean over IoU 0.50:0.95, interpolated at 101 recalls (COCO's AP)",
    "map50_coco": "IoU 0.5, interpolated at 101 recalls (COCO)",
    "map75_coco": "IoU 0.75, interpolated at 101 recalls (COCO)",
}
"""Convention -> what it is; each is a mean over the classes that have objects."""
PRINTED: dict[str, tuple[Convention, ...]] = {
    "mAP@0.5": ("map50_voc11", "map50_area"),
    "mAP@[0.5,0.95]": ("map_coco",),
}
"""A paper's name of a metric -> the conventions that it may mean."""
