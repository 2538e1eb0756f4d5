"""SSD-512 on ResNet-34 with a quarter of the channels, for images of 264 pixels and two classes.

As a program, a server of ``aal-bench run`` with this network in place of the whole one: it imports
torch once, and forks a process for every run, which may be killed.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FED = 264
"""Side of the images fed: the least that leaves seven maps."""
EXAMPLES = {
    0: [(30.0, 40.0, 120.0, 150.0, 0), (10.0, 10.0, 60.0, 50.0, 1)],
    1: [(100.0, 20.0, 200.0, 90.0, 1)],
}
"""Objects of the first and the second image of a batch: box and class."""


def shrink(config: Any) -> Any:
    """Take a quarter of a config's channels: a pass takes 50 ms.

    With an eighth, strided 1 x 1 convolutions of 8 channels crash torch 2.15's CPU backward in
    channels_last.
    """
    widths = (32, 64, 128, 32, 32, 32, 32)
    config.model.backbone.base_channels = 16
    config.model.neck.in_channels, config.model.neck.out_channels = widths[:3], widths
    config.model.bbox_head.in_channels = widths
    return config


def detector(seed: int = 0, attack: dict[str, Any] | None = None, **preprocessor: Any) -> Any:
    """Build the network in train mode, as after some training.

    Args:
        seed: of its weights.
        attack: of ``AttackedSingleStageDetector``.
        **preprocessor: replaces values of its ``DetDataPreprocessor``.
    """
    import torch
    from mmdet.registry import MODELS

    from aal_bench.detection import mmconfig
    from aal_bench.detection.quiet import quiet
    from aal_bench.detection.resize import resize

    config = shrink(mmconfig.plain("ssd512-resnet34", "voc0712"))
    resize(config, FED)
    config.model.bbox_head.num_classes = 2
    config.model.data_preprocessor.update(preprocessor)
    config.model.attack = attack
    torch.manual_seed(seed)
    with quiet():
        net = MODELS.build(config.model)
        net.init_weights()
    _enliven(net)
    return net


def _enliven(net: Any) -> None:
    """ResNet's blocks pass nothing on at first, and the running statistics are 0 and 1."""
    import torch

    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.0)
            norm.momentum = 1.0
        net.train()
        net.extract_feat(torch.randn(4, 3, FED, FED))
    for norm in norms:
        norm.momentum = 0.1


def batch(
    net: Any,
    sizes: Sequence[tuple[int, int]] = ((FED, FED), (FED, FED)),
    objects: dict[int, list[Any]] | None = None,
    images: Sequence[Any] | None = None,
    seed: int = 1,
) -> tuple[Any, list[Any]]:
    """Preprocess a batch: the inputs and the data samples.

    Args:
        net: the detector.
        sizes: (height, width) of images of noise, in whole numbers.
        objects: rows (x1, y1, x2, y2, class) of each image; None: `EXAMPLES`.
        images: (3, H, W) as OpenCV reads them, in place of noise.
        seed: of the noise.
    """
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    noise = torch.Generator().manual_seed(seed)
    if images is None:
        images = [
            torch.randint(256, (3, h, w), dtype=torch.uint8, generator=noise) for h, w in sizes
        ]
    samples = []
    for i, image in enumerate(images):
        rows = (EXAMPLES if objects is None else objects).get(i, [])
        shape = tuple(image.shape[1:])
        truth = InstanceData(
            bboxes=torch.tensor([row[:4] for row in rows]).reshape(-1, 4),
            labels=torch.tensor([int(row[4]) for row in rows], dtype=torch.long),
        )
        meta = {"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)}
        samples.append(DetDataSample(metainfo=meta, gt_instances=truth))
    data = net.data_preprocessor({"inputs": list(images), "data_samples": samples}, True)
    return data["inputs"], data["data_samples"]


SAME = [(100.0, 20.0, 200.0, 90.0, 1)]
"""Objects of every image: all have as many positives, so that a mean of halves is the mean."""


def four_images() -> list[Any]:
    """Noise, for two processes."""
    import torch

    noise = torch.Generator().manual_seed(5)
    size = (3, FED, FED)
    return [torch.randint(256, size, dtype=torch.uint8, generator=noise) for _ in range(4)]


def step(net: Any, wrapped: Any, images: list[Any]) -> float:
    """Take one step of MMEngine's; returns how far the images last fed were from the first.

    Batch norms are in eval mode: each image by itself, the same among two and four.
    """
    import torch
    from mmengine.optim import OptimWrapper

    from aal_bench.detection.pixels import PixelSpace

    wrapped.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    seen = []
    hook = net.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    optimizer = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.01))
    _, samples = batch(net, images=images, objects=dict.fromkeys(range(4), SAME))
    wrapped.train_step({"inputs": images, "data_samples": samples}, optimizer)
    hook.remove()
    space = PixelSpace(net.data_preprocessor)
    return float((space.pixels(seen[-1]) - space.pixels(seen[0])).abs().max())


def data_parallel(wrapper: str, attack: dict[str, Any], folder: str) -> None:
    """Take that step as one of two processes, on its own two images, and save what came of it."""
    import torch
    from mmengine.registry import MODEL_WRAPPERS

    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    net = detector(attack=attack)
    wrapped = MODEL_WRAPPERS.get(wrapper)(module=net, broadcast_buffers=False)
    moved = step(net, wrapped, four_images()[2 * rank : 2 * rank + 2])
    state = {name.replace(".module.", "."): value for name, value in net.state_dict().items()}
    torch.save({"moved": moved, "state": state}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


class Server:
    """This file as a program, asked over its standard input: processes that import nothing more."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def _ask(self, **asked: Any) -> dict[str, Any]:
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def begin(self, log: Path, call: str, *arguments: Any, **env: str) -> int:
        """Begin `call` in a process of its own; returns its id."""
        return self._ask(call=call, arguments=arguments, env=env, log=str(log))["pid"]

    def ended(self, pid: int) -> int:
        """Wait for it; returns its exit status, or minus the signal that ended it."""
        return self._ask(wait=pid)["status"]

    def launch(self, logs: list[Path], call: str, *arguments: Any) -> None:
        """As torchrun does: a process for each rank, its place in its environment."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(len(logs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pids = [
            self.begin(log, call, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **common)
            for rank, log in enumerate(logs)
        ]
        statuses = [self.ended(pid) for pid in pids]
        assert statuses == [0] * len(logs), [log.read_text() for log in logs]


def unformatted(text: str, **_: Any) -> tuple[str, bool]:
    """Stand for yapf, with which MMEngine lays out a config six times a run, in seconds."""
    return text, False


def serve() -> None:
    """Answer lines of JSON: ``call`` begins one and gives its ``pid``; ``wait`` its ``status``."""
    import torch
    import torch._dynamo  # an optimiser's first step imports it, which takes seconds
    from yapf.yapflib import yapf_api

    from aal_bench.adapters import detection as adapter
    from aal_bench.cli import main
    from aal_bench.detection import mmconfig, train
    from aal_bench.runner import run

    assert all((adapter, train, run))  # imported once, for every process
    torch.set_num_threads(1)
    yapf_api.FormatCode = unformatted
    whole = mmconfig.plain
    calls = {"run": lambda *given: main(["run", *given]), "data_parallel": data_parallel}
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            status = os.waitpid(asked["wait"], 0)[1]
            print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)  # torch's pool of threads does not survive the fork
            os.environ.update(asked["env"])
            log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if asked["call"] == "run":
                mmconfig.plain = lambda *names: shrink(whole(*names))
            calls[asked["call"]](*asked["arguments"])
            sys.exit(0)
        print(json.dumps({"pid": pid}), flush=True)


if __name__ == "__main__":
    serve()
