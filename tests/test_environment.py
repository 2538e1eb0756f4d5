"""What a record says of the machine is what the machine says of itself."""

import platform
import shutil
import subprocess
from importlib.metadata import version

import pytest
import torch

from aal_bench import environment
from aal_bench.hashing import sha256_file
from aal_bench.paths import PACKAGE
from aal_bench.schema import Environment

ROOT = PACKAGE.parent


def test_the_block_is_complete_and_fits_the_schema():
    found = environment.describe()
    block = Environment.model_validate(found)
    assert block.python == platform.python_version()
    assert block.torch == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["packages"]["torchattacks"] == version("torchattacks")
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
    lock = ROOT / "requirements.lock"
    assert found["lock_sha256"] == (sha256_file(lock) if lock.is_file() else None)


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no checkout")
def test_the_commit_and_its_dirty_flag_are_gits():
    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        ).stdout.strip()

    state = environment.git_state()
    assert state["commit"] == (git("rev-parse", "HEAD") or None)
    assert state["dirty"] == bool(git("status", "--porcelain"))


@pytest.mark.parametrize(
    ("origin", "public"),
    [
        ("https://example.org/lab/aal-bench.git", "https://example.org/lab/aal-bench.git"),
        ("https://me:secret@example.org:8443/a.git?x=1", "https://example.org:8443/a.git"),
        ("ssh://git@example.org/lab/a.git", "ssh://example.org/lab/a.git"),
        ("file:///home/me/a", None),
        ("/home/me/a", None),
        ("git@example.org:lab/a.git", None),
        (None, None),
    ],
)
def test_an_origin_is_published_without_secrets_and_local_paths(origin, public):
    assert environment.public_url(origin) == public


def test_bf16_is_fast_only_where_the_processor_says_so():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            words = set(lines.read().split())
    except OSError:
        words = set()
    assert environment.has_fast_bf16("cpu") == bool({"avx512_bf16", "amx_bf16", "bf16"} & words)
    assert not environment.has_fast_bf16("mps")
    if not torch.cuda.is_available():
        assert not environment.has_fast_bf16("cuda")
