"""`lensborn pretrain`: the five pretext tasks on a corpus of face crops."""

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    corpus: Annotated[Path, typer.Argument(help="Folder with photos.csv, as `lensborn prepare` makes it.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that was cut off goes on.")],
    backbone: Annotated[str, typer.Option(help="resnet50 or efficientnet_lite0.")] = "resnet50",
    init: Annotated[Path | None, typer.Option(help="Published checkpoint to start from.")] = None,
    size: Annotated[int, typer.Option(help="Side of the encoder's input, in pixels.")] = 224,
    epochs: Annotated[int, typer.Option(min=1)] = 30,
    batch: Annotated[int, typer.Option(min=2, help="Face crops a step, over all processes.")] = 64,
    lr: Annotated[float, typer.Option(min=0.0)] = 3e-4,
    ranking: Annotated[bool, typer.Option(help="The four EXIF tags.")] = True,
    manipulation: Annotated[bool, typer.Option(help="The manipulated faces.")] = True,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    channels_last: Annotated[bool, typer.Option(help="Memory layout; faster on most processors.")] = True,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train an encoder on photographs with EXIF; no generated picture is ever needed.

    Sources are split by hash into training, validation, and two parts that this verb never opens. Under torchrun
    it uses every process. Example:

        lensborn pretrain corpus --out runs/first --backbone resnet50
    """
    try:
        import torch  # noqa: PLC0415 - the training extra
    except ImportError:
        typer.echo("training needs torch: pip install 'lensborn[train]'", err=True)
        raise typer.Exit(2) from None
    import os  # noqa: PLC0415
    from collections.abc import Mapping  # noqa: PLC0415

    from lensborn.cli.progress import progress_bar  # noqa: PLC0415
    from lensborn.datasets.corpus import read_corpus  # noqa: PLC0415
    from lensborn.pretext.corpus import split_crops  # noqa: PLC0415
    from lensborn.pretext.export import export_encoder  # noqa: PLC0415
    from lensborn.pretext.train import Settings, Trainer  # noqa: PLC0415

    several = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    if several:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    settings = Settings(
        backbone=backbone,
        init=str(init) if init else None,
        size=size,
        epochs=epochs,
        batch=batch,
        lr=lr,
        ranking=ranking,
        manipulation=manipulation,
        precision=precision,
        channels_last=channels_last,
        seed=seed,
    )
    try:
        crops = read_corpus(corpus)
        splits = split_crops(crops)
        first = not several or os.environ["RANK"] == "0"
        if first and (tagged := sum(map(len, splits.values()))) < len(crops):
            typer.echo(
                f"{tagged} of {len(crops)} crops have all four tags; the others are left out", err=True
            )
        with progress_bar(shown=first) as bar:
            task = bar.add_task("", total=None)

            def show(done: int, total: int, means: Mapping[str, float]) -> None:
                loss = sum(value for name, value in means.items() if name.startswith("loss_"))
                epoch, rate = (done - 1) * epochs // total + 1, means["images_per_s"]
                told = f"epoch {epoch}, {rate:.0f} images/s, loss {loss:.3f}"
                bar.update(task, completed=done, total=total, description=told)

            trainer = Trainer(
                settings,
                splits.get("train", []),
                splits.get("validate", []),
                out,
                workers=workers,
                progress=show,
            )
            best = trainer.fit()
    except (OSError, ValueError) as error:
        reason = str(error)
        if "Original Traceback" in reason:  # of a loader's process: its last line has the error itself
            reason = reason.strip().splitlines()[-1].partition(": ")[2]
        typer.echo(f"lensborn pretrain: {reason}", err=True)
        raise typer.Exit(2) from None
    if first:
        try:
            export_encoder(out)
        except (OSError, RuntimeError) as error:
            typer.echo(f"lensborn pretrain: the encoder is not exported: {error}", err=True)
            raise typer.Exit(2) from None
        typer.echo(f"best weights: {best}\nnext: lensborn fit PHOTOS --encoder {out} --out BUNDLE")
    if several:
        torch.distributed.destroy_process_group()
