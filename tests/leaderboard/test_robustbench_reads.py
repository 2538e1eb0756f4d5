"""RobustBench's own `generate_leaderboard` reads a folder of ours as it lies there."""

from __future__ import annotations

import re

import pytest

from aal_bench.toolkits import robustbench_autoattack, robustbench_template


@pytest.fixture
def generate_leaderboard():
    robustbench_autoattack.repair()
    robustbench_template.repair()
    from robustbench.leaderboard.template import generate_leaderboard

    return generate_leaderboard


def test_our_folder_is_read_unchanged_and_sorted_by_the_best_known_attack(
    make_entry, boards_root, generate_leaderboard
):
    """Of 40 images 30, 28 and 20 stand; a challenge brings the first down to 24."""
    make_entry("Best2026First", falls=range(10), challenged=range(16), task="cifar10")
    make_entry("Good2026Second", falls=range(12), task="cifar10", footnote="<b>a</b> note")
    make_entry("Weak2026Third", falls=range(20), task="cifar10")

    html = generate_leaderboard("cifar10", "Linf", models_folder=str(boards_root))

    _, *rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    shown = [re.findall(r"<td>(\d+\.\d+) %</td>", row)[1] for row in rows]
    assert shown == ["70.00", "60.00", "50.00"]
    assert "&lt;b&gt;a&lt;/b&gt; note" in rows[0]
