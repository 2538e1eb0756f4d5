"""The detector that carries an attack: MMDetection's own in all else, under its wrappers too."""

import socket
from copy import deepcopy

import pytest
import torch

from aal_bench.aal.attention import gate_of, has_gate
from aal_bench.detection.build import check_classes, raw_outputs
from aal_bench.detection.pixels import PixelSpace
from aal_bench.errors import UserError

ATTACK = {"method": "fgsm", "eps": "8/255", "step": "2/255"}


def own(net, inputs, samples):
    """MMDetection's loss of the same network."""
    from mmdet.models.detectors import SingleStageDetector

    return net.parse_losses(SingleStageDetector.loss(net, inputs, samples))[0]


def test_without_an_attack_it_is_mmdetections(small_detector, make_batch):
    net = small_detector()
    batch = make_batch(net)
    assert torch.equal(net.parse_losses(net.loss(*batch))[0], own(net, *batch))


def test_evaluated_it_attacks_nothing(small_detector, make_batch):
    """A validation loss is of the clean images."""
    net = small_detector(attack=ATTACK)
    batch = make_batch(net)
    attacked = net.parse_losses(net.loss(*batch))[0]
    net.eval()
    assert torch.equal(net.parse_losses(net.loss(*batch))[0], own(net, *batch))
    net.train()
    assert attacked > own(net, *batch)


def test_the_configs_attack_is_built_with_the_detector(small_detector):
    net = small_detector(attack={**ATTACK, "method": "aal-pgd", "steps": 3})
    assert has_gate(net)
    assert net.adversarial.method.threat == (8 / 255, 2 / 255, 3)
    assert not has_gate(small_detector(attack=ATTACK))
    control = {**ATTACK, "method": "aal-fgsm", "options": {"control": "no_gate"}}
    assert not has_gate(small_detector(attack=control))


def test_surgery_leaves_the_weights_that_the_seed_drew(small_detector):
    plain, gated = (
        small_detector(attack={**ATTACK, "method": method}) for method in ("fgsm", "aal-fgsm")
    )
    conv = plain.backbone.conv1.weight, gated.backbone.conv1.weight
    assert torch.equal(*conv)


@pytest.mark.parametrize("position", ["post_bn_relu", "post_conv1"])
def test_the_gate_has_the_stems_resolution_at_either_place(small_detector, position):
    options = {"gate": {"position": position}}
    net = small_detector(attack={**ATTACK, "method": "aal-fgsm", "options": options}).eval()
    with gate_of(net).reading() as reading, torch.no_grad():
        net.extract_feat(torch.zeros(1, 3, 264, 264))
    assert reading.M.shape == (1, 1, 132, 132)


def test_a_runners_second_initialisation_leaves_the_weights(small_detector):
    net = small_detector()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_one_image_is_too_few_for_the_last_maps_batch_norm(small_detector, make_batch):
    """Why a batch of one is refused, and a remainder of one dropped."""
    net = small_detector()
    inputs, samples = make_batch(net, [(264, 264)])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        net.loss(inputs, samples)
    assert own(net.eval(), inputs, samples).isfinite()


def test_it_predicts(small_detector, make_batch):
    """MMDetection 3.2 to 3.5 cannot, for SSD, without the repair that the configs import."""
    net = small_detector().eval()
    inputs, samples = make_batch(net)
    with torch.no_grad():
        for sample in net.predict(inputs, samples):
            found = sample.pred_instances
            assert 0 < len(found) <= 200
            assert found.scores.min() >= 0.02
            assert found.bboxes.min() >= 0
            assert found.bboxes.max() <= 264


def test_raw_outputs_are_all_that_the_head_says_of_pixels(small_detector, make_batch):
    net = small_detector().eval()
    inputs, _ = make_batch(net)
    x = PixelSpace(net.data_preprocessor).pixels(inputs)
    with torch.no_grad():
        scores, boxes = net.bbox_head(net.extract_feat(inputs))
        found = raw_outputs(net, x)
    assert found.shape == (2, sum(level[0].numel() for level in (*scores, *boxes)))
    torch.testing.assert_close(found[:, : scores[0][0].numel()], scores[0].flatten(1))


def test_a_class_list_of_another_length_is_refused(small_detector, tmp_path):
    net = small_detector()
    names = tuple("abc")
    check_classes(net.state_dict(), net, tmp_path, ("cat", "dog"))
    other = {"bbox_head.cls_convs.0.0.weight": torch.zeros(4 * 4, 32, 3, 3)}
    with pytest.raises(UserError, match="was trained on 3 classes, the class list has 3"):
        check_classes(other, net, tmp_path / "model.pth", names)
    check_classes({}, net, tmp_path, names)  # not a detector's weights: refused elsewhere


PLAIN, SEPARATE = "MMDistributedDataParallel", "MMSeparateDistributedDataParallel"


@pytest.mark.parametrize(
    ("wrapper", "method"),
    [
        (PLAIN, {"method": "fgsm"}),
        (PLAIN, {"method": "standard"}),
        (SEPARATE, {"method": "free", "options": {"replays": 2}}),
    ],
    ids=str,
)
def test_two_processes_step_as_one_does_on_all_their_images(
    small, server, tmp_path, wrapper, method
):
    """The attack is made in each process, and the gradients are averaged between them."""
    attack = {**ATTACK, **method}
    logs = [tmp_path / "first", tmp_path / "second"]
    server.launch(logs, "data_parallel", wrapper, attack, str(tmp_path))
    ends = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    net = small.detector(attack=attack)
    start = deepcopy(net.state_dict())
    moved = [end["moved"] for end in ends] + [small.step(net, net, small.four_images())]
    eps = 0 if method["method"] == "standard" else 8 / 255
    assert moved == pytest.approx([eps] * 3, abs=1e-5)
    steps = []
    for name, value in net.state_dict().items():
        assert torch.equal(ends[0]["state"][name], ends[1]["state"][name]), name
        if value.is_floating_point():
            both = ends[0]["state"][name], value
            steps.append([(end - start[name]).flatten() for end in both])
    theirs, ours = (torch.cat(side) for side in zip(*steps, strict=True))
    assert ours.norm() > 0
    assert (theirs - ours).norm() < 1e-3 * ours.norm()


def test_under_plain_data_parallel_what_owns_the_step_says_so(small, monkeypatch):
    """`MMDistributedDataParallel` asks for the loss, and never for the detector's step."""
    from mmengine.model import MMDistributedDataParallel

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    try:
        net = small.detector(attack={**ATTACK, "method": "free"})
        wrapped = MMDistributedDataParallel(module=net)
        with pytest.raises(UserError, match=r"Free owns the optimiser step.*MMSeparateDistributed"):
            small.step(net, wrapped, small.four_images())
    finally:
        torch.distributed.destroy_process_group()
