"""Bad input gets one or two lines and exit code 2: no traceback, and nothing written."""

import json
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from aal_bench.cli import main
from aal_bench.registry import task_file

DIGITS = Path(task_file("digits")).read_text()
MODEL = """
from torch import nn
def build(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes))
"""
METHODS = """
from aal_bench.methods.standard import Standard
class Mine(Standard): pass
class NoMethod: pass
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An otherwise empty current folder with the files that the cases below name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AAL_BENCH_CACHE", str(tmp_path / "cache"))
    files = {
        "linear.py": MODEL,
        "mine.py": METHODS,
        "broken.py": "class Mine(:\n",
        "idle.py": "from aal_bench.methods.base import Method\nclass Idle(Method): pass\n",
        "digits.toml": DIGITS.replace("epochs =", "epochz ="),
        "notoml.toml": "name = = 3\n",
        "named.toml": DIGITS,
        "eps.toml": DIGITS.replace('name = "digits"', 'name = "eps"', 1).replace(
            'norm = "Linf"\neps = "', 'norm = "Linf"\neps = "about '
        ),
        "thesis/chapter1.tex": "",
        "archives/cifar.zip": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    folders(tmp_path / "three", 3, 32)
    folders(tmp_path / "large", 10, 48)
    return tmp_path


def folders(root, classes, side):
    for split in ("train", "test"):
        for label in range(classes):
            place = root / split / f"class{label}"
            place.mkdir(parents=True)
            Image.new("RGB", (side, side), (label, 0, 0)).save(place / "0.png")


def everything(folder):
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def refused(here, args):
    before = everything(here)
    done = CliRunner().invoke(main, args)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) <= 2
    assert done.stdout == ""
    assert everything(here) == before
    return done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("digits --seed 5000000000", "5000000000 is not in the range 0<=x<=4294967295"),
        ("digits --set train.validation_seed=-1", "train.validation_seed: Input should be greater"),
        # options that cannot act
        ("digits --method aal-fgsm --set pgd_refresh=true", "without effect here: pgd_refresh"),
        ("digits --method aal-pgd --set fgsm_step=two", "without effect here: fgsm_step"),
        ("digits --method aal-pgd --set control=no_gate --set xi2=0", "without effect here: xi2"),
        # names
        ("digts", "unknown task 'digts'. Did you mean digits"),
        ("digits --method aal-pdg", "unknown method 'aal-pdg'. Did you mean aal-pgd, aal-fgsm?"),
        ("digits --update apw", "unknown update 'apw'. Did you mean awp"),
        ("digits --model resnt18", "unknown model 'resnt18'. Did you mean resnet18"),
        ("digits --protocol ful", "unknown protocol 'ful'. Did you mean full"),
        ("digits --protocol clean,pdg-10", "unknown attack 'pdg-10'. Did you mean pgd-N"),
        ("digits --protocol pgd-10,clean", "a list begins with clean"),
        ("digits --protocol pgd-20", "'pgd-20' is one attack; as a protocol, write clean,pgd-20"),
        ("digits --method mine.py", "Say which class of the file: mine.py:Name"),
        ("digits --device gpu", "--device gpu: not a device"),
        # models that do not fit
        ("cifar10 --data-dir large --model wrn-11-1 --set size=48", "takes 32 px images, not 48"),
        ("digits --model resnet18", "takes 32 px images, not 16 px"),
        ("digits --model linear.py:build --method aal-pgd", "says no place for an attention gate"),
        ("digits --model linear.py:bild", "has no 'bild'. Did you mean build"),
        ("digits --model gone.py:build", "gone.py: no such file"),
        # methods of one's own
        ("digits --method mine.py:Mnie", "has no 'Mnie'. Did you mean Mine"),
        ("digits --method mine.py:NoMethod", "must be a subclass of"),
        ("digits --method idle.py:Idle", "states no attack; give it plan(), or attacks = False"),
        ("digits --method broken.py:Mine", "broken.py:1: invalid syntax"),
        ("digits --method no_such_package.m:A", "no module named 'no_such_package.m'"),
        ("digits --method :Mine", "is not module:name or file.py:name"),
        # keys and values
        ("digits --set train.lrr=1", "unknown key 'train.lrr'. Did you mean lr"),
        ("digits --set lrr=1", "--set lrr: unknown key. Did you mean"),
        ("digits --set lr", "write key=value"),
        ("digits --set train.epochs=many", "train.epochs: must be a number, got 'many'"),
        ("digits --set train.lr=-1", "train.lr: Input should be greater than 0 (got -1)"),
        ("digits --set threat.eps=eight", "'eight' is not a fraction like 8/255 or a number"),
        ("digits --set threat.eps=8", "write 8/255 for 8 grey levels"),
        ("digits --method aal-pgd --set xi3=1", "--set xi3: unknown key. Did you mean"),
        ("digits --method pgd --set xi2=1", "--set xi2: unknown key"),
        ("digits.toml", "digits.toml: unknown key 'train.epochz'. Did you mean epochs"),
        ("notoml.toml", "notoml.toml: not valid TOML"),
        ("named.toml", "named.toml: name = 'digits', but the file is named 'named'"),
        ("eps.toml", "eps.toml: threat.eps: 'about "),
        ("gone.toml", "gone.toml: no such task file"),
        # settings that cannot go together: known before training, not after
        ("digits --set threat.norm=L2", "stage fgsm is Linf; under L2 use --protocol standard"),
        ("digits --set threat.norm=L2 --method pgd", "trains against Linf"),
        ("digits --set train.validation=1437", "would leave nothing of 1437 to train on"),
        ("digits --set train.select=best --set validation=0", "needs held-out images"),
        # data
        ("digits --data-dir empty", "its images are embedded; omit --data-dir"),
        ("cifar10 --data-dir gone", "gone: no such folder (--data-dir)"),
        ("cifar10 --data-dir empty", "Found: nothing, it is empty"),
        ("cifar10 --data-dir thesis", "no CIFAR-10 found. Looked for"),
        ("cifar10 --data-dir archives", "Unpack them"),
        ("cifar10 --data-dir three", "3 classes (class0, class1, class2), but task cifar10 has 10"),
        ("cifar10 --data-dir large", "48x48"),
        # --out
        ("digits --out mine.py", "--out mine.py: is a file, not a folder"),
        ("digits --out thesis", "--out thesis: not empty, and not a run; choose another"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(here, options, message):
    assert message in refused(here, ["run", *options.split()]).replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("digits", "give --checkpoint FILE, --robustbench NAME or --model module:builder"),
        ("digits --checkpoint gone.pt --model cnn4", "gone.pt: no such checkpoint"),
        ("digits --checkpoint page.pt --model cnn4", "page.pt: an HTML page, not weights"),
        ("digits --checkpoint other.pt --model cnn4", "other.pt: not weights of 'cnn4'"),
        ("digits --checkpoint other.pt", "does not describe itself; say what it is with --model"),
        (
            "digits --checkpoint other.pt --model linear.py:build --normalise half",
            "--normalise half: write none, task or MEAN/STD",
        ),
    ],
)
def test_evaluate_refuses_likewise(here, options, message):
    (here / "page.pt").write_text("<!DOCTYPE html><title>Quota exceeded</title>")
    torch.save({"fc.weight": torch.zeros(3, 4)}, here / "other.pt")
    assert message in refused(here, ["evaluate", *options.split()])


def test_without_a_network_a_set_is_asked_for_in_one_line(here):
    done = refused(here, ["run", "imagenet"])
    assert "cannot be downloaded" in done
    assert "--data-dir" in done


# ---- a full disk ---------------------------------------------------------------------------------

RUN = "run digits --model linear.py:build --epochs 2 --limit-train 512 --limit-eval 96"
RUN += " --set train.validation=0 --protocol clean,pgd-2 --device cpu --out out"


def on_a_full_disk(args, most):
    """Run with a limit of `most` bytes per file: the real failed write of a real file system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        return CliRunner().invoke(main, args.split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("most", "file"), [(200, "run.json"), (10_000, "state.pt"), (30_000, "state.pt")]
)
def test_a_full_disk_is_one_line_and_leaves_only_whole_files(here, most, file):
    done = on_a_full_disk(RUN, most)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{file}: cannot be written: File too large; free some space" in done.stderr
    for path in (here / "out").rglob("*"):
        assert path.is_dir() or path.suffix == ".json", f"{path} was left behind"
        if path.is_file():
            saved = json.loads(path.read_text())
            assert saved["status"] == "error"
            assert "File too large" in saved["error"]["message"]
    again = CliRunner().invoke(main, [*RUN.split(), "--resume"])
    assert again.exit_code == 0
    assert json.loads((here / "out" / "run.json").read_text())["status"] == "success"


def test_a_disk_that_fills_during_the_evaluation_loses_no_row(here):
    """Everything but the adversarials, the largest file of this stage, fits."""
    first = CliRunner().invoke(main, [*RUN.replace("--out out", "--out one").split()])
    assert first.exit_code == 0
    largest = (here / "one" / "adversarials.npz").stat().st_size
    assert largest > 30_000
    command = "evaluate digits --checkpoint one/model.safetensors --limit-eval 96 --out two"
    command += " --protocol clean,pgd-2 --device cpu --model linear.py:build"
    done = on_a_full_disk(command, largest // 2)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "File too large; free some space, then --resume" in done.stderr
    for path in (here / "two").rglob("*.npz"):
        assert zipfile.ZipFile(path).testzip() is None
    assert not list((here / "two").rglob("*.tmp"))

    again = CliRunner().invoke(main, [*command.split(), "--resume"])
    assert again.exit_code == 0
    with (
        np.load(here / "one" / "evidence.npz") as one,
        np.load(here / "two" / "evidence.npz") as two,
    ):
        np.testing.assert_array_equal(one["stage/pgd-2"], two["stage/pgd-2"])


@pytest.mark.skipif("os.geteuid() == 0", reason="root may write anywhere")
def test_a_folder_that_must_not_be_written_is_one_line(here):
    (here / "locked").mkdir(mode=0o500)
    done = CliRunner().invoke(main, RUN.replace("--out out", "--out locked/run").split())
    assert done.exit_code == 2
    assert "Permission denied" in done.stderr
