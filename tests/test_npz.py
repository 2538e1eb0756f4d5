"""Files that strangers made on purpose: each is refused in one line, before it costs memory."""

import io
import os
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from aal_bench import npz
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence

LARGEST = 1 << 20
ARRAYS = {
    "format": np.array("a table"),
    "index": np.arange(5, dtype=np.int32),
    "x": np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 3, 2),
    "stage/fgsm": np.array([(True, 3), (False, 4)], [("ok", "?"), ("pred", "<i2")]),
}
quick = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "file.npz"


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A member of an npz with that header, whatever it says."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def described(shape: str, descr: str = "'<i4'", data: bytes = b"") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", data)


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def refused(path: Path, message: str = "not a readable npz file", most: int = LARGEST) -> str:
    """Expect one line with that text, and at most 1 MB of memory spent on it; return the line."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as caught:
            npz.read(path, most)
        spent = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < len(str(path)) + 250
    assert spent < 1_000_000
    return line


class Central:
    """The parts of an archive's directory that a liar would change, by their offsets."""

    FLAGS, COMPRESSION, CRC, COMPRESSED, SIZE, COMMENT = 8, 10, 16, 20, 24, 32

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, bytearray(path.read_bytes())

    def put(self, offset: int, value: int, kind: str = "<L") -> None:
        struct.pack_into(kind, self.content, self.content.index(b"PK\x01\x02") + offset, value)
        self.path.write_bytes(self.content)


class TestWhatNumpyWritesIsRead:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_every_array_comes_back_in_order_and_writable(self, path, save):
        save(path, allow_pickle=False, **ARRAYS)
        read = npz.read(path, LARGEST)
        assert list(read) == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)
            assert read[name].flags.writeable

    @quick
    @given(
        nps.arrays(
            st.one_of(
                nps.boolean_dtypes(),
                nps.integer_dtypes(endianness="<"),
                nps.unsigned_integer_dtypes(endianness="<"),
                nps.floating_dtypes(endianness="<", sizes=(16, 32, 64)),
                nps.unicode_string_dtypes(endianness="<", max_len=5),
            ),
            nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        ),
        st.booleans(),
    )
    def test_any_plain_array(self, path, array, fortran):
        array = np.asfortranarray(array) if fortran else array
        np.savez(path, allow_pickle=False, a=array)
        with np.load(path, allow_pickle=False) as theirs:
            expected = theirs["a"]
        ours = npz.read(path, LARGEST)["a"]
        assert ours.dtype == expected.dtype
        assert ours.shape == expected.shape
        assert ours.tobytes() == expected.tobytes()

    def test_an_archive_without_members_is_empty(self, path):
        np.savez(path)
        assert npz.read(path, LARGEST) == {}


class TestSizes:
    @pytest.mark.parametrize(
        "shape",
        [
            "(1000000000000,)",
            "(4000000000, 4000000000)",
            "(4611686018427387904, 4)",  # 2**64 bytes are none in 64-bit arithmetic
            "(0, 4611686018427387904)",
            "(-1,)",
            "(-2, -2)",
            "(True,)",
            "(2.0,)",
            "(3,)",
            "(5,)",
            "(1,)*65",
            "(4, 1, 1, 1, 1, 1, 1, 1, 1)",
        ],
    )
    def test_a_shape_that_is_not_there_allocates_nothing(self, path, shape):
        pack(path, {"a.npy": described(shape, data=bytes(16))})
        refused(path)

    @pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_a_bomb_that_says_its_size(self, path, compression):
        data = bytes(20_000_000)
        pack(path, {"a.npy": described("(5000000,)", data=data)}, compression)
        refused(path, "at most 1,048,576")

    def test_many_small_bombs(self, path):
        data = bytes(30_000)
        member = described("(7500,)", data=data)
        pack(path, {f"{n}.npy": member for n in range(50)}, zipfile.ZIP_DEFLATED)
        refused(path, "bytes unpacked; at most 1,048,576")

    @pytest.mark.parametrize("claimed", [100, 128 + 400, 1_000_000])
    def test_a_bomb_that_lies_about_its_size(self, path, claimed):
        header = described("(5000000,)")
        pack(path, {"a.npy": header + bytes(20_000_000)}, zipfile.ZIP_DEFLATED)
        Central(path).put(Central.SIZE, claimed)
        refused(path)

    def test_a_bomb_whose_header_tells_the_same_lie_is_stopped_by_its_checksum(self, path):
        pack(path, {"a.npy": described("(100,)") + bytes(20_000_000)}, zipfile.ZIP_DEFLATED)
        Central(path).put(Central.SIZE, len(described("(100,)")) + 400)
        refused(path, "Bad CRC")

    @pytest.mark.parametrize(
        ("field", "claimed"),
        [
            *((Central.SIZE, size) for size in (0, 10, 150, 927, 929, 10_000, 0xFFFFFFFF)),
            *((Central.COMPRESSED, size) for size in (0, 10, 150, 927)),
        ],
    )
    def test_sizes_in_the_directory_that_are_not_those_of_the_member(self, path, field, claimed):
        np.savez(path, a=np.arange(100))
        assert zipfile.ZipFile(path).getinfo("a.npy").file_size == 928
        Central(path).put(field, claimed)
        refused(path)

    def test_a_file_larger_than_allowed_is_not_even_opened_as_an_archive(self, path):
        with path.open("wb") as handle:
            handle.truncate(1 << 40)  # sparse
        refused(path, "1,099,511,627,776 bytes; at most")


class TestMembers:
    @pytest.mark.parametrize("count", [101, 5000])
    def test_too_many(self, path, count):
        pack(path, {f"{n}.npy": b"" for n in range(count)})
        refused(path, "too many")

    def test_too_many_that_are_not_counted(self, path):
        pack(path, {f"{n}.npy": b"" for n in range(150)})
        content = bytearray(path.read_bytes())
        struct.pack_into("<2H", content, len(content) - 14, 3, 3)
        path.write_bytes(content)
        refused(path, "150 members where 3 are counted")

    def test_a_name_that_occurs_twice(self, path):
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
            warnings.simplefilter("ignore")
            for value in (0, 1):
                archive.writestr("a.npy", described("(1,)", data=bytes([value, 0, 0, 0])))
        refused(path, r"a\.npy occurs twice")

    @pytest.mark.parametrize(
        "name",
        ["a.txt", "a", ".npy", "a.npy\n", "a b.npy", "é.npy", "x" * 200 + ".npy", "\x1b[2J.npy"],
    )
    def test_other_names(self, path, name):
        pack(path, {name: described("(1,)", data=bytes(4))})
        refused(path, "a member called")

    def test_a_name_that_ends_at_a_zero_byte(self, path):
        pack(path, {"a.npyX.npy": described("(1,)", data=bytes(4))})
        path.write_bytes(path.read_bytes().replace(b"a.npyX.npy", b"a.npy\x00.npy"))
        refused(path, "a member called")

    def test_an_entry_whose_comment_swallows_the_next_one(self, path):
        """No checksum covers the directory: its own count, and a rule against comments, must."""
        np.savez(path, a=np.arange(3), b=np.arange(3))
        Central(path).put(Central.COMMENT, 46 + len("b.npy"), "<H")
        refused(path, "1 members where 2 are counted")
        content = bytearray(path.read_bytes())
        struct.pack_into("<2H", content, len(content) - 14, 1, 1)
        path.write_bytes(content)
        refused(path, "more than a name")

    @pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_compressions(self, path, compression):
        pack(path, {"a.npy": described("(1,)", data=bytes(4))}, compression)
        refused(path, "compressed in an unusual way")

    @pytest.mark.parametrize("bit", [0, 3, 5, 6, 11, 13])
    def test_encryption_and_other_flags(self, path, bit):
        np.savez(path, a=np.arange(3))
        Central(path).put(Central.FLAGS, 1 << bit, "<H")
        refused(path, "encrypted, streamed")

    def test_a_wrong_checksum(self, path):
        np.savez(path, a=np.arange(3))
        Central(path).put(Central.CRC, 1)
        refused(path, "Bad CRC")

    def test_a_wrong_checksum_of_an_empty_array(self, path):
        np.savez(path, a=np.arange(0))
        Central(path).put(Central.CRC, 1)
        refused(path, "Bad CRC")


class TestTheEnd:
    def test_something_behind_it(self, path):
        np.savez(path, a=np.arange(3))
        path.write_bytes(path.read_bytes() + b"more")
        refused(path, "no zip archive, or something behind")

    def test_something_before_it(self, path):
        np.savez(path, a=np.arange(3))
        path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
        refused(path, "not where it says")

    def test_a_comment(self, path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.comment = b"hello"
        refused(path, "something behind its end")

    def test_a_second_directory_by_way_of_zip64(self, path):
        """The plain record is correct; the one that zipfile prefers names another directory."""
        np.savez(path, a=np.arange(3))
        content = path.read_bytes()
        *_, length, offset, _ = struct.unpack("<4s4H2LH", content[-22:])
        record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, length, offset)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + length, 1)
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, length + 76, offset, 0)
        path.write_bytes(content[:-22] + record + locator + end)
        with np.load(path) as theirs:
            assert theirs["a"].tolist() == [0, 1, 2]
        refused(path, "not where it says")

    @pytest.mark.parametrize("content", [b"", b"PK", b"<!DOCTYPE html><html></html>", bytes(100)])
    def test_no_archive_at_all(self, path, content):
        path.write_bytes(content)
        refused(path, "no zip archive")

    def test_what_is_no_file(self, path):
        refused(path, "no such npz file")
        path.mkdir()
        refused(path, "no such npz file")
        os.mkfifo(path.with_name("pipe"))  # opening it would wait for ever
        refused(path.with_name("pipe"), "no such npz file")


class TestTypes:
    def test_objects_are_never_unpickled(self, path, tmp_path):
        class Harm:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "harm"),)

        np.savez(path, allow_pickle=True, a=np.array([Harm()], dtype=object))
        refused(path, "an array of object")
        assert not (tmp_path / "harm").exists()

    @pytest.mark.parametrize(
        ("descr", "data"),
        [
            ("'|O'", 8),
            ("'>i4'", 4),
            ("'<c8'", 8),
            ("'<M8[s]'", 8),
            ("'|V4'", 4),
            ("'|S4'", 4),
            ("'<U0'", 0),
            ("'<U2000000000'", 4),
            ("[('a', '<i4', (2,))]", 8),
            ("[('a', [('b', '<i4')])]", 4),
            ("[('a', '|O')]", 8),
            ("('<i4', (1000000000,))", 4),
            ("'(1000000000,)i4'", 4),
            ("()", 4),
            ("[]", 0),
            ("[()]", 4),
            ("None", 4),
            ("'a4'", 4),  # numpy warns of this spelling
            ("[('a', '<i4'), ('a', '<i4')]", 8),
        ],
    )
    def test_other_types(self, path, descr, data):
        pack(path, {"a.npy": described("(1,)", descr, bytes(data))})
        refused(path)

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "[]",
            "{}",
            "__import__('os').system('true')",
            "{'descr': '<i4', 'fortran_order': False, 'shape': (1L,), }",  # Python 2
            "{'descr': '<i4', 'fortran_order': 0, 'shape': (1,), }",
            "{'descr': '<i4', 'fortran_order': False, 'shape': (1,), 'more': 1}",
            "(" * 900,
            "-" * 900 + "1",
            " " * 60_000,
            "{'descr': '<i4', 'fortran_order': False, 'shape': (1,), }" + " " * 2000,
            "{'descr': \n'''",
        ],
    )
    def test_other_headers(self, path, header):
        pack(path, {"a.npy": npy(header, bytes(4))})
        refused(path)

    @pytest.mark.parametrize("version", [b"\x00\x00", b"\x02\x00", b"\x03\x00", b"\xff\xff"])
    def test_other_versions(self, path, version):
        pack(path, {"a.npy": npy("{}", version=version)})
        refused(path, "npy version")

    @pytest.mark.parametrize(
        "content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"GIF89a.."]
    )
    def test_no_header(self, path, content):
        pack(path, {"a.npy": content})
        refused(path)

    @pytest.mark.parametrize("descr", ["'|b1'", "[('ok', '|b1')]"])
    def test_a_boolean_of_two(self, path, descr):
        pack(path, {"a.npy": described("(2,)", descr, b"\x01\x02")})
        refused(path, "more than true and false")

    @pytest.mark.parametrize("code", [0xD800, 0xDFFF, 0x110000, 0xFFFFFFFF])
    def test_text_that_is_none(self, path, code):
        pack(path, {"a.npy": described("()", "'<U1'", struct.pack("<L", code))})
        refused(path, "no Unicode")


class TestTake:
    def test_removes_what_fits(self):
        arrays = dict(ARRAYS)
        assert npz.take(arrays, "index", np.int32, None) is ARRAYS["index"]
        assert npz.take(arrays, "x", np.float32, 2, 3, None) is ARRAYS["x"]
        assert list(arrays) == ["format", "stage/fgsm"]

    @pytest.mark.parametrize(
        ("name", "kind", "shape", "message"),
        [
            ("none", "i4", (5,), "none is missing"),
            ("index", "i8", (5,), "index is int32, not int64"),
            ("index", "i4", (4,), r"shape \(5,\), not \(4,\)"),
            ("index", "i4", (), r"shape \(5,\), not \(\)"),
            ("x", "f4", (2, 3), r"shape \(2, 3, 2\), not \(2, 3\)"),
        ],
    )
    def test_refuses_what_does_not(self, name, kind, shape, message):
        with pytest.raises(ValueError, match=message):
            npz.take(dict(ARRAYS), name, kind, *shape)


SMALL = {name: ARRAYS[name] for name in ("index", "stage/fgsm")}
SAVES = (np.savez, np.savez_compressed)


def saved(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, allow_pickle=False, **SMALL)
    return buffer.getvalue()


def read_or_none(path: Path, content: bytes) -> dict[str, np.ndarray] | None:
    """What is read of these bytes; None where a UserError refuses them."""
    path.write_bytes(content)
    try:
        return npz.read(path, LARGEST)
    except UserError:
        return None


def unchanged_or_refused(path: Path, content: bytes) -> None:
    read = read_or_none(path, content)
    if read is not None:
        assert read.keys() == SMALL.keys()
        for name, array in SMALL.items():
            assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
            assert read[name].tobytes() == array.tobytes()


class TestDamage:
    @pytest.mark.parametrize(("save", "mask"), [(np.savez, 0x01), (np.savez_compressed, 0xFF)])
    def test_every_single_byte(self, path, save, mask):
        content = saved(save)
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= mask
            unchanged_or_refused(path, bytes(damaged))

    def test_every_truncation(self, path):
        content = saved(np.savez_compressed)
        assert read_or_none(path, content) is not None
        assert all(read_or_none(path, content[:size]) is None for size in range(len(content)))

    @quick
    @given(st.sampled_from(SAVES), st.data())
    def test_several_bytes_and_pieces_moved(self, path, save, data):
        content = bytearray(saved(save))
        where, size = st.integers(0, len(content) - 1), st.integers(0, 200)
        for position in data.draw(st.lists(where, max_size=6)):
            content[position] = data.draw(st.integers(0, 255))
        source, target = data.draw(where), data.draw(where)
        content[target : target + data.draw(size)] = content[source : source + data.draw(size)]
        unchanged_or_refused(path, bytes(content))

    @quick
    @given(st.text(st.characters(max_codepoint=255), max_size=60), st.integers(0, 80))
    @example("'shape': (9,), }", 35)
    @example("'shape': (1, 3), }", 35)
    def test_any_header_under_a_correct_checksum(self, path, text, at):
        header = "{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }"
        pack(path, {"a.npy": npy(header[:at] + text + header[at + len(text) :], bytes(12))})
        read = read_or_none(path, path.read_bytes())
        if read is not None:
            assert read["a"].nbytes == 12
            assert not read["a"].any()

    def test_an_evidence_table_of_a_damaged_directory_is_itself_or_refused(self, path):
        made = Evidence(np.arange(4), [0, 1, 2, 3])
        made.record("clean", np.arange(4), pred=[0, 1, 2, 0])
        made.record("fgsm", [0, 1, 2], pred=[0, 1, 7], norm=0.03, forwards=2, backwards=1)
        made.skip("fgsm", [3])
        made.save(path)
        content = path.read_bytes()
        for position in range(content.index(b"PK\x01\x02"), len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 0x10
            path.write_bytes(damaged)
            with suppress(UserError):
                Evidence.load(path).save(path)
                assert path.read_bytes() == content
