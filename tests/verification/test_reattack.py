"""Level 3: survivors attacked again. What stands stands, and what only claims to falls."""

import json

import numpy as np
import pytest
import torch

from aal_bench.attacks import parameters
from aal_bench.config import read_task
from aal_bench.errors import UserError
from aal_bench.leaderboard.audit_sample import p_value, sample, seed_of
from aal_bench.registry import task_file
from aal_bench.verification import reattack, stored

PUBLIC = "commit 4f2a"


def attacked_again(case, size=None, public=PUBLIC):
    return reattack.reattack(case.entry, case.rebuilt(), public, size)


def test_an_audit_of_some_survivors(submitted):
    """Of an honest entry: those that the seed chose, in index order, at the attacks' full cost."""
    case = submitted()
    found = attacked_again(case, size=3)
    seed = seed_of(case.entry.result.run_hash, PUBLIC)
    survivors = np.flatnonzero(case.entry.evidence().robust())
    chosen = survivors[sample(len(survivors), 3, seed)]
    assert (found.seed, found.standing) == (seed, len(survivors))
    np.testing.assert_array_equal(found.attacked.rows, chosen)
    assert found.fallen.tolist() == []
    assert found.x.shape == (0, 3, 16, 16)
    np.testing.assert_array_equal(found.attacked.pred, case.entry.evidence().label[chosen])
    threat, step = read_task(task_file("sixty")).threat, read_task(task_file("sixty")).attack.step
    budgets = [
        parameters.budget(stage, parameters.parameters(stage, "Linf", threat.eps, step, 10))
        for stage in ("apgd-ce", "apgd-t")
    ]
    assert set(found.attacked.forwards) == {sum(budget.forwards for budget in budgets)}
    assert set(found.attacked.backwards) == {sum(budget.backwards for budget in budgets)}
    assert (found.attacked.norm <= float(threat.eps) + 1e-6).all()
    assert found.attacked.seed == seed % 2**32
    assert found.attacked.params == {
        "eps": "2/255",
        "stages": ["apgd-ce", "apgd-t"],
        "public_string": PUBLIC,
        "seed": seed,
        "sampled": 3,
        "of": len(survivors),
    }
    seeded, rule, power, few = reattack.findings(found, PUBLIC)
    needed = f"a record of level 3 needs {len(survivors)}: of this one, at most level 2"
    assert few.text == f"3 attacked; {needed}"
    assert few.ok
    assert seeded.text == f"seed {seed} of public string '{PUBLIC}'"
    assert rule.ok
    assert rule.text.startswith(f"0 of 3 fell (of {len(survivors)} survivors), p = 1;")
    assert power.text.startswith("fires from 1 of 3 on")
    assert {finding.level for finding in (seeded, rule, power, few)} == {3}


def test_survivors_that_are_none(liar, tmp_path):
    """Three images that fall are claimed as robust; all claimed survivors are attacked again."""
    case, rows, _ = liar(3)
    found = attacked_again(case)
    np.testing.assert_array_equal(found.fallen, rows)
    rebuilt = case.rebuilt()
    with torch.no_grad():
        pred = rebuilt.model(torch.from_numpy(found.x)).argmax(1).numpy()
    assert (pred != rebuilt.evidence.label[rows]).all()
    original = rebuilt.adapter.test.pixels(torch.from_numpy(rows)).numpy() / 255
    assert np.abs(found.x - original).max() <= 2 / 255 + 1e-6
    at = np.searchsorted(found.attacked.rows, rows)
    np.testing.assert_array_equal(found.attacked.pred[at], pred)
    _, rule, _ = reattack.findings(found, PUBLIC)
    assert not rule.ok
    count = len(found.attacked.rows)
    assert rule.text.startswith(f"3 of {count} fell (of {count} survivors), p = ")
    assert f"p = {p_value(3, count):.2g}" in rule.text
    kept = tmp_path / "fell.npz"
    assert "3 images" in reattack.keep(found, rebuilt, kept).text
    np.testing.assert_array_equal(stored.read(kept, rebuilt.evidence, 16).rows, rows)


def test_what_this_machine_gets_wrong_unattacked_has_fallen_to_itself(submitted):
    """An entry that says of a misclassified image that it is correct, and robust."""
    case = submitted()
    rebuilt = case.rebuilt()
    wrong = int(np.flatnonzero(~rebuilt.evidence.clean_correct())[0])
    audit = reattack.Audit(rebuilt, np.array([wrong]), rebuilt.run.task)
    audit.run("clean")
    original = rebuilt.adapter.test.pixels(torch.tensor([wrong])).numpy() / np.float32(255)
    np.testing.assert_array_equal(audit.images[0], original[0])
    assert audit.columns([])["pred"].tolist() == [rebuilt.evidence.clean_pred[wrong]]


def test_an_entry_without_survivors(submitted):
    """Nothing is claimed, and nothing attacked."""
    case = submitted()
    evidence = case.entry.evidence()
    stood = np.flatnonzero(evidence.robust())
    evidence.record("extra", stood, pred=(evidence.label[stood] + 1) % 10)
    evidence.skip("extra", np.flatnonzero(~evidence.robust(["apgd-ce", "apgd-t", "fgsm"])))
    rebuilt = case.rebuilt()._replace(evidence=evidence)
    found = reattack.reattack(case.entry, rebuilt, PUBLIC, None)
    assert (found.standing, len(found.attacked.rows)) == (0, 0)
    (finding,) = reattack.findings(found, PUBLIC)
    assert finding.ok
    assert finding.text == "the entry claims none: nothing to attack"


def test_a_protocol_without_autoattack(submitted):
    case = submitted()
    tree = case.entry.result
    stages = [stage for stage in tree.evaluation if not stage.attack.startswith("apgd")]
    entry = case.entry._replace(result=tree.model_copy(update={"evaluation": stages}))
    with pytest.raises(UserError, match="has none of AutoAttack's attacks"):
        reattack.reattack(entry, case.rebuilt(), PUBLIC, None)


def test_the_seed_is_the_runs_whatever_is_recorded_or_corrected_later(submitted):
    """So that anybody can recompute the seed that an entry records."""
    case = submitted()
    before = attacked_again(case, size=0).seed
    case.path.write_text(json.dumps(json.loads(case.path.read_text()), indent=7) + " \n")
    assert attacked_again(case, size=0).seed == before
    case.edit(venue="ICML 2020")
    assert attacked_again(case, size=0).seed == before
    case.edit(run_hash="0" * 64)
    assert attacked_again(case, size=0).seed != before
