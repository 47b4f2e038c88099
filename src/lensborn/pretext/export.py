"""A trained encoder as OpenVINO IR, so that detection needs no torch."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from lensborn import defaults
from lensborn.disk import whole_file
from lensborn.features import EncoderExport, Preprocessing
from lensborn.graph import core, load_openvino
from lensborn.pretext.backbones import BACKBONES
from lensborn.pretext.model import PretextModel

ov = load_openvino()

#: Largest error of the exported features, in units of their own standard deviation, on random crops.
TOLERANCE = 0.02


def export_encoder(run: Path) -> Path:
    """Writes encoder.xml, encoder.bin and preprocessing.json beside the best weights; returns encoder.xml.

    Weights are stored in half precision. Raises RuntimeError when the exported features differ from torch's, or
    the disk refuses.
    """
    settings = json.loads((run / "settings.json").read_text())
    model = PretextModel(settings["backbone"])
    model.load_state_dict(load_file(run / "best.safetensors"))
    return write_export(model.encoder.eval(), run, settings["backbone"], int(settings["size"]))


def write_export(
    network: nn.Module,
    run: Path,
    backbone: str,
    size: int,
    feature_dim: int = defaults.FEATURE_DIM,
    texture_dim: int = 0,
) -> Path:
    """Writes the export of a finished run's network, as `export_encoder` does; returns encoder.xml.

    The network maps crops of `size` pixels to feature_dim numbers, the last texture_dim of them textures.
    """
    spec = BACKBONES[backbone]
    with tempfile.TemporaryDirectory(dir=run, prefix=".export") as aside:  # an earlier export stays whole
        xml = save_graph(network, size, Path(aside) / "encoder.xml")
        for part in (xml.with_suffix(".bin"), xml):
            part.replace(run / part.name)
    export = EncoderExport(
        run / "encoder.xml",
        Preprocessing(size=size, mean=spec.mean, std=spec.std),
        backbone,
        feature_dim,
        _training(run),
        texture_dim,
    )
    values = {**export.preprocessing.to_json(), **export.described, "training": export.training}
    with whole_file(run / "preprocessing.json") as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())
    return export.xml


def save_graph(encoder: nn.Module, size: int, path: Path) -> Path:
    """Write an encoder for crops of `size` pixels, and compare it with torch's; RuntimeError where they differ."""
    ov.save_model(to_openvino(encoder, size), path, compress_to_fp16=True)
    error = parity_error(encoder, path, size)
    if not error < TOLERANCE:
        raise RuntimeError(f"the exported encoder is off by {error:.3g} standard deviations: do not use it")
    return path


def _training(run: Path) -> dict[str, object]:
    """What a model's card should tell of the run; `beside`: of others, whose networks look at the same crops."""
    card = json.loads((run / "card.json").read_text())
    beside = {"beside": [_told(one) for one in card["beside"]]} if "beside" in card else {}
    return {**_told(card), **beside}


def _told(card: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a run's card that matter; of the checkpoint it started from, the file's name alone."""
    init = card["settings"]["init"]
    settings = {**card["settings"], "init": init and Path(init).name}
    return {"settings": settings, **{name: card[name] for name in ("data", "best_epoch", "versions")}}


def to_openvino(encoder: nn.Module, size: int) -> Any:
    """The encoder as a graph from "crops", (N, 3, size, size) float32 in 0..255, to "feature", (N, D)."""
    graph = ov.convert_model(encoder, example_input=torch.zeros(2, 3, size, size))
    graph.reshape({0: [-1, 3, size, size]})
    graph.inputs[0].get_tensor().set_names({"crops"})
    graph.outputs[0].get_tensor().set_names({"feature"})
    return graph


def parity_error(encoder: nn.Module, path: Path, size: int) -> float:
    """Largest difference between torch's and the file's features of 4 seeded crops, over their deviation."""
    crops = np.random.default_rng(0).uniform(0, 255, (4, 3, size, size)).astype(np.float32)
    with torch.no_grad():
        wanted = encoder(torch.from_numpy(crops)).numpy()
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    got = core().compile_model(path, "CPU", hints)(crops)[0]
    return float(np.abs(got - wanted).max() / wanted.std())
