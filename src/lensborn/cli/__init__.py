"""The command line. One file a verb, and nothing heavy imported before a verb runs."""

import io
import os
import sys
from typing import Annotated, NoReturn

import typer

import lensborn
from lensborn.cli.bench import bench
from lensborn.cli.detect import detect
from lensborn.cli.evaluate import evaluate
from lensborn.cli.export import export
from lensborn.cli.fit import fit
from lensborn.cli.info import info
from lensborn.cli.manipulations import manipulations
from lensborn.cli.paper import paper
from lensborn.cli.prepare import prepare
from lensborn.cli.pretrain import pretrain
from lensborn.cli.scan import scan
from lensborn.cli.teach import teach

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback as Python prints it, without the values of variables
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    detect,
    scan,
    prepare,
    pretrain,
    fit,
    teach,
    evaluate,
    bench,
    paper,
    info,
    export,
    manipulations,
):
    app.command()(verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lensborn {lensborn.__version__}")
        raise typer.Exit


@app.callback()
def lensborn_(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Flag AI-generated faces: those that lack the traces of a camera, or look like those of known generators."""


def main() -> None:
    """Run the command line; a reader that closes the pipe ends it quietly, output that cannot be written with 2."""
    if sys.stdout is None:  # closed by the caller
        _end("there is no standard output: leave it open, or send it to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else a file name that it cannot encode ends a run
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()  # else Python complains about the flush at exit
        sys.exit(1)
    except OSError as error:
        if error.filename is not None or error.errno is None:  # of a file, or a library that cannot be loaded
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python tries once more at exit
        _end(f"the output cannot be written ({error.strerror or error}): free the disk, or send it elsewhere")


def _end(reason: str) -> NoReturn:
    if sys.stderr is not None:
        print(f"lensborn: {reason}", file=sys.stderr)
    sys.exit(2)
