"""The command `muster`: one verb a file, and what happens when one ends badly.

Every verb imports what it needs when it runs, so `muster --help` costs Python's own start and typer's, nothing more.
Errors are one line on stderr: exit code 2 for what the user wrote, 1 for a run that failed, 130 for Ctrl-C. A traceback is
a defect of Muster's own, and is shown whole.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from launcher.cli import check, data, export, prepare, runs, schema, train
from trainers.errors import MusterError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
app.command("train")(train.train)
app.command("check")(check.check)
app.command("prepare")(prepare.prepare)
app.command("data")(data.data)
app.command("runs")(runs.runs)
app.command("export")(export.export)
app.command("schema")(schema.schema)


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Fine-tune a model from one YAML file, and get it back tested."""
    if version:
        from importlib.metadata import version as installed

        print(f"muster {installed('muster-train')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Runs the command line and leaves with its exit code."""
    try:
        code = app(prog_name="muster", standalone_mode=False)
    except MusterError as error:
        code = complain(str(error), error.exit_code)
    except TyperException as error:  # a mistyped verb, option or value
        context = getattr(error, "ctx", None)
        help_command = f"{context.command_path if context else 'muster'} --help"
        code = complain(f"{error.format_message().replace('Value error, ', '').strip()} See: {help_command}", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def complain(message: str, code: int) -> int:
    """Prints the message as one line on stderr, whatever it holds, and gives back the exit code."""
    sys.stdout.flush()
    print(f"muster: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    main()
