"""An installed robustbench whose files are another package's is found and the mend named."""

import base64
import hashlib
import re

import pytest

from aal_bench.errors import UserError
from aal_bench.toolkits import robustbench_overwritten

EVAL = "def benchmark(): ...\n"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A robustbench 9.9 of two files with the record that an installer writes."""
    (tmp_path / "robustbench").mkdir()
    (tmp_path / "robustbench" / "eval.py").write_text(EVAL)
    (tmp_path / "robustbench" / "notes.txt").write_text("not code")
    digest = base64.urlsafe_b64encode(hashlib.sha256(EVAL.encode()).digest()).decode().rstrip("=")
    meta = tmp_path / "robustbench-9.9.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: robustbench\nVersion: 9.9\n")
    (meta / "RECORD").write_text(
        f"robustbench/eval.py,sha256={digest},{len(EVAL)}\n"
        "robustbench/notes.txt,sha256=AAAA,8\n"
        "robustbench-9.9.dist-info/RECORD,,\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "robustbench"


def test_untouched_installation_is_left_alone(installed):
    assert not robustbench_overwritten.fault_present()
    robustbench_overwritten.repair()


@pytest.mark.parametrize("damage", ["overwrite", "remove"])
def test_other_packages_file_is_found(installed, damage):
    if damage == "overwrite":
        (installed / "eval.py").write_text("# def benchmark(): ...\n")
    else:
        (installed / "eval.py").unlink()
    assert robustbench_overwritten.fault_present()
    assert robustbench_overwritten.overwritten_files() == ["robustbench/eval.py"]
    command = re.escape("Mend: pip install --force-reinstall --no-deps robustbench==9.9")
    with pytest.raises(UserError, match=command):
        robustbench_overwritten.repair()


def test_installation_without_hashes_is_not_judged(installed):
    """Conda and distributions write no hashes; absent proof is no accusation."""
    (installed.parent / "robustbench-9.9.dist-info" / "RECORD").write_text(
        "robustbench/eval.py,,\n"
    )
    (installed / "eval.py").write_text("# anything\n")
    assert not robustbench_overwritten.fault_present()
