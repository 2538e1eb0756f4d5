"""The config that a run leaves trains the same by MMEngine's own Runner, without us around it."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from safetensors.torch import load_file

from aal_bench import runner
from aal_bench.resolve import Request

SMALL = ("data.size=264", "train.validation=0", "train.warmup_epochs=0.5")


@pytest.mark.parametrize(("method", "epochs"), [("standard", 1), ("aal-fgsm", 2)])
def test_mmengines_runner_gives_the_same_weights(
    tmp_path: Path, voc_folder, method: str, epochs: int
) -> None:
    data = voc_folder(tmp_path / "data", {"train": 4, "val": 1, "test": 1})
    request = Request(
        task="voc-format",
        method=method,
        classes="cat,dog",
        epochs=epochs,
        batch_size=2,
        device="cpu",
        precision="fp32",
        protocol="detection-clean",
        settings=SMALL,
    )
    runner.run(request, tmp_path / "run", data)
    ours = load_file(tmp_path / "run" / "model.safetensors")
    (left,) = (tmp_path / "run" / "mmengine").glob("*.py")

    config = Config.fromfile(left)
    config.work_dir = str(tmp_path / "theirs")
    config.log_level = "ERROR"
    their_runner = Runner.from_cfg(config)
    their_runner.train()

    theirs = their_runner.model.state_dict()
    assert theirs.keys() == ours.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
