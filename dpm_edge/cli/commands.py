"""The group of all commands. Status goes to stderr, data to stdout; an error is one line and an exit code above 0.

Whatever goes wrong, nobody sees a traceback: `Commands.main` turns errors on purpose, refused files, full disks, closed
pipes and Ctrl-C into one line each. DPM_EDGE_TRACEBACK=1 shows where an error came from.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from dpm_edge import __version__
from dpm_edge.errors import DpmError, nearest

COMMANDS = {
    "demo": "demo:command",
    "models": "models:command",
    "watch": "watch:command",
    "import": "import_checkpoint:command",
    "build": "build:build",
    "refit": "build:refit",
    "inspect": "engine:inspect",
    "export": "export:command",
    "trust": "engine:trust",
    "embed": "embed:command",
    "match": "match:command",
    "who": "who:command",
    "serve": "serve:command",
    "gallery": "gallery:command",
    "calibrate": "calibrate:command",
    "eval": "evaluate:command",
    "bench": "bench:command",
    "doctor": "doctor:command",
    "train": "train:train",
    "adapt": "train:adapt",
    "label": "label:command",
    "site": "site:command",
    "explain": "train:explain",
}
"""Command → its file in this folder and its name there, in the order of the help."""

FAILED, INTERRUPTED = 1, 130
"""Exit codes: an error; Ctrl-C, as shells give it (128 + SIGINT)."""


class Commands(click.Group):
    """A group that imports a command's file when it is asked for, and ends every failure with one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, or None."""
        if name not in COMMANDS:
            return None
        file, _, function = COMMANDS[name].partition(":")
        return getattr(import_module(f"dpm_edge.cli.{file}"), function)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that the arguments ask for; an unknown one is answered with the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"expected a command, got {args[0]!r}.{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run a command line and leave with its exit code."""
        if not options.get("standalone_mode", True):
            return super().main(args, *more, **options)
        code: Any = FAILED
        try:
            _open_closed_streams()
            _print_any_text()
            super().main(args, *more, **options)
            code = 0
        except SystemExit as exit:
            code = exit.code
        except KeyboardInterrupt:
            code = INTERRUPTED
            _complain("interrupted")
        except BrokenPipeError:
            pass  # the reader of our output left, as `| head` does: nobody is there to be told
        except BaseException as error:
            _complain(describe(error))
        if not _flush(complain=not code):
            code = code or FAILED
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; whatever it raises becomes a message on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            _complain("interrupted")
            raise click.exceptions.Exit(INTERRUPTED) from None
        except Exception as error:
            raise click.ClickException(describe(error)) from error


def describe(error: BaseException) -> str:
    """Say in one line what went wrong, for an error on purpose and for one that nobody foresaw."""
    if os.environ.get("DPM_EDGE_TRACEBACK"):
        return "".join(traceback.format_exception(error)).strip()
    if isinstance(error, DpmError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"expected the library {error.name}, got none installed here. `dpm-edge doctor` names what to install"
    if isinstance(error, MemoryError):
        return f"expected enough memory, got none left ({error}). Give fewer pictures or rows at once"
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(error)
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "expected a home folder for caches and trusted plans, got none. Set HOME to a folder"
    what = " ".join(str(error).split()) or "no message"
    return (
        f"expected no such error, got {type(error).__name__}: {what}. "
        "Run again with DPM_EDGE_TRACEBACK=1 and report what it prints"
    )


def _of_system(error: OSError) -> str:
    """What the system refused, with the file and what to do."""
    what = f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}"
    if error.errno == errno.EBADF:
        return "expected an open stdout for the results, got a closed one. Send them to a file, or to /dev/null"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"expected room to write, got {what}. Free some space and run it again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"expected the right to read or write, got {what}. Change its rights, or choose another place"
    if "temporary directory" in str(error.strerror):
        return f"expected a folder for temporary files, got none: {what}. Free some space, or set TMPDIR to a folder"
    if error.filename and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return f"expected another kind of file, got {what}. Check the path"
    return f"expected the system to do it, got {what}"


def _open_closed_streams() -> None:
    """Open what `2>&-` closed, so that no file of ours gets the number of stderr and receives a library's messages.

    A closed stdout refuses what is written to it, so that a result that nobody gets is an error and no success.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number, which is this one
            if number == 1 and sys.stdout is None:
                sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)


def _print_any_text() -> None:
    """Let stdout and stderr write letters that their encoding lacks, as \\u2192, instead of refusing the whole line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


def _complain(message: str) -> None:
    """Write one line of error to stderr, where there is one."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(f"Error: {message}", err=True)


def _flush(*, complain: bool) -> bool:
    """Write out what is buffered, so that a full disk is told here and not by the interpreter at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        return True
    except ValueError:  # closed by somebody else, as test runners do
        return True
    except OSError as error:
        if complain and error.errno != errno.EPIPE:
            _complain(describe(error))
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left of the buffer goes nowhere
        return False


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dpm-edge")
def main() -> None:
    """Recognise people again, across cameras, when half of them is hidden.

    \b
    Example:
      dpm-edge demo -o demo-out
    """
