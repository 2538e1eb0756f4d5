"""RobustBench's rows as restated here, and which of them are neighbours of a model."""

import json
from collections import Counter

import pytest

from aal_bench import registry
from aal_bench.config import Task, read_task
from aal_bench.leaderboard import robustbench as rb
from aal_bench.paths import data_folder
from aal_bench.threat import Threat


def task(name: str, eps: str | None = None, norm: str = "Linf") -> Task:
    found = read_task(registry.task_file(name))
    if eps is None:
        return found
    threat = Threat.model_validate({"norm": norm, "eps": eps})
    return found.model_copy(update={"threat": threat})


@pytest.mark.parametrize(
    ("dataset", "threat", "count"),
    [
        ("cifar10", "Linf", 99),
        ("cifar10", "L2", 21),
        ("cifar10", "corruptions", 23),
        ("cifar100", "Linf", 38),
        ("cifar100", "corruptions", 13),
        ("imagenet", "Linf", 30),
        ("imagenet", "corruptions", 12),
    ],
)
def test_counts(dataset, threat, count):
    assert len(rb.rows(dataset, threat)) == count
    text = (
        data_folder("leaderboards") / "reported" / f"robustbench-{dataset}-{threat}.json"
    ).read_text(encoding="utf-8")
    assert sum(line.lstrip().startswith('{"entry"') for line in text.splitlines()) == count


def test_236_rows_in_all_and_every_entry_once_per_board():
    folder = data_folder("leaderboards") / "reported"
    boards = [json.loads(path.read_text("utf-8")) for path in folder.glob("robustbench-*.json")]
    assert sum(len(board["rows"]) for board in boards) == 236
    for board in boards:
        assert max(Counter(row["entry"] for row in board["rows"]).values()) == 1
    assert sum(row["external"] is not None for board in boards for row in board["rows"]) == 25


def test_a_row_everybody_knows():
    """Rice et al. 2020, ICML: 85.34 clean and 53.42 AutoAttack with WideResNet-34-20."""
    (row,) = [row for row in rb.rows("cifar10", "Linf") if row.entry == "Rice2020Overfitting"]
    assert (row.clean, row.robust, row.architecture) == (0.8534, 0.5342, "WideResNet-34-20")
    assert (row.eps, row.additional_data, row.venue) == ("8/255", False, "ICML 2020")


def test_values_are_fractions_and_an_adaptive_value_is_not_above_the_clean_one():
    for dataset, threat in (("cifar10", "Linf"), ("cifar10", "L2"), ("imagenet", "Linf")):
        for row in rb.rows(dataset, threat):
            assert 0 <= row.robust <= row.clean <= 1
            assert row.external is None or 0 <= row.external <= row.clean


def test_neighbours_have_exactly_the_tasks_eps():
    published = [row for row in rb.rows("cifar10", "Linf") if row.eps == "0.031"]
    assert len(published) == 6
    everyone = rb.nearest(task("cifar10"), "resnet18", n=1000).rows
    assert len(everyone) == 99 - 6
    assert not {row.entry for row in published} & {row.entry for row in everyone}
    assert {row.entry for row in rb.nearest(task("cifar10", "0.031"), "resnet18", n=99).rows} == {
        row.entry for row in published
    }
    assert len(rb.nearest(task("cifar10", "1/2", "L2"), "resnet18", n=99).rows) == 21


def test_the_same_architecture_comes_first_however_it_is_written():
    for name in ("wrn-34-10", "WRN-34-10", "WideResNet-34-10"):
        rows = rb.nearest(task("cifar10"), name, n=3).rows
        assert [row.architecture for row in rows] == ["WideResNet-34-10"] * 3
    assert rb.nearest(task("cifar10"), "resnet18").rows[0].architecture == "ResNet-18"


def test_few_shot_networks_are_the_papers():
    for ours, printed in (
        ("resnet12", "ResNet-12"),
        ("wrn28", "WRN-28-10"),
        ("cnn4", "64-64-64"),
        ("cnn4-32", "32-32-32-32"),
    ):
        assert rb.same_architecture(ours, printed)
    assert not rb.same_architecture("cnn4", "cnn4-32")
    assert not rb.same_architecture("resnet12", "resnet18")


def test_robustbench_has_no_few_shot():
    asked = read_task(registry.task_file("mini-imagenet"))
    assert rb.nearest(asked, "resnet12") == ([], "RobustBench has no few-shot")


def test_then_rows_without_additional_data_and_of_similar_size():
    rows = rb.nearest(task("cifar10"), "resnet18", n=93).rows
    ranks = [
        (row.architecture != "ResNet-18", row.robust < 0.1 or row.unreliable, row.additional_data)
        for row in rows
    ]
    assert ranks == sorted(ranks)
    others = [row.architecture for row in rows if row.architecture != "ResNet-18"]
    assert others[0] == "PreActResNet-18", "as large as a ResNet-18"


def test_then_the_clean_accuracy_decides_where_it_is_known():
    rows = rb.nearest(task("cifar10"), "resnet18", n=5, clean=0.80).rows
    assert all(row.architecture == "ResNet-18" and row.robust > 0.1 for row in rows)
    gaps = [abs(row.clean - 0.80) for row in rows if not row.additional_data]
    assert gaps == sorted(gaps)
    robust = [row.robust for row in rb.nearest(task("cifar10"), "resnet18", n=5).rows]
    assert robust == sorted(robust, reverse=True)


def test_a_defence_that_fell_is_no_baseline_even_with_the_same_clean_accuracy():
    """JinRinard2020Manifold: ResNet-18, 90.84 % clean, 1.35 % under AutoAttack."""
    fallen = next(r for r in rb.rows("cifar10", "Linf") if r.entry == "JinRinard2020Manifold")
    rows = rb.nearest(task("cifar10"), "resnet18", n=3, clean=fallen.clean).rows
    assert fallen not in rows


def test_the_subset_task_has_the_same_neighbours():
    assert rb.nearest(task("cifar10-1k"), "resnet18") == rb.nearest(task("cifar10"), "resnet18")


@pytest.mark.parametrize(
    ("name", "eps", "reason"),
    [
        ("digits", None, "no data set for task digits"),
        ("imagenet100", None, "no data set for task imagenet100"),
        ("imagenet", None, "none at 8/255; its rows are at 4/255"),
        ("cifar10", "2/255", "none at 2/255; its rows are at 0.031, 8/255"),
    ],
)
def test_no_neighbours_and_why(name, eps, reason):
    rows, why = rb.nearest(task(name, eps), "resnet18")
    assert rows == []
    assert reason in why


def test_no_board_for_that_norm():
    assert "no such rows" in rb.nearest(task("imagenet", "1/2", "L2"), "resnet50").reason


def test_imagenet_at_4_255_has_neighbours():
    rows = rb.nearest(task("imagenet", "4/255"), "resnet50").rows
    assert [row.architecture for row in rows] == ["ResNet-50"] * 3


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2), (28, 10)])
def test_the_size_of_a_wide_resnet_is_that_of_its_convolutions(depth, width):
    """Counted independently, block by block; batch norms and the last layer stay below 2 %."""
    shapes = [(3, 16, 3)]
    channels = 16
    for stage in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            shapes += [(channels, stage, 3), (stage, stage, 3)]
            shapes += [(channels, stage, 1)] if channels != stage else []
            channels = stage
    counted = sum(a * b * k * k for a, b, k in shapes)
    # WideResNet-D-1 keeps 16 channels in its first group and needs no shortcut there.
    assert rb.size(f"wrn-{depth}-{width}") == pytest.approx(counted, rel=0.01)


def test_the_size_of_wrn_28_10_is_the_published_36_5_million():
    size = rb.size("WideResNet-28-10")
    assert size is not None
    assert size / 1e6 == pytest.approx(36.5, abs=0.1)
    assert rb.size("WideResNet-50-2") is None, "ImageNet's, of another kind"
    assert rb.size("Swin-L") is None
