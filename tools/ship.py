"""Makes the first channel of the shipped model from a finished run: fits, calibrates, measures, writes its tables.

    python tools/ship.py --run RUN [RUN ...] --corpus FOLDER --out BUNDLE

RUN is a run of `lensborn pretrain` on FOLDER, or of a rung of `ladder.py`, whose encoder gives textures and gets a
contrast in the place of a mixture; several rungs look side by side. FOLDER holds photos.csv and faces.csv with
their pictures. Three splits by source never meet: the encoder learnt from "train"; density and calibration take the
faces of "validate" and "calibrate", and the portraits from such sources; "test" is only measured. FFHQ, CelebA-HQ
and every generated picture are only measured. Everything is read as `lensborn detect` reads it.

Writes BUNDLE and the table in README.md. `tools/known.py` adds the second channel; the page docs/results is made by
`lensborn bench FOLDER/faces.csv FOLDER/photos.csv --out docs/results`.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, track

from lensborn import defaults
from lensborn.bench.contestants import BundleContestant
from lensborn.bench.judging import ALL, Refit, entries_of
from lensborn.bench.observing import observe
from lensborn.bench.protocols import conditions_of
from lensborn.bench.render import markdown_head, write_block
from lensborn.bench.tables import Judged, Row, Tables, make_tables
from lensborn.contrast import Contrast
from lensborn.datasets.corpus import read_corpus, split_of
from lensborn.datasets.layouts import read_pictures
from lensborn.datasets.pictures import pictures_of_table
from lensborn.detector import Detector, read_faces
from lensborn.features import Encoder, EncoderExport, read_encoder
from lensborn.photo import digest_of

ROOT = Path(__file__).parent.parent
PROTOCOLS = ("published", "equalised")
FITTED_ON = ("validate", "calibrate")
NAME = "lensborn-11"
POPULATION = (
    "faces cut from photographs that websites and software projects publish, of any camera, 80 to 320 px"
)
#: Of a mixture; a contrast has none. Chosen in docs/experiments.md (03, 04, 07).
DENSITY: dict[str, Any] = {
    "n_components": (1, 2, 4, 8, 16),
    "n_dims": 64,
    "shrinkage": 0.1,
    "l2_normalise": True,
}

#: The tasks of a run, in words.
TASKS = {
    "ranking": "to rank pairs of photographs by four EXIF tags",
    "manipulation": "to spot manipulated faces",
    "trace": "to spot faces whose camera trace was destroyed ({ways})",
    "categories": "to name the make of the camera, its flash and the editor",
}
#: Ways of destroying a trace (traces.py, decoders.py), in words.
WAYS = {
    "resample": "resampled",
    "denoise": "filtered",
    "dictionary": "put together from patches of photographs",
    "decode": "rebuilt by small autoencoders that learnt from the same photographs",
    "rebuild": "rebuilt by autoencoders that learnt from the same photographs",
}
AREAS = {
    "manipulation_auc": "manipulated against pristine",
    "trace_auc": "without its trace against pristine",
}
#: Known faults, by what the score is.
FAULTS = {
    "mixture": """Faces by GANs are close to the mean face and look typical to any density. Pictures enlarged,
blurred or retouched look unusual.""",
    "contrast": """At a low alpha few faces by GANs are flagged: some photographs have longer features, or more
ordinary textures, than most of them (docs/experiments.md, 17 to 22). Docs/results measures what compression,
shrinking, blur, screenshots and cropping do.""",
}


def encoder_of(runs: Sequence[Path]) -> EncoderExport:
    """The encoder of a finished run, or of several rungs; that of rungs is exported first."""
    if len(runs) == 1 and (runs[0] / "preprocessing.json").exists():
        return read_encoder(runs[0])
    from ladder import export  # noqa: PLC0415 - torch

    return read_encoder(export(runs))


def fitting_pictures(folder: Path) -> list[tuple[Path, str]]:
    """Files to fit and calibrate on, each with its source."""
    crops = [(crop.file, crop.source) for crop in read_corpus(folder)]
    portraits = [(p.path, p.source) for p in pictures_of_table(folder / "faces.csv") if p.set == "portraits"]
    return [(file, source) for file, source in crops + portraits if split_of(source) in FITTED_ON]


def seen_files(folder: Path) -> list[Path]:
    """Everything of sources that training, fitting or calibration drew on: never to be measured."""
    crops = [(crop.file, crop.source) for crop in read_corpus(folder)]
    portraits = [(p.path, p.source) for p in pictures_of_table(folder / "faces.csv") if p.set == "portraits"]
    return [file for file, source in crops + portraits if split_of(source) != "test"]


def largest_faces(
    files: Iterable[tuple[Path, str]], export: EncoderExport
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Features (N, D) of the largest face of each file that has one of sufficient size, and their sources."""
    files = list(files)
    encoder = Encoder(export.xml)
    features, sources = [], []
    photos = read_faces((file for file, _ in files), export.preprocessing)
    for photo, (_, source) in zip(track(photos, "features", total=len(files)), files, strict=True):
        if photo.faces and photo.sides[0] >= defaults.MIN_CROP_PX:
            features.append(encoder.encode(photo.crops[:1])[0])
            sources.append(source)
    return np.stack(features), sources


def compact(tables: Tables) -> list[dict[str, Any]]:
    """Rows for the bundle: false alarms of each photographic set, AUC of each generator against each set."""
    rows = [_measured(row, "false_alarms", row["real"], "", row["n"]) for row in tables.photographs]
    rows += [_measured(row, "auc", row["generated"], row["real"], row["n_generated"]) for row in tables.pairs]
    return [row for row in rows if row["value"] is not None]


def _measured(row: Row, name: str, pictures: str, against: str, n: int) -> dict[str, Any]:
    values = zip(("value", "low", "high"), (row[name], row[f"{name}_low"], row[f"{name}_high"]), strict=True)
    return {
        "protocol": row["condition"],
        "measure": {"auc": "AUC", "false_alarms": "false alarms"}[name],
        "set": pictures,
        "against": against,
        "n": n,
        **{key: value if value is None else round(value, 4) for key, value in values},
    }


def readme_table(rows: list[dict[str, Any]], sha256: str) -> str:
    """The README's table, in Markdown."""
    lines = [
        f"First channel, as bundle `{NAME}`, sha256 `{sha256[:16]}…`; 95 % intervals; made by `tools/ship.py`; "
        "full tables in [docs/results](docs/results/report.md), by `lensborn bench`.",
        "",
        *markdown_head("protocol", "measure", "set", "against", "n", "value"),
    ]
    for row in rows:
        if row["measure"] == "AUC" and row["against"] not in ("ffhq", "photographs"):
            continue
        if row["set"] == ALL:
            continue
        percent = row["measure"] == "false alarms"
        value, low, high = (
            f"{100 * row[key]:.1f} %" if percent else f"{row[key]:.3f}" for key in ("value", "low", "high")
        )
        lines.append(
            f"| {row['protocol']} | {row['measure']} | {row['set']} | {row['against']} | {row['n']} "
            f"| {value} [{low}, {high}] |"
        )
    return "\n".join(lines)


def card(detector: Detector, rows: list[dict[str, Any]]) -> str:
    """The model card."""
    first = detector.manifest["training"]
    runs = [first, *first.get("beside", ())]
    measured = readme_table(rows, "see `lensborn info`").split("\n", 2)[2]
    return f"""# {NAME}

**What it is.** A one-class model of photographed faces. It has never seen a generated picture: its encoder
({looks(detector)}) learnt {"; beside it, another one learnt ".join(tasks(run["settings"]) for run in runs)}; all on
photographs alone ({", ".join(f"{count} {name}" for name, count in first["data"]["train"].items())}).

**The score.** {score_in_words(detector)}

**How well the pretext tasks were learnt**, on sources kept apart (chance 0.5):
{"; the other one: ".join(learnt(run["best_epoch"]) for run in runs)}.

**How good it is.** A false-alarm rate is the share of photographs with p <= {detector.info.alpha:g}. An AUC of
0.5 is chance; below 0.5, generated faces look *more* like photographs than photographs do. "published": files as
they are, where size and format differ between sets and may help or harm; "equalised": every face at one size and
JPEG quality.

{measured}

**What it may be used for.** Research, and as one hint among others by people who know its numbers. The promised
false-alarm rate holds for photographs like those it was calibrated on: {POPULATION}. For others, calibrate on
your own: with `lensborn teach --real` where the model has a known channel, with `lensborn fit` where it has none.
It must not be used alone to decide about a person or a picture, and a high score is no proof of generation.

**Known faults.** {FAULTS["contrast" if isinstance(detector.density, Contrast) else "mixture"]}
Faces whose crop is below {defaults.MIN_CROP_PX} px get the verdict "unsure".

**Licence.** Apache-2.0 for the weights. The photographs are not distributed.
"""


def looks(detector: Detector) -> str:
    """The encoder, how it looks at a face, and what it began from."""
    settings = detector.manifest["training"]["settings"]
    seen = f"{settings['backbone']}, {detector.preprocessing.size} px"
    if "patch" in settings:
        seen += f", trained on patches of {settings['patch']} px"
    began = settings["init"] or settings.get("pretrained")
    return f"{seen}, started from ImageNet weights" if began else f"{seen}, from scratch"


def tasks(settings: Mapping[str, Any]) -> str:
    """What a run learnt to do. A rung lists its tasks, and `lensborn pretrain` has a switch for each of two."""
    names = settings["tasks"] if "tasks" in settings else [name for name in TASKS if settings.get(name)]
    ways = listed([WAYS[way] for way in settings.get("ways", ())], "or")
    return listed([TASKS[name].format(ways=ways) for name in names], "and")


def listed(words: Sequence[str], last: str) -> str:
    """A list in a sentence."""
    *first, end = words or [""]
    return f"{', '.join(first)} {last} {end}" if first else end


def learnt(best: Mapping[str, float]) -> str:
    """How well, in the best epoch."""
    ranks = [
        f"{name.removeprefix('rank_')} {value:.3f}"
        for name, value in best.items()
        if name.startswith("rank_")
    ]
    areas = [f"{words}, AUC {best[name]:.3f}" for name, words in AREAS.items() if name in best]
    return "; ".join([f"rank accuracy {', '.join(ranks)}"] * bool(ranks) + areas)


def score_in_words(detector: Detector) -> str:
    """How the score is made, and from how many faces."""
    fitted, calibrating = detector.manifest["training"]["density"]["faces"], len(detector.conformal.scores)
    if not isinstance(detector.density, Contrast):
        return f"""A Gaussian mixture models the features of {fitted} other faces, and the score is how unlikely it
finds a face's. {calibrating} more calibrate it."""
    return f"""It is the greater of two signs: that a face's features are longer than photographs', and that its
textures (mean and deviation of the maps of two stages) lie nearer to their mean, each in standard deviations of
{fitted} other faces. {calibrating} more calibrate it."""


def main() -> None:
    """See the module's head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, nargs="+", required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    folder: Path = arguments.corpus

    export = encoder_of(arguments.run)
    features, sources = largest_faces(fitting_pictures(folder), export)
    detector = Detector.fit(
        features,
        sources,
        export,
        name=NAME,
        population=POPULATION,
        licence="Apache-2.0",
        seen=(digest_of(file)[:16] for file in seen_files(folder)),
        **DENSITY,
    )
    pictures = [p for table in ("faces.csv", "photos.csv") for p in read_pictures(folder / table)]
    contestant = BundleContestant(detector, refits=False)
    with Progress() as bar:
        task = bar.add_task("measuring", total=len(pictures))
        conditions = conditions_of(PROTOCOLS)
        observed = observe(pictures, conditions, [contestant], progress=lambda n: bar.advance(task, n))
    judged = Judged(observed, reference=False, alpha=detector.info.alpha, refit=Refit())
    rows = compact(make_tables(judged, entries_of([contestant]), seed=defaults.SEED))
    detector.manifest = {**detector.manifest, "measured": rows}
    detector.card = card(detector, rows)
    bundle = detector.save(arguments.out, overwrite=True)

    table = readme_table(rows, bundle.sha256)
    write_block(ROOT / "README.md", "measured", table)
    print(table)


if __name__ == "__main__":
    main()
