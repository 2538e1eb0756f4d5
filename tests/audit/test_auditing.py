"""What `aal-bench audit` takes: files beside the audited one, options that fit, no junk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks.blackbox import transfer_weaker
from aal_bench.audit.table import QUICK
from aal_bench.auditing import Wanted, audit, names_of
from aal_bench.config import Normalisation
from aal_bench.data import digits
from aal_bench.data.sources import Pixels
from aal_bench.errors import UserError
from aal_bench.models import weights
from aal_bench.models.build import build
from tests.audit.conftest import MakeSubject
from tests.audit.models import some_digits, trained

TINY = QUICK._replace(
    images=60,
    steps=10,
    restarts=1,
    sweep_steps=2,
    large_steps=2,
    square_queries=5,
    random_points=2,
    random_images=5,
    offsets=2,
    readouts=2,
    control_images=100,
    grid=3,
)
NORMALISE = "0.3/0.4"


def network() -> nn.Module:
    torch.manual_seed(0)
    normalisation = Normalisation(mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
    return build("cnn4-32", 10, 16, normalisation).eval()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict that says nothing of itself."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network().state_dict(), path)
    return path


def wanted(target: Path, **fields: object) -> Wanted:
    return Wanted(target, TINY, **{"device": "cpu", **fields})  # pyright: ignore[reportArgumentType]


def of_bare(bare: Path, tmp_path: Path, **fields: object) -> Wanted:
    named = {"task": "digits", "model": "cnn4-32", "normalise": NORMALISE}
    return wanted(bare, out=tmp_path / "out", **named, **fields)


# ---- networks beside it ------------------------------------------------------------------------


def test_networks_of_one_name_are_told_apart_by_their_folders_and_then_by_numbers(tmp_path: Path):
    places = ["a/model.pt", "b/model.pt", "x/b/model.pt", "c/other.pt"]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    found = names_of(tuple(tmp_path / place for place in places))
    assert found == ["a-model", "b-model-1", "b-model-2", "other"]


def test_a_surrogate_given_twice_is_refused(bare: Path):
    with pytest.raises(UserError, match="given twice"):
        names_of((bare, bare.parent / "." / bare.name))


def test_two_surrogates_of_one_name_are_both_tried(subject: MakeSubject):
    class Blank(nn.Module):
        """Answers anything alike: nothing of it transfers."""

        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :10]

    class Standing(nn.Module):
        """Has no useful gradient, but answers like the trained network."""

        def __init__(self) -> None:
            super().__init__()
            self.base = trained()

        def forward(self, x: Tensor) -> Tensor:
            return self.base((15 * x).round() / 15)

    counts = []
    for twins in ((Blank(), trained()), (trained(), Blank())):
        made = subject(
            Standing(),
            *some_digits(60),
            eps="48/255",
            surrogates=tuple(("twin", each.eval()) for each in twins),
        )
        counts.append(transfer_weaker(Bank(made, QUICK._replace(steps=10, restarts=1))).value)
    assert counts[0] == counts[1]
    assert counts[0] > 0.05


def test_bare_weights_beside_the_audited_ones_are_taken_for_the_same_network(
    bare: Path, tmp_path: Path
):
    other = tmp_path / "other.pt"
    torch.save(network().state_dict(), other)
    found = audit(of_bare(bare, tmp_path, surrogates=(other,), baseline=other)).audit
    told = {check.number: check for check in found.checks}
    # The baseline is the network itself, and fed as it is.
    assert told[20].verdict == "pass"
    assert told[20].measured["error"] == told[20].measured["baseline"]


def test_bare_weights_of_another_network_are_refused_with_what_they_were_taken_for(
    bare: Path, tmp_path: Path
):
    other = tmp_path / "other.pt"
    torch.save(trained().state_dict(), other)
    with pytest.raises(UserError, match=r"--undefended .*other.pt: .* taken for 'cnn4-32'") as told:
        audit(of_bare(bare, tmp_path, undefended=other))
    assert "--model" not in str(told.value)


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"out": Path("elsewhere")}, {"classes": "a,b"}])
def test_options_that_a_run_does_not_heed_are_refused(tmp_path: Path, fields: dict[str, object]):
    with pytest.raises(UserError, match="omit") as told:
        audit(wanted(tmp_path, **fields))
    assert f"--{next(iter(fields))}" in str(told.value)


def test_a_folder_that_is_no_run_names_the_mend(tmp_path: Path):
    with pytest.raises(UserError, match=r"name the folder that holds run\.json"):
        audit(wanted(tmp_path))


@pytest.mark.parametrize("junk", [b"junk", b"e", b"\x00" * 40, b"x = 1\n" * 99])
def test_junk_is_called_no_checkpoint(tmp_path: Path, junk: bytes):
    path = tmp_path / "model.pt"
    path.write_bytes(junk)
    with pytest.raises(UserError, match="not a checkpoint") as told:
        weights.read(path)
    assert not any(part.strip(" ()").isdigit() for part in str(told.value).split(":"))


# ---- what was typed is known -------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, fitted without attack; a state dict."""
    train = digits.read(16).train
    assert isinstance(train, Pixels)
    x, y = torch.from_numpy(train.images).float() / 255, torch.from_numpy(train.labels)
    model = network().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for rows in torch.arange(len(y)).repeat(4).split(64):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    path = tmp_path_factory.mktemp("fitted") / "model.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("method", "words"), [("standard", "trained without attack"), (None, "nothing is claimed")]
)
def test_a_method_that_was_typed_is_known_to_have_trained_the_file(
    fitted: Path, tmp_path: Path, method: str | None, words: str
):
    settings = ("threat.eps=16/255", "attack.step=4/255")
    found = audit(of_bare(fitted, tmp_path, method=method, settings=settings)).audit
    (check,) = [each for each in found.checks if each.number == 21]
    assert (check.verdict, check.severity) == ("fail", "warning")
    assert words in check.sentence
