"""The command line ``fl-precode``.

Exit codes: 0 done, 1 the job failed (``check``: a demand is not met; ``compare``: something is worse), 2 bad usage (and
records that cannot be used), 3 nothing could be attacked (``audit``, ``standard``, ``score``, ``plan``, ``notes``), 130
interrupted. Errors are one readable paragraph on stderr; ``--debug`` shows the traceback. Everything heavy is imported
inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from attacker.cli import analyse, audit, gate, lists, notes, plan, report, standard
from attacker.cli.errors import error_paragraph
from attacker.jobs.in_time import any_left_behind

INTERRUPTED = 130
OF_A_CHECKOUT: Final = {
    "run": "run",
    "demo": "run",
    "bench": "bench",
    "reproduce": "reproduce",
    "recommend": "recommend",
}
"""Commands that an installed package does not have, and the module of each in `attacker.cli.checkout`."""


class TeachingGroup(TyperGroup):
    """Turns whatever a command raises into one paragraph and an exit code."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; one that only a checkout has is refused by saying so."""
        if args[0] in OF_A_CHECKOUT and args[0] not in self.commands:
            ctx.fail(
                f"`fl-precode {args[0]}` needs the reference app, which is part of the repository and not of the "
                "installed package; run it in a checkout that is installed with pip install -e '.[experiments]'"
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the module for the exit codes."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, typer.Abort):
            print("Interrupted; the job was not finished.", file=sys.stderr)  # noqa: T201
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if _is_of_the_command_line(error):
                raise
            if _was_interrupted(error):
                print("Interrupted; the job was not finished.", file=sys.stderr)  # noqa: T201
                raise typer.Exit(INTERRUPTED) from None
            if ctx.params.get("debug"):
                traceback.print_exc()
            else:
                print(error_paragraph(error), file=sys.stderr)  # noqa: T201
            raise typer.Exit(1) from None


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: where a class is being made, as during an import, Python wraps it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_of_the_command_line(error: Exception) -> bool:
    """Whether typer itself reports this error: an exit, or bad usage (which becomes exit code 2)."""
    return isinstance(error, typer.Exit) or hasattr(error, "format_message")


app = typer.Typer(
    cls=TeachingGroup,
    name="fl-precode",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fl-precode {metadata.version('fl-precode')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Measure whether a federated training leaks its images, and whether a defence stops it.

    To audit your own Flower app, wrap its strategy in the Interceptor

    and run `fl-precode audit` on the tape. In a checkout, start with `fl-precode demo`.

    Exit codes: 0 done, 1 the job failed, 2 bad usage,
    3 nothing could be attacked, 130 interrupted.
    """
    del debug, version


def _add_commands() -> None:
    """Add the commands; those of a checkout where there is one."""
    of_a_checkout = (*OF_A_CHECKOUT.values(), "reproduce_papers") if find_spec("attacker.cli.checkout") else ()
    there = [import_module(f"attacker.cli.checkout.{name}") for name in dict.fromkeys(of_a_checkout)]
    for module in (notes, plan, audit, standard, gate, report, analyse, lists, *there):
        module.register(app)


_add_commands()


def leave(end: SystemExit) -> None:
    """End the process at once where a thread was left behind that does not return; else do nothing.

    The interpreter cannot be taken down under a thread that is inside PyTorch: the process would crash, or wait.
    """
    if any_left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except SystemExit as end:
        leave(end)
        raise
    except KeyboardInterrupt:  # before or after a command, such as while Python is still importing
        print("Interrupted.", file=sys.stderr)  # noqa: T201
        sys.exit(INTERRUPTED)
