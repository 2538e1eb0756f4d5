"""The per-sample table: what it accepts, what it refuses, and that it never errs towards robust."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from aal_bench import evidence as ev
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence

STAGES = ("fgsm", "apgd-ce", "apgd-t")


def table(n: int = 50, seed: int = 0) -> Evidence:
    """A complete table: fgsm on every cleanly correct row, the two APGD on survivors in order."""
    rng = np.random.default_rng(seed)
    made = ev.start(np.arange(100, 100 + n), np.arange(n) % 10)
    made.record("clean", np.arange(n), pred=np.where(rng.random(n) < 0.8, made.label, 11))
    for stage, earlier in (("fgsm", ()), ("apgd-ce", ()), ("apgd-t", ("apgd-ce",))):
        standing = made.robust(earlier)
        rows = np.flatnonzero(standing)
        pred = np.where(rng.random(len(rows)) < 0.7, made.label[rows], 12)
        made.record(stage, rows, pred=pred, norm=rng.random(len(rows)), forwards=3, backwards=2)
        made.skip(stage, np.flatnonzero(~standing))
    return made


def same(a: Evidence, b: Evidence) -> bool:
    return (
        a.stages == b.stages
        and all(
            np.array_equal(getattr(a, c), getattr(b, c)) for c in ("index", "label", "clean_pred")
        )
        and all(
            np.array_equal(a.column(stage, name), b.column(stage, name))
            for stage in a.stages
            for name in ev.STAGE.names or ()
        )
    )


class TestVerdicts:
    def test_robust_is_the_and_of_all_verdicts_row_by_row(self):
        made = table()
        for stages in (STAGES, ("fgsm",), ("apgd-ce", "apgd-t"), ()):
            expected = []
            for row in range(len(made)):
                stands = made.clean_pred[row] == made.label[row]
                for stage in stages:
                    stands = stands and bool(made.column(stage, "ok")[row])
                expected.append(stands)
            assert made.robust(stages).tolist() == expected
        assert made.robust().tolist() == made.robust(STAGES).tolist()

    def test_robust_is_not_the_minimum_of_averages(self):
        made = ev.start([0, 1], [0, 0])
        made.record("clean", [0, 1], pred=[0, 0])
        made.record("fgsm", [0, 1], pred=[0, 1])
        made.record("pgd-10", [0, 1], pred=[1, 0])
        assert made.robust(["fgsm"]).mean() == made.robust(["pgd-10"]).mean() == 0.5
        assert made.robust().mean() == 0.0

    def test_a_clean_wrong_row_is_never_robust_even_if_an_attack_makes_it_correct(self):
        made = ev.start([0], [3])
        made.record("clean", [0], pred=[4])
        made.record("fgsm", [0], pred=[3])
        assert made.column("fgsm", "ok").tolist() == [True]
        assert made.robust().tolist() == [False]

    def test_a_row_that_fell_and_was_not_attacked_again_has_fallen(self):
        made = ev.start([0, 1], [0, 0])
        made.record("clean", [0, 1], pred=[0, 0])
        made.record("apgd-ce", [0, 1], pred=[1, 0])
        made.skip("apgd-t", [0])
        made.record("apgd-t", [1], pred=[0])
        assert made.column("apgd-t", "ok").tolist() == [False, True]
        assert made.robust(["apgd-t"]).tolist() == [False, True]

    def test_missing_rows_are_an_error_and_never_robust(self):
        made = ev.start([0, 1, 2], [0, 0, 0])
        with pytest.raises(UserError, match="'clean' lacks 3 of 3"):
            made.clean_correct()
        made.record("clean", [0, 1, 2], pred=0)
        made.record("fgsm", [0, 2], pred=0)
        assert made.done("fgsm").tolist() == [True, False, True]
        with pytest.raises(UserError, match="'fgsm' lacks 1 of 3"):
            made.robust()
        with pytest.raises(UserError, match="'pgd-10' lacks 3 of 3"):
            made.robust(["pgd-10"])

    @settings(max_examples=50, deadline=None)
    @given(st.data())
    def test_more_stages_never_make_more_rows_robust(self, data):
        made = table(seed=data.draw(st.integers(0, 1000)))
        some = data.draw(st.lists(st.sampled_from(STAGES), unique=True))
        assert not (made.robust(STAGES) & ~made.robust(some)).any()


class TestRecording:
    def test_batches_in_any_order_give_the_table_of_one_batch(self):
        whole, parts = (ev.start(np.arange(9), np.arange(9)) for _ in range(2))
        pred = np.array([0, 1, 2, 3, 0, 0, 0, 7, 8])
        for made, batches in ((whole, [range(9)]), (parts, [[8, 1], [0, 2, 3], [4, 5, 6, 7]])):
            for rows in (np.array(list(batch)) for batch in batches):
                made.record("clean", rows, pred=pred[rows])
                made.record("fgsm", rows, pred=pred[rows], norm=rows / 100, forwards=rows + 1)
        assert same(whole, parts)

    @pytest.mark.parametrize(
        ("rows", "columns", "message"),
        [
            ([0, 0], {"pred": 0}, "recorded twice"),
            ([5], {"pred": 0}, r"positions 0\.\.4"),
            ([-1], {"pred": 0}, r"positions 0\.\.4"),
            ([0], {"pred": 7, "ok": True}, "correct against its prediction"),
            ([0], {"pred": 0, "norm": np.nan}, "norm must be finite"),
            ([0], {"pred": 0, "norm": -1.0}, "norm must be finite"),
            ([0], {"pred": 40_000}, "does not fit int16"),
            ([0], {"pred": -1}, "pred must be >= 0"),
            ([0], {"pred": 0.5}, "whole numbers"),
            ([0], {"pred": 0, "forwards": 2**40}, "does not fit int32"),
            ([0], {"pred": 0, "backwards": -1}, "backwards must be >= 0"),
        ],
    )
    def test_refuses(self, rows, columns, message):
        made = ev.start(np.arange(5), np.zeros(5, int))
        made.record("clean", np.arange(5), pred=0)
        with pytest.raises(ValueError, match=message):
            made.record("fgsm", rows, **columns)
        assert not made.done("fgsm").any(), "a refused batch must leave nothing behind"

    def test_refuses_a_row_that_was_recorded_by_an_earlier_batch(self):
        made = table()
        with pytest.raises(ValueError, match="recorded twice"):
            made.record("fgsm", [0], pred=0)
        with pytest.raises(ValueError, match="recorded twice"):
            made.record("clean", [0], pred=0)

    def test_a_standing_row_cannot_be_skipped(self):
        made = ev.start([0, 1], [0, 0])
        made.record("clean", [0, 1], pred=[0, 1])
        made.skip("fgsm", [1])
        with pytest.raises(ValueError, match="still stands"):
            made.skip("fgsm", [0])

    def test_an_attack_may_call_a_correctly_predicted_row_fallen(self):
        made = ev.start([0], [0])
        made.record("clean", [0], pred=[0])
        made.record("square", [0], pred=[0], ok=[False])
        assert not made.robust().any()

    def test_index_and_labels_must_match_and_count_from_zero(self):
        with pytest.raises(ValueError, match="do not match"):
            ev.start([0, 1], [0])
        with pytest.raises(ValueError, match="occurs twice"):
            ev.start([1, 1], [0, 0])
        with pytest.raises(ValueError, match="index must be >= 0"):
            ev.start([-1, 1], [0, 0])
        with pytest.raises(ValueError, match="label must be >= 0"):
            ev.start([0, 1], [0, -1])

    @pytest.mark.parametrize(
        "name", ["", "PGD", "-1", "a b", "a/b", "pgd_10", "é", "x" * 41, "a\n"]
    )
    def test_a_stage_whose_name_no_file_may_hold_is_refused_at_once(self, name):
        made = table()
        with pytest.raises(UserError, match="a stage's name is"):
            made.skip(name, np.flatnonzero(~made.clean_correct()))


class TestFiles:
    def test_saved_and_loaded_tables_are_equal(self, tmp_path):
        made = table()
        made.save(tmp_path / "evidence.npz")
        loaded = Evidence.load(tmp_path / "evidence.npz")
        assert same(made, loaded)
        loaded.skip("fab-t", np.flatnonzero(~loaded.robust()))
        assert loaded.done("fab-t").sum() == (~made.robust()).sum(), "a resumed table is writable"

    def test_plain_numpy_reads_it_without_pickle(self, tmp_path):
        table().save(tmp_path / "e.npz")
        with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
            assert arrays["stage/fgsm"]["ok"].dtype == bool
            assert arrays["index"].dtype == np.int32
            assert arrays["label"].dtype == np.int16

    def test_equal_tables_give_equal_bytes(self, tmp_path):
        for name in ("a", "b"):
            table().save(tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_norms_are_kept_to_a_tenth_of_the_tolerance_on_eps(self):
        made = ev.start([0], [0])
        made.record("clean", [0], pred=0)
        made.record("fgsm", [0], pred=0, norm=8 / 255)
        assert abs(float(made.column("fgsm", "norm")[0]) - 8 / 255) < 1e-7

    def test_ten_thousand_rows_and_eight_stages_fit_into_git(self, tmp_path):
        rng = np.random.default_rng(0)
        n = 10_000
        made = ev.start(np.arange(n), rng.integers(0, 10, n))
        made.record("clean", np.arange(n), pred=np.where(rng.random(n) < 0.85, made.label, 10))
        standing = made.clean_correct()
        for stage in ("fgsm", "pgd-10", "pgd-20", "pgd-50", "apgd-ce", "apgd-t", "fab-t", "square"):
            rows = np.flatnonzero(standing)
            ok = rng.random(len(rows)) < 0.7
            pred = np.where(ok, made.label[rows], (made.label[rows] + rng.integers(1, 9)) % 10)
            made.record(stage, rows, pred=pred, norm=8 / 255, forwards=np.where(ok, 920, 11))
            made.skip(stage, np.flatnonzero(~standing))
        made.save(tmp_path / "e.npz")
        assert (tmp_path / "e.npz").stat().st_size < 140_000

    @pytest.mark.parametrize("keep", [0, 10, 500, -10])
    def test_a_truncated_file_is_a_clear_error(self, tmp_path, keep):
        path = tmp_path / "e.npz"
        table().save(path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(UserError, match=r"e\.npz: not a readable evidence table"):
            Evidence.load(path)

    def test_a_flipped_byte_is_a_clear_error(self, tmp_path):
        path = tmp_path / "e.npz"
        table().save(path)
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("stage/fgsm.npy")
        content = bytearray(path.read_bytes())
        content[entry.header_offset + entry.compress_size // 2 + 60] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a readable evidence table"):
            Evidence.load(path)

    def test_pickled_objects_are_refused(self, tmp_path):
        path = tmp_path / "e.npz"
        np.savez(path, allow_pickle=True, format=np.array([{"a": 1}], dtype=object))
        with pytest.raises(UserError, match="not a readable evidence table"):
            Evidence.load(path)

    def test_a_missing_file_and_a_web_page_are_clear_errors(self, tmp_path):
        with pytest.raises(UserError, match="no such evidence table"):
            Evidence.load(tmp_path / "none.npz")
        (tmp_path / "page.npz").write_text("<!DOCTYPE html><html></html>")
        with pytest.raises(UserError, match="not a readable evidence table"):
            Evidence.load(tmp_path / "page.npz")

    @pytest.mark.parametrize(
        ("tamper", "message"),
        [
            (lambda block: block["ok"].__setitem__(slice(None), True), "correct against"),
            (lambda block: block["recorded"].__setitem__(slice(None), False), "not recorded"),
            (lambda block: block["norm"].__setitem__(0, np.inf), "norm must be finite"),
            (
                lambda block: block["ok"].view(np.uint8).__setitem__(0, 2),
                "more than true and false",
            ),
            (lambda block: block["forwards"].__setitem__(slice(None), -1), "forwards must be >= 0"),
            (lambda block: block["pred"].__setitem__(~block["ok"], -7), "pred must be >= 0"),
            (
                lambda block: block["norm"].__setitem__(~block["attacked"], 0.1),
                "a row that was not attacked holds numbers",
            ),
        ],
    )
    def test_a_table_that_contradicts_itself_is_refused(self, tmp_path, tamper, message):
        path = tmp_path / "e.npz"
        table().save(path)
        with np.load(path) as loaded:
            arrays = dict(loaded)
        tamper(arrays["stage/fgsm"])
        np.savez_compressed(path, allow_pickle=False, **arrays)
        with pytest.raises(UserError, match=message):
            Evidence.load(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"stage/fgsm": lambda old: old[:-1]}, r"stage/fgsm has shape \(49,\)"),
            ({"stage/fgsm": lambda old: old["ok"]}, "stage/fgsm is bool"),
            ({"clean_pred": lambda old: old.astype(np.int64)}, "clean_pred is int64"),
            ({"clean_pred": lambda old: old - np.int16(50)}, "clean_pred must be >= 0"),
            ({"index": lambda old: old - np.int32(200)}, "index must be >= 0"),
            ({"index": lambda old: old * 0}, "an index occurs twice"),
            ({"index": lambda old: old[0]}, r"index has shape \(\)"),
            ({"index": lambda _: None}, "index is missing"),
            ({"label": lambda old: -1 - old}, "label must be >= 0"),
            ({"label": lambda old: old[:, None]}, r"label has shape \(50, 1\)"),
            ({"format": lambda _: None}, "format is 'None'"),
            ({"format": lambda _: np.array("something else")}, "something else"),
            ({"format": lambda _: np.array(["x" * 300] * 300)}, "format is "),
            ({"format": lambda _: np.arange(3)}, "format is "),
            ({"stage/clean": lambda _: np.zeros(50, ev.STAGE)}, "'stage/clean' is no column"),
            ({"more": lambda _: np.zeros(50)}, "'more' is no column"),
            ({"stage/A": lambda _: np.zeros(50, ev.STAGE)}, "a stage's name is"),
        ],
    )
    def test_other_columns_are_refused(self, tmp_path, change, message):
        path = tmp_path / "e.npz"
        table().save(path)
        with np.load(path) as loaded:
            arrays = dict(loaded)
        for name, changed in change.items():
            arrays[name] = changed(arrays.get(name))
        given = {name: array for name, array in arrays.items() if array is not None}
        np.savez_compressed(path, allow_pickle=False, **given)
        with pytest.raises(UserError, match=f"not a readable evidence table .*{message}") as caught:
            Evidence.load(path)
        assert len(str(caught.value)) < len(str(path)) + 250

    def test_a_process_killed_while_writing_leaves_the_old_table(self, tmp_path):
        path = tmp_path / "e.npz"
        old = table()
        old.save(path)
        # The writer stops in the middle of its file, says so, and is killed there.
        script = """
import sys, time
from pathlib import Path
from aal_bench.files import replacing
with replacing(Path(sys.argv[1])) as handle:
    handle.write(b"half")
    handle.flush()
    print("half", flush=True)
    time.sleep(60)
"""
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "half\n"
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert same(Evidence.load(path), old)

    def test_a_failure_while_writing_leaves_the_old_table_and_no_litter(
        self, tmp_path, monkeypatch
    ):
        path = tmp_path / "e.npz"
        table().save(path)
        before = path.read_bytes()

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez_compressed", full)
        with pytest.raises(UserError, match="No space left on device"):
            table(seed=1).save(path)
        assert path.read_bytes() == before
        assert [item.name for item in tmp_path.iterdir()] == ["e.npz"]


class TestMerge:
    def test_a_row_is_robust_only_where_both_runs_say_so(self):
        a, b = table(seed=1), table(seed=2)
        both = ev.merge(a, b)
        expected = [x and y for x, y in zip(a.robust().tolist(), b.robust().tolist(), strict=True)]
        assert both.robust().tolist() == expected
        for stage in STAGES:
            pairs = zip(a.column(stage, "ok"), b.column(stage, "ok"), strict=True)
            assert both.column(stage, "ok").tolist() == [bool(x and y) for x, y in pairs]

    def test_order_does_not_change_the_verdicts_and_twice_the_same_changes_nothing(self):
        a, b = table(seed=1), table(seed=2)
        assert ev.merge(a, b).robust().tolist() == ev.merge(b, a).robust().tolist()
        again = ev.merge(a, a)
        for name in ("ok", "pred", "norm", "attacked"):
            assert np.array_equal(again.column("apgd-t", name), a.column("apgd-t", name))

    def test_the_decisive_prediction_is_that_of_the_run_in_which_the_row_fell(self):
        a, b = (ev.start([0], [0]) for _ in range(2))
        for made, pred in ((a, 0), (b, 5)):
            made.record("clean", [0], pred=0)
            made.record("fgsm", [0], pred=pred, norm=0.1 + pred / 100, forwards=2)
        both = ev.merge(a, b)
        assert both.column("fgsm", "pred").tolist() == [5]
        assert both.column("fgsm", "norm")[0] == pytest.approx(0.15)
        assert both.column("fgsm", "forwards").tolist() == [4]

    def test_merged_tables_save_and_load(self, tmp_path):
        both = ev.merge(table(seed=1), table(seed=2))
        both.save(tmp_path / "e.npz")
        assert same(Evidence.load(tmp_path / "e.npz"), both)

    def test_a_row_that_one_run_lacks_stays_missing(self):
        a, b = table(), ev.start(table().index, table().label)
        b.record("clean", np.arange(len(b)), pred=b.label)
        b.record("fgsm", np.arange(10), pred=b.label[:10])
        both = ev.merge(a, b)
        assert both.done("fgsm").tolist() == [True] * 10 + [False] * 40
        with pytest.raises(UserError, match="'fgsm' lacks 40"):
            both.robust()

    def test_a_stage_of_one_run_only_is_kept(self):
        a, b = table(seed=1), ev.start(table().index, table().label)
        b.record("clean", np.arange(len(b)), pred=b.label)
        assert ev.merge(a, b).robust().tolist() == a.robust().tolist()

    def test_other_samples_are_refused(self):
        with pytest.raises(UserError, match="different samples or labels"):
            ev.merge(table(50), table(49))


class TestWilson:
    @pytest.mark.parametrize(
        ("k", "n"), [(0, 1), (1, 1), (0, 360), (351, 360), (5, 10), (4123, 10000)]
    )
    def test_agrees_with_scipy(self, k, n):
        theirs = binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert ev.wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-8)

    def test_agrees_with_the_closed_form_at_one_half(self):
        # p = 1/2: the centre is 1/2 and the half width z / (2 sqrt(n + z^2)).
        z, n = 1.959964, 100
        half = z / (2 * (n + z * z) ** 0.5)
        assert ev.wilson(50, n) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)

    @given(st.integers(1, 500), st.data())
    def test_holds_the_share_and_stays_in_the_unit_interval(self, n, data):
        k = data.draw(st.integers(0, n))
        low, high = ev.wilson(k, n)
        assert 0 <= low <= k / n <= high <= 1

    @pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
    def test_refuses_what_is_no_share(self, k, n):
        with pytest.raises(ValueError, match="no share"):
            ev.wilson(k, n)


def test_evidence_imports_no_torch():
    code = "import sys, aal_bench.evidence, aal_bench.results; assert 'torch' not in sys.modules"
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def episodes(count: int = 4, ways: int = 3, queries: int = 2, seed: int = 0) -> Evidence:
    """A complete few-shot table with one attack; images of one episode may occur in another."""
    rng, size = np.random.default_rng(seed), ways * queries
    index = np.concatenate([rng.permutation(20)[:size] for _ in range(count)])
    labels = np.tile(np.repeat(np.arange(ways), queries), count)
    made = ev.start(index, labels, np.repeat(np.arange(count), size))
    right = rng.random(len(made)) < 0.7
    made.record("clean", np.arange(len(made)), pred=np.where(right, labels, (labels + 1) % ways))
    rows = np.flatnonzero(right)
    made.record("pgd-20", rows[::2], pred=labels[rows[::2]], forwards=21, backwards=20)
    made.record("pgd-20", rows[1::2], pred=(labels[rows[1::2]] + 1) % ways, forwards=21)
    made.skip("pgd-20", np.flatnonzero(~right))
    return made


class TestEpisodes:
    def test_accuracy_per_episode_is_the_share_of_its_own_rows(self):
        made = episodes()
        correct = made.robust(["pgd-20"])
        counted = [
            [bool(correct[row]) for row in range(len(made)) if made.episode[row] == number]
            for number in range(4)
        ]
        assert made.hits(correct).tolist() == [sum(one) for one in counted]
        assert made.per_episode(correct).tolist() == [sum(one) / 6 for one in counted]

    def test_the_family_is_that_of_the_units(self):
        assert (episodes().family, episodes().episodes) == ("fewshot", 4)
        assert (table().family, table().episodes) == ("classification", 0)
        assert episodes().format == ev.FORMATS["fewshot"] != table().format

    def test_images_have_no_accuracy_per_episode(self):
        with pytest.raises(ValueError, match="without episodes"):
            table().per_episode(table().clean_correct())

    def test_a_table_survives_the_disk_and_says_what_it_is(self, tmp_path):
        made, path = episodes(), tmp_path / "evidence.npz"
        made.save(path)
        found = Evidence.load(path)
        assert same(found, made)
        assert np.array_equal(found.episode, made.episode)
        assert found.columns()[:4] == ["episode", "index", "label", "clean_pred"]
        with np.load(path) as stored:
            assert stored["episode"].dtype == np.int32
            assert str(stored["format"]) == "aal-bench fewshot evidence 1"
        assert "episode" not in table().columns()

    def test_equal_tables_are_equal_bytes(self, tmp_path):
        for name in ("a.npz", "b.npz"):
            episodes().save(tmp_path / name)
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()

    def test_an_image_may_be_asked_about_in_several_episodes(self):
        assert ev.start([5, 6, 5, 7], [0, 1, 0, 1], [0, 0, 1, 1]).episodes == 2

    @pytest.mark.parametrize(
        ("index", "episode", "message"),
        [
            ([5, 6, 5, 5], [0, 0, 1, 1], "twice in one episode"),
            ([5, 6, 7, 8], [0, 0, 1, 0], "decreases"),
            ([5, 6, 7, 8], [0, 0, 0, 1], "as many rows"),
            ([5, 6, 7, 8], [0, 0, 2, 2], "without a gap"),
            ([5, 6, 7, 8], [1, 1, 2, 2], "without a gap"),
            ([5, 6, 7, 8], [0, 0, 1, 2**31 - 1], "without a gap"),
            ([5, 6, 7, 8], [0, 0, 1], "do not match"),
            ([5, 6, 7, 8], [0, 0, 1, -1], ">= 0"),
        ],
    )
    def test_rows_that_are_no_episodes_are_refused(self, index, episode, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            ev.start(index, [0, 1, 0, 1], episode)
        path = tmp_path / "evidence.npz"
        whole = {"index": np.array(index, "i4"), "label": np.array([0, 1, 0, 1], "i2")}
        whole |= {"episode": np.array(episode, "i4"), "clean_pred": np.zeros(4, "i2")}
        np.savez_compressed(path, format=np.array(ev.FORMATS["fewshot"]), **whole)
        with pytest.raises(UserError, match="not a readable evidence table"):
            Evidence.load(path)

    @pytest.mark.parametrize("family", ["classification", "fewshot"])
    def test_a_column_that_the_format_does_not_have_is_refused(self, family, tmp_path):
        path = tmp_path / "evidence.npz"
        (episodes() if family == "fewshot" else table()).save(path)
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if family == "fewshot":
            del arrays["episode"]
        else:
            arrays["episode"] = np.zeros(len(arrays["index"]), np.int32)
        np.savez_compressed(path, **arrays)
        with pytest.raises(UserError, match="episode"):
            Evidence.load(path)

    def test_two_runs_merge_episode_by_episode(self):
        a, b = episodes(), episodes()
        merged = ev.merge(a, b)
        assert np.array_equal(merged.episode, a.episode)
        assert np.array_equal(merged.robust(), a.robust())
        images = ev.start(np.arange(len(a)), a.label)
        for wrong in (images, episodes(seed=1)):
            with pytest.raises(UserError, match="different samples"):
                ev.merge(a, wrong)
