"""Reading arrays from an npz that anybody may have sent: exactly what numpy writes, or one line.

``np.load`` allocates what a header claims before it looks how much there is, and takes names that
occur twice, other compressions and a directory of any length. Here nothing is allocated before the
sizes agree, and nothing is unpickled.
"""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from aal_bench.errors import UserError

MEMBERS = 100
"""Most arrays of a file."""
_NAME = re.compile(r"[A-Za-z0-9_./-]{1,96}\.npy", re.ASCII)
_HEADER = 1024
"""Most characters of a member's header; numpy's are a hundred to a few hundred."""
_DIRECTORY = 1 << 14
"""Most bytes of the archive's directory: a hundred members take half of it."""
_END = struct.Struct("<4s4H2LH")
"""The record at the end: signature, two disks, two counts, the directory's size and offset."""
_ZIP64 = b"PK\x06\x07"
"""A locator before that record would point to another directory, for archives beyond 2 GiB."""
_LOCATOR = 20
_DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # encrypted; its subclass NotImplementedError: of a later version of zip
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def read(path: Path, largest: int, what: str = "npz file") -> dict[str, NDArray[Any]]:
    """Read every array of an npz.

    Refused are objects, big-endian and nested types, booleans beyond true and false, text that is
    no Unicode, a size that is not its header's, more than `MEMBERS` members, a name twice, anything
    before or behind the archive, encryption, unusual compression, and archives beyond 2 GiB.

    Args:
        path: a plain file; who must not follow a symbolic link looks before.
        largest: most bytes of the file and, together, of its members unpacked; about twice as
            much memory is used at most.
        what: what it should be, for the message.

    Returns:
        Writable arrays by name, in the file's order.

    Raises:
        UserError: no such file, or not such a file; one line.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such {what}")
        with path.open("rb") as handle:
            members = _check_end(handle, largest)
            with zipfile.ZipFile(handle) as archive:
                entries = archive.infolist()
                _check_entries(entries, members, largest)
                return {entry.filename[:-4]: _member(archive, entry) for entry in entries}
    except _DAMAGE as error:
        # numpy's and zipfile's messages quote what they met, which may have any length.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: not a readable {what} ({reason})") from None


def take(
    arrays: dict[str, NDArray[Any]], name: str, kind: DTypeLike, *shape: int | None
) -> NDArray[Any]:
    """Remove and return one of the arrays that were read.

    Args:
        arrays: what `read` returned.
        name: of the array.
        kind: the dtype that it must have.
        shape: the shape that it must have; None: any size along that axis.

    Raises:
        ValueError: it is missing, or of another dtype or shape.
    """
    array = arrays.pop(name, None)
    if array is None:
        raise ValueError(f"{name} is missing")
    if array.dtype != kind:
        raise ValueError(f"{name} is {array.dtype}, not {np.dtype(kind)}")
    fits = len(shape) == array.ndim and all(
        n in (None, m) for n, m in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {array.shape}, not {shape}")
    return array


def _check_end(handle: IO[bytes], largest: int) -> int:
    """The number of members, once the directory is known to be small and where it says."""
    size = handle.seek(0, 2)
    if size > largest:
        raise ValueError(f"{size:,} bytes; at most {largest:,}")
    tail = min(size, _END.size + _LOCATOR)
    handle.seek(size - tail)
    content = handle.read(tail)
    if tail < _END.size:
        raise ValueError("no zip archive")
    signature, *disks, here, total, length, offset, comment = _END.unpack(content[-_END.size :])
    if signature != b"PK\x05\x06" or comment:
        raise ValueError("no zip archive, or something behind its end")
    if disks != [0, 0] or here != total or total > MEMBERS or length > _DIRECTORY:
        raise ValueError(f"{total} members, directory of {length:,} bytes: too many, or in parts")
    if offset + length + _END.size != size or content[:4] == _ZIP64:
        raise ValueError("its directory is not where it says")
    return total


def _check_entries(entries: list[zipfile.ZipInfo], members: int, largest: int) -> None:
    if len(entries) != members:
        raise ValueError(f"{len(entries)} members where {members} are counted")
    names = [entry.orig_filename for entry in entries]
    for entry, name in zip(entries, names, strict=True):
        # The name as it stands there: zipfile cuts its own copy at a zero byte.
        if not _NAME.fullmatch(name):
            raise ValueError(f"a member called {name[:60]!r}")
        if names.count(name) > 1:
            raise ValueError(f"{name} occurs twice")
        if entry.extra or entry.comment:  # they may swallow the entry that follows
            raise ValueError(f"{name}: more than a name in the directory")
        if entry.flag_bits or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name}: encrypted, streamed or compressed in an unusual way")
    size = sum(entry.file_size for entry in entries)
    if size > largest:
        raise ValueError(f"{size:,} bytes unpacked; at most {largest:,}")


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(entry) as stream:
        shape, fortran, dtype = _header(stream)
        size, rest = prod(shape) * dtype.itemsize, entry.file_size - stream.tell()
        if size != rest:
            raise ValueError(f"{entry.filename}: {shape} of {dtype} are not {rest:,} bytes")
        content = bytearray(stream.read(rest))
        if len(content) != rest:
            raise ValueError(f"{entry.filename}: cut off")
        if not rest:
            stream.read()  # the checksum is compared where the stream ends
    array = np.ndarray(shape, dtype, content, order="F" if fortran else "C")
    parts: list[Any] = [array[name] for name in dtype.names or ()] or [array]
    for part in parts:
        _check_values(part, entry.filename)
    return array


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("a member of an unusual npy version")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # old spellings of types and headers
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, _HEADER)
    except Exception as error:  # numpy evaluates the text: whatever that raises, it is no header
        raise ValueError(f"a member without a header of numpy's: {error}") from None
    if len(shape) > 8 or any(type(n) is not int or not 0 <= n < 1 << 40 for n in shape):
        raise ValueError(f"an array of shape {shape}")
    plain = [part for part, *_ in dtype.fields.values()] if dtype.fields else [dtype]
    if any(part.kind not in "biufU" or not part.isnative or not part.itemsize for part in plain):
        raise ValueError(f"an array of {dtype}")
    return shape, fortran, dtype


def _check_values(array: NDArray[Any], name: str) -> None:
    if array.dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        # Any byte may stand there, and numpy counts a byte of 2 as two truths.
        raise ValueError(f"{name} holds more than true and false")
    if array.dtype.kind == "U":
        codes = np.frombuffer(array.tobytes(), np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes <= 0xDFFF))).any():
            raise ValueError(f"{name} holds text that is no Unicode")
