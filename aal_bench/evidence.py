"""The per-sample table of a run: what every number is recomputed from.

One row per test image; of a few-shot run, one per episode and query image. A verdict is *true =
still correct*; a row is robust where all of its verdicts are true, never by the minimum of
averages. A row without a verdict is an error and never robust. numpy only: whoever checks a
submission needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aal_bench import npz
from aal_bench.errors import UserError
from aal_bench.files import replacing

if TYPE_CHECKING:
    from aal_bench.config import Family

FORMATS: dict[Family, str] = {
    "classification": "aal-bench classification evidence 1",
    "fewshot": "aal-bench fewshot evidence 1",
}
"""Task family -> format and version, as a file of it states them."""
NOT_MEASURED = -1
"""`clean_pred` or `pred` of a row on which the model was not asked."""
STAGE = np.dtype(
    [
        ("recorded", np.bool_),  # the row is done
        ("attacked", np.bool_),  # false: it had fallen before, and counts as fallen here
        ("pred", np.int16),  # class predicted on x'
        ("ok", np.bool_),  # verdict: still correct
        ("norm", np.float32),  # |x' - x| in pixel units
        ("forwards", np.int32),  # passes spent on this row
        ("backwards", np.int32),
    ]
)
"""One row of a stage. Rows, not columns, lie together on disk: they compress a third better."""
NORM_DECIMALS = 7
"""Norms are kept to 1e-7, a tenth of the tolerance on eps; the noise below is none of evidence."""
_LARGEST = 1 << 28
"""Bytes beyond which a file is no evidence table: a million rows of 15 stages."""
STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")

Bools = NDArray[np.bool_]


class Evidence:
    """Columns `index` (int32), `label` and `clean_pred` (int16), and one `STAGE` block per stage.

    Rows are addressed by position 0..n-1; `index` is the position in the whole test split. A
    few-shot table has the column `episode` (int32) besides: its rows are the query images of
    episode 0, then those of episode 1, ...; `label` and predictions are classes 0..ways-1 of the
    episode.
    """

    def __init__(
        self, index: ArrayLike, labels: ArrayLike, episode: ArrayLike | None = None
    ) -> None:
        """Start an empty table.

        Args:
            index: (n,) positions in the test split, distinct (within an episode).
            labels: (n,) true classes.
            episode: (n,) 0, ..., 0, 1, ..., 1, ..., each as often; None: not few-shot.

        Raises:
            ValueError: lengths differ, an index occurs twice, episodes are out of order or of
                unequal size, or a value does not fit its column.
        """
        self.index = _whole(index, "i4", "index")
        self.label = _whole(labels, "i2", "label")
        self.episode = None if episode is None else _whole(episode, "i4", "episode")
        if self.index.ndim != 1 or self.index.shape != self.label.shape:
            raise ValueError(f"index {self.index.shape} and labels {self.label.shape} do not match")
        _distinct(self.index, self.episode)
        self.clean_pred = np.full(len(self.index), NOT_MEASURED, np.int16)
        self._blocks: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.index)

    @property
    def family(self) -> Family:
        """The task family whose units the rows are."""
        return "classification" if self.episode is None else "fewshot"

    @property
    def format(self) -> str:
        """Format and version of the file."""
        return FORMATS[self.family]

    @property
    def episodes(self) -> int:
        """How many episodes a few-shot table has; 0 for any other."""
        return 0 if self.episode is None else _count(self.episode)

    @property
    def stages(self) -> tuple[str, ...]:
        """The attack stages in the order in which they were begun; `clean` is not among them."""
        return tuple(self._blocks)

    def column(self, stage: str, name: str) -> NDArray[Any]:
        """A copy of one column (n,) of a stage; the names are those of `STAGE`."""
        if stage not in self._blocks:
            raise UserError(f"evidence has no stage '{stage}': {', '.join(self._blocks) or 'none'}")
        return self._blocks[stage][name].copy()

    def record(
        self,
        stage: str,
        rows: ArrayLike,
        *,
        pred: ArrayLike,
        ok: ArrayLike | None = None,
        norm: ArrayLike = 0.0,
        forwards: ArrayLike = 0,
        backwards: ArrayLike = 0,
    ) -> None:
        """Record a batch of attacked rows; scalars serve every row of the batch.

        Args:
            stage: its name; ``"clean"`` records `clean_pred` and uses nothing but `pred`.
            rows: (b,) positions, none recorded before.
            pred: (b,) class predicted on x' (on x for ``"clean"``).
            ok: (b,) verdict; None: ``pred == label``.
            norm: (b,) |x' - x| in pixel units.
            forwards: (b,) forward passes spent on the row.
            backwards: (b,) backward passes spent on the row.

        Raises:
            ValueError: a row twice, a verdict of "still correct" against its own prediction, a
                norm that is not a finite number, or a value that does not fit its column.
        """
        where = self._fresh(stage, rows)
        predicted = np.broadcast_to(_whole(pred, "i2", "pred"), where.shape)
        if stage == "clean":
            self.clean_pred[where] = predicted
            return
        batch = np.zeros(len(where), STAGE)
        batch["recorded"] = batch["attacked"] = True
        batch["pred"] = predicted
        batch["ok"] = predicted == self.label[where] if ok is None else np.asarray(ok, bool)
        batch["norm"] = np.round(np.asarray(norm, np.float64), NORM_DECIMALS)
        batch["forwards"] = _whole(forwards, "i4", "forwards")
        batch["backwards"] = _whole(backwards, "i4", "backwards")
        _consistent(stage, batch, self.label[where])
        self._block(stage)[where] = batch

    def skip(self, stage: str, rows: ArrayLike) -> None:
        """Record rows that need no attack because they have fallen already: not robust here.

        Raises:
            ValueError: a row twice, or one that still stands: it is correct on the clean image
                and in every stage that has a verdict on it.
        """
        where = self._fresh(stage, rows)
        standing = self.clean_pred[where] == self.label[where]
        for block in self._blocks.values():
            standing &= block["ok"][where] | ~block["recorded"][where]
        if standing.any():
            raise ValueError(f"stage '{stage}': a row that still stands cannot be skipped")
        self._block(stage)["recorded"][where] = True

    def done(self, stage: str) -> Bools:
        """Which rows (n,) of `stage` (or ``"clean"``) are recorded; all false before it began."""
        if stage == "clean":
            return self.clean_pred != NOT_MEASURED
        if stage not in self._blocks:
            return np.zeros(len(self), np.bool_)
        return self._blocks[stage]["recorded"].copy()

    def clean_correct(self) -> Bools:
        """Rows (n,) classified correctly without attack.

        Raises:
            UserError: clean predictions are missing.
        """
        self._need_all("clean")
        return self.clean_pred == self.label

    def robust(self, stages: Iterable[str] | None = None) -> Bools:
        """Rows (n,) correct on the clean image and in every one of `stages` (None: all).

        Raises:
            UserError: a row of one of the stages is missing.
        """
        standing = self.clean_correct()
        for stage in self.stages if stages is None else stages:
            if stage != "clean":
                self._need_all(stage)
                standing = standing & self._blocks[stage]["ok"]
        return standing

    def hits(self, correct: Bools) -> NDArray[np.int64]:
        """How many queries of each episode are `correct` (n,): int64 (E,).

        Raises:
            ValueError: the table has no episodes.
        """
        if not self.episodes:
            raise ValueError("evidence without episodes has no accuracy per episode")
        return np.asarray(correct, np.bool_).reshape(self.episodes, -1).sum(1, dtype=np.int64)

    def per_episode(self, correct: Bools) -> NDArray[np.float64]:
        """Accuracy of each episode, float64 (E,) in [0, 1], where `correct` (n,) says which rows.

        Raises:
            ValueError: the table has no episodes.
        """
        hits = self.hits(correct)
        return hits / (len(self) // len(hits))

    def columns(self) -> list[str]:
        """Names of the stored columns, as a submission lists them."""
        return columns(self.family, self.stages)

    def save(self, path: Path) -> None:
        """Write the table as a compressed npz, whole or not at all; equal tables, equal bytes."""
        arrays: dict[str, NDArray[Any]] = {}
        if self.episode is not None:
            arrays["episode"] = self.episode
        arrays |= {"index": self.index, "label": self.label, "clean_pred": self.clean_pred}
        arrays |= {f"stage/{name}": block for name, block in self._blocks.items()}
        with replacing(path) as handle:
            np.savez_compressed(handle, allow_pickle=False, format=np.array(self.format), **arrays)

    @classmethod
    def load(cls, path: Path, largest: int = _LARGEST) -> Evidence:
        """Read a table without unpickling anything.

        Args:
            path: of the file.
            largest: most bytes of the file, packed and unpacked.

        Raises:
            UserError: no such file, a damaged one, or one that contradicts itself.
        """
        arrays = npz.read(path, largest, "evidence table")
        try:
            return cls._from_arrays(arrays)
        except (ValueError, UserError) as error:
            raise UserError(f"{path}: not a readable evidence table ({error})") from None

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Evidence:
        written = arrays.pop("format", None)
        known = (
            [] if written is None else [f for f in FORMATS if np.array_equal(written, FORMATS[f])]
        )
        if not known:
            formats = " or ".join(map(repr, FORMATS.values()))
            raise ValueError(f"format is {str(written)[:60]!r}, not {formats}")
        index = npz.take(arrays, "index", np.int32, None)
        episode = None
        if known[0] == "fewshot":
            episode = npz.take(arrays, "episode", np.int32, len(index))
        table = cls(index, npz.take(arrays, "label", np.int16, len(index)), episode)
        table.clean_pred = npz.take(arrays, "clean_pred", np.int16, len(index))
        if table.clean_pred.min(initial=0) < NOT_MEASURED:
            raise ValueError("clean_pred must be >= 0")
        for name in list(arrays):
            prefix, _, stage = name.partition("/")
            if prefix != "stage" or stage == "clean":
                raise ValueError(f"{name!r} is no column")
            block = table._block(stage)
            block[:] = npz.take(arrays, name, STAGE, len(index))
            _consistent(stage, block, table.label)
        return table

    def _block(self, stage: str) -> NDArray[Any]:
        if stage not in self._blocks:
            if not STAGE_NAME.fullmatch(stage):
                raise UserError(f"a stage's name is up to 40 of a-z 0-9 . -, not {stage[:60]!r}")
            self._blocks[stage] = _empty(len(self))
        return self._blocks[stage]

    def _fresh(self, stage: str, rows: ArrayLike) -> NDArray[np.intp]:
        where = np.asarray(rows, np.intp).reshape(-1)
        if where.size and not 0 <= where.min() <= where.max() < len(self):
            raise ValueError(f"stage '{stage}': rows are positions 0..{len(self) - 1}")
        if len(np.unique(where)) != len(where) or self.done(stage)[where].any():
            raise ValueError(f"stage '{stage}': a row is recorded twice")
        return where

    def _need_all(self, stage: str) -> None:
        missing = int((~self.done(stage)).sum())
        if missing:
            raise UserError(
                f"evidence: stage '{stage}' lacks {missing} of {len(self)} rows; a missing row is"
                " not robust: finish the evaluation (--resume)"
            )


def start(index: ArrayLike, labels: ArrayLike, episode: ArrayLike | None = None) -> Evidence:
    """Begin an empty table; see `Evidence`."""
    return Evidence(index, labels, episode)


def columns(family: Family, stages: Iterable[str]) -> list[str]:
    """Names of the stored columns of a table of that family with these attack stages."""
    staged = [f"{stage}.{name}" for stage in stages for name in STAGE.names or ()]
    episode = ["episode"] if family == "fewshot" else []
    return [*episode, "index", "label", "clean_pred", *staged]


def same_samples(a: Evidence, b: Evidence) -> bool:
    """Whether the rows of both are about the same samples, in the same order."""
    if a.episode is None or b.episode is None:
        alike = a.episode is b.episode
    else:
        alike = np.array_equal(a.episode, b.episode)
    return alike and np.array_equal(a.index, b.index) and np.array_equal(a.label, b.label)


def merge(a: Evidence, b: Evidence) -> Evidence:
    """The AND of two runs on the same rows: robust only where both runs say so.

    A stage that only one run has is kept. Prediction and norm come from the run in which the row
    fell (from `a` where both agree); passes add up. A row counts as recorded where both runs
    recorded it.

    Raises:
        UserError: the tables are about different samples or labels.
    """
    if not same_samples(a, b):
        raise UserError("evidence of different samples or labels cannot be merged")
    merged = Evidence(a.index, a.label, a.episode)
    both = a.done("clean") & b.done("clean")
    worse = np.where(a.clean_pred != a.label, a.clean_pred, b.clean_pred)
    merged.clean_pred = np.where(both, worse, NOT_MEASURED).astype(np.int16)
    for stage in dict.fromkeys((*a.stages, *b.stages)):
        blocks = [table._blocks[stage] for table in (a, b) if stage in table._blocks]
        merged._blocks[stage] = _and(*blocks) if len(blocks) == 2 else blocks[0].copy()
    return merged


def _and(one: NDArray[Any], two: NDArray[Any]) -> NDArray[Any]:
    # The decisive run is the one in which the row fell under attack; a skipped row decides nothing.
    second = (one["ok"] & ~two["ok"] & two["attacked"]) | ~one["attacked"]
    block = np.where(second, two, one)
    block["ok"] = one["ok"] & two["ok"]
    block["attacked"] = one["attacked"] | two["attacked"]
    for passes in ("forwards", "backwards"):
        block[passes] = one[passes] + two[passes]
    both = one["recorded"] & two["recorded"]
    block["recorded"] = both
    return np.where(both, block, _empty(len(block)))


def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share k / n (Wilson 1927); z = 1.959964 is 95 %.

    Raises:
        ValueError: n < 1 or k outside 0..n.
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no share")
    p, zz = k / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * sqrt(p * (1 - p) / n + zz / (4 * n * n))
    # At the ends the bound is exactly 0 or 1; rounding must not miss the share.
    return (0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def _empty(n: int) -> NDArray[Any]:
    block = np.zeros(n, STAGE)
    block["pred"] = NOT_MEASURED
    return block


def _consistent(stage: str, block: NDArray[Any], label: NDArray[Any]) -> None:
    if (block["ok"] & ~(block["attacked"] & (block["pred"] == label))).any():
        raise ValueError(f"stage '{stage}': a row is called correct against its prediction")
    if (block["attacked"] & ~block["recorded"]).any():
        raise ValueError(f"stage '{stage}': a row is attacked but not recorded")
    if not (np.isfinite(block["norm"]) & (block["norm"] >= 0)).all():
        raise ValueError(f"stage '{stage}': norm must be finite and >= 0")
    for name in ("pred", "forwards", "backwards"):
        if block[name][block["attacked"]].min(initial=0) < 0:
            raise ValueError(f"stage '{stage}': {name} must be >= 0")
    idle = block[~block["attacked"]]  # a copy
    idle["recorded"] = False
    if (idle != _empty(len(idle))).any():
        raise ValueError(f"stage '{stage}': a row that was not attacked holds numbers")


def _count(episode: NDArray[Any]) -> int:
    return int(episode[-1]) + 1 if len(episode) else 0


def _distinct(index: NDArray[Any], episode: NDArray[Any] | None) -> None:
    """Every sample has exactly one row; every episode follows the one before and is as large."""
    if episode is None:
        if len(np.unique(index)) != len(index):
            raise ValueError("an index occurs twice: every sample has exactly one row")
        return
    if episode.shape != index.shape:
        raise ValueError(f"index {index.shape} and episode {episode.shape} do not match")
    if (np.diff(episode) < 0).any():
        raise ValueError("episode decreases: the rows of an episode lie together, in order")
    count = _count(episode)
    # Compared first: a stranger's last number may be two thousand million.
    size = len(episode) // count if 0 < count <= len(episode) else 0
    if not np.array_equal(episode, np.repeat(np.arange(count if size else 0), size)):
        raise ValueError("episodes are 0, 1, ... without a gap, each with as many rows")
    if len(np.unique(episode.astype(np.int64) << 32 | index)) != len(index):
        raise ValueError("an index occurs twice in one episode")


def _whole(values: ArrayLike, kind: str, name: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers, got {array.dtype}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name} must be >= 0")
    if array.size and array.max() > np.iinfo(kind).max:
        raise ValueError(f"{name} does not fit {np.dtype(kind)}")
    return array.astype(kind)
