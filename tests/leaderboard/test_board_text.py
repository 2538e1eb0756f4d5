"""The boards as text: numbers counted by hand, other people's strings, and the committed files."""

import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from aal_bench import registry
from aal_bench.config import read_task
from aal_bench.leaderboard import board_files, terminal
from aal_bench.leaderboard.board import boards
from aal_bench.leaderboard.board_json import tree
from aal_bench.leaderboard.markdown import markdown

HOSTILE = "<script>alert('x')</script> | `x` \x1b[31m\n# y"


def falls(first: int, last: int) -> list[int]:
    return list(range(first, last))


def fingerprint(task: str, note: str) -> dict[str, str]:
    known = read_task(registry.task_file(task)).data.fingerprints
    return {"pixels": next(key for key, text in known.items() if text.startswith(note))}


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table of a Markdown text as rows by column, read by another library."""
    found: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level > 2:
            children = token.children or []
            found[-1][-1].append("".join(child.content for child in children))
    return [[dict(zip(rows[0], row, strict=True)) for row in rows[1:]] for rows in found]


@pytest.fixture
def three(make_entry, boards_root):
    """pgd with seeds 0 and 1, fgsm tied with it, and a foreign checkpoint far below."""
    make_entry("pgd-0", falls(0, 2), seed=0)
    make_entry(
        "pgd-1", falls(0, 10), seed=1, **{"training.passes": {"forward": 11, "backward": 11}}
    )
    make_entry("fgsm-0", falls(0, 8), method="fgsm", **{"training.wall_seconds": 4.6})
    make_entry("theirs", falls(0, 30), method=None, unclean=[39], challenged=[30, 31])
    return boards(boards_root)


class TestMarkdown:
    def test_every_number(self, three):
        (rows,) = tables(markdown(three))
        assert [row[""] for row in rows] == ["1=", "1=", "3"]
        pgd, fgsm, theirs = rows
        # 38 and 30 of 40: mean 34 / 40 = 85 %, deviation 4 / 40 * sqrt(2) = 14.14 points
        assert pgd["AutoAttack, %"] == "85.00 ± 14.14 [95.00, 75.00]"
        assert pgd["clean, %"] == "100.00 ± 0.00 [100.00, 100.00]"
        assert (pgd["method"], pgd["seeds"]) == ("pgd: pgd-0, pgd-1", "0, 1")
        assert (pgd["95 % interval"], pgd["training"]) == ("-", "31 s, two cores")
        assert fgsm["AutoAttack, %"] == "80.00"
        assert fgsm["95 % interval"] == "[65.24, 89.50]"  # Wilson, 32 of 40
        assert fgsm["training"] == "5 s, two cores"
        assert fgsm["data"] == "digits 1,437"
        assert (theirs["method"], theirs["seeds"], theirs["training"]) == ("theirs", "-", "-")
        assert (theirs["clean, %"], theirs["AutoAttack, %"]) == ("97.50", "22.50")
        assert theirs["external, %"] == "17.50"
        assert theirs["95 % interval"] == "[8.75, 31.95]"  # Wilson, 7 of 40: of what ranks it

    def test_passes_are_the_first_seeds(self, make_entry, boards_root):
        make_entry("a", **{"training.passes": {"forward": 11.5, "backward": 11}})
        (rows,) = tables(markdown(boards(boards_root)))
        assert rows[0]["passes"] == "11.5 + 11"
        assert rows[0]["passes, all epochs"] == "675", "22.5 in each of 30 epochs"

    def test_passes_that_were_not_counted_are_no_number(self, make_entry, boards_root):
        make_entry("a")
        make_entry("b", method="fgsm", **{"training.passes": {"forward": 2, "backward": 2}})
        (rows,) = tables(markdown(boards(boards_root)))
        assert [row["passes, all epochs"] for row in rows] == ["120", "-"]
        (section,) = tree(boards(boards_root))["boards"][0]["sections"]
        told = [one["rows"][0]["training"]["passes_all_epochs"] for one in section["standings"]]
        assert told == [120.0, None]

    def test_no_column_for_external_values_where_there_are_none(self, make_entry, boards_root):
        make_entry("a")
        assert "external, %" not in tables(markdown(boards(boards_root)))[0][0]

    def test_names_are_links_to_the_entries(self, three, boards_root):
        links = re.findall(r"\]\(([^)]+)\)", markdown(three))
        assert len(links) == 4
        assert all((boards_root / link).is_file() for link in links)

    def test_collapsed_seeds_and_findings(self, make_entry, boards_root):
        flags = [
            {"code": "note-only", "severity": "note"},
            {"code": "slow", "severity": "warning"},
            {"code": "mask-honesty", "severity": "unreliable"},
        ]
        make_entry("a", falls(0, 4), seed=0, flags=flags)
        make_entry("b", falls(0, 30), seed=1)
        (rows,) = tables(markdown(boards(boards_root)))
        assert rows[0]["seeds"] == "0, 1; collapsed: 1 of 2"
        assert rows[0]["flags"] == "unreliable: mask-honesty, warning: slow"

    def test_pixels_are_named_and_doubted(self, make_entry, boards_root):
        own = {"evidence.dataset_fingerprint": fingerprint("digits", "the embedded")}
        copy = {"evidence.dataset_fingerprint": fingerprint("cifar10-1k", "a JPEG copy")}
        make_entry("a", **own)
        make_entry("b", task="cifar10-1k", **copy)
        make_entry("c", task="cifar100")
        text = markdown(boards(boards_root)).replace("\\", "")
        assert "pixels 04130a5c: the embedded images\n" in text
        assert re.search(r"pixels 1a09959f: a JPEG copy, .*; not the official bytes\n", text)
        assert "pixels dddddddd, unknown to the task file; perhaps not the official" in text

    def test_the_rules_are_told(self, three):
        text = markdown(three)
        assert (
            "tied unless McNemar's exact two-sided test on the same images gives p < 0.05" in text
        )
        assert "at most twice chance" in text
        assert "a neighbour that nobody tried has AutoAttack alone: compare their levels" in text
        assert "equal method, network, configuration, title and authors" in text
        assert "They do not depend on the machine. Seconds do" in text

    def test_no_entries(self):
        assert "No entries yet." in markdown([])

    def test_what_was_submitted_is_text(self, make_entry, boards_root):
        flags = [{"code": HOSTILE, "severity": "warning"}]
        changes = {"training.method": HOSTILE, "model.architecture": HOSTILE, "flags": flags}
        make_entry("a", **changes, **{"environment.cpu": HOSTILE})
        text = markdown(boards(boards_root))
        assert "<script" not in text
        (rows,) = tables(text)
        shown = "<script>alert('x')</script> | `x` [31m # y"
        assert rows[0]["method"] == f"{shown}: a"
        assert rows[0]["network"] == shown
        assert rows[0]["flags"] == f"warning: {shown}"
        assert rows[0]["training"] == f"31 s, {shown}"


class TestPublished:
    @pytest.fixture
    def board(self, make_entry, boards_root):
        make_entry("a", task="cifar10-1k", method="pgd")
        return boards(boards_root)

    def test_robustbench_is_a_table_of_its_own_at_the_same_eps(self, board):
        text = markdown(board, robustbench=True)
        entries, published = tables(text)
        assert len(entries) == 1
        assert "### Published by RobustBench, not verified here" in text
        assert "measured on other images" in text
        (rice,) = [row for row in published if row["entry"] == "Rice2020Overfitting"]
        assert (rice["clean, %"], rice["AutoAttack, %"]) == ("85.34", "53.42")
        source = registry.data_folder("leaderboards") / "reported/robustbench-cifar10-Linf.json"
        listed = json.loads(source.read_text("utf-8"))["rows"]
        expected = {row["entry"] for row in listed if row["eps"] == "8/255"}
        assert {row["entry"] for row in published} == expected
        assert len(expected) < len(listed), "rows at 0.031 are none of rows at 8/255"

    def test_the_best_known_number_comes_first(self, board):
        _, published = tables(markdown(board, robustbench=True))
        numbers = [
            float(
                row["AutoAttack, %"].split()[0] if row["external, %"] == "-" else row["external, %"]
            )
            for row in published
        ]
        assert numbers == sorted(numbers, reverse=True)

    def test_claims_are_the_papers_for_this_task(self, board):
        text = markdown(board, reported=True)
        _, claimed = tables(text)
        assert "### What papers claim, not verified here" in text
        main = {"where": "AAL, Table 2", "method": "AAL+PGD", "network": "WRN-34-10"}
        (row,) = [row for row in claimed if main.items() <= row.items()]
        assert (row["clean, %"], row["fgsm, %"], row["pgd-10, %"]) == ("89.70", "68.78", "60.88")
        assert len({tuple(row.items()) for row in claimed}) == len(claimed), "none twice"

    def test_a_task_without_either_says_why(self, make_entry, boards_root):
        make_entry("a")
        text = markdown(boards(boards_root), robustbench=True, reported=True)
        assert "None: RobustBench has no data set for task digits." in text
        assert "None for this task." in text

    def test_rows_at_another_eps_are_not_shown(self, make_entry, boards_root):
        make_entry("a", task="cifar10-1k", **{"threat.eps": "4/255"})
        text = markdown(boards(boards_root), robustbench=True, reported=True)
        assert len(tables(text)) == 1
        assert "none at 4/255" in text

    def test_a_board_without_entries_has_what_was_published(self, boards_root):
        boards_root.mkdir()
        empty = boards(boards_root, "cifar10")
        text = markdown(empty, robustbench=True, reported=True)
        assert "## cifar10" in text
        assert "No entries yet." in text
        published, claimed = tables(text)
        assert "Rice2020Overfitting" in [row["entry"] for row in published]
        assert "AAL, Table 2" in [row["where"] for row in claimed]
        (one,) = tree(empty, robustbench=True, reported=True)["boards"]
        assert one["sections"] == []
        assert len(one["robustbench"]["rows"]) == len(published)
        assert one["robustbench"]["same_images"] is True, "there are no others"

    def test_in_json_they_are_beside_the_sections(self, board):
        (one,) = tree(board, robustbench=True, reported=True)["boards"]
        assert one["robustbench"]["same_images"] is False
        assert one["robustbench"]["rows"][0]["eps"] == "8/255"
        assert {claim["paper"] for claim in one["reported"]} == {"AAL", "AGAIN"}
        assert {"robustbench", "reported"} & {*tree(board)["boards"][0]} == set()


def printed(board, width: int) -> str:
    page = StringIO()
    for part in terminal.table(board, width):
        Console(width=width, file=page, color_system=None).print(part)
    return page.getvalue()


class TestTerminal:
    def test_a_line_for_each_standing_and_each_seed(self, three):
        text = printed(three[0], 160)
        lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
        (pgd,) = [line for line in lines if line[:2] == ["1=", "pgd"]]
        assert pgd[2:5] == ["CNN-4-32", "100.00 ± 0.00", "85.00 ± 14.14"]
        seeds = [line for line in lines if line[0] in {"seed 0", "seed 1"}]
        assert [line[:3] for line in seeds] == [
            ["seed 0", "100.00", "95.00"],
            ["seed 1", "100.00", "75.00"],
        ]
        assert ["1=", "fgsm seed 0"] in [line[:2] for line in lines]
        (theirs,) = [line for line in lines if line[:2] == ["3", "theirs"]]
        assert theirs[3:6] == ["97.50", "22.50", "17.50"]

    def test_a_collapsed_seed_is_named(self, make_entry, boards_root):
        make_entry("a", falls(0, 4), seed=0)
        make_entry("b", falls(0, 30), seed=1)
        text = printed(boards(boards_root)[0], 160)
        assert "collapsed: 1 of 2" in text
        assert re.search(r"seed 1 .* collapsed ", text)
        assert not re.search(r"seed 0 .* collapsed ", text)

    @pytest.mark.parametrize(
        ("width", "left_out"),
        [
            (160, None),
            (80, "training, network, 95 % interval"),
            (40, "training, network, 95 % interval, clean, level"),
        ],
    )
    def test_no_score_is_cut_however_narrow(self, three, width, left_out):
        text = printed(three[0], width)
        for score in ("85.00 ± 14.14", "95.00", "75.00", "80.00", "22.50", "17.50"):
            assert score in text
        assert max(map(len, text.splitlines())) <= width
        words = " ".join(text.split())
        assert (f"(too narrow for {left_out})" if left_out else "unknown to the task file") in words

    def test_what_was_submitted_is_text(self, make_entry, boards_root):
        make_entry("a", **{"training.method": "[red]x[/red]\x1b[31m"})
        text = printed(boards(boards_root)[0], 160)
        assert "[red]x[/red] [31m" in text
        assert "\x1b" not in text

    def test_what_verify_takes_can_be_found(self, three, boards_root):
        text = "".join(printed(three[0], 400).splitlines())
        assert f"files: {boards_root / 'digits' / 'Linf'}/*.json, names as in --markdown" in text

    def test_published_rows_of_other_images_say_so_twice(self, make_entry, boards_root, capsys):
        make_entry("a", task="cifar10-1k")
        terminal.show(boards(boards_root), robustbench=True, reported=True)
        out = " ".join(capsys.readouterr().out.split())
        assert "Published by RobustBench, not verified here; measured on other images" in out
        assert "What papers claim, not verified here; measured on other images" in out
        assert out.count("these rows were measured on other images.") == 2

    def test_show_prints_everything(self, three, capsys):
        terminal.show(three, robustbench=True, reported=True)
        out = capsys.readouterr().out
        assert "None: RobustBench has no data set for task digits." in " ".join(out.split())
        assert "McNemar" in out
        terminal.show([])
        assert "no entries yet" in capsys.readouterr().out


class TestJson:
    def test_it_has_what_the_board_shows(self, three):
        found = tree(three)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        (section,) = found["boards"][0]["sections"]
        pgd, fgsm, theirs = section["standings"]
        assert [one["rank"] for one in (pgd, fgsm, theirs)] == [1, 1, 3]
        assert [one["tied"] for one in (pgd, fgsm, theirs)] == [True, True, False]
        assert [row["score"] for row in pgd["rows"]] == [38 / 40, 30 / 40]
        assert pgd["mean"] == pytest.approx(34 / 40)
        (row,) = theirs["rows"]
        assert (row["submission_id"], row["path"]) == ("theirs", "digits/Linf/theirs.json")
        assert (row["external"], row["autoattack"]["value"]) == ("17.50", 9 / 40)
        assert (row["seed"], row["training"]) == (None, None)
        assert row["hashes"]["checkpoint"] == "b" * 64
        assert fgsm["rows"][0]["training"]["wall_seconds"] == 4.6

    def test_it_has_no_times_of_day(self, three):
        assert "2026" not in json.dumps(tree(three)), "the entries were created in 2026"


class TestFiles:
    def test_written_files_are_not_stale_and_hold_the_entries_only(self, three, boards_root):
        paths = board_files.write(boards_root)
        assert [path.name for path in paths] == ["BOARD.md", "board.json"]
        assert board_files.stale(boards_root) == []
        assert paths[0].read_text("utf-8") == markdown(three)
        assert json.loads(paths[1].read_text("utf-8")) == tree(three)

    def test_they_are_stale_once_an_entry_changes_or_they_are_edited(self, make_entry, boards_root):
        make_entry("a")
        assert board_files.stale(boards_root) == ["BOARD.md", "board.json"], "missing"
        board_files.write(boards_root)
        make_entry("b", falls(0, 9), method="fgsm")
        assert board_files.stale(boards_root) == ["BOARD.md", "board.json"]
        board, _ = board_files.write(boards_root)
        board.write_text(board.read_text("utf-8").replace("77.50", "97.50"), "utf-8")
        assert board_files.stale(boards_root) == ["BOARD.md"]

    def test_another_process_and_another_place_give_the_same_bytes(
        self, three, boards_root, tmp_path
    ):
        copied = tmp_path / "elsewhere" / "copy"
        copied.parent.mkdir()
        boards_root.rename(copied)
        code = "import sys, pathlib; from aal_bench.leaderboard import board_files as files;"
        code += "files.write(pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code, str(copied)], check=True, cwd=Path.cwd())
        assert (copied / "BOARD.md").read_text("utf-8") == markdown(three)
        assert json.loads((copied / "board.json").read_text("utf-8")) == tree(three)
