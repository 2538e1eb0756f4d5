"""The commands of the boards: submit, verify, compare, leaderboard. Torch only from level 2 on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

EXIT_BROKEN = 1
FILE = click.Path(path_type=Path)


def root_option(command: Any) -> Any:
    """``--leaderboards DIR``; default: the project's own boards."""
    return click.option(
        "--leaderboards",
        "root",
        type=FILE,
        metavar="DIR",
        help="Where the boards are (default: those of this checkout).",
    )(command)


def _root(given: Path | None, writing: bool = False) -> Path:
    from aal_bench import paths
    from aal_bench.errors import UserError

    if given is not None:
        return given
    found = paths.data_folder("leaderboards")
    if writing and paths.PACKAGE in found.parents:
        raise UserError(
            "an installed package is no place for entries: say where your boards are with"
            " --leaderboards DIR (a clone of the leaderboard's repository)"
        )
    return found


@click.command()
@click.argument("run", type=FILE)
@root_option
@click.option("--entry", metavar="NAME", help="<Name><Year><Word> (default: the run's own name).")
@click.option("--paper", metavar="TITLE", help="Title of the paper.")
@click.option("--authors", help="Comma-separated.")
@click.option("--venue", help="NeurIPS 2020.")
@click.option("--link", metavar="URL", help="Address of the paper.")
@click.option("--reported", metavar="PERCENT", help="The authors' own robust accuracy.")
@click.option("--footnote", help="Plain text, shown with the row.")
@click.option("--license", "license_", metavar="SPDX", help="Licence of the weights.")
@click.option("--checkpoint-url", metavar="URL", help="Where anybody can fetch the weights.")
@click.option("--adversarials-url", metavar="URL", help="Where anybody can fetch the adversarials.")
@click.option("--replace", is_flag=True, help="Replace the entry of that name; keeps its history.")
def submit(run: Path, root: Path | None, replace: bool, license_: str | None, **given: Any) -> None:
    """Write the finished RUN (its folder) into its board.

    What the run cannot know (paper, authors, ...) comes from these options or from
    submission.toml beside it, with the same keys.
    """
    from aal_bench.leaderboard import submit as submission
    from aal_bench.leaderboard.metadata import metadata

    about = metadata(run, {**given, "license": license_})
    entry = submission.submit(run, _root(root, writing=True), about, replace)
    click.echo(f"entry     {entry.path}")
    click.echo(f"evidence  {entry.evidence_path}")
    click.echo(f"level     {entry.result.verification.level}  {submission.remark(entry.result)}")
    where = "" if root is None else f" --leaderboards {root}"
    click.echo(f"next      aal-bench leaderboard --write{where}   (BOARD.md and board.json)")


@click.command()
@click.argument("where", type=FILE)
@click.option(
    "--level", type=click.IntRange(0, 4), help="Highest level examined (default 1; --challenge: 4)."
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable findings.")
@click.option("--verbose", "-v", is_flag=True, help="Every rule of every entry of a folder.")
@click.option("--checkpoint", type=FILE, help="Levels 2-4: the entry's weights.")
@click.option("--adversarials", type=FILE, help="Level 2: the run's adversarials.npz.")
@click.option("--data-dir", type=FILE, help="Levels 2-4: where the images are.")
@click.option("--model", metavar="FILE.py:F", help="Levels 2-4: your copy of code the entry names.")
@click.option("--method", metavar="FILE.py:C", help="Levels 2-4: the same, of its method.")
@click.option("--public-string", metavar="S", help="Level 3: known only after the submission.")
@click.option(
    "--audit",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Level 3: survivors attacked again.",
)
@click.option("--all", "everyone", is_flag=True, help="Level 3: attack every survivor again.")
@click.option("--save", type=FILE, metavar="NPZ", help="Level 3: keep the images that felled any.")
@click.option("--challenge", type=FILE, metavar="ADV.npz", help="Level 4: anybody's adversarials.")
@click.option(
    "--by", metavar="NAME", help="Record level 2 or 3 in the entry, or name a challenger."
)
@click.option("--base", type=FILE, metavar="DIR", help="The boards as they are on the main branch.")
@click.option("--maintainer", is_flag=True, help="With --base: the change may set levels above 1.")
def verify(
    where: Path,
    level: int | None,
    as_json: bool,
    verbose: bool,
    base: Path | None,
    maintainer: bool,
    everyone: bool,
    audit: int,
    **options: Any,
) -> None:
    """Check an entry, or every entry below a folder; exit 1 at the first broken level.

    \b
    0  well-formed       no torch; seconds for a whole board
    1  recomputed        every number from the evidence; no torch
    2  replayed          --checkpoint and --adversarials: one forward each
    3  attacked again    and --public-string: AutoAttack on a sample of survivors
    4  challenged        --challenge ADV.npz: anybody's adversarials lower the entry
    """  # noqa: D301 - click's mark for lines not to be wrapped
    from aal_bench.leaderboard import verify as torch_free

    deep = (level or 0) > 1 or any(options[name] for name in ("challenge", "by", "save"))
    _compared(base, maintainer, deep)
    _needs_a_level(level, deep, options)
    if deep:
        from aal_bench import verification

        chosen = verification.Options(audit=None if everyone else audit, **options)
        verdicts = [verification.verify_entry(where, 1 if level is None else level, chosen)]
    else:
        verdicts = torch_free.verify(where, 1 if level is None else level)
    if base is not None:
        from aal_bench.leaderboard import base as comparing

        findings = comparing.findings(where, base, maintainer)
        compared = torch_free.Verdict(base, findings, about="the change")
        verdicts = [compared, *verdicts]
    if as_json:
        import json

        click.echo(json.dumps(torch_free.as_json(verdicts), indent=1))
    else:
        for line in torch_free.lines(verdicts, verbose=verbose):
            click.echo(line)
    sys.exit(EXIT_BROKEN if any(not verdict.ok for verdict in verdicts) else 0)


def _needs_a_level(level: int | None, deep: bool, options: dict[str, Any]) -> None:
    """Refuse an option that nothing would read: a check that was not made must not look made."""
    from aal_bench.errors import UserError

    if level == 4:
        raise UserError("level 4 is a challenge: --challenge ADV.npz")
    names = ("checkpoint", "adversarials", "data_dir", "public_string", "model", "method")
    given = [name for name in names if options.get(name) is not None]
    if given and not deep:
        needed = 3 if "public_string" in given else 2
        option = given[0].replace("_", "-")
        raise UserError(f"--{option} is read from level 2 on: add --level {needed}")


def _compared(base: Path | None, maintainer: bool, deep: bool) -> None:
    """Refuse options that say nothing together."""
    from aal_bench.errors import UserError

    if maintainer and base is None:
        raise UserError("--maintainer is about --base DIR: add it")
    if base is not None and deep:
        raise UserError(
            "--base compares a folder at levels 0 and 1: omit the options of levels 2-4"
        )


@click.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with every index.")
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Compare two entries or runs A and B, image by image (McNemar's exact test).

    Few-shot: episode by episode (paired t-test of the episodes' accuracies).

    Detection: mAP on the same bootstrap resamples of the images.

    A and B are entries (.json) or folders of finished runs.
    """
    from aal_bench.leaderboard import compare as comparing

    found = comparing.compare(a, b)
    if as_json:
        import json

        click.echo(json.dumps(comparing.tree(found), indent=1))
    else:
        click.echo(comparing.text(found))


@click.command()
@click.argument("task", required=False)
@root_option
@click.option("--robustbench", is_flag=True, help="With RobustBench's published rows.")
@click.option("--reported", is_flag=True, help="With what the two papers claim.")
@click.option("--markdown", is_flag=True, help="As Markdown.")
@click.option("--json", "as_json", is_flag=True, help="As one machine-readable tree.")
@click.option("--html", type=FILE, metavar="DIR", help="As a static site in DIR.")
@click.option("--write", is_flag=True, help="Renew BOARD.md and board.json beside the boards.")
@click.option("--check", is_flag=True, help="Exit 1 when BOARD.md or board.json is stale.")
def leaderboard(
    task: str | None,
    root: Path | None,
    robustbench: bool,
    reported: bool,
    markdown: bool,
    as_json: bool,
    html: Path | None,
    write: bool,
    check: bool,
) -> None:
    """Show the boards: ranks by AutoAttack, or by a lower verified value; ties are ties."""
    from aal_bench.errors import UserError

    chosen = [name for name, given in _outputs(markdown, as_json, html, write, check) if given]
    if len(chosen) > 1:
        raise UserError(f"one at a time: {' or '.join(chosen)}")
    if (write or check) and task is not None:
        raise UserError(f"{chosen[0]} is about all boards: omit {task}")
    where = _root(root, writing=write)
    if write or check:
        _committed(where, write, "" if root is None else f" --leaderboards {root}")
        return
    from aal_bench.leaderboard.board import boards

    found = boards(where, task)
    if html is not None:
        from aal_bench.leaderboard.site.build import build

        pages = [path for path in build(found, html) if path.suffix == ".html"]
        click.echo(f"{len(pages)} pages  ->  {html / 'index.html'}")
    elif markdown:
        from aal_bench.leaderboard.markdown import markdown as written

        click.echo(written(found, robustbench, reported), nl=False)
    elif as_json:
        import json

        from aal_bench.leaderboard.board_json import tree

        click.echo(json.dumps(tree(found, robustbench, reported), indent=1))
    else:
        from aal_bench.leaderboard.terminal import show

        show(found, robustbench, reported)


def _outputs(
    markdown: bool, as_json: bool, html: Path | None, write: bool, check: bool
) -> list[tuple[str, bool]]:
    return [
        ("--markdown", markdown),
        ("--json", as_json),
        ("--html", html is not None),
        ("--write", write),
        ("--check", check),
    ]


def _committed(root: Path, write: bool, given: str) -> None:
    from aal_bench.leaderboard import board_files

    if write:
        for path in board_files.write(root):
            click.echo(f"written   {path}")
        return
    stale = board_files.stale(root)
    for name in stale:
        state = "stale  " if (root / name).exists() else "missing"
        click.echo(f"{state}   {name}: aal-bench leaderboard --write{given} writes it", err=True)
    sys.exit(EXIT_BROKEN if stale else 0)
