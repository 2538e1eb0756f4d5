"""The network of a run, before any surgery."""

from __future__ import annotations

from torch import nn

from aal_bench import registry
from aal_bench.config import Run
from aal_bench.models.build import Classifier, build


def build_network(run: Run) -> Classifier:
    """The run's network with as many outputs as its task and method ask for.

    A few-shot method that reads features has no use for the classifier: it is taken off, so that
    nobody trains, counts or stores it.
    """
    task = run.task
    if task.episodes is None:
        return build(run.model.name, task.data.classes, task.data.size, task.normalisation)
    outputs = registry.load(registry.method_row(run.method.name).target).outputs
    classes = task.ways if outputs == "ways" else task.data.classes
    model = build(run.model.name, classes, task.data.size, task.normalisation)
    _ = model.feature_shape  # or a UserError that says what to choose
    if outputs == "features":
        model.network.classifier = nn.Identity()
    return model
