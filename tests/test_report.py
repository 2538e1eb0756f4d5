"""What a person reads: numbers beside claims and baselines; a trial can never pass for more."""

import re
from io import StringIO

import pytest
from rich.console import Console

from aal_bench import report
from aal_bench.comparison import lines, title
from aal_bench.schema import Failure, Flag


def shown(table: object, width: int = 200) -> str:
    page = StringIO()
    Console(width=width, file=page, color_system=None).print(table)
    return page.getvalue()


def row(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.lstrip().startswith(start)]
    return re.split(r"\s{2,}", line.strip())


class TestTable:
    def test_rows_are_the_protocols_with_autoattack_as_one(self, make_result):
        made = make_result()
        text = shown(report.table(made.result, made.task))
        for label in ("clean", "fgsm  24/255", "pgd-10  24/255", "autoattack", "all of them"):
            assert f"\n{label}" in text
        assert "apgd-ce" not in text

    def test_numbers_are_the_measured_ones(self, make_result):
        made = make_result()
        measure = made.result.metrics.stages["pgd-10"]
        low, high = measure.ci95
        text = shown(report.table(made.result, made.task))
        assert row(text, "pgd-10")[2:4] == [
            f"{100 * measure.value:.1f} %",
            f"[{100 * low:.1f}, {100 * high:.1f}]",
        ]

    def test_without_claims_and_neighbours_it_says_why(self, make_result):
        made = make_result()
        text = shown(report.table(made.result, made.task))
        assert row(text, "clean")[-2:] == ["-", "-"]
        assert "no reference: RobustBench has no data set for task digits" in text

    def test_the_papers_claim_stands_in_its_row(self, make_result):
        made = make_result("cifar10", "aal-fgsm", "resnet18")
        text = shown(report.table(made.result, made.task))
        assert [row(text, stage)[-2] for stage in ("clean", "fgsm", "pgd-10", "autoattack")] == [
            "95.40 %",
            "83.85 %",
            "42.89 %",
            "-",
        ]
        assert "paper: AAL, Table 2: AAL+FGSM on ResNet-18" in text

    def test_a_claim_for_another_network_is_marked(self, make_result):
        made = make_result("cifar10", "aal-pgd", "resnet18")
        text = shown(report.table(made.result, made.task))
        assert row(text, "pgd-10")[-2] == "60.88 %*"
        assert "* paper: AAL, Table 2: AAL+PGD on WRN-34-10" in text

    def test_the_reference_is_the_nearest_row_under_the_same_threat(self, make_result):
        made = make_result("cifar10", "pgd", "wrn-34-10")
        clean, *_, autoattack, _ = lines(made.result, made.task)
        text = shown(report.table(made.result, made.task))
        assert "reference: RobustBench" in text
        assert "WideResNet-34-10" in text
        assert clean.reference is not None
        assert autoattack.reference is not None
        assert row(text, "autoattack")[-1] == f"{100 * autoattack.reference:.2f} %"
        assert row(text, "fgsm")[-1] == "-", "RobustBench publishes no FGSM"

    def test_protocols_without_all_of_autoattack_show_its_parts(self, make_result):
        made = make_result(protocol="fast")
        text = shown(report.table(made.result, made.task))
        assert "\napgd-ce  24/255" in text
        assert "\nautoattack" not in text

    @pytest.mark.parametrize("width", [200, 80, 40])
    def test_smoke_is_in_the_title_and_in_every_row_however_narrow(self, make_result, width):
        made = make_result(protocol="smoke", smoke=True, limit=32)
        text = shown(report.table(made.result, made.task), width)
        assert text.lstrip().startswith("SMOKE")
        percentages = [line for line in text.splitlines() if " %" in line and "95 %" not in line]
        assert width < 80 or len(percentages) == 4
        assert all(line.lstrip().startswith("SMOKE") for line in percentages)

    def test_a_limit_is_in_the_title_and_in_every_row(self, make_result):
        made = make_result(limit=100)
        text = shown(report.table(made.result, made.task))
        assert text.lstrip().startswith("LIMITED to 100 of 360")
        assert len(re.findall(r"^LIMITED \S", text, re.MULTILINE)) >= 6

    def test_a_class_gated_network_is_not_taken_at_its_word(self, make_result):
        made = make_result()
        said = "overstate such a network"
        assert said not in report.markdown(made.result, made.task)
        for name, warned in (("cas", True), ("again-awp", True), ("aal-pgd", False)):
            model = made.result.model.model_copy(update={"surgery": {"name": name, "options": {}}})
            text = report.markdown(made.result.model_copy(update={"model": model}), made.task)
            assert (said in text) is warned

    def test_a_real_run_carries_no_mark(self, make_result):
        made = make_result()
        text = shown(report.table(made.result, made.task)) + report.markdown(made.result, made.task)
        assert "SMOKE" not in text
        assert "LIMITED" not in text

    def test_a_failed_run_says_why_and_shows_no_number(self, make_result):
        failure = Failure(stage="train", type="RunFailed", message="loss is NaN at step 12")
        made = make_result(status="error", error=failure, metrics=None, evidence=None)
        text = shown(report.table(made.result, made.task))
        assert "ERROR" in text
        assert "loss is NaN at step 12" in text
        assert not re.search(r"\d %", text.replace("95 %", ""))

    def test_an_unreliable_entry_says_so(self, make_result):
        flag = Flag(code="mask-honesty", severity="unreliable", value=0.06, threshold=0.02)
        made = make_result(flags=[flag])
        assert "UNRELIABLE" in shown(report.table(made.result, made.task))
        assert "| mask-honesty | unreliable | 0.06 | 0.02 |" in report.markdown(
            made.result, made.task
        )

    def test_markup_in_names_is_printed_as_it_is(self, make_result):
        made = make_result(method="mine.py:[red]Method[/red]")
        assert "mine.py:[red]Method[/red]" in shown(report.table(made.result, made.task))


class TestMarkdown:
    def test_a_claim_for_another_network_is_marked(self, make_result):
        made = make_result("cifar10", "aal-pgd", "resnet18")
        text = report.markdown(made.result, made.task)
        assert "60.88 %\\* |" in text
        assert "\n- \\* paper: AAL, Table 2: AAL+PGD on WRN-34-10" in text

    def test_measured_claimed_and_published_stand_side_by_side(self, make_result):
        made = make_result("cifar10", "aal-fgsm", "resnet18")
        text = report.markdown(made.result, made.task)
        value = made.result.metrics.clean.value
        low, high = made.result.metrics.clean.ci95
        gap = f"{100 * (value - 0.954):+.2f}"
        published = lines(made.result, made.task)[0].reference
        assert published is not None
        assert (
            f"| clean | {100 * value:.2f} % | [{100 * low:.2f}, {100 * high:.2f}] | 360 | 95.40 % |"
            f" {gap} | {100 * published:.2f} % |"
        ) in text
        assert "## What papers claim" in text
        assert text.count("https://arxiv.org/abs/") >= 2, "three neighbours, linked"

    def test_every_stage_is_listed_with_all_its_parameters(self, make_result):
        made = make_result()
        text = report.markdown(made.result, made.task)
        for stage in made.result.evaluation:
            (line,) = [
                x for x in text.splitlines() if x.startswith(f"| {stage.attack} | ") and "→" in x
            ]
            assert f"{stage.n_in} → {stage.n_out}" in line
            for key, value in stage.params.items():
                assert f"{key} {value}" in line

    def test_hashes_environment_command_and_figures_are_there(self, make_result):
        made = make_result()
        text = report.markdown(made.result, made.task, ["figures/training.png"])
        hashes = (made.result.run_hash, made.result.task.hash, made.run.hash(), "b" * 64, "c" * 64)
        assert all(f"`{digest}`" in text for digest in hashes)
        assert "commit c0ffee" in text
        assert "| torchattacks | 3.5.1 |" in text
        assert "    aal-bench run digits --method aal-pgd" in text
        assert "![training](figures/training.png)" in text

    def test_tables_are_well_formed(self, make_result):
        made = make_result("imagenet100", "aal-fgsm", "resnet50", command=["aal-bench", "a|b c"])
        text = report.markdown(made.result, made.task)
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1, block

    def test_marks_stand_at_the_top_and_in_every_row(self, make_result):
        made = make_result(protocol="smoke", smoke=True, limit=32)
        text = report.markdown(made.result, made.task)
        assert text.startswith("# SMOKE · LIMITED to 32 of 360 · digits")
        assert "not a result" in text
        results = text.split("## Result")[1].split("##")[0]
        numbers = [line for line in results.splitlines() if re.match(r"\|.*\d %", line)]
        rows = [line for line in numbers if "95 % interval" not in line]
        assert rows
        assert all(line.startswith("| **SMOKE**") for line in rows)

    def test_somebody_elses_checkpoint_has_no_training_and_no_claims(self, make_result):
        made = make_result("cifar10", training=None)
        text = report.markdown(made.result, made.task)
        assert "checkpoint" in text.splitlines()[0]
        assert "## What papers claim" not in text
        assert "Training:" not in text

    def test_a_failed_run_reports_its_error(self, make_result):
        failure = Failure(stage="pgd-10", type="RunFailed", message="the attack raised")
        made = make_result(
            status="error", error=failure, metrics=None, evidence=None, evaluation=[]
        )
        text = report.markdown(made.result, made.task)
        assert "> **error** in pgd-10: RunFailed: the attack raised" in text
        assert "Nothing was measured." in text


class TestFewShot:
    def test_the_heading_is_the_question_the_method_and_how_much_was_asked(self, make_episodes):
        made = make_episodes(method="aal-ier", count=2_000)
        told = "mini-imagenet 5-way 1-shot · aal-ier · ResNet-12 · seed 0"
        assert title(made.result) == f"{told} · 2,000 episodes x 75 queries"

    def test_only_a_run_with_attacks_has_a_threat(self, make_episodes):
        made = make_episodes(protocol="robust-episodes")
        assert " 1-shot · Linf 8/255 · rfs " in title(made.result)

    def test_a_trial_says_so(self, make_episodes):
        made = make_episodes(limit=20)
        assert title(made.result).startswith("LIMITED to 20 of 600 · ")
        assert title(made.result).endswith("20 episodes x 75 queries")
        text = report.markdown(made.result, made.task)
        assert "**LIMITED to 20 of 600** episodes: not comparable" in text

    @pytest.mark.parametrize(
        ("task", "shots", "table", "claimed"),
        [
            ("mini-imagenet", 1, "Table 5", "68.45 %"),
            ("mini-imagenet", 5, "Table 5", "85.02 %"),
            ("tiered-imagenet", 1, "Table 6", "72.65 %"),
            ("tiered-imagenet", 5, "Table 6", "87.33 %"),
        ],
    )
    def test_the_papers_claim_stands_beside_clean_accuracy(
        self, make_episodes, task, shots, table, claimed
    ):
        made = make_episodes(task, method="aal-ier", shots=shots)
        text = shown(report.table(made.result, made.task))
        assert row(text, "clean")[-2:] == [claimed, "-"]
        assert f"paper: AAL, {table}: AAL on ResNet-12" in text
        assert "no reference: RobustBench has no few-shot" in text

    def test_a_control_has_no_claim(self, make_episodes):
        made = make_episodes(method="aal-ier", options={"control": "shuffled_mask"})
        text = shown(report.table(made.result, made.task))
        assert "aal-ier[shuffled_mask]" in text
        assert row(text, "clean")[-2:] == ["-", "-"]

    def test_other_ways_have_no_claim(self, make_episodes):
        made = make_episodes(method="aal-ier", ways=10)
        assert row(shown(report.table(made.result, made.task)), "clean")[-2:] == ["-", "-"]

    def test_the_report_counts_episodes_and_queries(self, make_episodes):
        made = make_episodes(protocol="robust-episodes")
        text = report.markdown(made.result, made.task)
        clean = next(line for line in text.splitlines() if line.startswith("| clean |"))
        sd = made.result.metrics.episodes.sd["clean"]
        assert "| sd over episodes | episodes |" in text
        assert f"| {100 * sd:.2f} | 600 |" in clean
        assert "Standing: queries attacked" in text
        assert "forwards / query" in text
        assert "Episodes: ways 5, shots 1, queries 15, count 600, seed 0" in text
        assert "images" not in text
