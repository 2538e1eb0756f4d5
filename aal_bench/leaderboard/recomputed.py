"""Level 1: does every number follow from the evidence, on the images of the task? numpy only.

That the evidence is true, it cannot tell: a forger who invents a consistent table passes. Level 2
replays what fell, level 3 attacks again what stands.
"""

from __future__ import annotations

from collections.abc import Iterator

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard import episodes, rows
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.extend import protocol_stages
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.question import task_of
from aal_bench.leaderboard.rules import rule, same, shown
from aal_bench.leaderboard.untrusted import plain, unpacked
from aal_bench.metrics import METRICS
from aal_bench.record import Result

ATTESTED = (
    "reported",
    "command.*",
    "model.parameters",
    "model.macs",
    "model.checkpoint.bytes",
    "training.data.*.count",
    "training.wall_seconds",
    "training.gpu_count",
    "training.peak_memory_bytes",
    "training.passes.*",
    "evaluation.*.wall_seconds",
    "evaluation.*.max_violation.*",
    "environment.*",
    "flags.*",
    "verification.seed",
    "verification.history.*.level",
    "verification.history.*.autoattack_acc",
)
"""Numbers that no rule of levels 0 and 1 recomputes: the entry's word is all there is.

They are what was measured once (seconds, memory, passes of training), what only the weights or the
training images tell (level 2 has the weights), what others claimed, and what an entry was before.
Some are bounded all the same: images are as many as the steps' last batch allows (few-shot: steps
are a multiple of the epochs), a violation is within rounding of the rows' norms, the last level in
the history is the entry's. The seal catches a
careless edit of any of them. ``training.seeds`` follows from the command and the name that a run
gives itself, where the entry still states them; the recipe in ``training.config`` is held by its
hash alone, which a forger can renew with the seal. ``*`` stands for any text.
"""


def findings(entry: Entry) -> tuple[list[Finding], Evidence | None]:
    """Every rule of level 1 about one entry, and its table; level 0 holds.

    Returns:
        The findings, and the evidence where the file is the one that the record names.
    """
    record = entry.result
    task = task_of(record)
    assert task is not None
    assert record.evidence is not None
    file = rule(1, "evidence", _file(entry), f"sha256 {record.evidence.sha256[:8]}")
    if not file.ok:
        return [file], None
    try:
        table = entry.evidence()
    except UserError as error:
        return [rule(1, "evidence", [_without_path(error, entry)], "")], None
    found = rows.findings(record, task, table)
    if not found[0].ok:
        return [file, *found], table
    found += [
        rule(1, "stages", _stages(record, table), "counts and means follow from the rows"),
        rule(1, "metrics", _metrics(record, table), _headline(record)),
        rule(1, "adversarials", _adversarials(record, table), _stored(record)),
    ]
    return [file, *found], table


def _without_path(error: UserError, entry: Entry) -> str:
    return str(error).removeprefix(f"{entry.evidence_path}: ")


def _file(entry: Entry) -> Iterator[str]:
    record, path = entry.result, entry.evidence_path
    assert record.evidence is not None
    try:
        plain(path, "its evidence", unpacked(record.task.rows, len(record.evaluation)))
        found = sha256_file(path)
    except UserError as error:
        yield _without_path(error, entry)
        return
    except OSError as error:
        yield f"{path.name}: {error.strerror}"
        return
    if found != record.evidence.sha256:
        yield f"sha256 is {found[:8]}, the record states {record.evidence.sha256[:8]}"


def _stages(record: Result, table: Evidence) -> Iterator[str]:
    correct = int(table.clean_correct().sum())
    for stage in record.evaluation:
        wanted: dict[str, float] = {"n_in": len(table), "n_out": correct}
        wanted |= {"forwards": 1.0, "backwards": 0.0}
        if stage.attack != "clean":
            attacked = table.column(stage.attack, "attacked")
            count = int(attacked.sum())
            wanted = {"n_in": count, "n_out": int(table.column(stage.attack, "ok").sum())}
            for way in ("forwards", "backwards"):
                spent = table.column(stage.attack, way)[attacked]
                wanted[way] = float(spent.mean()) if count else 0.0
        for name, value in wanted.items():
            if getattr(stage, name) != value:
                stated = getattr(stage, name)
                yield f"{stage.attack}.{name} is {shown(stated)}, the evidence says {value}"


def _metrics(record: Result, table: Evidence) -> Iterator[str]:
    stages = [stage.attack for stage in record.evaluation]
    found = METRICS[record.task.family](table, stages)
    assert record.metrics is not None
    tree = record.metrics.model_dump(mode="json")
    stated = {name: value for name, value in tree.items() if value is not None}
    alike = same if record.task.episodes is None else episodes.same_means
    for name, value in found.items():
        if not alike(stated.get(name), value):
            yield _different(name, stated.get(name), value)
    for name in stated.keys() - found.keys():
        yield f"metrics.{name} does not follow from the stages"


def _different(name: str, stated: object, found: object) -> str:
    a = stated.get("value") if isinstance(stated, dict) else None
    b = found.get("value") if isinstance(found, dict) else None
    if a == b:
        return f"metrics.{name} is not what the evidence says"
    return f"metrics.{name} is {shown(a)}, the evidence says {shown(b)}"


def _headline(record: Result) -> str:
    if record.autoattack_acc is None:
        return f"all recomputed; clean {record.clean_acc} %"
    return f"all recomputed; AutoAttack {record.autoattack_acc} %"


def _fallen(record: Result, table: Evidence) -> int:
    own = [stage.attack for stage in protocol_stages(record.evaluation)]
    return int((table.clean_correct() & ~table.robust(own)).sum())


def _adversarials(record: Result, table: Evidence) -> Iterator[str]:
    """One adversarial is stored for each image that fell to one of the run's own stages."""
    fallen = _fallen(record, table)
    if record.adversarials is not None and record.adversarials.count != fallen:
        yield f"{record.adversarials.count} are stored, {fallen} images fell"


def _stored(record: Result) -> str:
    stored = record.adversarials
    return "none stored" if stored is None else f"{stored.count}, one for each image that fell"
