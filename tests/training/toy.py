"""A tiny network for the training tests; as a program, a server of trainings that may be killed.

The server imports torch once. For each line of JSON on its standard input (the arguments of
`train`) it forks a process that trains, says its id, waits for it, and says how it ended.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from aal_bench.models.build import Architecture, ClassSite


def build(classes: int, size: int) -> Architecture:
    """Two strided convolutions; the gate follows the first one's batch norm and ReLU."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * (size // 4) ** 2, classes)),
    )
    sites = ClassSite("2", 4), ClassSite("5", 8)
    return Architecture(network, {"post_bn_relu": "3", "post_conv1": "1"}, 4, class_sites=sites)


def episodes(settings: tuple[str, ...] | list[str], request: dict[str, Any]):
    """A run on the glyphs in place of the digits, as small."""
    from aal_bench.resolve import Request, resolve

    sizes = {"model": "cnn4-8", "episodes": 2, "epochs": 3, "batch_size": 16, "limit_train": 128}
    fixed = {"device": "cpu", "precision": "fp32"}
    return resolve(Request(**{**fixed, **sizes, **request, "settings": tuple(settings)}))


def setting(folder: str | Path, settings: tuple[str, ...] | list[str] = (), **request):
    """Adapter, method, model and folder of a run on 118 digits with 20 held out, as in a runner."""
    from aal_bench.adapters.classification import Classification
    from aal_bench.resolve import Request, resolve
    from aal_bench.runner import build_method, load_adapter

    if "task" in request:
        run = episodes(["train.validation=2", *settings], request)
        adapter, method = load_adapter(run, None), build_method(run)
        return adapter, method, method.build(adapter.build()), Path(folder)
    defaults = {"model": f"{__file__}:build", "device": "cpu", "precision": "fp32"}
    sizes = {"epochs": 3, "batch_size": 16, "limit_train": 118}
    given = ("train.validation=20", "attack.steps=2", *settings)
    run = resolve(Request("digits", **{**defaults, **sizes, **request, "settings": given}))
    adapter, method = Classification(run, None), build_method(run)
    return adapter, method, method.build(adapter.build()), Path(folder)


def train(**arguments):
    """Train in the real loop, or go on from the folder's checkpoint."""
    from aal_bench.runner import build_update

    adapter, method, model, folder = setting(**arguments)
    return adapter.fit(method, build_update(adapter.run), model, folder)


def serve() -> None:
    """Answer each request with ``{"pid": n}`` and, when that process is over, ``{"status": n}``."""
    import torch
    import torch._dynamo  # an optimiser's first step imports it, which takes seconds

    torch.set_num_threads(1)
    from aal_bench.data import glyphs

    drawn = glyphs.read(28)  # seconds that no process has to spend again
    glyphs.read = lambda _: dict(drawn)
    setting("never-written", method="pgd")  # and this imports the rest
    setting("never-written", task="glyphs", method="ier")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            train(**json.loads(line))
            os._exit(0)
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps({"status": os.waitpid(pid, 0)[1]}), flush=True)


if __name__ == "__main__":
    serve()
