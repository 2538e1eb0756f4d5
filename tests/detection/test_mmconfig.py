"""The plain MMDetection configs, and what a run makes of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aal_bench import registry
from aal_bench.config import Limits, Run, read_task
from aal_bench.detection import mmconfig
from aal_bench.detection.resize import GRIDS, grids
from aal_bench.detection.schedule import check, warm_up
from aal_bench.errors import UserError
from aal_bench.paths import data_folder

TASKS = ("voc0712", "coco", "scenes")
MODELS = ("ssd512-resnet34", "ssd512-resnet34-b")
PLAIN = [(model, task) for model in MODELS for task in TASKS]
FILES = sorted((data_folder("tasks") / "detection").glob("*.py"))
PRIORS = (4, 6, 6, 6, 6, 4, 4)
"""Per cell of each of the seven maps."""


@pytest.fixture
def run():
    """``run("voc0712", model=, method=, train={...}, data={...})``: a resolved run."""

    def make(task="voc0712", model=MODELS[0], method="standard", limits=None, **sections):
        tree = read_task(registry.task_file(task)).model_dump(mode="json")
        for name, values in sections.items():
            tree[name] |= values
        return Run.model_validate(
            {
                "task": tree,
                "method": {"name": method},
                "model": {"name": model},
                "protocol": "detection-fast",
                "limits": limits or Limits(),
                "seed": 3,
                "device": "cpu",
                "precision": "fp32",
            }
        )

    return make


def test_there_is_one_config_for_every_model_and_task():
    assert [file.stem for file in FILES] == sorted(f"{model}_{task}" for model, task in PLAIN)


LOADED = """
import json, sys
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmdet.registry import MODELS
built = {}
for path in sys.argv[1:]:
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model)
    built[path] = [type(model).__name__, type(model.bbox_head).__mro__[1].__module__]
print(json.dumps(built))
"""


def test_every_config_builds_as_mmdetections_own_tools_build_it():
    """In a process that knows nothing of this package: ``custom_imports`` brings it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADED, *map(str, FILES)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    built = json.loads(done.stdout.splitlines()[-1])
    assert len(built) == len(PLAIN)
    assert {kind for kind, _ in built.values()} == {"AttackedSingleStageDetector"}


@pytest.mark.parametrize(("model", "task"), PLAIN)
def test_the_plain_config_says_what_the_task_file_says(model, task):
    """Trained by MMDetection's own tools it is the same question."""
    config, stated = mmconfig.plain(model, task), read_task(registry.task_file(task))
    train, detection = stated.train, stated.detection
    assert detection is not None
    assert config.train_cfg.max_epochs == train.epochs
    assert config.train_dataloader.batch_size == train.batch_size
    optimizer = config.optim_wrapper.optimizer
    assert optimizer.type.lower() == train.optimizer == "sgd"
    assert (optimizer.lr, optimizer.momentum) == (train.lr, train.momentum)
    assert optimizer.weight_decay == train.weight_decay
    assert config.optim_wrapper.clip_grad == {"max_norm": train.grad_clip, "norm_type": 2}
    assert config.auto_scale_lr == {"enable": True, "base_batch_size": detection.base_batch}
    warm, steps = config.param_scheduler
    assert warm.type == "LinearLR"
    assert steps.milestones == [round(share * train.epochs) for share in train.milestones]
    assert (steps.gamma, steps.end) == (train.decay, train.epochs)
    assert config.model.bbox_head.num_classes == stated.data.classes == len(detection.names)
    mean, std = (torch.tensor(config.model.data_preprocessor[key]) for key in ("mean", "std"))
    torch.testing.assert_close(mean, 255 * torch.tensor(stated.normalisation.mean))
    torch.testing.assert_close(std, 255 * torch.tensor(stated.normalisation.std))
    assert config.model.data_preprocessor.bgr_to_rgb
    if detection.coco:
        assert config.test_evaluator.type == "CocoMetric"
        assert config.test_evaluator.ann_file.endswith(detection.test)
        assert config.train_dataloader.dataset.ann_file == detection.train
    else:
        modes = {"map50_voc11": "11points", "map50_area": "area"}
        assert config.test_evaluator.eval_mode == modes[detection.metric]
        assert config.test_dataloader.dataset.ann_file.endswith(f"/{detection.test}.txt")
        train_sets = config.train_dataloader.dataset.get("datasets", None)
        for part in train_sets or [config.train_dataloader.dataset]:
            assert part.ann_file.endswith(f"/{detection.train}.txt")
    for pipeline in (config.train_pipeline, config.test_pipeline):
        (resize,) = (step for step in pipeline if step["type"] == "Resize")
        assert tuple(resize.scale) == (stated.data.size,) * 2


@pytest.mark.parametrize(("model", "task"), PLAIN)
def test_classes_are_those_of_the_task_in_its_order(model, task):
    from mmdet.registry import DATASETS

    config, stated = mmconfig.plain(model, task), read_task(registry.task_file(task))
    dataset = config.test_dataloader.dataset
    classes = (
        dataset.get("metainfo", {}).get("classes") or DATASETS.get(dataset.type).METAINFO["classes"]
    )
    assert stated.detection is not None
    assert tuple(classes) == stated.detection.names


def built(config):
    from mmdet.registry import MODELS

    return MODELS.build(config.model)


def maps_of(detector, size):
    with torch.no_grad():
        scores, _ = detector.bbox_head(detector.extract_feat(torch.zeros(1, 3, size, size)))
    return [tuple(level.shape[-2:]) for level in scores]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        ("voc0712", (35, 76, 153, 230, 307, 384, 460)),
        ("coco", (20, 51, 133, 215, 296, 378, 460)),
    ],
)
def test_maps_and_priors_are_those_of_ssd512(model, task, sizes):
    """As MMDetection's SSD-512 on VGG: 24,564 priors, with its minimum sizes."""
    detector = built(mmconfig.plain(model, task)).eval()
    maps = maps_of(detector, 512)
    assert maps == [(side, side) for side in GRIDS]
    generator = detector.bbox_head.prior_generator
    assert tuple(generator.num_base_priors) == PRIORS
    priors = generator.grid_priors(maps, device="cpu")
    assert sum(len(level) for level in priors) == 24564
    # The first prior of a cell is the square of the minimum size.
    widths = [round(float(level[0, 2] - level[0, 0])) for level in priors]
    assert tuple(widths) == sizes


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [264, 320, 512, 640])
def test_the_maps_of_another_size_are_the_ones_computed(run, model, size):
    config = mmconfig.network(run("voc0712", model, data={"size": size}))
    from mmdet.registry import MODELS as networks

    detector = networks.build(config).eval()
    maps = maps_of(detector, size)
    assert [side for side, _ in maps] == grids(size, len(config.backbone.out_indices))
    strides = [stride[0] for stride in detector.bbox_head.prior_generator.strides]
    for stride, (side, _) in zip(strides, maps, strict=True):
        assert stride * side == pytest.approx(size)  # the cells tile the image
    priors = detector.bbox_head.prior_generator.grid_priors(maps, device="cpu")
    for level, (side, _), stride in zip(priors, maps, strides, strict=True):
        centres = ((level[:, :2] + level[:, 2:]) / 2).view(side, side, -1, 2)
        middles = (torch.arange(side) + 0.5) * stride
        expected = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), -1)
        torch.testing.assert_close(centres, expected[:, :, None].expand_as(centres))


def test_at_320_pixels_sizes_are_explicit_and_in_proportion(run):
    head = mmconfig.network(run("voc0712", data={"size": 320})).bbox_head.anchor_generator
    assert "basesize_ratio_range" not in head
    assert head.min_sizes == [21.88, 47.5, 95.62, 143.75, 191.88, 240.0, 287.5]
    assert head.max_sizes == [*head.min_sizes[1:], 335.62]
    assert head.strides == [8, 16, 32, 64, 320 / 3, 160, 320]


def test_a_size_that_leaves_no_seventh_map_is_refused(run):
    with pytest.raises(UserError, match=r"data\.size = 224: too small.*use 264 or more"):
        mmconfig.network(run("voc0712", data={"size": 224}))
    assert grids(264, 3)[-1] == 1


def test_a_config_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UserError, match=r"no MMDetection config ssd_x\.py .* ssd512-resnet34_coco"):
        mmconfig.plain("ssd", "x")


PART = {"type": "CheckedVOC", "data_root": "somewhere", "ann_file": "ImageSets/Main/train.txt"}


class TestResolved:
    @pytest.fixture
    def resolved(self, run):
        def make(parts=1, **sections):
            given = run(**sections)
            return mmconfig.resolved(given, [PART] * parts, [PART], [PART], Path("work"))

        return make

    def test_the_tasks_values_replace_the_plain_ones(self, resolved):
        config = resolved(
            train={"epochs": 10, "lr": 0.01, "batch_size": 4, "weight_decay": 1e-4}
            | {"grad_clip": None, "milestones": [0.5, 0.8], "momentum": 0.8, "validation": 0},
            detection={"base_batch": 4},
        )
        assert config.optim_wrapper.optimizer == {
            "type": "SGD",
            "lr": 0.01,
            "momentum": 0.8,
            "nesterov": False,
            "weight_decay": 1e-4,
        }
        assert config.optim_wrapper.clip_grad is None
        assert config.train_cfg.max_epochs == 10
        assert config.param_scheduler[0]["milestones"] == [5, 8]
        assert config.auto_scale_lr == {"enable": True, "base_batch_size": 4}
        assert config.randomness.seed == 3
        assert config.val_dataloader is None

    def test_the_attack_is_plain_values_that_build_the_method(self, resolved):
        config = resolved(method="aal-pgd")
        attack = config.model.attack
        assert (attack.method, attack.eps, attack.step, attack.steps) == (
            *("aal-pgd", "8/255", "2/255"),
            10,
        )
        detector = built(config)
        assert detector.adversarial.method.threat == (8 / 255, 2 / 255, 10)
        assert type(detector.adversarial.method).__name__ == "AALPGD"

    def test_warm_up_is_in_front_and_lasts_its_epochs(self, resolved, run):
        config = resolved()
        warm_up(config, run(train={"warmup_epochs": 1.5}).task.train, 100)
        assert config.param_scheduler[0]["type"] == "LinearLR"
        assert config.param_scheduler[0]["end"] == 150
        assert config.param_scheduler[1]["type"] == "MultiStepLR"
        without = resolved()
        warm_up(without, run(train={"warmup_epochs": 0.0}).task.train, 100)
        assert [one["type"] for one in without.param_scheduler] == ["MultiStepLR"]

    def test_several_sets_are_one_and_may_be_repeated(self, resolved):
        data = resolved(parts=2, detection={"repeat": 5}).train_dataloader.dataset
        assert data.type == "SeededDataset"
        assert (data.dataset.type, data.dataset.times) == ("RepeatDataset", 5)
        assert data.dataset.dataset.type == "ConcatDataset"
        assert len(data.dataset.dataset.datasets) == 2

    def test_without_augmentation_an_image_is_resized_only(self, resolved):
        config = resolved(train={"augment": "none"})
        steps = [step.type for step in config.train_dataloader.dataset.dataset.pipeline]
        assert steps == ["LoadImageFromFile", "LoadAnnotations", "Resize", "PackDetInputs"]

    def test_the_test_pipeline_has_the_tasks_size(self, resolved):
        config = resolved(data={"size": 320})
        for loader in (config.test_dataloader, config.train_dataloader.dataset):
            (resize,) = (s for s in loader.dataset.pipeline if s.type == "Resize")
            assert tuple(resize.scale) == (320, 320)
            assert not resize.keep_ratio

    @pytest.mark.parametrize("model", MODELS)
    def test_normalisation_is_the_tasks(self, resolved, model):
        config = resolved(model=model, normalisation={"mean": [0.5] * 3, "std": [0.25] * 3})
        assert config.model.data_preprocessor.mean == [127.5] * 3
        assert config.model.data_preprocessor.std == [63.75] * 3


def test_a_batch_of_one_is_refused_with_one_line(run):
    with pytest.raises(UserError, match=r"train\.batch_size = 1.*two images") as caught:
        check(run(train={"batch_size": 1}).task.train)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="step, cosine or constant"):
        check(run(train={"schedule": "onecycle"}).task.train)
    check(run().task.train)
