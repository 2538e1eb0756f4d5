"""A model rebuilt from what its entry says of it, and the images on which it was measured.

Nothing here trusts the entry: only registered code, or code that the verifier typed, is run, the
weights must be the file that the entry names, and the images the ones that it was measured on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from aal_bench import registry
from aal_bench.config import Normalisation, Run, parse
from aal_bench.errors import UserError
from aal_bench.evaluate import from_robustbench
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.findings import Finding
from aal_bench.models import weights
from aal_bench.record import Result
from aal_bench.resolve import Request, resolve
from aal_bench.runner import build_method, load_adapter
from aal_bench.runner import rebuild as rebuilt_from
from aal_bench.schema import Checkpoint
from aal_bench.verification import code
from aal_bench.verification.code import NOTHING, ZOO_NAME, Typed, from_zoo

LEVEL = 2


class Rebuilt(NamedTuple):
    """What was attacked, made again."""

    run: Run
    """Task, network, surgery and device; nothing of the training."""
    adapter: Any
    """With the task's images."""
    model: nn.Module
    """On the device, in eval mode, without gradients of the weights."""
    evidence: Evidence
    """The entry's, whose rows are those of `adapter.test`, in order."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.run.device)


def rebuild(
    entry: Entry, checkpoint: Path | None, data_dir: Path | None, typed: Typed = NOTHING
) -> tuple[list[Finding], Rebuilt | None]:
    """Rebuild an entry's model and read its images.

    Args:
        entry: from a board; levels 0 and 1 hold.
        checkpoint: the weights file; None for an entry of RobustBench's zoo, whose loader has them.
        data_dir: where the task's images are; None: embedded, or downloaded.
        typed: code that the verifier trusts, to run instead of what the record names.

    Returns:
        Findings, and the model; None where one of them is broken.

    Raises:
        UserError: a file is missing, or the entry names code that is neither registered nor
            typed.
    """
    result = entry.result
    if checkpoint is not None and from_zoo(result):
        raise UserError("the entry's weights come from RobustBench's zoo: omit --checkpoint")
    run = _run(result, typed)
    findings = [_same_question(result, run), *code.used(typed)]
    if checkpoint is not None:
        findings.append(_same_file(result, checkpoint))
    if any(not finding.ok for finding in findings):
        return findings, None
    adapter = load_adapter(run, data_dir)
    evidence = entry.evidence()
    findings += [_same_data(result, adapter, run), _same_rows(evidence, adapter)]
    if any(not finding.ok for finding in findings):
        return findings, None
    found, model = _model(result, run, adapter, checkpoint)
    findings.append(found)
    if model is None or not found.ok:
        return findings, None
    model = model.to(run.device).eval().requires_grad_(False)
    return findings, Rebuilt(run, adapter, model, evidence)


def _run(result: Result, typed: Typed) -> Run:
    """The configuration that the record states, resolved with names that may be run."""
    model, surgery = result.model, result.model.surgery or {"options": {}}
    named, method = code.names(result, typed)
    files = registry.task_files()
    if result.task.id not in files:
        raise UserError(f"task '{result.task.id}' is not known here (aal-bench list tasks)")
    name = None if from_zoo(result) else named
    # By its path, which nothing in a record can be taken for.
    run = resolve(Request(task=str(files[result.task.id]), method=method, model=name))
    normalisation = Normalisation()
    if model.normalisation is not None:
        stated = model.normalisation.model_dump(mode="json")
        normalisation = parse(Normalisation, stated, "model.normalisation")
    known = registry.load(registry.method_row(run.method.name).target).Options
    options = parse(known, surgery.get("options", {}), "model.surgery").model_dump(mode="json")
    return run.model_copy(
        update={
            "task": run.task.model_copy(update={"normalisation": normalisation}),
            "method": run.method.model_copy(update={"options": options}),
            "model": run.model.model_copy(update={"name": named}),
        }
    )


def _same_question(result: Result, run: Run) -> Finding:
    stated, asked = (result.threat.norm, result.threat.eps), run.task.threat
    if result.evidence is None:
        raise UserError("the entry has no evidence")
    fingerprint = result.evidence.dataset_fingerprint
    same = stated == (asked.norm, asked.eps) and result.task.hash == run.task.hash(fingerprint)
    told = f"task {run.task.name} {run.task.version}, {asked}"
    if not same:
        told = f"the task file {run.task.name} asks another question ({told}) than the entry"
    return Finding(LEVEL, "question", same, told)


def _same_file(result: Result, path: Path) -> Finding:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    stated, digest = _checkpoint(result), sha256_file(path)
    if digest != stated.sha256:
        text = f"{path} is {digest[:8]}, the entry was measured on {stated.sha256[:8]}"
        return Finding(LEVEL, "checkpoint", False, text)
    wrong = []
    if path.stat().st_size != stated.bytes:
        wrong.append(f"{path.stat().st_size:,} bytes, the entry says {stated.bytes:,}")
    if _format(path) != stated.format:
        wrong.append(f"{_format(path)}, the entry says {stated.format}")
    return Finding(LEVEL, "checkpoint", not wrong, "; ".join(wrong) or f"sha256 {digest[:8]}")


def _checkpoint(result: Result) -> Checkpoint:
    if result.model.checkpoint is None:
        raise UserError("the entry names no checkpoint: it cannot be replayed")
    return result.model.checkpoint


def _format(path: Path) -> str:
    # By content: a download may have another name.
    with path.open("rb") as handle:
        return "safetensors" if handle.read(10)[8:] == b'{"' else "torch"


def _same_data(result: Result, adapter: Any, run: Run) -> Finding:
    assert result.evidence is not None
    own, stated = adapter.fingerprint(), result.evidence.dataset_fingerprint
    if own != stated:
        different = next(key for key in own if own[key] != stated.get(key))
        text = (
            f"{different} of the test images here are {own[different][:8]}, the entry was measured"
            f" on {str(stated.get(different))[:8]}: give those with --data-dir"
        )
        return Finding(LEVEL, "data", False, text)
    known = run.task.data.fingerprints.get(own["pixels"], "a copy that the task file does not know")
    return Finding(LEVEL, "data", True, f"pixels {own['pixels'][:8]}, {known}")


def _same_rows(evidence: Evidence, adapter: Any) -> Finding:
    own = adapter.new_evidence()
    same = np.array_equal(own.index, evidence.index) and np.array_equal(own.label, evidence.label)
    told = f"{len(own):,} images with their labels"
    return Finding(
        LEVEL, "rows", same, told if same else f"the evidence is not about the test set's {told}"
    )


def _model(
    result: Result, run: Run, adapter: Any, checkpoint: Path | None
) -> tuple[Finding, nn.Module | None]:
    """The network with its weights; whatever does not fit is the record's fault."""
    wrong: list[str] = []
    if checkpoint is None:
        foreign = from_robustbench(run, result.model.name.removeprefix(ZOO_NAME))
        model, stated = foreign.model, _checkpoint(result).model_dump(exclude={"url"})
        if foreign.block != stated:
            wrong.append(f"the zoo has {foreign.sha256[:8]}, the entry says {stated['sha256'][:8]}")
    else:
        try:
            model = rebuilt_from(checkpoint, adapter, build_method(run))
        except UserError as error:
            return Finding(LEVEL, "model", False, str(error)), None
        wrong += _described_otherwise(checkpoint, run, result)
    counted = sum(weight.numel() for weight in model.parameters())
    if result.model.parameters not in {None, counted}:
        wrong.append(f"{counted:,} parameters, the entry says {result.model.parameters:,}")
    told = f"{code.plain(run.model.name)} rebuilt, {counted:,} parameters"
    return Finding(LEVEL, "model", not wrong, "; ".join(wrong) or told), model


def _described_otherwise(path: Path, run: Run, result: Result) -> list[str]:
    """Where a file of ours says something else of itself than the entry does."""
    described = weights.describe(path)
    if described is None:
        return []
    own = parse(Normalisation, described.normalisation, str(path))
    pairs: dict[str, tuple[Any, Any]] = {
        "model": (code.plain(described.model), code.plain(run.model.name)),
        "normalisation": (own, run.task.normalisation),
    }
    if result.model.surgery is not None:
        pairs["method"] = code.plain(described.method), code.plain(run.method.name)
    return [
        f"the file says that its {key} is {said}, the entry {stated}"
        for key, (said, stated) in pairs.items()
        if said != stated
    ]
