"""``AutoAttack`` with the call signature of fra31/auto-attack, run by ``pyautoattack``.

``pyautoattack`` carries the attack files of fra31/auto-attack a392200 unchanged, but its class
takes keyword arguments only, logs to the standard logger instead of ``log_path``, and always
returns labels. This subclass restores the original's signature and adds no attack code. Imported
by `robustbench_autoattack.repair` only, since it imports torch.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyautoattack
import torch
from pyautoattack.state import EvaluationState

__all__ = ["AutoAttack", "EvaluationState"]

Result = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class AutoAttack(pyautoattack.AutoAttack):
    """The ensemble of Croce & Hein (2020), called as in fra31/auto-attack.

    Args:
        model: Maps x (B,3,H,W) in [0,1] to logits (B,K).
        norm: ``Linf``, ``L2`` or ``L1``.
        eps: Radius of the ball, in units of [0,1] pixels.
        seed: None seeds every attack from the clock, as the original does.
        verbose: Print the progress on standard output.
        attacks_to_run: Names of the attacks; only with ``version="custom"``.
        version: ``standard``, ``plus``, ``rand`` or ``custom``.
        is_tf_model: Must be false: pyautoattack dropped TensorFlow.
        device: Where the attacks run.
        log_path: A file to append the progress to.

    Raises:
        ValueError: `attacks_to_run` given without ``version="custom"``.
        NotImplementedError: `is_tf_model` is true.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: torch.device | str = "cuda",
        log_path: str | Path | None = None,
    ) -> None:
        if is_tf_model:
            raise NotImplementedError("pyautoattack attacks PyTorch models only")
        self._log_path = log_path
        attacks = list(attacks_to_run)
        super().__init__(
            model,
            attacks=attacks if attacks or version == "custom" else None,  # pyright: ignore
            device=device,
            eps=eps,
            norm=norm,  # pyright: ignore
            seed=seed,
            version=version,  # pyright: ignore
        )
        self.verbose = verbose

    def set_version(self, version: str = "standard") -> None:
        """Choose the attacks and their parameters: ``standard``, ``plus`` or ``rand``."""
        self._set_version(version)

    def run_standard_evaluation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x_orig: torch.Tensor,
        y_orig: torch.Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Result:
        """Attack each image until one attack of the ensemble fools the model.

        Args:
            x_orig: (N,3,H,W) in [0,1].
            y_orig: (N,) labels.
            bs: Batch size; batches are cut in index order from the survivors.
            return_labels: Also return the predicted labels (N,).
            state_path: File that records which images still stand after each attack. If it holds a
                finished evaluation, nothing is run and the images come back unchanged.

        Returns:
            The images (N,3,H,W), adversarial where an attack succeeded.

        Raises:
            NotImplementedError: `state_path` holds an unfinished evaluation.
        """
        path = None if state_path is None else Path(state_path)
        if path is not None and path.exists():
            return self._finished(path, x_orig, y_orig, return_labels)
        with self._logging():
            x_adv, y_adv = super().run_standard_evaluation(
                x_orig, y_orig, batch_size=bs, state_path=path
            )
        return (x_adv, y_adv) if return_labels else x_adv

    def run_standard_evaluation_individual(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x_orig: torch.Tensor,
        y_orig: torch.Tensor,
        bs: int = 250,
        return_labels: bool = False,
    ) -> dict[str, Result]:
        """Run each attack on all images, by name. Arguments as in `run_standard_evaluation`."""
        chosen = self.attacks_to_run
        found: dict[str, Result] = {}
        try:
            for name in list(chosen or ()):
                self.attacks_to_run = [name]
                found[name] = self.run_standard_evaluation(x_orig, y_orig, bs, return_labels)
        finally:
            self.attacks_to_run = chosen
        return found

    def _finished(
        self, path: Path, x_orig: torch.Tensor, y_orig: torch.Tensor, return_labels: bool
    ) -> Result:
        # pyautoattack writes the set of attacks as a string and never binds y_adv when it resumes,
        # so that every resumption raises; only reading a finished state can be offered.
        state = EvaluationState.from_disk(path)
        flags = state.robust_flags
        standing = flags is None or bool(flags.any())
        if standing and not set(self.attacks_to_run or ()) <= set(state.run_attacks):
            raise NotImplementedError(
                f"{path}: pyautoattack cannot resume an unfinished evaluation. "
                "Delete the file to start again."
            )
        return (x_orig.clone(), y_orig.clone()) if return_labels else x_orig.clone()

    @contextmanager
    def _logging(self) -> Iterator[None]:
        """Send pyautoattack's log records where the original's ``Logger`` wrote its lines."""
        handlers: list[logging.Handler] = []
        if self.verbose:
            handlers.append(logging.StreamHandler(sys.stdout))
        if self._log_path is not None:
            handlers.append(logging.FileHandler(self._log_path))
        level = self.logger.level
        self.logger.setLevel(logging.DEBUG if handlers else level)
        for handler in handlers:
            self.logger.addHandler(handler)
        try:
            yield
        finally:
            for handler in handlers:
                self.logger.removeHandler(handler)
                if isinstance(handler, logging.FileHandler):
                    handler.close()
            self.logger.setLevel(level)
