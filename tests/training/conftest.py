"""The toy of `toy.py`, trained by the real adapter and the real loop on the embedded digits."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module: ``build``, ``setting``, ``train``; its ``__file__`` is the server's program."""
    spec = importlib.util.spec_from_file_location("training_toy", TOY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_loop(toy, tmp_path):
    """make_loop(method="pgd", validate=False, ...) -> the loop, not yet begun."""
    from aal_bench import registry
    from aal_bench.adapters.method import join_companions
    from aal_bench.training.loop import Loop
    from aal_bench.training.step import Setting

    def build(folder: Path = tmp_path, validate: bool = False, **request) -> Loop:
        adapter, method, model, folder = toy.setting(folder, **request)
        update = registry.load(registry.find("update", adapter.run.update.name).row.target)
        join_companions(adapter.run, method)
        train, held = adapter.training_split()
        return Loop(
            Setting(
                run=adapter.run,
                model=model,
                method=method,
                update=update(update.Options(**adapter.run.update.options)),
                make_objective=adapter.objective,
                train=train,
                validate=adapter._validator(held, method) if validate else None,
                folder=folder,
            )
        )

    return build
