"""The paper's numbers that the hypotheses are about, out of its printed tables. No torch."""

from __future__ import annotations

from functools import cache

from aal_bench import registry
from aal_bench.aal.options import Kernel
from aal_bench.config import Run, Task, read_task
from aal_bench.diagnosis.record import Printed
from aal_bench.leaderboard import reported

ABLATED: dict[str, Kernel] = {"M^a": "m", "M^a o M^a": "m2", "1 - M^a o M^a": "one_minus_m2"}
"""Table 8's kernels as printed -> ours."""


@cache
def by_kernel() -> dict[Kernel, Printed]:
    """Kernel -> the FGSM accuracy that Table 8 prints on ImageNet100."""
    task = read_task(registry.task_file("imagenet100"))
    found: dict[Kernel, Printed] = {}
    for claim in reported.claims(task, "aal-fgsm", task.model):
        kernel = next((note[7:] for note in claim.notes if note.startswith("kernel ")), None)
        if kernel in ABLATED:
            name = f"FGSM, trained with k = {kernel}"
            found[ABLATED[kernel]] = _printed(claim, "fgsm", name)
    return found


def of_run(run: Run) -> dict[str, Printed]:
    """Stage -> what the paper prints for the run's data, threat and method; empty: nothing."""
    for claim in reported.claims(_task(run), run.method.name, run.model.name):
        if claim.paper == "AAL" and {"clean", "fgsm"} <= claim.values.keys():
            return {
                stage: _printed(claim, stage, f"{stage}, {claim.method} on {claim.backbone}")
                for stage in claim.values
            }
    return {}


def _task(run: Run) -> Task:
    """The run's task; of a task file that is not at hand, the one of the same images."""
    if "dataset" in run.task.paper or run.task.data.name not in registry.task_files():
        return run.task
    known = read_task(registry.task_file(run.task.data.name))
    return run.task.model_copy(update={"paper": known.paper})


def _printed(claim: reported.Claim, stage: str, name: str) -> Printed:
    return Printed(where=f"{claim.paper}, {claim.table}", name=name, value=claim.values[stage])
