"""From what was typed to a resolved run: command line > task file, everything spelled out."""

from fractions import Fraction

import pytest
import torch

from aal_bench import registry
from aal_bench.config import read_task
from aal_bench.errors import UserError
from aal_bench.resolve import SMOKE, Request, resolve, stages_of

DIGITS = read_task(registry.task_file("digits"))
BINARY = """
name = "binary"
title = "two classes"
model = "cnn4"
[data]
name = "digits"
classes = 2
size = 16
[threat]
eps = "8/255"
[attack]
step = "2/255"
[train]
epochs = 1
lr = 0.1
"""


def resolved(*settings, **options):
    return resolve(Request("digits", device="cpu", settings=settings, **options))


def test_without_options_the_task_decides():
    run = resolved()
    assert run.task == DIGITS
    assert run.model.name == DIGITS.model
    assert run.protocol == DIGITS.protocol
    assert (run.method.name, run.update.name, run.seed) == ("standard", "plain", 0)
    assert (run.ema, run.compile, run.smoke) == (None, False, False)


def test_the_command_line_goes_before_the_task():
    run = resolved(epochs=3, batch_size=16, model="resnet18", protocol="fast", seed=5, ema=0.99)
    assert (run.task.train.epochs, run.task.train.batch_size) == (3, 16)
    assert (run.model.name, run.protocol, run.seed, run.ema) == ("resnet18", "fast", 5, 0.99)
    assert run.task.train.lr == DIGITS.train.lr


def test_a_setting_goes_before_an_option_of_the_same_name():
    assert resolved("train.epochs=7", epochs=3).task.train.epochs == 7


def test_every_option_of_the_method_is_recorded_with_its_value():
    run = resolved(method="aal-pgd")
    method = registry.load(registry.METHODS["aal-pgd"].target)
    assert run.method.options == method.Options().model_dump(mode="json")
    assert run.method.options["zeta"] == 0.1


@pytest.mark.parametrize(
    ("setting", "place", "value"),
    [
        ("train.lr=0.05", "task.train.lr", 0.05),
        ("lr = 0.05", "task.train.lr", 0.05),
        ("threat.eps=4/255", "task.threat.eps", "4/255"),
        ("eps=0.1", "task.threat.eps", "0.1"),
        ("attack.steps=3", "task.attack.steps", 3),
        ("evaluation.seed=9", "task.evaluation.seed", 9),
        ("data.subset.count=100", "task.data.subset.count", 100),
        ("normalisation.mean=[0.5, 0.5, 0.5]", "task.normalisation.mean", [0.5, 0.5, 0.5]),
        ("xi2=0", "method.options.xi2", 0.0),
        ("method.xi2=0", "method.options.xi2", 0.0),
        ("gate.position=post_conv1", "method.options.gate.position", "post_conv1"),
        ("gamma=row", "method.options.gamma", "row"),
    ],
)
def test_set_finds_the_place_of_a_key(setting, place, value):
    found = resolved(setting, method="aal-pgd").model_dump(mode="json")
    for part in place.split("."):
        found = found[part]
    assert found == value


def test_the_training_attack_has_a_section_of_its_own():
    """``steps`` alone is the task's: the attack that is named in its files."""
    run = resolved("crafting.eps=16/255", "steps=5", method="pgd")
    assert run.training_attack == (Fraction(16, 255), run.task.attack.step, 5)
    assert resolved().crafting is None


def test_a_recipes_step_is_scaled_to_the_tasks_budget():
    """The scripts' 2/255 and .007 are for 8/255; the digits' eps is 24/255."""
    for method, expected in (("pgd", Fraction(6, 255)), ("trades", Fraction(21, 1000))):
        run = resolve(Request("digits", method=method, recipe="official"))
        assert run.training_attack == (Fraction(24, 255), expected, 10)


def test_a_typed_budget_scales_a_recipes_step_and_a_typed_step_stays():
    def attack(*settings):
        request = Request("cifar10", method="mart", recipe="official", settings=settings)
        return resolve(request).training_attack

    assert attack("threat.eps=4/255")[:2] == (Fraction(4, 255), Fraction(7, 2000))
    assert attack("threat.eps=4/255", "crafting.step=1/255")[1] == Fraction(1, 255)


def test_the_rounded_budget_is_for_tasks_at_the_one_that_it_rounds():
    with pytest.raises(UserError, match=r"its budget stands for 8/255, and the task's is 24/255"):
        resolve(Request("digits", method="trades", recipe="official-031"))


def test_what_is_typed_over_a_recipe_does_not_stay_for_the_next():
    def fusing(*settings):
        request = Request("cifar10", method="again-awp", recipe="official", settings=settings)
        return resolve(request).method.options["hff"]["p"]

    assert (fusing(), fusing("hff.p=0.5"), fusing()) == (0, 0.5, 0)


def test_a_training_attack_that_is_the_tasks_is_no_other_configuration():
    plain = resolved(method="pgd")
    assert (
        resolved("crafting.step=6/255", "crafting.eps=24/255", method="pgd").hash() == plain.hash()
    )


def test_none_can_be_said_where_it_is_a_value():
    assert resolved("tau=none", method="fat").hash() == resolved(method="fat").hash()
    assert resolved("train.grad_clip=none").task.train.grad_clip is None
    assert resolved("gamma=none", method="aal-pgd").method.options["gamma"] == "none"


def test_a_recipe_is_of_a_script_for_labelled_images():
    with pytest.raises(
        UserError, match="--recipe: the official scripts are for images with labels"
    ):
        resolve(Request("scenes", method="pgd", recipe="official"))


def test_set_reaches_the_update():
    run = resolved("update.gamma=0.005", "warmup=0.5", update="awp")
    assert run.update.options == {"gamma": 0.005, "warmup": 0.5}


def test_an_update_that_is_part_of_a_method_comes_with_it():
    assert resolved(method="pgd").update.name == "plain"
    awp = resolved(method="awp")
    assert (awp.update.name, awp.update.options["gamma"]) == ("awp", 0.01)
    assert resolved(method="awp", update="awp").hash() == awp.hash()
    with pytest.raises(UserError, match="method awp includes the update awp: omit --update plain"):
        resolved(method="awp", update="plain")


def test_the_authors_options_of_an_update_are_its_defaults_on_their_method():
    assert resolved(method="trades", update="awp").update.options == {
        "gamma": 0.005,
        "warmup": 9 / 200,
    }
    assert resolved("gamma=0.01", method="trades", update="awp").update.options["gamma"] == 0.01


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=3", "--set seed: which one? evaluation.seed, --seed"),
        ("batch_size=3", "--set batch_size: which one? train.batch_size, evaluation.batch_size"),
        ("trian.lr=3", "--set trian.lr: unknown key. Did you mean train.lr"),
        ("learningrate=3", "--set learningrate: unknown key."),
        ("train.lrr=3", "task digits: unknown key 'train.lrr'. Did you mean lr"),
        ("method.xi3=3", "method aal-pgd: unknown key 'xi3'. Did you mean xi2, xi1?"),
        ("method.gate.postion=x", "unknown key 'gate.postion'. Did you mean position"),
        ("train=3", "--set train: unknown key. Did you mean"),
        ("lr", "--set lr: write key=value, as in --set train.lr=0.05"),
        ("=3", "--set =3: write key=value"),
        ("train.lr=fast", "task digits: train.lr: must be a number, got 'fast'"),
        ("train.lr=", "task digits: train.lr: must be a number, got ''"),
        ("train.epochs.x=1", "--set task.train.epochs.x: 'epochs' is a value, not a table"),
        ("zeta=2", "method aal-pgd: zeta: Input should be less than or equal to 1 (got 2)"),
        ("kernel=m3", "method aal-pgd: kernel: Input should be 'm', 'm2' or 'one_minus_m2'"),
        ("gate.kernel_size=4", "method aal-pgd: gate: kernel_size must be odd"),
        ("eps=eight", "threat.eps: 'eight' is not a fraction like 8/255"),
        ("eps=-8/255", "threat.eps: '-8/255' is negative"),
        ("eps=8", "write 8/255 for 8 grey levels"),
        ("crafting.eps=8", "crafting: eps: Input should be less than or equal to 1"),
        ("crafting.stepz=8", "crafting: unknown key 'stepz'. Did you mean step, steps?"),
        ("train.decay=2", "task digits: train: decay must be positive, and one number at most 1"),
        ("train.decay=[0.1,-1]", "task digits: train: decay must be positive"),
        ("train.decay=x", "task digits: train.decay: Input should be a valid number"),
        ("update.gamma=0.01", "--set update.gamma: the update plain has no options; add --up"),
        ("validation=many", "train.validation: must be a number, got 'many'"),
    ],
)
@pytest.mark.parametrize("smoke", [False, True])
def test_a_wrong_setting_is_one_line(setting, message, smoke):
    with pytest.raises(UserError) as caught:
        resolved(setting, method="aal-pgd", smoke=smoke)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_smoke_cuts_everything_and_says_so():
    run = resolved("train.epochs=50", smoke=True, protocol="full", limit_eval=1000, limit_train=9)
    assert run.smoke
    assert run.protocol == "smoke"
    assert run.task.train.epochs == 1
    assert run.task.train.validation == min(DIGITS.train.validation, SMOKE["validation"])
    assert (run.limits.train, run.limits.eval) == (9, SMOKE["eval"])
    assert run.hash() != resolved().hash()


def test_a_smoke_run_does_not_hide_a_mistyped_protocol():
    with pytest.raises(UserError, match="unknown protocol 'ful'"):
        resolved(smoke=True, protocol="ful")


def test_too_few_classes_for_dlr_change_the_protocols_name_and_stages(tmp_path):
    (tmp_path / "binary.toml").write_text(BINARY)
    run = resolve(Request(str(tmp_path / "binary.toml"), device="cpu"))
    assert run.protocol == "full-no-apgd-t"
    assert stages_of(run) == ("clean", "fgsm", "pgd-10", "apgd-ce", "fab-t", "square")
    listed = resolve(
        Request(str(tmp_path / "binary.toml"), device="cpu", protocol="clean,pgd-3,apgd-t")
    )
    assert stages_of(listed) == ("clean", "pgd-3")
    assert stages_of(resolved()) == registry.protocol("full")


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "not a device"), ("mps", "only cpu and cuda"), ("cuda:99", "torch sees")],
)
def test_a_device_that_is_not_there_is_refused(device, message):
    with pytest.raises(UserError, match=message):
        resolve(Request("digits", device=device))


def test_the_device_is_cuda_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve(Request("digits")).device == expected
    assert resolved(precision="bf16").precision == "bf16"


def test_a_class_that_is_no_method_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("class A: pass\n\ndef f(): pass\n")
    for name in ("A", "f"):
        with pytest.raises(UserError, match="must be a subclass of"):
            resolved(method=f"{tmp_path}/mine.py:{name}")


METHOD = """
from aal_bench.methods.standard import Standard

class Mine(Standard):
    pass
"""


def test_the_code_of_a_method_of_ones_own_is_part_of_the_configuration(tmp_path):
    """Its path is not: the same file elsewhere is the same method, an edited one is another."""
    hashes = []
    for folder, code in (("a", METHOD), ("b", METHOD), ("c", METHOD + "    attacks = True\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(code)
        hashes.append(resolved(method=f"{tmp_path}/{folder}/mine.py:Mine").hash())
    assert hashes[0] == hashes[1] != hashes[2]
