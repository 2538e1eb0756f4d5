"""robustbench's `generate_leaderboard` renders records, though its template is not shipped."""

import json
import re

import jinja2
import pytest

from aal_bench.toolkits import robustbench_autoattack, robustbench_import, robustbench_template

RECORD = {
    "link": "https://arxiv.org/abs/2003.09461",
    "name": "Interpretable < Robust",
    "authors": "A. Author",
    "additional_data": True,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "ECCV 2020",
    "architecture": "ResNet-50",
    "eps": "8/255",
    "clean_acc": "91.08",
    "reported": "73.27",
    "autoattack_acc": "52.91",
}
BETTER = RECORD | {
    "name": "Second by AutoAttack, first by the best known attack",
    "link": "javascript:alert(1)",
    "additional_data": False,
    "autoattack_acc": "52.00",
    "external": "53.50",
    "footnote": "evaluated by others",
}


@pytest.fixture
def template(monkeypatch):
    """`robustbench.leaderboard.template` as it is installed."""
    robustbench_autoattack.repair()
    robustbench_import.repair()
    import robustbench.leaderboard.template

    monkeypatch.setattr(robustbench.leaderboard.template, "PackageLoader", jinja2.PackageLoader)
    return robustbench.leaderboard.template


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    for name, record in (("one", RECORD), ("two", BETTER)):
        (folder / f"{name}.json").write_text(json.dumps(record))
    return str(tmp_path)


def test_leaderboard_is_rendered_in_robustbenchs_order(template, records):
    assert robustbench_template.fault_present()
    with pytest.raises(jinja2.TemplateNotFound):
        template.generate_leaderboard("cifar10", "Linf", records)

    robustbench_template.repair()
    robustbench_template.repair()
    assert not robustbench_template.fault_present()
    html = template.generate_leaderboard("cifar10", "Linf", records)

    header, first, second = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    assert header.count("<th>") == first.count("<td>") == 7
    # ordered by, and showing, the best known attack's figure
    assert "<td>53.50 %</td>" in first
    assert "evaluated by others" in first
    assert "<td>no</td>" in first
    assert "<td>52.91 %</td>" in second
    assert "<td>91.08 %</td>" in second
    assert "<td>yes</td>" in second
    # what a record says is text, not markup
    assert "Interpretable &lt; Robust" in second
    assert '<a href="https://arxiv.org/abs/2003.09461">' in second
    assert "javascript" not in html


def test_upstreams_template_wins_once_it_is_shipped(template, records, tmp_path, monkeypatch):
    import robustbench

    shipped = tmp_path / "shipped"
    (shipped / "leaderboard").mkdir(parents=True)
    (shipped / "leaderboard" / "leaderboard.html.j2").write_text("upstream's own")
    spec = robustbench.__spec__
    assert spec is not None
    places = [*(spec.submodule_search_locations or ()), str(shipped)]
    monkeypatch.setattr(spec, "submodule_search_locations", places)

    assert not robustbench_template.fault_present()
    robustbench_template.repair()
    assert template.PackageLoader is jinja2.PackageLoader
