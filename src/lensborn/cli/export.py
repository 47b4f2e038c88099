"""`lensborn export`: the networks of a bundle as ONNX."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="The model; without it, the one shipped.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write.")],
    check: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="Pictures with faces, or folders, to compare both forms on; repeatable."
        ),
    ] = None,
) -> None:
    """Write a model's networks as ONNX, with a JSON file that says how a face becomes their input.

    The files are run beside the bundle's own networks first, on random crops and on the faces of --check, and
    nothing is written where they differ. Needs the extra `onnx`.

    Example: lensborn export --out onnx --check my-photos/
    """
    try:
        from lensborn.export import ExportError, export_bundle  # noqa: PLC0415  (heavy; so --help stays quick)
    except ModuleNotFoundError as error:
        typer.echo(f"exporting needs {error.name}: pip install 'lensborn[onnx]'", err=True)
        raise typer.Exit(2) from None
    from lensborn.bundle import SHIPPED, BundleError, read_bundle  # noqa: PLC0415
    from lensborn.onnx_graph import TranslationError  # noqa: PLC0415

    try:
        bundle = read_bundle(SHIPPED if model is None else model)
    except BundleError as error:
        raise typer.BadParameter(str(error), param_hint="BUNDLE") from error
    try:
        description = export_bundle(bundle, out, check or ())
    except (BundleError, ExportError, TranslationError, OSError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = (
                f"{out} cannot be written ({error.strerror or error}): grant access, or choose another --out"
            )
        typer.echo(f"lensborn export: {reason}", err=True)
        raise typer.Exit(2) from error
    for name, network in description["networks"].items():
        for what in ("random", "faces"):
            if found := network["parity"].get(what):
                typer.echo(
                    f"{name}: within {found['largest_difference']:.2g} standard deviations on "
                    f"{found['crops']} {what if what == 'faces' else 'random crops'}"
                )
    typer.echo(f"{out} is written")
