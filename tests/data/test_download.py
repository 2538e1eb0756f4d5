"""CIFAR without ``--data-dir``: torchvision's download, from a server on this machine."""

import functools
import hashlib
import http.server
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from torchvision.datasets import CIFAR10

from aal_bench.data.load import load
from aal_bench.errors import UserError

ARCHIVE = "cifar-10-python.tar.gz"


@pytest.fixture
def served(tmp_path: Path, small, write_pickles, monkeypatch) -> Iterator[Path]:
    """Serve the small set's archive over HTTP where torchvision looks for it."""
    folder = tmp_path / "served"
    folder.mkdir()
    root = write_pickles(tmp_path / "source", small)
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        archive.add(root / CIFAR10.base_folder, CIFAR10.base_folder)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{ARCHIVE}")
        md5 = hashlib.md5((folder / ARCHIVE).read_bytes()).hexdigest()
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5)
        yield folder
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args) -> None:
        pass


def test_the_set_is_downloaded_once_verified_and_official(
    served: Path, make_task, tmp_path: Path
) -> None:
    data = load(make_task(), None)
    assert data.official
    assert data.source == "torchvision"
    assert data.fingerprint == load(make_task(), tmp_path / "source").fingerprint
    (served / ARCHIVE).unlink()
    assert load(make_task(), None).fingerprint == data.fingerprint


def test_a_partial_download_is_no_set_and_is_mended_by_the_next_attempt(
    served: Path, make_task
) -> None:
    whole = (served / ARCHIVE).read_bytes()
    (served / ARCHIVE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="could not be downloaded"):
        load(make_task(), None)
    (served / ARCHIVE).write_bytes(whole)
    assert len(load(make_task(), None).test) == 9


def test_an_interrupted_unpacking_is_no_set_and_is_mended_by_the_next_attempt(
    served: Path, make_task, cache: Path
) -> None:
    load(make_task(), None)
    victim = cache / "torchvision" / CIFAR10.base_folder / "data_batch_3"
    victim.write_bytes(victim.read_bytes()[:100])
    assert len(load(make_task(), None).train) == 15


def test_without_a_network_the_error_says_what_was_tried_and_what_to_put_where(
    make_task, monkeypatch, cache: Path
) -> None:
    url = f"http://127.0.0.1:9/{ARCHIVE}"  # the discard port: nobody listens
    monkeypatch.setattr(CIFAR10, "url", url)
    with pytest.raises(UserError) as error:
        load(make_task(), None)
    first, second = str(error.value).splitlines()
    assert first.startswith(f"cifar10 could not be downloaded from {url} to {cache}/torchvision (")
    assert second == (
        f"Unpack {ARCHIVE} there, or give --data-dir with cifar-10-batches-py/, "
        "{train,test}-*.parquet or {train,test}/<class>/."
    )
