"""Our four stages against pyautoattack's own suite, image by image, and what each pass costs."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack

from aal_bench.adapters.classification import make_stage
from aal_bench.errors import UserError
from aal_bench.registry import AUTOATTACK
from aal_bench.resolve import Request, resolve, stages_of

BATCH = 12
BUDGET = {"apgd-ce": (103, 101), "apgd-t": (920, 909), "fab-t": (1829, 900), "square": (5004, 0)}
"""(forwards, backwards) of an image that stands, 10 classes, the verdict's forward included."""


def sees(model, log):
    """Write the size of every forward pass through `model` into `log`, independent of Counted."""
    return model.register_forward_hook(lambda _module, inputs, _out: log.append(len(inputs[0])))


@pytest.fixture(scope="module")
def crowd(images):
    """40 images: 5 misclassified, 24 that fall to one attack or another, 11 that stand."""
    kinds = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2] * 5)
    labels = torch.arange(40) % 10
    told = labels.clone()
    told[::8] = (labels[::8] + 3) % 10
    return images(kinds, labels), told


@pytest.fixture(scope="module")
def ours(crowd, gauntlet, task, evaluate):
    """Evidence of our stages, and the sizes of all forward passes."""
    torch.set_num_threads(1)
    pictures, told = crowd
    model, log = gauntlet(), []
    handle = sees(model, log)
    evidence = evaluate(task(), model, pictures.split(told), ("clean", *AUTOATTACK))
    handle.remove()
    return evidence, log


@pytest.fixture(scope="module")
def theirs(crowd, gauntlet):
    """Verdicts (40,) of run_standard_evaluation with the same seed and batch size."""
    torch.set_num_threads(1)
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    pictures, told = crowd
    suite = AutoAttack(gauntlet(), norm="Linf", eps=0.05, seed=0, version="standard")
    _, predicted = suite.run_standard_evaluation(pictures.x, told.clone(), batch_size=BATCH)
    return (predicted == told).numpy()


def test_every_verdict_is_that_of_run_standard_evaluation(ours, theirs):
    evidence, _ = ours
    assert 0 < theirs.sum() < len(theirs)
    np.testing.assert_array_equal(evidence.robust(), theirs)


def test_every_image_falls_to_the_attack_that_it_was_made_for(ours, crowd):
    evidence, _ = ours
    pictures, told = crowd
    wrong = (pictures.labels != told).numpy()
    np.testing.assert_array_equal(~evidence.clean_correct(), wrong)
    for position, stage in enumerate(AUTOATTACK):
        attacked, stood = evidence.column(stage, "attacked"), evidence.column(stage, "ok")
        fell = (pictures.kinds == position + 1).numpy() & ~wrong
        later = ((pictures.kinds == 0) | (pictures.kinds > position + 1)).numpy() & ~wrong
        np.testing.assert_array_equal(attacked & ~stood, fell)
        np.testing.assert_array_equal(stood, later)


@pytest.mark.parametrize("stage", AUTOATTACK)
def test_an_image_that_stands_costs_exactly_the_published_budget(ours, stage):
    evidence, _ = ours
    stood = evidence.column(stage, "ok")
    assert set(evidence.column(stage, "forwards")[stood]) == {BUDGET[stage][0]}
    assert set(evidence.column(stage, "backwards")[stood]) == {BUDGET[stage][1]}


def test_the_four_budgets_add_up_to_the_suite():
    assert np.sum(list(BUDGET.values()), axis=0).tolist() == [7856, 1910]


def test_no_pass_is_lost_or_counted_twice(ours):
    """Image-forwards seen by a hook = those in the evidence + one clean forward of each image."""
    evidence, log = ours
    counted = sum(int(evidence.column(stage, "forwards").sum()) for stage in AUTOATTACK)
    assert sum(log) == counted + len(evidence)


def test_an_image_that_falls_leaves_at_the_end_of_its_target(ours, crowd):
    """APGD-T and FAB-T fell theirs with the first target; its passes are one target's."""
    evidence, _ = ours
    for stage, one_target in (("apgd-t", (1 + 102 + 1, 101)), ("fab-t", (1 + 203 + 1, 100))):
        fell = evidence.column(stage, "attacked") & ~evidence.column(stage, "ok")
        assert fell.any()
        spent = [evidence.column(stage, name)[fell] for name in ("forwards", "backwards")]
        assert [set(passes) for passes in spent] == [{one_target[0]}, {one_target[1]}]
    fell = evidence.column("square", "attacked") & ~evidence.column("square", "ok")
    assert (evidence.column("square", "forwards")[fell] < 5004).all()


def test_five_classes_are_attacked_with_four_targets(images, gauntlet, task, evaluate):
    pictures = images([0, 0], [1, 4])
    evidence = evaluate(task(5), gauntlet(5), pictures.split(), ("clean", "apgd-t", "fab-t"))
    assert evidence.robust().all()
    assert set(evidence.column("apgd-t", "forwards")) == {1 + 4 * 102 + 1}
    assert set(evidence.column("apgd-t", "backwards")) == {4 * 101}
    assert set(evidence.column("fab-t", "forwards")) == {1 + 4 * 203 + 1}
    assert make_stage("apgd-t", task(5)).params["targets"] == 4
    assert make_stage("fab-t", task(100)).params["targets"] == 9


def test_three_classes_leave_apgd_t_out_and_the_protocol_says_so(tmp_path):
    text = """
        name = "three"
        title = "three"
        model = "cnn4"
        protocol = "standard"
        [data]
        name = "three"
        classes = 3
        size = 16
        [threat]
        eps = "8/255"
        [attack]
        step = "2/255"
        [train]
        epochs = 1
        lr = 0.1
    """
    path = tmp_path / "three.toml"
    path.write_text("\n".join(line.strip() for line in text.splitlines()))
    run = resolve(Request(task=str(path), device="cpu"))
    assert run.protocol == "standard-no-apgd-t"
    assert stages_of(run) == ("clean", "apgd-ce", "fab-t", "square")
    with pytest.raises(UserError, match=r"needs 4 classes .* the task has 3"):
        make_stage("apgd-t", run.task)
    assert make_stage("fab-t", run.task).params["targets"] == 2


def test_three_classes_still_meet_the_other_three_attacks(images, gauntlet, task, evaluate):
    pictures = images([0, 1, 3], [0, 1, 2])
    evidence = evaluate(task(3), gauntlet(3), pictures.split(), ("clean", "apgd-ce", "fab-t"))
    assert evidence.robust().tolist() == [True, False, False]


def test_the_recorded_parameters_are_those_of_the_attack_objects(gauntlet, task):
    """What the record says of an attack is read off pyautoattack's own object."""
    theirs = {
        "apgd-ce": ("apgd", {"steps": "n_iter", "rho": "thr_decr", "loss": "loss"}),
        "apgd-t": (
            "apgd_targeted",
            {"steps": "n_iter", "rho": "thr_decr", "loss": "loss", "targets": "n_target_classes"},
        ),
        "fab-t": (
            "fab",
            {
                "steps": "n_iter",
                "targets": "n_target_classes",
                "alpha_max": "alpha_max",
                "eta": "eta",
                "beta": "beta",
            },
        ),
        "square": (
            "square",
            {
                "queries": "n_queries",
                "p_init": "p_init",
                "loss": "loss",
                "resc_schedule": "rescale_schedule",
            },
        ),
    }
    for name, (attribute, fields) in theirs.items():
        stage = make_stage(name, task())
        attack = getattr(stage._suite(gauntlet(), torch.device("cpu")), attribute)
        values = {key: getattr(attack, field) for key, field in fields.items()}
        values |= {"restarts": attack.n_restarts, "norm": attack.norm, "eps": attack.eps}
        recorded = dict(stage.params)
        assert recorded.pop("version") == "standard"
        if hasattr(attack, "eot_iter"):
            values["eot_iter"] = attack.eot_iter
        assert recorded.keys() == values.keys()
        for key, value in values.items():
            same_type = float(recorded[key]) if isinstance(value, float) else recorded[key]
            assert same_type == value, (name, key)
        assert attack.seed == 0
        assert stage.implementation["package"] == "pyautoattack"
        assert stage.implementation["commit"] == "a392200"


def test_the_seed_is_the_tasks_and_not_the_clocks(gauntlet, task, images, evaluate):
    """Two runs agree bit by bit; another seed gives another adversarial."""
    pictures = images([1, 1], [2, 5])
    kept = {}

    def attack(seed):
        question = task().model_copy(
            update={"evaluation": task().evaluation.model_copy(update={"seed": seed})}
        )
        torch.manual_seed(seed + 17)  # whatever ran before
        evaluate(
            question,
            gauntlet(),
            pictures.split(),
            ("clean", "apgd-ce"),
            fooled=lambda _rows, x_adv: kept.setdefault(seed, []).append(x_adv),
        )

    for seed in (0, 0, 1):
        attack(seed)
    first, second = kept[0]
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, kept[1][0])


def test_an_l2_task_is_attacked_in_l2(gauntlet, task, images, evaluate):
    pictures = images([0, 1], [2, 5])
    question = task(eps="0.5", norm="L2")
    evidence = evaluate(question, gauntlet(), pictures.split(), ("clean", "apgd-ce"))
    assert evidence.robust().tolist() == [True, False]
    assert 0 < evidence.column("apgd-ce", "norm")[1] <= 0.5 + 1e-6
    with pytest.raises(UserError, match="Linf; under L2 use --protocol standard"):
        make_stage("pgd-10", question)
