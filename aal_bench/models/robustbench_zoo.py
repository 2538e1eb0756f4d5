"""RobustBench's model zoo: its loader, with errors that say what to put where."""

from __future__ import annotations

import pickle
from importlib.metadata import version
from pathlib import Path

from torch import nn

from aal_bench.errors import UserError, did_you_mean
from aal_bench.models.weights import DAMAGED
from aal_bench.paths import cache_folder
from aal_bench.toolkits import robustbench_import, robustbench_overwritten


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
            f"{did_you_mean(name, list(entries), limit=3)}{_old_zoo()}"
        )
    root = cache_folder() / "robustbench"
    folder = root / dataset / threat_model
    before = set(_files(folder, name))
    loaded = False
    try:
        model = load_model(name, model_dir=root, dataset=dataset, threat_model=threat_model)
        loaded = True
    except requests.exceptions.RequestException as error:
        raise UserError(
            f"--robustbench {name}: its weights could not be downloaded ({type(error).__name__})."
            f" Put them at {folder / name}.pt"
        ) from None
    except ImportError as error:
        raise UserError(
            f"--robustbench {name}: its architecture does not import: {error}"
        ) from None
    except (*DAMAGED, pickle.UnpicklingError) as error:
        reason = "no file of tensors" if isinstance(error, pickle.UnpicklingError) else str(error)
        raise UserError(
            f"--robustbench {name}: {folder / name}.pt is not its weights:"
            f" {' '.join(reason.split())[:160]}"
        ) from None
    finally:
        if not loaded:
            # A quota page or half a file would be taken for the weights the next time.
            for path in set(_files(folder, name)) - before:
                path.unlink()
    return model.eval(), _files(folder, name)


def _old_zoo() -> str:
    if not robustbench_overwritten.fault_present():
        return ""
    command = robustbench_overwritten.mend(version("robustbench"))
    return f"\nAnother package overwrote its model zoo with an older one. Mend: {command}"


def _files(folder: Path, name: str) -> list[Path]:
    """The entry's weights as RobustBench names them: one file, or one for each ensemble member."""
    return sorted([*folder.glob(f"{name}.pt"), *folder.glob(f"{name}.pt_m*.pt")])
