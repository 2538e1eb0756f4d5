"""The command line: parses, then imports. Nothing here imports torch or pydantic at start."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from aal_bench import __version__, cli_audit, cli_leaderboard, method_facts, registry
from aal_bench.errors import RunFailed, UserError, did_you_mean, full_disk

if TYPE_CHECKING:
    from aal_bench.doctor import Finding

EXIT_FAILED, EXIT_USAGE, EXIT_CANCELLED = 1, 2, 130
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
KINDS = ("tasks", "methods", "attacks", "models", "protocols")
PASSES = (
    "  passes: forwards+backwards of a batch in one step, at 10 attack steps; 'and': of the network"
    " beside the model\n  every method has a page in docs/methods"
)


class Group(click.Group):
    """Turns what a user can mend into one line and an exit code; everything else is a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            where = f" ({error.ctx.command_path} --help)" if error.ctx else ""
            _fail(f"{error.format_message()}{where}", EXIT_USAGE)
        except (UserError, RunFailed, OSError, RuntimeError) as error:
            _explain(error)
            raise
        except KeyboardInterrupt:
            click.echo("cancelled: the same command with --resume continues", err=True)
            sys.exit(EXIT_CANCELLED)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            hint = did_you_mean(args[0], list(self.commands))
            raise click.UsageError(f"{error.message.rstrip('.')}.{hint}", ctx) from None


def _explain(error: Exception) -> None:
    """Exit with one line when a user can mend `error`; return when only a traceback helps."""
    full = full_disk(error)
    if full is not None:
        told = str(error) if isinstance(error, UserError) else f"writing failed: {full.strerror}"
        _fail(f"{told}; free some space, then --resume", EXIT_USAGE)
    if isinstance(error, UserError):
        _fail(str(error), EXIT_USAGE)
    if isinstance(error, RunFailed):
        _fail(str(error), EXIT_FAILED)
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        _fail(f"{error.filename}: {error.strerror}", EXIT_USAGE)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aal-bench")
def main() -> None:
    """Settle adversarial-training claims with the field's own toolkits.

    \b
    aal-bench run digits --method aal-pgd       train, attack, report: minutes, offline
    aal-bench run cifar10 --method aal-pgd      the paper's main row
    aal-bench audit RUN                         is the number real?
    aal-bench list methods                      what can be run
    aal-bench leaderboard                       the boards
    aal-bench doctor                            is everything installed?
    """  # noqa: D301 - click's mark for lines not to be wrapped
    # Threads that spin while they wait slow a shared machine by orders of magnitude: a step of
    # 0.1 s took 8 s beside two other processes. Read when torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, a scheduler's way to end a job, is Ctrl-C: the run says that it was cancelled."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _shared(command: Any) -> Any:
    """The options that `run` and `evaluate` share."""
    options = [
        click.option("--data-dir", type=click.Path(path_type=Path), help="Where the images are."),
        click.option("--protocol", help="Attacks: a name, or clean,pgd-100 (default: the task's)."),
        click.option("--ways", type=click.IntRange(2), help="Few-shot: classes of an episode."),
        click.option("--shots", type=click.IntRange(1), help="Few-shot: support images a class."),
        click.option("--episodes", type=click.IntRange(1), help="Few-shot: test episodes."),
        click.option("--classes", metavar="A,B|FILE", help="Detection: the class list."),
        click.option(
            "--limit-eval", type=click.IntRange(1), help="Test images (or episodes); never ranked."
        ),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True),
        click.option("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)."),
        click.option("--out", type=click.Path(path_type=Path), help="Folder of the run."),
        click.option("--resume", is_flag=True, help="Continue an unfinished run."),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Override any key: train.lr=0.05, threat.eps=4/255, xi2=0.",
        ),
        click.option("--smoke", is_flag=True, help="Seconds, tiny limits: never a result."),
        click.option(
            "--audit",
            type=click.Choice(["none", "quick", "full"]),
            default="quick",
            show_default=True,
            help="Budget of the checks whether the number is real.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("task")
@click.option(
    "--method",
    default="standard",
    show_default=True,
    help="A registered method, module:Class or file.py:Class.",
)
@click.option("--update", help="plain or awp (default: the method's own).")
@click.option("--recipe", metavar="official", help="The method's own schedule, not the task's.")
@click.option("--model", help="A registered model or module:builder (default: the task's).")
@click.option("--epochs", type=click.IntRange(1), help="Default: the task's.")
@click.option("--batch-size", type=click.IntRange(1), help="Default: the task's.")
@click.option("--limit-train", type=click.IntRange(1), help="Training images.")
@click.option("--backbone", metavar="FILE", help="Detection: weights its backbone starts from.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    help="Of training (default: bf16 where the hardware multiplies it).",
)
@click.option(
    "--compile/--no-compile",
    default=False,
    show_default=True,
    help="torch.compile the training step.",
)
@click.option(
    "--ema",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Decay of weight averaging, e.g. 0.999; off by default.",
)
@_shared
def run(task: str, data_dir: Path | None, out: Path | None, resume: bool, **options: Any) -> None:
    """Train TASK with a method, attack the result, write the report.

    TASK is a name from `aal-bench list tasks` or a TOML file of your own.
    """
    with _terminable():
        from aal_bench import environment, runner
        from aal_bench.resolve import Request

        request = Request(task=task, **options)
        if environment.rank():
            runner.follow(request, out, data_dir)
        else:
            runner.run(request, out, data_dir, resume, ["aal-bench", *sys.argv[1:]])


@main.command()
@click.argument("task")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="safetensors, or a torch file of tensors; ours describe themselves.",
)
@click.option("--model", help="What the checkpoint is: a registered model or module:builder.")
@click.option(
    "--method",
    default="standard",
    show_default=True,
    help="Method whose surgery the model carries (aal-pgd: the gate).",
)
@click.option("--robustbench", metavar="NAME", help="An entry of RobustBench's model zoo.")
@click.option(
    "--normalise",
    metavar="none|task|MEAN/STD",
    help="Input layer of a foreign checkpoint (default none: it takes [0,1]).",
)
@_shared
def evaluate(
    task: str,
    checkpoint: Path | None,
    robustbench: str | None,
    normalise: str | None,
    data_dir: Path | None,
    out: Path | None,
    resume: bool,
    **options: Any,
) -> None:
    """Attack a checkpoint under TASK's protocol and write the report."""
    with _terminable():
        from aal_bench import evaluate as evaluation
        from aal_bench.resolve import Request

        evaluation.evaluate(
            Request(task=task, **options),
            evaluation.Source(checkpoint, robustbench, normalise),
            out,
            data_dir,
            resume,
            ["aal-bench", *sys.argv[1:]],
        )


@main.command("list")
@click.argument("what", type=click.Choice(KINDS), required=False)
@click.option("-v", "--verbose", is_flag=True, help="Of methods: cost, memory, needs and paper.")
def list_(what: str | None, verbose: bool) -> None:
    """List tasks, methods, attacks, models or protocols."""
    for kind in [what] if what else KINDS:
        click.echo(click.style(kind, bold=True))
        detailed = verbose and kind == "methods"
        _show(list(_methods_in_detail() if detailed else _rows(kind)))
        if detailed:
            click.echo(PASSES)


def _show(rows: list[tuple[str, ...]]) -> None:
    """Print a table; a column without a word in it is left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(map(len, column)) for column in columns]
    for cells in zip(*columns, strict=True):
        line = "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
        click.echo(f"  {line}".rstrip())


def _rows(kind: str) -> Iterator[tuple[str, ...]]:
    """(name, the task families it serves, what it is)."""
    if kind == "tasks":
        yield from (_task_row(name, path) for name, path in registry.task_files().items())
    elif kind == "protocols":
        yield from ((name, "", text) for name, (_, text) in registry.PROTOCOLS.items())
    else:
        yield from _registered("", registry.rows(kind[:-1]))
    if kind == "methods":
        yield from _registered("--update ", registry.UPDATES)


def _registered(prefix: str, table: dict[str, registry.Row]) -> Iterator[tuple[str, ...]]:
    for name, row in table.items():
        families = "any family" if row.families == registry.ANY else ", ".join(row.families)
        yield prefix + name, families, row.summary


def _methods_in_detail() -> Iterator[tuple[str, ...]]:
    yield "name", "for", "passes", "memory", "needs", "paper"
    listed = ((name, row, method_facts.of(name)) for name, row in registry.rows("method").items())
    for name, row, facts in listed:
        yield name, *method_facts.cells(row.families, facts)
    for name, row in registry.UPDATES.items():
        yield f"--update {name}", *method_facts.cells(row.families, method_facts.UPDATES[name])


def _task_row(name: str, path: Path) -> tuple[str, str, str]:
    import tomllib

    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return name, "?", f"not valid TOML: {path}"
    return name, str(tree.get("family", "classification")), str(tree.get("title", ""))


@main.command()
def doctor() -> None:
    """Examine Python, devices and toolkits; exit 1 when the core is broken."""
    from aal_bench import doctor as examination

    findings = examination.examine()
    show_findings(findings)
    sys.exit(0 if examination.healthy(findings) else EXIT_FAILED)


def show_findings(findings: list[Finding]) -> None:
    """One line for each finding; below a bad one what is wrong and the command that mends it."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = click.style("ok", fg="green") if finding.ok else click.style("no", fg="red")
        click.echo(f"{mark}  {finding.name:{width}}  {finding.version or ''}".rstrip())
        if not finding.ok:
            click.echo(f"    {finding.problem}")
            if finding.mend:
                click.echo(f"    mend: {finding.mend}")


for command in (
    cli_audit.audit,
    cli_audit.diagnose,
    cli_leaderboard.submit,
    cli_leaderboard.verify,
    cli_leaderboard.compare,
    cli_leaderboard.leaderboard,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
