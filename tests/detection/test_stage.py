"""Evaluation of a detector: images as files hold them, boxes of the image fed, and the record."""

import json
from copy import deepcopy
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from aal_bench.adapters import detection_stage
from aal_bench.adapters.detection import ObjectDetection
from aal_bench.adapters.detection_stage import batch_of, detections
from aal_bench.adapters.network import build_network
from aal_bench.cli import main
from aal_bench.detection.objective import DetectionObjective, Targets
from aal_bench.detection.pixels import PixelSpace
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.errors import RunFailed, UserError
from aal_bench.resolve import Request, resolve

WIDE = (96, 64)
FED = 264


@pytest.fixture
def folder(voc_folder, tmp_path):
    """Images of 96 x 64: fed at 264 x 264 they are stretched by two factors."""
    return voc_folder(tmp_path / "voc", {"train": 4, "val": 2, "test": 3}, size=WIDE)


@pytest.fixture
def adapter(small_networks, folder):
    request = Request(
        "voc-format",
        protocol="detection-fast",
        classes="cat,dog",
        device="cpu",
        precision="fp32",
        settings=(f"data.size={FED}", "evaluation.batch_size=2"),
    )
    return ObjectDetection(resolve(request), folder)


@pytest.fixture
def model(adapter):
    """Barely initialised, but alive: every score is about a third."""
    torch.manual_seed(0)
    net = build_network(adapter.run)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1)
    return net.eval().requires_grad_(False)


def read(folder, name):
    """An image as OpenCV reads it, and the boxes of its XML counted from 0."""
    image = cv2.imread(str(folder / "JPEGImages" / f"{name}.jpg"))
    root = ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot()
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [[float(box.findtext(side)) - 1 for side in sides] for box in root.iter("bndbox")]
    return image, torch.tensor(boxes)


def test_images_are_the_files_own_pixels_resized(adapter, model, folder):
    x, targets = batch_of(adapter, model, np.arange(3))
    assert targets.inside is None
    for i, sample in enumerate(targets.samples):
        image, _ = read(folder, sample.img_id)
        assert image.shape == (64, 96, 3)
        resized = cv2.resize(image, (FED, FED), interpolation=cv2.INTER_LINEAR)
        expected = torch.from_numpy(resized[..., ::-1].transpose(2, 0, 1).copy()).float() / 255
        assert torch.equal(x[i], expected)
    assert torch.equal(x, (255 * x).round() / 255)  # exact multiples of 1/255


def test_the_attack_sees_boxes_of_the_image_fed(adapter, model, folder):
    """MMDetection's test pipeline gives them in the file's coordinates: another loss."""
    x, targets = batch_of(adapter, model, np.arange(3))
    factors = torch.tensor([FED / WIDE[0], FED / WIDE[1]] * 2)
    unscaled = []
    for sample in targets.samples:
        _, boxes = read(folder, sample.img_id)
        torch.testing.assert_close(sample.gt_instances.bboxes, boxes * factors)
        other = deepcopy(sample)
        other.gt_instances.bboxes = boxes
        unscaled.append(other)
    objective = DetectionObjective(model)
    found = objective(x, targets, reduction="none")
    inputs = objective.space.inputs(x)
    for i, sample in enumerate(targets.samples):
        losses = model.loss(inputs[i : i + 1], [sample])
        torch.testing.assert_close(found[i], model.parse_losses(losses)[0], rtol=1e-4, atol=1e-5)
    wrong = objective(x, Targets(unscaled, None), reduction="none")
    assert ((found - wrong).abs() > 1e-3).all()


def test_detections_are_mmdetections_own_in_the_coordinates_of_the_file(adapter, model):
    positions = np.arange(3)
    x, targets = batch_of(adapter, model, positions)
    inputs = DetectionObjective(model).space.inputs(x)
    found = detections(model, inputs, targets)
    with torch.no_grad():
        theirs = model.predict(inputs, targets.samples, rescale=True)
    for one, sample in zip(found, theirs, strict=True):
        instances = sample.pred_instances
        assert 0 < len(one.scores) == len(instances)
        np.testing.assert_array_equal(one.boxes, instances.bboxes.numpy())
        np.testing.assert_array_equal(one.scores, instances.scores.numpy())
        np.testing.assert_array_equal(one.labels, instances.labels.numpy())
        assert one.boxes.min() >= 0
        assert WIDE[0] - 10 < one.boxes[:, 2].max() <= WIDE[0] + 1e-3
        assert WIDE[1] - 10 < one.boxes[:, 3].max() <= WIDE[1] + 1e-3


def test_what_is_not_finite_is_no_empty_image(adapter, model):
    x, targets = batch_of(adapter, model, np.arange(2))
    with torch.no_grad():
        model.bbox_head.reg_convs[0][0].bias[0] = torch.nan
    with pytest.raises(RunFailed, match="scores or boxes are not finite"):
        detections(model, DetectionObjective(model).space.inputs(x), targets)


def run_stage(adapter, name, model, evidence):
    saved = []
    adapter.run_stage(name, model, evidence, None, lambda *given: saved.append(given))
    return saved


def test_a_stage_records_what_it_did(adapter, model):
    evidence = adapter.new_evidence()
    assert evidence.conventions == ("map50_area", "map50_voc11")
    for name, passes in (("clean", (1, 0)), ("fgsm", (2, 1)), ("pgd-3", (4, 3))):
        (seconds, violation) = run_stage(adapter, name, model, evidence)[-1]
        assert seconds > 0
        assert max(violation.values()) <= 1e-6
        assert evidence.done(name).all()
        attacked = name != "clean"
        assert (evidence.column(name, "attacked") == attacked).all()
        norm = evidence.column(name, "norm")
        np.testing.assert_allclose(norm, 8 / 255 if attacked else 0, atol=1e-6)
        spent = (evidence.column(name, "forwards")[0], evidence.column(name, "backwards")[0])
        assert spent == passes
    assert "mAP" in adapter.told("fgsm", evidence)


def test_what_is_done_is_not_done_again(adapter, model):
    whole, halved = adapter.new_evidence(), adapter.new_evidence()
    run_stage(adapter, "fgsm", model, whole)
    image, found = whole.detections("fgsm")
    first = [found.at(image == row) for row in (0, 1)]
    halved.record("fgsm", [0, 1], first, norm=0.03, forwards=7, backwards=7)
    seen = []
    hook = model.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    run_stage(adapter, "fgsm", model, halved)
    hook.remove()
    assert seen == [1, 1]  # the attack and the detection of the third image
    assert halved.column("fgsm", "forwards").tolist() == [7, 7, 2]
    for one, other in zip(whole.detections("fgsm")[1], halved.detections("fgsm")[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_stages_draw_the_same_start_whatever_was_drawn_before(adapter, model):
    first, second = adapter.new_evidence(), adapter.new_evidence()
    for evidence, seed in ((first, 1), (second, 2)):
        torch.manual_seed(seed)
        run_stage(adapter, "pgd-1", model, evidence)
    for one, other in zip(first.detections("pgd-1")[1], second.detections("pgd-1")[1], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def with_empty(small_networks, voc_folder, write_voc, tmp_path):
    """The second of three test images has no object."""
    folder = voc_folder(tmp_path / "empty", {"train": 4, "val": 2, "test": 1}, size=WIDE)
    write_voc(folder, "nothing", [], "test", WIDE)
    voc_folder(folder, {"more": 1}, size=WIDE, seed=5)
    with (folder / "ImageSets/Main/test.txt").open("a") as listed:
        listed.write("more0\n")
    request = Request("voc-format", classes="cat,dog", device="cpu", settings=(f"data.size={FED}",))
    return ObjectDetection(resolve(request), folder)


@pytest.mark.parametrize("name", ["fgsm", "pgd-2", "pgd-2-loc"])
def test_an_image_without_objects_cannot_be_attacked(with_empty, model, name):
    """Its loss is zero everywhere: what is recorded is the clean image's detections."""
    evidence = with_empty.new_evidence()
    run_stage(with_empty, "clean", model, evidence)
    run_stage(with_empty, name, model, evidence)
    assert evidence.column(name, "attacked").tolist() == [True, False, True]
    assert evidence.column(name, "norm")[1] == 0
    assert (evidence.column(name, "norm")[[0, 2]] > 0.03).all()
    image, found = evidence.detections(name)
    rows, clean = evidence.detections("clean")
    np.testing.assert_array_equal(found.boxes[image == 1], clean.boxes[rows == 1])


class TestPadding:
    def test_a_padded_border_is_not_attacked_even_by_a_random_start(
        self, adapter, model, monkeypatch
    ):
        """As with ``keep_ratio``: the image fed is 264 x 176, and 88 rows are padding."""
        for step in adapter.test.pipeline.transforms:
            if type(step).__name__ == "Resize":
                step.keep_ratio = True
        # A batch of 264 x 264: what `pad_size_divisor` makes of it.
        model.data_preprocessor.pad_size_divisor = FED
        x, targets = batch_of(adapter, model, np.arange(2))
        assert x.shape == (2, 3, FED, FED)
        assert targets.inside is not None
        assert targets.inside[0, 0].sum() == FED * 176
        pixels, fed, inputs = [], [], PixelSpace.inputs
        monkeypatch.setattr(
            PixelSpace, "inputs", lambda *given: pixels.append(given[1]) or inputs(*given)
        )
        model.backbone.register_forward_pre_hook(lambda _, args: fed.append(args[0].detach()))
        evidence = adapter.new_evidence()
        run_stage(adapter, "pgd-2", model, evidence)
        border = ~targets.inside.expand_as(x)
        for given in fed[:3]:  # two of the attack, and the detection
            assert (given[border] == 0).all()
        assert torch.equal(pixels[2][border], x[border])  # what is judged and measured
        assert (pixels[0] != x)[border].any()  # the random start had moved it
        assert (evidence.column("pgd-2", "norm") <= 8 / 255 + 1e-6).all()


def test_an_attack_that_fails_is_an_error_and_no_survivor(adapter, model, monkeypatch):
    evidence = adapter.new_evidence()
    with monkeypatch.context() as patched:
        patched.setattr(
            "aal_bench.attacks.detector.DetectorStage.attack", lambda *_: torch.zeros(1) @ 1
        )
        with pytest.raises(RunFailed, match="stage fgsm raised TypeError"):
            run_stage(adapter, "fgsm", model, evidence)
    with monkeypatch.context() as patched:
        patched.setattr(
            "aal_bench.attacks.detector.DetectorStage.attack", lambda _, __, x, ___: x + 9 / 255
        )
        with pytest.raises(RunFailed, match=r"left its bounds: eps exceeded by 3\.92e-03"):
            run_stage(adapter, "fgsm", model, evidence)
    assert not evidence.done("fgsm").any()


def test_mmdetections_metric_must_agree(adapter, model, monkeypatch):
    evidence = adapter.new_evidence()
    run_stage(adapter, "clean", model, evidence)
    honest = detection_stage.toolkit_means
    monkeypatch.setattr(
        detection_stage,
        "toolkit_means",
        lambda *given: {name: value + 2e-5 for name, value in honest(*given).items()},
    )
    with pytest.raises(RunFailed, match=r"stage clean: map50_\w+ is 0\.\d+ by the evidence and"):
        detection_stage.agree(adapter, "clean", evidence)


def test_a_checkpoint_that_detects_nothing_is_refused(adapter, model):
    evidence = adapter.new_evidence()
    with torch.no_grad():
        for conv in model.bbox_head.cls_convs:
            conv[0].bias.view(-1, 3)[:, 2] += 50  # all background
    run_stage(adapter, "clean", model, evidence)
    assert evidence.column("clean", "count").sum() == 0
    with pytest.raises(UserError, match=r"clean mAP is 0\.0%"):
        adapter.check_clean(evidence)


def invoke(*arguments):
    done = CliRunner().invoke(main, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def smoke(folder, out, *more):
    return invoke(
        *("run", "voc-format", "--data-dir", folder, "--classes", "cat,dog", "--smoke"),
        *("--method", "aal-fgsm", "--device", "cpu", "--precision", "fp32", "--out", out),
        *(
            "--set",
            f"data.size={FED}",
            "--set",
            "train.batch_size=2",
            "--set",
            "train.validation=2",
            *more,
        ),
    )


class TestAWholeRun:
    def test_it_trains_attacks_and_leaves_a_record_and_then_says_so(
        self, small_networks, folder, tmp_path
    ):
        out = tmp_path / "run"
        done = smoke(folder, out)
        assert done.exit_code == 0, done.output
        result = json.loads((out / "result.json").read_text())
        evidence = DetectionEvidence.load(out / "evidence.npz")
        for name in ("clean", "fgsm", "pgd-2"):
            assert evidence.done(name).all()
        assert result["metrics"]["clean"]["value"] == pytest.approx(
            result["metrics"]["detection"]["stages"]["clean"]["map50_area"]["value"]
        )
        assert set(result["metrics"]["stages"]) == {"fgsm", "pgd-2"}
        record = json.loads((out / "run.json").read_text())
        assert record["status"] == "success"
        assert record["training"]["passes"] == [2, 2]
        assert record["training"]["images"] == 4
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [1]
        assert {"loss", "cls", "loc", "mean_k", "lr"} <= rows[0].keys()
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        again = smoke(folder, out)
        assert again.exit_code == 0, again.output
        assert {path: path.stat().st_mtime_ns for path in before} == before

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            (("--set", "train.batch_size=1"), "the last map of SSD-512 is 1 x 1"),
            (("--set", "data.size=200"), "too small for SSD-512's seven maps"),
            (("--ema", "0.9"), "--ema is not offered for detection"),
            (("--method", "trades"), "detection"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_bad_settings_are_one_line_before_anything_is_written(
        self, small_networks, folder, tmp_path, setting, message
    ):
        done = smoke(folder, tmp_path / "run", *setting)
        assert done.exit_code == 2
        assert message in done.output
        assert "Traceback" not in done.output
        assert not (tmp_path / "run").exists()

    def test_a_protocol_of_classification_is_refused(self, small_networks, folder, tmp_path):
        done = invoke(
            *("run", "voc-format", "--data-dir", folder, "--classes", "cat,dog"),
            *("--protocol", "clean,apgd-ce", "--out", tmp_path / "run", "--device", "cpu"),
        )
        assert done.exit_code == 2
        assert "apgd-ce" in done.output
