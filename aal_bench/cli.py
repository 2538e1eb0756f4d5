"""The command line: parses, then imports. Nothing here imports torch or pydantic at start."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path
from typing import Any

import click

from aal_bench import __version__, registry
from aal_bench.errors import RunFailed, UserError

EXIT_FAILED, EXIT_USAGE, EXIT_CANCELLED = 1, 2, 130
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Group(click.Group):
    """Turns what a user can mend into one line and an exit code; everything else is a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error), EXIT_USAGE)
        except RunFailed as error:
            _fail(str(error), EXIT_FAILED)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            _fail(
                f"{error.filename or 'writing'}: no space left; free some, then --resume",
                EXIT_USAGE,
            )
        except KeyboardInterrupt:
            _fail("cancelled; the same command with --resume continues", EXIT_CANCELLED)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from aal_bench.errors import did_you_mean

            hint = did_you_mean(args[0], list(self.commands))
            raise click.UsageError(f"{error.message.rstrip('.')}.{hint}", ctx) from None


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aal-bench")
def main() -> None:
    """Settle adversarial-training claims with the field's own toolkits.

    \b
    aal-bench run digits --method aal-pgd       train, attack, report: minutes, offline
    aal-bench run cifar10 --method aal-pgd      the paper's main row
    aal-bench list methods                      what can be run
    aal-bench doctor                            is everything installed?
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _shared(command: Any) -> Any:
    """The options that `run` and `evaluate` share."""
    options = [
        click.option("--data-dir", type=click.Path(path_type=Path), help="Where the images are."),
        click.option("--protocol", help="Named list of attack stages (default: the task's)."),
        click.option("--limit-eval", type=click.IntRange(1), help="Test images; never ranked."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
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
@click.option("--update", default="plain", show_default=True, help="plain or awp.")
@click.option("--model", help="A registered model or module:builder (default: the task's).")
@click.option("--epochs", type=click.IntRange(1), help="Default: the task's.")
@click.option("--batch-size", type=click.IntRange(1), help="Default: the task's.")
@click.option("--limit-train", type=click.IntRange(1), help="Training images.")
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
    from aal_bench import runner
    from aal_bench.resolve import Request

    runner.run(Request(task=task, **options), out, data_dir, resume, ["aal-bench", *sys.argv[1:]])


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
@click.argument(
    "what",
    type=click.Choice(["tasks", "methods", "attacks", "models", "protocols"]),
    required=False,
)
def list_(what: str | None) -> None:
    """List tasks, methods, attacks, models or protocols."""
    for kind in [what] if what else ["tasks", "methods", "attacks", "models", "protocols"]:
        click.echo(click.style(kind, bold=True))
        rows = list(_rows(kind))
        width = max(len(name) for name, _ in rows)
        for name, summary in rows:
            click.echo(f"  {name:{width}}  {summary}")


def _rows(kind: str) -> Any:
    import tomllib

    if kind == "tasks":
        for name, path in registry.task_files().items():
            yield name, tomllib.loads(path.read_text(encoding="utf-8")).get("title", "")
        return
    if kind == "protocols":
        yield from ((name, text) for name, (_, text) in registry.PROTOCOLS.items())
        return
    table = {**registry.TABLES[kind[:-1]], **registry.entry_points(kind[:-1])}
    yield from ((name, row.summary) for name, row in table.items())
    if kind == "methods":
        yield from ((f"--update {name}", row.summary) for name, row in registry.UPDATES.items())


@main.command()
def doctor() -> None:
    """Examine Python, devices and toolkits; exit 1 when the core is broken."""
    from aal_bench import doctor as examination

    findings = examination.examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = click.style("ok", fg="green") if finding.ok else click.style("no", fg="red")
        click.echo(f"{mark}  {finding.name:{width}}  {finding.version or ''}")
        if not finding.ok:
            click.echo(f"    {finding.problem}")
            if finding.mend:
                click.echo(f"    mend: {finding.mend}")
    sys.exit(0 if examination.healthy(findings) else EXIT_FAILED)


if __name__ == "__main__":
    main()
