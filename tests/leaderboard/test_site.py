"""The static site, read as a browser's parser reads it, without a browser."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from aal_bench.errors import UserError
from aal_bench.leaderboard import cells
from aal_bench.leaderboard.board import boards
from aal_bench.leaderboard.site import assets, names, pages, show
from aal_bench.leaderboard.site.build import MARKER, build
from aal_bench.paths import data_folder

SCRIPT = "<script>alert(1)</script>"
BREAKOUT = '</script></title>"><img src=x onerror=alert(1)>'
OWN_SCRIPTS = {"board.js", "datatables.js", "plotly.min.js"}


class Parsed(HTMLParser):
    """Elements with their attributes, visible text, and the data blocks of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: list[Any] = []
        self._inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.text += data
        elif data.strip():
            self.data.append(json.loads(data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def addresses(self) -> list[tuple[str, str]]:
        """(element, address) of everything that the page loads or links."""
        return [
            (tag, value)
            for tag, attributes in self.tags
            for key, value in attributes.items()
            if key in {"href", "src", "srcset", "action", "data", "poster"} and value
        ]


def edit(path: Path, **changes: Any) -> Path:
    """Change top-level keys of a record that `make_entry` has no option for."""
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | changes))
    return path


@pytest.fixture
def entries(make_entry: Callable[..., Path]) -> list[Path]:
    """Three configurations on `digits`, one hostile; one foreign checkpoint on `cifar10`."""
    hostile = make_entry(
        "aal-0", falls=range(14, 30), method="aal-fgsm", link="javascript:alert(1)"
    )
    return [
        make_entry(
            "pgd-0", range(4), seed=0, **{"training.passes": {"forward": 11, "backward": 11}}
        ),
        make_entry("pgd-1", falls=range(7), seed=1, challenged=[20, 21]),
        edit(hostile, name=SCRIPT, authors=BREAKOUT, venue=BREAKOUT, footnote=SCRIPT),
        make_entry("fgsm[x]+1", falls=range(9), method="fgsm", link="https://example.org/a?b=1&c"),
        make_entry("Rice2020Overfitting", task="cifar10", method=None, venue="ICML 2020"),
    ]


@pytest.fixture
def site(entries: list[Path], boards_root: Path, tmp_path: Path) -> Path:
    build(boards(boards_root), tmp_path / "site")
    return tmp_path / "site"


def test_every_board_and_every_entry_has_a_page_and_a_link(site: Path, entries: list[Path]) -> None:
    index = [address for tag, address in Parsed(site / "index.html").addresses() if tag == "a"]
    assert {"digits-Linf.html", "cifar10-Linf.html"} <= set(index)
    for path in entries:
        board = f"{path.parent.parent.name}-Linf"
        page = f"{board}/{path.stem}.html"
        assert (site / page).is_file()
        linked = [unquote(address) for _, address in Parsed(site / f"{board}.html").addresses()]
        assert page in linked


def test_submitted_text_stays_text(site: Path) -> None:
    for page in [site / "index.html", site / "digits-Linf.html", site / "digits-Linf/aal-0.html"]:
        parsed = Parsed(page)
        assert {
            str(script.get("src", "")).rpartition("/")[2] for script in parsed.all("script")
        } <= {
            *OWN_SCRIPTS,
            "",  # the data block, which the parser read as JSON
        }
        assert not parsed.all("img")
        handlers = [key for _, found in parsed.tags for key in found if key.startswith("on")]
        assert handlers == []
        assert all("javascript" not in address for _, address in parsed.addresses())
    entry = Parsed(site / "digits-Linf/aal-0.html").text
    assert SCRIPT in entry
    assert BREAKOUT in entry
    assert "javascript:alert(1)" in entry  # shown, not linked
    assert SCRIPT in Parsed(site / "digits-Linf.html").text


def test_a_data_block_cannot_be_left(make_entry: Callable[..., Path], tmp_path: Path) -> None:
    path = make_entry("pgd-0", **{"training.method": "</script><script>alert(1)</script>"})
    build(boards(path.parent.parent.parent), tmp_path / "site")
    text = (tmp_path / "site/digits-Linf.html").read_text()
    assert "<script>alert" not in text
    [data] = Parsed(tmp_path / "site/digits-Linf.html").data
    assert data["series"][0]["name"].startswith("</script><script>alert(1)</script>")


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == 1 + 2 + 5
    for page in pages:
        parsed = Parsed(page)
        for tag, address in parsed.addresses():
            parts = urlsplit(address)
            if parts.scheme == "data":
                assert address == "data:,"  # an empty icon, so that none is asked for
            elif parts.scheme or parts.netloc:
                assert (tag, parts.scheme) in {("a", "https"), ("a", "http")}
            elif parts.path:
                target = (page.parent / unquote(parts.path)).resolve()
                assert target.is_file()
                assert target.is_relative_to(site.resolve())
                if parts.fragment:
                    ids = [found.get("id") for _, found in Parsed(target).tags]
                    assert parts.fragment in ids
        assert parsed.all("html") == [{"lang": "en"}]
        policy = [found["content"] for found in parsed.all("meta") if "http-equiv" in found]
        assert "default-src 'none'" in str(policy)
        assert "unsafe-eval" not in str(policy)


def test_foreign_links_are_those_submitted_or_published(site: Path) -> None:
    page = Parsed(site / "digits-Linf/fgsm[x]+1.html")
    foreign = [a for a in page.all("a") if urlsplit(a["href"] or "").netloc]
    assert [a["href"] for a in foreign] == ["https://example.org/a?b=1&c"]
    assert foreign[0]["rel"] == "noopener noreferrer nofollow"


def test_the_points_are_the_entries_numbers(site: Path, entries: list[Path]) -> None:
    [data] = Parsed(site / "digits-Linf.html").data
    drawn = {point["label"]: point for series in data["series"] for point in series["points"]}
    assert set(drawn) == {path.stem for path in entries if path.parent.parent.name == "digits"}
    # 40 images: 4 fall; 7 fall and a challenge fells 2 more.
    assert drawn["pgd-0"]["robust"] == pytest.approx(100 * 36 / 40)
    assert drawn["pgd-1"]["robust"] == pytest.approx(100 * 31 / 40)
    assert drawn["pgd-1"]["clean"] == pytest.approx(100)
    assert drawn["pgd-0"]["seconds"] == 31.0
    [foreign] = Parsed(site / "cifar10-Linf.html").data
    assert foreign["series"][0]["points"][0]["seconds"] is None


def test_a_challenged_entry_shows_both_numbers(site: Path) -> None:
    text = Parsed(site / "digits-Linf/pgd-1.html").text
    assert "77.50 %" in text  # external, 31 of 40
    assert "82.50 %" in text  # AutoAttack, 33 of 40
    assert "challenge-1" in text


def test_a_successful_challenge_is_never_told_as_none(site: Path) -> None:
    text = Parsed(site / "digits-Linf/pgd-1.html").text  # at level 1
    assert "4 challenged challenged: lowered to 77.50 %; level 4 needs level 3 first" in text
    assert "4 challenged not reached" in Parsed(site / "digits-Linf/pgd-0.html").text
    assert 'class="mark">challenged<' in (site / "digits-Linf/pgd-1.html").read_text("utf-8")
    assert 'class="mark">challenged<' not in (site / "digits-Linf/pgd-0.html").read_text("utf-8")


def test_the_history_says_what_an_entry_had_before(
    make_entry: Callable[..., Path], boards_root: Path
) -> None:
    common = {"at": "2026-01-01", "by": "somebody", "level": 1}
    history = [
        {"event": "submitted"},
        {"event": "challenged", "stage": "challenge-1", "fallen": 1},
        {"event": "replaced", "autoattack_acc": "90.00", "external": "87.50"},
        {"event": "challenged", "stage": "challenge-1", "fallen": 2},
        {"event": "challenged", "stage": "challenge-2", "fallen": 0, "external": "77.50"},
    ]
    path = make_entry("a", falls=range(7), challenged=[20, 21])
    tree = json.loads(path.read_text())
    tree["verification"]["history"] = [common | event for event in history]
    edit(path, verification=tree["verification"])
    [board] = boards(boards_root)
    [standing] = board.sections[0].standings
    assert [before for _, before in pages.history(standing.first)] == [
        "",
        "AutoAttack 90.00 %",
        "AutoAttack 90.00 % external 87.50 %",
        "AutoAttack 82.50 %",  # 33 of 40
        "external 77.50 %",
    ]


def test_the_audit_does_not_claim_what_nobody_asked(site: Path) -> None:
    text = Parsed(site / "digits-Linf/pgd-0.html").text
    assert "One check is made so far: clean accuracy near chance. It raised no flag." in text


def test_captions_name_those_who_lead_by_their_mean(site: Path) -> None:
    # pgd: 36 and 31 of 40; aal-fgsm falls 16 times in 40, fgsm 9 times: not told from pgd.
    page = Parsed(site / "digits-Linf.html")
    assert "first by the mean over seeds, tied: pgd 83.75 %, fgsm 77.50 %" in page.text


def test_a_row_names_its_file(site: Path) -> None:
    titles = [found.get("title") for found in Parsed(site / "digits-Linf.html").all("a")]
    assert "digits/Linf/pgd-1.json" in titles


def test_published_rows_are_there_and_labelled(site: Path) -> None:
    path = data_folder("leaderboards") / "reported" / "robustbench-cifar10-Linf.json"
    rows = [row for row in json.loads(path.read_text())["rows"] if row["eps"] == "8/255"]
    page = Parsed(site / "cifar10-Linf.html")
    assert f"RobustBench: {len(rows)} rows at Linf 8/255, published there, not verified here" in (
        page.text
    )
    assert {row["link"] for row in rows} <= {address for _, address in page.addresses()}
    [data] = page.data
    assert len(data["published"]) == len(rows)
    assert "unknown to the task file" in page.text
    assert "do not compare with these rows" in page.text
    assert "as claimed, not verified here" in page.text
    assert "RobustBench:" not in Parsed(site / "digits-Linf.html").text


def test_an_entry_page_says_how_to_repeat_it(
    site: Path, entries: list[Path], boards_root: Path
) -> None:
    text = Parsed(site / "digits-Linf/pgd-0.html").text
    assert "git checkout c0ffee\naal-bench run digits --method pgd" in text
    edit(entries[0], command=["aal-bench", "run", "digits", "--method", "pgd", "--resume"])
    build(boards(boards_root), site)
    assert "--method pgd --resume" not in Parsed(site / "digits-Linf/pgd-0.html").text
    assert "aal-bench verify leaderboards/digits/Linf/pgd-0.json" in text


@pytest.mark.parametrize("word", ["\x1b[201~rm -rf ~", "a\nb", "\u202ereversed"])
def test_a_command_that_harms_when_pasted_is_no_command(word: str) -> None:
    assert show.command(["aal-bench", "run", word]) is None
    assert show.command(["aal-bench", "run", "a b"]) == "aal-bench run 'a b'"


def test_two_builds_are_equal_bytes(site: Path, boards_root: Path, tmp_path: Path) -> None:
    # Another process with another hash seed; it imports neither torch nor the bundled packages.
    program = (
        "import sys; from pathlib import Path\n"
        "from aal_bench.leaderboard.board import boards\n"
        "from aal_bench.leaderboard.site.build import build\n"
        "build(boards(Path(sys.argv[1])), Path(sys.argv[2]))\n"
        "print(sorted({'torch', 'plotly', 'itables', 'pandas'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(boards_root), str(tmp_path / "again")],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
    files = [path.relative_to(site) for path in sorted(site.rglob("*")) if path.is_file()]
    again = [path for path in sorted((tmp_path / "again").rglob("*")) if path.is_file()]
    assert [path.relative_to(tmp_path / "again") for path in again] == files
    assert all(
        (site / path).read_bytes() == (tmp_path / "again" / path).read_bytes() for path in files
    )


def test_nothing_outside_the_folder_is_written(
    entries: list[Path], boards_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written = build(boards(boards_root), Path("deep/site"))
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after - set(before) == {tmp_path / path for path in written}
    assert all(path.is_relative_to(tmp_path / "deep/site") for path in after - set(before))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_later_build_removes_what_is_gone_and_nothing_else(
    site: Path, entries: list[Path], boards_root: Path
) -> None:
    (site / "CNAME").write_text("example.org")
    entries[0].unlink()
    entries[-1].unlink()
    build(boards(boards_root), site)
    assert not (site / "digits-Linf/pgd-0.html").exists()
    assert not (site / "cifar10-Linf").exists()
    assert (site / "digits-Linf/pgd-1.html").is_file()
    assert (site / "CNAME").read_text() == "example.org"


def test_somebodys_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no site of aal-bench"):
        build([], tmp_path)
    with pytest.raises(UserError, match="is a file"):
        build([], tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("listed", ["../notes.txt", "/etc/hostname"])
def test_a_marker_cannot_lead_out_of_the_folder(tmp_path: Path, listed: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    build([], tmp_path / "site")
    (tmp_path / "site" / MARKER).write_text(json.dumps({"files": [listed]}))
    with pytest.raises(UserError, match="leave the site"):
        build([], tmp_path / "site")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_link_inside_the_folder_is_not_followed(tmp_path: Path) -> None:
    build([], tmp_path / "site")
    (tmp_path / "elsewhere.html").write_text("mine")
    (tmp_path / "site/index.html").unlink()
    (tmp_path / "site/index.html").symlink_to(tmp_path / "elsewhere.html")
    with pytest.raises(UserError, match="leave the site"):
        build([], tmp_path / "site")
    assert (tmp_path / "elsewhere.html").read_text() == "mine"


def test_costs_that_do_not_depend_on_the_machine_are_in_the_table_and_at_the_points(
    site: Path,
) -> None:
    page = Parsed(site / "digits-Linf.html")
    assert "Passes, all epochs" in page.text
    assert "660 (11 + 11) × 30" in page.text  # (11 + 11) * 30
    assert {"data-order": "660.0", "class": "num"} in page.all("td")
    points = {one["label"]: one for series in page.data[0]["series"] for one in series["points"]}
    assert points["pgd-0"]["passes"] == "660 per image (11 + 11, every epoch)"
    assert points["pgd-1"]["passes"] is None
    assert "Seconds depend on the machine and on what else ran there" in page.text
    assert "660" in Parsed(site / "digits-Linf/pgd-0.html").text


def test_a_known_task_without_entries_has_a_page_with_the_published_rows(
    boards_root: Path, tmp_path: Path
) -> None:
    boards_root.mkdir()
    build(boards(boards_root, "cifar10"), tmp_path / "site")
    page = Parsed(tmp_path / "site/cifar10-Linf.html")
    assert "There are no entries yet" in page.text
    assert "published there, not verified here" in page.text
    index = Parsed(tmp_path / "site/index.html")
    assert "no entries yet" in index.text
    assert "cifar10-Linf.html" in [address for _, address in index.addresses()]


def test_the_rules_are_those_of_the_other_boards(site: Path) -> None:
    text = Parsed(site / "digits-Linf.html").text
    assert all(rule in text for rule in cells.RULES)


def test_no_entries_is_a_site_too(tmp_path: Path) -> None:
    written = build([], tmp_path / "site")
    assert written[0] == tmp_path / "site/index.html"
    assert "There are no entries yet" in Parsed(written[0]).text


def test_a_name_that_is_no_file_name_is_refused(entries: list[Path], boards_root: Path) -> None:
    [board] = boards(boards_root, "digits")
    with pytest.raises(UserError, match="cannot name a page"):
        names.check([board._replace(task="../digits")])


@pytest.mark.parametrize(
    ("address", "followed"),
    [
        ("https://arxiv.org/abs/1706.06083", True),
        ("http://example.org", True),
        ("javascript:alert(1)", False),
        ("JAVASCRIPT://example.org/%0aalert(1)", False),
        ("data:text/html,x", False),
        ("//example.org", False),
        ("https:///path", False),
        ("https://[", False),
        ("", False),
        (None, False),
    ],
)
def test_only_addresses_of_the_web_are_links(address: str | None, followed: bool) -> None:
    assert names.web(address) == (address if followed else None)


def test_a_module_becomes_a_plain_script() -> None:
    module = "var a=1,b=2;export{a as jQuery,b as default};\n/*! notice */"
    assert assets.as_script(module) == (
        '(()=>{"use strict";var a=1,b=2;window.DataTable=b;\n/*! notice */\n})();\n'
    )
    for other in ("var a=1;", "var a;export{a};", 'import{x}from"y";var a;export{a as default};'):
        with pytest.raises(UserError, match="another form"):
            assets.as_script(other)


def test_licences_of_the_copies_lie_beside_them(site: Path) -> None:
    text = (site / "assets/licences.txt").read_text()
    for holder in ("Plotly Technologies", "Marc Wouts", "SpryMedia", "OpenJS Foundation"):
        assert holder in text
    assert text.count("Permission is hereby granted") == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0392, "0.039 s"), (31, "31.0 s"), (125, "2.1 min"), (9000, "2.5 h")],
)
def test_times_read_well(seconds: float | None, text: str) -> None:
    assert show.duration(seconds) == text


def test_a_configuration_is_shown_leaf_by_leaf_and_never_endlessly() -> None:
    assert list(show.flat({"a": {"b": 1, "c": None}, "d": "x", "e": {}})) == [
        ("a.b", "1"),
        ("a.c", "–"),
        ("d", "x"),
        ("e", "{}"),
    ]
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"k": deep}
    [(key, text)] = show.flat(deep)
    assert key == "k.k.k.k"
    assert text.count("k") == 496
