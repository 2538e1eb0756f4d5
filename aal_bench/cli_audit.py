"""The commands that doubt: audit, diagnose. Torch only inside them."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

FILE = click.Path(path_type=Path)
EXIT_UNRELIABLE = 1


@click.command()
@click.argument("target", metavar="RUN|CHECKPOINT", type=FILE)
@click.option("--task", metavar="T", help="Of a checkpoint: the question (a name or a TOML file).")
@click.option("--model", metavar="NAME", help="Of a checkpoint that does not describe itself.")
@click.option("--method", metavar="NAME", help="Of a checkpoint: whose surgery it carries.")
@click.option(
    "--normalise",
    metavar="none|task|MEAN/STD",
    help="Input layer of a foreign checkpoint (default none: it takes [0,1]).",
)
@click.option("--data-dir", type=FILE, help="Where the images are.")
@click.option(
    "--quick/--full",
    default=False,
    help="Up to 100 images and seconds to minutes, or up to 1,000 (default).",
)
@click.option("--baseline", type=FILE, help="A PGD-trained network of the task (run or file).")
@click.option("--undefended", type=FILE, help="One trained without attack (run or file).")
@click.option(
    "--surrogate", "surrogates", type=FILE, multiple=True, help="One whose attacks are transferred."
)
@click.option("--classes", metavar="A,B|FILE", help="Detection: the class list.")
@click.option("--device", help="cpu, cuda or cuda:N (default: cuda where there is one).")
@click.option("--out", type=FILE, help="Of a checkpoint: folder of the audit.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As in run.")
@click.option("--json", "as_json", is_flag=True, help="Print audit.json and nothing else.")
@click.option("--strict", is_flag=True, help="Exit with 1 when the result is unreliable.")
def audit(target: Path, quick: bool, as_json: bool, strict: bool, **typed: Any) -> None:
    """Check whether a robustness number can be believed.

    RUN is a finished run's folder: the verdict goes into its record and report. CHECKPOINT is a
    file of weights, with --task and, unless it describes itself, --model.
    """
    from aal_bench import auditing
    from aal_bench.audit import conduct, show
    from aal_bench.audit.table import FULL, QUICK

    wanted = auditing.Wanted(
        target=target,
        budget=QUICK if quick else FULL,
        command=("aal-bench", *sys.argv[1:]),
        **typed,
    )
    if as_json:
        with redirect_stdout(sys.stderr):
            done = auditing.audit(wanted)
        click.echo(conduct.dumps(done.audit), nl=False)
    else:
        done = auditing.audit(wanted)
        show.show(done.audit)
        click.echo(f"report     {done.folder / 'report.md'}")
    if strict and done.audit.unreliable:
        sys.exit(EXIT_UNRELIABLE)


@click.command()
@click.argument("what", type=click.Choice(["aal"]))
@click.argument("run", type=FILE)
@click.option("--data-dir", type=FILE, help="Where the images are.")
@click.option("--quick/--full", default=False, help="Up to 100 images, or up to 1,000 (default).")
@click.option("--control", type=FILE, help="H6: a run with control = const_mask_matched_mean.")
@click.option("--undefended", type=FILE, help="H4: a run of the task trained without attack.")
@click.option(
    "--kernel-run", "kernels", type=FILE, multiple=True, help="H1: a run with another kernel."
)
@click.option("--device", help="cpu, cuda or cuda:N (default: cuda where there is one).")
@click.option("--json", "as_json", is_flag=True, help="Print diagnosis.json and nothing else.")
def diagnose(what: str, run: Path, as_json: bool, **typed: Any) -> None:
    """Test what might explain the numbers that a paper prints: `diagnose aal RUN`.

    Six hypotheses about AAL (masked attack, small step, overfitting, closed mask, labels at test
    time, small effective eps), each with what it predicts beside what was measured on RUN.
    """
    from aal_bench.diagnosis import conduct, show

    del what
    asked = conduct.Asked(run=run, command=("aal-bench", *sys.argv[1:]), **typed)
    if as_json:
        with redirect_stdout(sys.stderr):
            done = conduct.diagnose(asked)
        click.echo(conduct.dumps(done), nl=False)
    else:
        show.show(conduct.diagnose(asked), run)
