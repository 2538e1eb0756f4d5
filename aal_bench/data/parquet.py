"""Reader of Hugging Face Parquet shards: ``<split>-*.parquet``, an image struct and a label.

The struct's ``path`` is never read: in many sets it spells the class.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from aal_bench.data.sources import Found, Source, stamp_file
from aal_bench.errors import UserError
from aal_bench.paths import cache_folder

LABEL_COLUMNS = ("label", "fine_label")


def shards(folder: Path, split: str) -> list[Path]:
    """Return the files of `split` in order; an empty list where there is none.

    Raises:
        UserError: names like ``train-00000-of-00005`` promise more shards than there are.
    """
    files = sorted(folder.glob(f"{split}-*.parquet"))
    promised = {m[1] for f in files if (m := re.search(r"-of-(\d+)\.parquet$", f.name))}
    if len(promised) > 1:
        raise UserError(f"{folder}: {split}-*.parquet mixes shards of {len(promised)} versions")
    if promised and len(files) != int(next(iter(promised))):
        raise UserError(
            f"{folder}: {len(files)} of {int(next(iter(promised)))} {split}-*.parquet shards are "
            "there. Complete the download."
        )
    return files


def read(folder: Path, test_split: str, *, in_memory: bool) -> Found:
    """Read the shards of ``train`` and of `test_split`.

    Args:
        folder: where the shards lie.
        test_split: the name that the test shards begin with.
        in_memory: hold the encoded images in memory; else map them from an Arrow copy that the
            `datasets` library keeps in the cache (Parquet has no random access to a row).

    Raises:
        UserError: a shard is unreadable or its columns are others.
    """
    kind = InMemoryRows if in_memory else MappedRows
    train, names = read_split(shards(folder, "train"), kind)
    test, test_names = read_split(shards(folder, test_split), kind)
    if names != test_names:
        raise UserError(f"{folder}: train and {test_split} shards name other classes")
    if names is None:
        names = tuple(str(label) for label in range(int(train.labels.max(initial=0)) + 1))
    return Found(train, test, names, "parquet")


def read_split(files: list[Path], kind: type[_Rows]) -> tuple[Source, tuple[str, ...] | None]:
    """Read shards of one split; the class names where the schema's metadata has them.

    Args:
        files: the shards in order, at least one.
        kind: `InMemoryRows`, `MappedRows` or `StreamedRows`.

    Raises:
        UserError: a shard is unreadable, or its columns are others.
    """
    columns, names = _columns(files[0])
    for file in files[1:]:
        if _columns(file) != (columns, names):
            raise UserError(f"{file}: other columns or class names than {files[0].name}")
    labels = [_read_columns(file, [columns[1]]).column(0).to_numpy() for file in files]
    for file, part in zip(files, labels, strict=True):
        if not np.issubdtype(part.dtype, np.integer):
            raise UserError(f"{file}: column {columns[1]} must hold integers without gaps")
    return kind(files, columns[0], labels), names


def _columns(file: Path) -> tuple[tuple[str, str], tuple[str, ...] | None]:
    """Return (image column, label column) and the class names of the schema, if it has any."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from None
    images = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    labels = [name for name in LABEL_COLUMNS if name in schema.names]
    if len(images) != 1 or not labels:
        raise UserError(
            f"{file}: needs one image column (a struct of bytes and path) and a column "
            f"{' or '.join(LABEL_COLUMNS)}. Found: {', '.join(schema.names)}."
        )
    return (images[0], labels[0]), _class_names(schema.metadata or {}, labels[0])


def _class_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names)


def _read_columns(file: Path, columns: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return UserError(f"{file}: not a readable Parquet file ({reason}). Download it again.")


class _Rows:
    """What all ways of holding the rows share: where a row lies, and the files' stamp."""

    def __init__(self, files: list[Path], column: str, labels: list[np.ndarray]) -> None:
        self.files, self.column = files, column
        self.labels = np.concatenate(labels).astype(np.int64)
        self.ends = np.cumsum([len(part) for part in labels])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> bytes:
        raise NotImplementedError

    def where(self, i: int) -> str:
        shard, row = self.place(i)
        return f"{self.files[shard]} row {row}"

    def place(self, i: int) -> tuple[int, int]:
        """Return number of the shard and row in it of image `i`."""
        shard = int(np.searchsorted(self.ends, i, side="right"))
        return shard, i - (int(self.ends[shard - 1]) if shard else 0)

    def stamp(self) -> list[list[str]]:
        return [stamp_file(file) for file in self.files]


class InMemoryRows(_Rows):
    """Encoded images in memory: for sets that are decoded at once."""

    def __init__(self, files: list[Path], column: str, labels: list[np.ndarray]) -> None:
        import pyarrow as pa

        super().__init__(files, column, labels)
        encoded = [_encoded(file, column) for file in files]
        self.encoded = pa.chunked_array(
            [chunk for part in encoded for chunk in part.chunks], type=encoded[0].type
        )

    def read(self, i: int) -> bytes:
        return _given(self.encoded[i].as_py())


class StreamedRows(_Rows):
    """Encoded images of the two shards last opened: for sets that are decoded once, in order.

    Safe for threads; not picklable, as loader workers would need.
    """

    def __init__(self, files: list[Path], column: str, labels: list[np.ndarray]) -> None:
        super().__init__(files, column, labels)
        self._held: dict[int, Any] = {}
        self._lock = Lock()

    def read(self, i: int) -> bytes:
        shard, row = self.place(i)
        with self._lock:  # decoding threads meet at the end of a shard
            if shard not in self._held:
                if len(self._held) == 2:
                    self._held.pop(next(iter(self._held)))
                self._held[shard] = _encoded(self.files[shard], self.column)
            held = self._held[shard]
        return _given(held[row].as_py())


class MappedRows(_Rows):
    """Encoded images mapped from an Arrow copy in the cache: for sets larger than memory."""

    def __init__(self, files: list[Path], column: str, labels: list[np.ndarray]) -> None:
        from datasets import Dataset, Image
        from datasets.exceptions import DatasetGenerationError

        super().__init__(files, column, labels)
        try:
            rows = Dataset.from_parquet(
                [str(file) for file in files],
                columns=[column],
                cache_dir=str(cache_folder() / "datasets"),
            )
        except DatasetGenerationError as error:
            raise _unreadable(files[0], error.__cause__ or error) from None
        if isinstance(rows.features[column], Image):
            rows = rows.cast_column(column, Image(decode=False))
        self.rows = rows

    def read(self, i: int) -> bytes:
        return _given(self.rows[i][self.column]["bytes"])


def _encoded(file: Path, column: str) -> Any:
    import pyarrow.compute as pc

    field = pc.struct_field  # pyright: ignore[reportAttributeAccessIssue]: made at import
    return field(_read_columns(file, [column]).column(0), "bytes")


def _given(encoded: bytes | None) -> bytes:
    if encoded is None:
        raise OSError("the row holds no bytes")
    return encoded
