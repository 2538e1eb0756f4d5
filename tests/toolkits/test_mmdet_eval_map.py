"""mmdet's ``eval_map``: the same numbers, and no process forked beside torch's threads."""

import importlib
import os
import threading
from multiprocessing.pool import Pool, ThreadPool

import numpy as np
import pytest

from aal_bench.toolkits import mmcv_ops, mmdet_eval_map, mmdet_ssd
from aal_bench.toolkits._quiet import import_quietly


@pytest.fixture(scope="module")
def mean_ap():
    mmcv_ops.repair()
    mmdet_ssd.repair()
    with mmdet_ssd.without_notices():
        import_quietly("mmdet.evaluation", *mmdet_ssd.NOTICES, "faster_coco_eval is not installed")
    return importlib.import_module("mmdet.evaluation.functional.mean_ap")


@pytest.fixture
def data():
    """Detections near the objects of eight images and beside them, two classes; some ignored."""
    rng = np.random.default_rng(0)

    def boxes(count):
        corner = rng.uniform(0, 60, (count, 2))
        return np.hstack([corner, corner + rng.uniform(10, 40, (count, 2))])

    truth, found = [], []
    for _ in range(8):
        objects = boxes(4)
        truth.append(
            {
                "bboxes": objects[:3].astype(np.float32),
                "labels": np.array([0, 1, 1]),
                "bboxes_ignore": objects[3:].astype(np.float32),
                "labels_ignore": np.array([0]),
            }
        )
        near = objects + rng.normal(0, 3, objects.shape)
        guesses = np.vstack([near, boxes(2)])
        scored = np.hstack([guesses, rng.random((6, 1))]).astype(np.float32)
        found.append([scored[[0, 3, 4]], scored[[1, 2, 5]]])
    return found, truth


def measured(mean_ap, data, **options):
    return mean_ap.eval_map(*data, iou_thr=0.5, logger="silent", nproc=4, **options)


@pytest.mark.parametrize("dataset", ["voc07", None])
def test_the_numbers_are_those_of_the_processes(mean_ap, data, monkeypatch, dataset):
    from multiprocessing import get_context

    monkeypatch.setattr(mean_ap, "Pool", get_context("fork").Pool)
    assert mmdet_eval_map.fault_present()
    monkeypatch.setattr(mean_ap, "Pool", Serial)
    mean, classes = measured(mean_ap, data, dataset=dataset)
    monkeypatch.setattr(mean_ap, "Pool", ThreadPool)
    found, each = measured(mean_ap, data, dataset=dataset)
    assert 0.2 < mean < 1
    assert found == mean
    for ours, theirs in zip(each, classes, strict=True):
        assert ours["ap"] == theirs["ap"]
        np.testing.assert_array_equal(ours["recall"], theirs["recall"])
        np.testing.assert_array_equal(ours["precision"], theirs["precision"])


class Serial:
    """What a pool computes, one after the other: the reference, without any worker."""

    def __init__(self, _):
        pass

    def starmap(self, function, arguments):
        return [function(*one) for one in arguments]

    def close(self):
        pass


def where(*arguments, **options):
    """An assigner that also notes where it runs."""
    SEEN.append((os.getpid(), threading.current_thread().name))
    module = importlib.import_module("mmdet.evaluation.functional.mean_ap")
    return module.tpfp_default(*arguments, **options)


SEEN: list[tuple[int, str]] = []


def test_no_process_is_forked(mean_ap, data, monkeypatch):
    monkeypatch.setattr(mean_ap, "Pool", Pool)
    mmdet_eval_map.repair()
    SEEN.clear()
    measured(mean_ap, data, tpfp_fn=where)
    assert len(SEEN) == 2 * 8  # in other processes, the notes would be lost
    assert {pid for pid, _ in SEEN} == {os.getpid()}
    assert threading.current_thread().name not in {name for _, name in SEEN}


def test_it_steps_aside_where_upstream_forks_no_more(mean_ap, monkeypatch):
    monkeypatch.setattr(mean_ap, "Pool", Pool)
    assert mmdet_eval_map.fault_present()
    mmdet_eval_map.repair()
    assert mean_ap.Pool is ThreadPool
    assert not mmdet_eval_map.fault_present()
    monkeypatch.delattr(mean_ap, "Pool")
    assert not mmdet_eval_map.fault_present()
    mmdet_eval_map.repair()
    assert not hasattr(mean_ap, "Pool")
