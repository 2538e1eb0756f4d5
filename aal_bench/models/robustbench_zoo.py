"""RobustBench's model zoo: its loader, with errors that say what to put where."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from aal_bench.errors import UserError, did_you_mean
from aal_bench.paths import cache_folder
from aal_bench.toolkits import robustbench_import


def load(name: str, dataset: str, threat_model: str) -> tuple[nn.Module, list[Path]]:
    """Return an entry's model in eval mode and its weight files.

    Args:
        name: the entry's name in the zoo, e.g. ``Wong2020Fast``.
        dataset: ``cifar10``, ``cifar100`` or ``imagenet``.
        threat_model: ``Linf`` or ``L2``.

    Raises:
        UserError: no such entry, or its weights are neither here nor to be downloaded.
    """
    robustbench_import.repair()
    import requests
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from robustbench.model_zoo.models import model_dicts
    from robustbench.utils import load_model

    entries = model_dicts[BenchmarkDataset(dataset)].get(ThreatModel(threat_model), {})
    if name not in entries:
        raise UserError(
            f"RobustBench has no {dataset} {threat_model} entry '{name}'."
            f"{did_you_mean(name, list(entries))}"
        )
    root = cache_folder() / "robustbench"
    folder = root / dataset / threat_model
    before = set(folder.glob(f"{name}.pt*"))
    try:
        model = load_model(name, model_dir=root, dataset=dataset, threat_model=threat_model)
    except requests.exceptions.RequestException as error:
        _forget_partial(folder, name, before)
        raise UserError(
            f"--robustbench {name}: its weights could not be downloaded ({type(error).__name__})."
            f" Put them at {folder / name}.pt"
        ) from None
    except (RuntimeError, ValueError, EOFError, ImportError, KeyError) as error:
        _forget_partial(folder, name, before)
        raise UserError(
            f"--robustbench {name}: {folder / name}.pt is not its weights:"
            f" {str(error).splitlines()[0][:160]}"
        ) from None
    return model.eval(), sorted(folder.glob(f"{name}*.pt*"))


def _forget_partial(folder: Path, name: str, before: set[Path]) -> None:
    # A quota page or half a file saved as weights would be taken for them the next time.
    for path in set(folder.glob(f"{name}.pt*")) - before:
        path.unlink()
