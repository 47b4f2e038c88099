"""`lensborn manipulations`: a contact sheet of what the second pretext task shows the network."""

from pathlib import Path
from typing import Annotated

import typer


def manipulations(
    photos: Annotated[list[Path], typer.Argument(help="Photographs of faces.")],
    out: Annotated[Path, typer.Option(help="The sheet, a PNG or JPEG file.")],
    side: Annotated[int, typer.Option(min=64, max=1024, help="Side of each face, in pixels.")] = 192,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Draw every manipulation of every face of some photographs, a row a face.

    Example:

        lensborn manipulations examples/portrait-fujifilm-x-t10.jpg --out sheet.png
    """
    import cv2  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    from lensborn.faces import FaceFinder, crop_face, crop_square  # noqa: PLC0415
    from lensborn.photo import UnreadableError, read_photo  # noqa: PLC0415
    from lensborn.pretext.manipulations import MANIPULATIONS, PIECEWISE, PRISTINE, allows, manipulate  # noqa: PLC0415

    names = (PRISTINE, *MANIPULATIONS, PIECEWISE)
    finder = FaceFinder()
    rows = []
    for path in photos:
        try:
            photo = read_photo(path)
        except UnreadableError as error:
            typer.echo(f"lensborn manipulations: {path}: {error}", err=True)
            raise typer.Exit(1) from None
        for face in finder.find(photo.pixels):
            x, y, square = crop_square(face.box, photo.width, photo.height)
            landmarks = (face.landmarks.astype(np.float64) - (x, y)) * (side / square)
            if not all(allows(landmarks, side, name) for name in MANIPULATIONS):
                continue
            crop = crop_face(photo.pixels, face.box, side)
            rng = np.random.default_rng(seed)
            rows.append(np.hstack([manipulate(crop, landmarks, name, rng) for name in names]))
    if not rows:
        typer.echo("no face with both eyes in view: give photographs of faces seen from the front", err=True)
        raise typer.Exit(1)
    heading = np.full((24, side * len(names), 3), 255, np.uint8)
    for column, name in enumerate(names):
        place = (column * side + 6, 17)
        cv2.putText(
            heading, name.replace("_", " "), place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA
        )
    try:
        aside = out.with_name(f".new-{out.name}")  # the suffix stays: by it Pillow knows the format
        try:
            Image.fromarray(np.vstack([heading, *rows])).save(aside)
            aside.replace(out)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: of a suffix that Pillow does not know
        raise typer.BadParameter(
            f"{error}: name a picture in a folder that is there", param_hint="--out"
        ) from error
    typer.echo(f"{len(rows)} faces: {out}")
