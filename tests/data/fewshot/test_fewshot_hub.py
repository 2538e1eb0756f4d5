"""Few-shot sets from the Hugging Face Hub: what is asked for, kept, unpacked and said."""

import io
import shutil
import tarfile
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from aal_bench.data.fewshot import load
from aal_bench.errors import UserError


class Hub:
    """Stands in for `snapshot_download`: copies `served` into the cache when it is asked online."""

    def __init__(self, served: Path) -> None:
        self.served, self.online, self.asked = served, True, []

    def __call__(
        self, *, repo_id, repo_type, allow_patterns, cache_dir, local_files_only=False
    ) -> str:
        assert repo_type == "dataset"
        home = Path(cache_dir) / repo_id
        if not home.is_dir():
            if local_files_only:
                raise LocalEntryNotFoundError("not here")
            if not self.online:
                raise ConnectionError("Name or service not known\nmore of it")
            self.asked.append((repo_id, allow_patterns))
            shutil.copytree(self.served, home)
        return str(home)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Hub:
    (tmp_path / "served").mkdir()
    hub = Hub(tmp_path / "served")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


@pytest.fixture
def named(task):
    def make(name: str):
        made = task()
        return made.model_copy(update={"data": made.data.model_copy(update={"name": name})})

    return make


@pytest.mark.parametrize(
    ("name", "repository"),
    [("mini-imagenet", "GATE-engine/mini_imagenet"), ("cifar-fs", "GATE-engine/cifarfs")],
)
def test_shards_are_downloaded_once(
    tmp_path: Path, toy, named, hub, write_three_shards, cache: Path, name: str, repository: str
) -> None:
    write_three_shards(hub.served / "data", toy)
    data = load(named(name), None)
    assert hub.asked == [(repository, ["*.parquet"])]
    assert (cache / "hub" / repository).is_dir()
    assert data.class_names == toy.names
    assert data.source == "parquet"
    assert not data.official
    hub.online = False
    assert load(named(name), None).fingerprint == data.fingerprint
    assert load(named(name), hub.served).fingerprint == data.fingerprint


def test_an_archive_is_downloaded_and_unpacked_once(
    tmp_path: Path, toy, named, hub, write_class_folders, cache: Path
) -> None:
    source = write_class_folders(tmp_path / "source" / "tiered_imagenet", toy)
    with tarfile.open(hub.served / "tiered_imagenet.tar", "w") as archive:
        archive.add(source, source.name)
    data = load(named("tiered-imagenet"), None)
    assert hub.asked == [("pancake/few_shot_datasets", ["tiered_imagenet.tar"])]
    assert data.class_names == toy.names
    assert data.source == "folders"
    # The archive is dropped; what was unpacked is the set from now on.
    assert not list((cache / "hub").rglob("*.tar"))
    hub.online = False
    assert load(named("tiered-imagenet"), None).fingerprint == data.fingerprint


def test_an_archive_is_unpacked_whole_and_inside_its_folder_or_not_at_all(
    tmp_path: Path, named, hub, cache: Path
) -> None:
    with tarfile.open(hub.served / "tiered_imagenet.tar", "w") as archive:
        for name in ("train/ape/0.png", "../../escaped"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UserError, match="outside the destination"):
        load(named("tiered-imagenet"), None)
    assert not list(tmp_path.rglob("escaped"))
    assert [path.name for path in cache.iterdir()] == ["hub"]


def test_pickles_in_an_archive_are_not_opened(tmp_path: Path, named, hub) -> None:
    (tmp_path / "train_labels.pkl").write_bytes(b"cos\nsystem\n")
    with tarfile.open(hub.served / "tiered_imagenet.tar", "w") as archive:
        archive.add(tmp_path / "train_labels.pkl", "train_labels.pkl")
    with pytest.raises(UserError, match="Pickles are never opened"):
        load(named("tiered-imagenet"), None)


def test_without_a_network_the_error_says_what_was_tried_and_what_to_put_where(
    named, hub, cache: Path
) -> None:
    hub.online = False
    for name, what in (
        ("mini-imagenet", "the Hugging Face dataset GATE-engine/mini_imagenet"),
        (
            "tiered-imagenet",
            "tiered_imagenet.tar of the Hugging Face dataset pancake/few_shot_datasets",
        ),
    ):
        with pytest.raises(UserError) as error:
            load(named(name), None)
        assert str(error.value) == (
            f"{name} could not be downloaded from {what} to {cache} (Name or service not known).\n"
            "Give --data-dir with {train,validation,test}-*.parquet or {train,val,test}/<class>/."
        )
