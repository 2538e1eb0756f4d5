"""From a detection run to what is audited of it."""

import numpy as np
import pytest
import torch

from aal_bench.adapters.detection import ObjectDetection
from aal_bench.adapters.network import build_network
from aal_bench.audit.detection.bank import DetectorBank
from aal_bench.audit.detection.claims import budget as keeps_to_eps
from aal_bench.audit.detection.subject import BATCH, subject_of
from aal_bench.audit.of_run import Beside, Told
from aal_bench.audit.table import QUICK
from aal_bench.errors import UserError
from aal_bench.resolve import Request, resolve

FED = 264
WIDE = (96, 64)


@pytest.fixture
def adapter(small_networks, voc_folder, write_voc, tmp_path):
    """Six test images, of which the second has no object and the third a difficult one only."""
    folder = voc_folder(tmp_path / "voc", {"train": 1, "val": 1, "test": 1}, size=WIDE)
    write_voc(folder, "nothing", [], "test", WIDE)
    write_voc(folder, "hard", [("cat", (10, 10, 50, 50), 1)], "test", WIDE)
    voc_folder(folder, {"more": 3}, size=WIDE, seed=5)
    with (folder / "ImageSets/Main/test.txt").open("a") as listed:
        listed.write("more0\nmore1\nmore2\n")
    request = Request(
        "voc-format",
        protocol="clean,fgsm,fgsm-eps-2",
        classes="cat,dog",
        device="cpu",
        precision="fp32",
        settings=(f"data.size={FED}",),
    )
    return ObjectDetection(resolve(request), folder)


@pytest.fixture
def model(adapter):
    torch.manual_seed(0)
    return build_network(adapter.run).eval().requires_grad_(False)


def test_images_without_an_object_that_counts_are_passed_over(adapter, model):
    subject = subject_of(adapter, model, QUICK)
    assert subject.size == 4
    names = [s.img_id for batch in subject.batches for s in batch.targets.samples]
    assert names == ["test0", "more0", "more1", "more2"]
    assert all(len(batch.x) <= BATCH for batch in subject.batches)
    assert (subject.threat.eps * 255, subject.step * 255) == (8, pytest.approx(2))
    fewer = subject_of(adapter, model, QUICK._replace(images=2))
    assert fewer.size == 2


def test_a_claim_has_the_budget_of_its_stage(adapter, model):
    evidence = adapter.new_evidence()
    for name in ("clean", "fgsm", "fgsm-eps-2"):
        adapter.run_stage(name, model, evidence, None, lambda *_: None)
    subject = subject_of(adapter, model, QUICK, Told(evidence=evidence))
    assert [(c.stage, round(255 * c.eps)) for c in subject.claims] == [
        ("fgsm", 8),
        ("fgsm-eps-2", 2),
    ]
    for claim in subject.claims:
        assert len(claim.norm) == 4  # the images that were attacked
        np.testing.assert_allclose(claim.norm, claim.eps, atol=1e-5)
    bank = DetectorBank(subject, QUICK._replace(detector_steps=1))
    assert keeps_to_eps(bank).verdict == "pass"


def test_networks_that_no_check_of_detectors_looks_at_are_refused(adapter, model):
    with pytest.raises(UserError, match="omit --baseline and --surrogate"):
        subject_of(adapter, model, QUICK, beside=Beside(surrogates=(("other", model),)))
    assert subject_of(adapter, model, QUICK, beside=Beside(undefended=model)).undefended is model


def test_a_split_without_objects_has_nothing_to_attack(
    small_networks, voc_folder, write_voc, tmp_path
):
    folder = voc_folder(tmp_path / "empty", {"train": 1, "val": 1}, size=WIDE)
    write_voc(folder, "nothing", [], "test", WIDE)
    request = Request("voc-format", classes="cat,dog", device="cpu", settings=(f"data.size={FED}",))
    bare = ObjectDetection(resolve(request), folder)
    with pytest.raises(UserError, match="no test image has an object"):
        subject_of(bare, build_network(bare.run), QUICK)
