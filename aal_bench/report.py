"""What a person reads: the table in the terminal and ``report.md``. No torch.

Every measured number stands beside its interval, the paper's claim for the same data set and
threat, and the nearest RobustBench row under the same threat. A trial (``--smoke``,
``--limit-eval``) says so in the title and in the row of every number.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from aal_bench import method_facts, report_detection
from aal_bench.audit import markdown as audited
from aal_bench.comparison import (
    NONE,
    Line,
    captions,
    is_detection,
    is_fewshot,
    lines,
    marks,
    method_of,
    neighbours,
    other_backbone,
    points,
    relevant_claims,
    title,
)
from aal_bench.config import Task
from aal_bench.grid import grid
from aal_bench.leaderboard.reported import claims
from aal_bench.record import Result
from aal_bench.registry import ADAPTIVE
from aal_bench.schema import Flag, Passes, StageRecord

if TYPE_CHECKING:
    from rich.table import Table

    from aal_bench.audit.record import Audit


def table(result: Result, task: Task) -> Table:
    """The result table for a terminal; a run without metrics has no rows and says why."""
    from rich.table import Table
    from rich.text import Text

    # rich wraps title and caption to the table's width, and the numbers alone make it narrow.
    out = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left", min_width=84)
    out.title = Text(title(result), style="bold")
    out.caption = Text("\n".join(captions(result, task)))
    out.caption_justify = "left"
    for name in ("", _number(result), "95 % interval", "paper", "reference"):
        # A detector's stages have long labels: on a narrow terminal they give way, not the numbers.
        wraps = not name and is_detection(result)
        out.add_column(name, justify="left" if not name else "right", no_wrap=not wraps)
    star = "*" if other_backbone(relevant_claims(result, task)) else ""
    for line in lines(result, task):
        low, high = line.measure.ci95
        out.add_row(
            Text(" ".join([*(mark.split()[0] for mark in marks(result)), line.label])),
            f"{100 * line.measure.value:.1f} %",
            Text(f"[{100 * low:.1f}, {100 * high:.1f}]"),
            points(line.paper, 2) + (star if line.paper is not None else ""),
            points(line.reference, 2),
        )
    return out


def markdown(
    result: Result, task: Task, figures: Sequence[str] = (), audit: Audit | None = None
) -> str:
    """``report.md``.

    Args:
        result: the record.
        task: for the claims and neighbours.
        figures: paths relative to the report.
        audit: of the run, if there was one; its figures are its own.
    """
    sections = [
        f"# {title(result)}",
        _banner(result),
        _results(result, task),
        report_detection.conventions(result),
        report_detection.classes(result),
        _claims(result, task),
        _robustbench(result, task),
        _flags(result.flags),
        "" if audit is None else audited.section(audit),
        _method(result),
        _protocol(result),
        _cost(result),
        _environment(result),
        _identity(result),
        _reproduce(result),
        _figures(figures),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _banner(result: Result) -> str:
    rows = []
    if result.smoke:
        rows.append("> **SMOKE**: a trial of the machinery with tiny budgets, not a result.")
    if result.limit is not None:
        units = "episodes" if is_fewshot(result) else "images of the test set"
        rows.append(f"> **{marks(result)[-1]}** {units}: not comparable, not ranked.")
    if result.error is not None:
        error = result.error
        rows.append(f"> **{result.status}** in {error.stage}: {error.type}: {error.message}")
    elif result.status != "success":
        rows.append(f"> **{result.status}**: the run is not finished.")
    if result.unreliable:
        rows.append("> **UNRELIABLE**: at least one check failed; see below.")
    if _is_class_gated(result):
        rows.append(
            "> **Class gates**: the network's channels follow its own auxiliary prediction, whose"
            " argmax hides the gradient. Attacks on the final logits alone, AutoAttack among them,"
            f" overstate such a network; {_on_heads(result)}."
        )
    if result.external is not None:
        rows.append(
            f"> **Worst case**: {result.external} %. AutoAttack alone leaves"
            f" {result.autoattack_acc} %; `external` is the share of images that stand under"
            " everything that was tried, and the number to report."
        )
    return "\n>\n".join(rows)


def _on_heads(result: Result) -> str:
    found = {stage.attack: stage for stage in result.evaluation}.get(ADAPTIVE)
    if found is None:
        return "no stage here attacks its auxiliary heads"
    felled = found.n_in - (found.n_out or 0)
    return f"stage `{ADAPTIVE}` attacks its auxiliary heads and felled {felled} of {found.n_in}"


def _is_class_gated(result: Result) -> bool:
    surgery = result.model.surgery if result.model is not None else None
    facts = method_facts.of(surgery["name"]) if surgery else None
    return facts is not None and facts.needs == method_facts.CLASS_GATES


def _results(result: Result, task: Task) -> str:
    rows = []
    prefix = " ".join(f"**{mark}**" for mark in marks(result))
    star = "\\*" if other_backbone(relevant_claims(result, task)) else ""
    for line in lines(result, task):
        low, high = line.measure.ci95
        gap = NONE if line.paper is None else f"{100 * (line.measure.value - line.paper):+.2f}"
        rows.append(
            (
                f"{prefix} {line.label}".strip(),
                f"{100 * line.measure.value:.2f} %",
                f"[{100 * low:.2f}, {100 * high:.2f}]",
                *_spread(result, line),
                str(line.measure.n),
                points(line.paper, 2) + (star if line.paper is not None else ""),
                gap,
                points(line.reference, 2),
            )
        )
    units = ("sd over episodes", "episodes") if is_fewshot(result) else ("images",)
    head = ("stage", _number(result), "95 % interval", *units, "paper", "difference", "reference")
    body = grid(head, rows) if rows else "Nothing was measured."
    notes = "\n".join(
        f"- {star} {caption[2:]}" if caption.startswith("* ") else f"- {caption}"
        for caption in captions(result, task)
    )
    return f"## Result\n\n{body}\n\n{notes}"


def _number(result: Result) -> str:
    """What the numbers are: the heading of their column."""
    return "mAP" if is_detection(result) else "accuracy"


def _spread(result: Result, line: Line) -> list[str]:
    """The standard deviation of the episodes' accuracies, where there are episodes."""
    if result.metrics is None or result.metrics.episodes is None:
        return []
    sd = result.metrics.episodes.sd.get(line.stage)
    return [NONE if sd is None else f"{100 * sd:.2f}"]


def _claims(result: Result, task: Task) -> str:
    found = claims(task, method_of(result), result.model.name)
    if not found:
        return ""
    stages = list(dict.fromkeys(stage for claim in found for stage in claim.values))
    rows = [
        (
            f"{claim.paper}, {claim.table}",
            claim.method,
            claim.backbone or "not printed",
            *(points(claim.values.get(stage), 2) for stage in stages),
            "; ".join(claim.notes),
        )
        for claim in found
    ]
    return "## What papers claim\n\n" + grid(("where", "method", "network", *stages, "notes"), rows)


def _robustbench(result: Result, task: Task) -> str:
    near = neighbours(result, task)
    if not near.rows:
        return f"## Nearest RobustBench rows\n\nNone: {near.reason}."
    rows = [
        (
            f"[{row.entry}]({row.link})",
            row.architecture,
            row.venue,
            points(row.clean, 2),
            points(row.robust, 2) + (" (unreliable)" if row.unreliable else ""),
            points(row.external, 2),
            "yes" if row.additional_data else "no",
        )
        for row in near.rows
    ]
    head = ("entry", "network", "venue", "clean", "AutoAttack", "external", "additional data")
    threat = f"{result.threat.norm} {result.eps}"
    return (
        f"## Nearest RobustBench rows\n\nSame data set and threat ({threat}), whole test set;"
        f" additional data as flagged there.\n\n{grid(head, rows)}"
    )


def _flags(flags: Sequence[Flag]) -> str:
    if not flags:
        return ""
    rows = [
        (flag.code, flag.severity, _cell(flag.value), _cell(flag.threshold), flag.note)
        for flag in flags
    ]
    return "## Findings\n\n" + grid(("check", "severity", "value", "rule", "note"), rows)


def _protocol(result: Result) -> str:
    rows = [
        (
            stage.attack,
            _implementation(stage),
            ", ".join(f"{key} {_cell(value)}" for key, value in stage.params.items()) or NONE,
            f"{stage.seed}",
            f"{stage.batch_size}, {stage.partition}",
            _arithmetic(stage),
            f"{stage.n_in}" + ("" if stage.n_out is None else f" → {stage.n_out}"),
            f"{max(stage.max_violation.norm, stage.max_violation.box):.1e}",
        )
        for stage in result.evaluation
    ]
    if not rows:
        return ""
    counted = "images" if is_detection(result) else "standing"
    head = ("stage", "code", "parameters", "seed", "batches", "arithmetic", counted, "excess")
    samples = "queries" if is_fewshot(result) else "images"
    note = f"Standing: {samples} attacked → still correct."
    if is_detection(result):
        note = "Images: those attacked; one without an object has no loss, and stays as it is."
    if (asked := result.task.episodes) is not None:
        told = ", ".join(f"{key} {_cell(value)}" for key, value in asked.model_dump().items())
        note = f"Episodes: {told}.\n\n{note}"
    return (
        f"## Protocol `{result.protocol}`\n\n{grid(head, rows)}\n\n{note}"
        " Excess: the worst adversarial beyond eps or the pixel range (at most 1e-6)."
    )


def _method(result: Result) -> str:
    """The resolved configuration: what the command line and the task's defaults came to."""
    if result.training is None:
        return ""
    config = result.training.config
    parts = {
        "method": {"name": config["method"]["name"], **config["method"]["options"]},
        "update": {"name": config["update"]["name"], **config["update"]["options"]},
        "train": config["task"]["train"],
        "attack": {"eps": result.eps, **config["task"]["attack"]},
        "training attack": {k: v for k, v in config.get("crafting", {}).items() if v is not None},
        "run": {
            "model": config["model"]["name"],
            "seed": result.training.seeds,
            **_backbone(config),
            **{key: config[key] for key in ("precision", "compile", "ema")},
            "threads": result.environment.threads,
        },
    }
    rows = [
        (name, ", ".join(f"{key} {_cell(value)}" for key, value in part.items()))
        for name, part in parts.items()
        if part or name != "training attack"
    ]
    return "## Training\n\n" + grid(("", "resolved"), rows)


def _backbone(config: dict[str, Any]) -> dict[str, str]:
    """What a detector's backbone started from."""
    if config["task"].get("detection") is None:
        return {}
    start = config.get("pretrained")
    return {"backbone": "from scratch" if start is None else f"weights {start['sha256'][:8]}"}


def _cost(result: Result) -> str:
    rows = [
        (
            stage.attack,
            f"{stage.wall_seconds:.1f}",
            f"{stage.forwards:,.1f}",
            f"{stage.backwards:,.1f}",
        )
        for stage in result.evaluation
    ]
    parts = []
    if rows:
        sample = "query" if is_fewshot(result) else "image"
        spent = [f"{way} / {sample}" for way in ("forwards", "backwards")]
        parts.append(grid(("stage", "seconds", *spent), rows))
    if training := result.training:
        memory = training.peak_memory_bytes
        parts.append(
            f"Training: {training.wall_seconds:,.1f} s"
            + (f", epochs {training.epochs}" if training.epochs is not None else "")
            + (f", {_passes(training.passes)} passes an image and epoch" if training.passes else "")
            + (f", peak memory {memory / 2**30:.2f} GiB" if memory else "")
            + f", on {training.gpu or result.environment.cpu or 'CPU'}."
        )
    return "## Cost\n\n" + "\n\n".join(parts) if parts else ""


def _passes(passes: Passes) -> str:
    return f"{passes.forward:.4g} + {passes.backward:.4g}"


def _environment(result: Result) -> str:
    tree = result.environment.model_dump(mode="json", exclude={"packages", "aal_bench"})
    listed = result.environment.packages
    rows = [(key, f"{value}") for key, value in tree.items() if value and key not in listed]
    code = result.environment.aal_bench
    state = {True: ", uncommitted changes", False: ""}.get(bool(code.dirty), "")
    rows.append(("aal-bench", f"{code.version}, commit {code.commit or 'unknown'}{state}"))
    rows += list(listed.items())
    return "## Environment\n\n" + grid(("", "version"), rows)


def _identity(result: Result) -> str:
    rows = [("task", result.task.hash), ("run", result.run_hash)]
    if result.training:
        rows.append(("configuration", result.training.config_hash))
    if result.model.checkpoint:
        rows.append(("checkpoint", result.model.checkpoint.sha256))
    if result.evidence:
        rows.append(
            (f"evidence `{result.evidence.path or result.evidence.url}`", result.evidence.sha256)
        )
        rows += [
            (f"data: {key}", value) for key, value in result.evidence.dataset_fingerprint.items()
        ]
    shown = [(name, f"`{digest}`") for name, digest in rows if digest]
    return "## Identity\n\n" + grid(("of", "sha256 or count"), shown)


def _reproduce(result: Result) -> str:
    command = shlex.join(result.command)
    commit = result.environment.aal_bench.commit
    where = f"At commit `{commit}`, with" if commit else "With"
    return f"## Reproduce\n\n{where} the packages of `requirements.lock`:\n\n    {command}"


def _figures(figures: Iterable[str]) -> str:
    links = [f"![{path.rpartition('/')[2].partition('.')[0]}]({path})" for path in figures]
    return "## Figures\n\n" + "\n\n".join(links) if links else ""


def _implementation(stage: StageRecord) -> str:
    code = stage.implementation
    return " ".join(part for part in (code.package, code.version, code.commit) if part)


def _arithmetic(stage: StageRecord) -> str:
    extras = [name for name in ("tf32", "deterministic", "compiled") if getattr(stage, name)]
    return ", ".join([stage.dtype, stage.memory_format, *extras])


def _cell(value: object) -> str:
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value)
