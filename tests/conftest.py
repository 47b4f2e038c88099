"""What several test files need: the example pictures, and a tiny bundle of real parts that is made once."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from lensborn.bundle import KNOWN_XML, Bundle, KnownPart
from lensborn.detector import Detector
from lensborn.faces import FaceFinder, crop_face
from lensborn.features import Encoder, EncoderExport, Preprocessing, read_encoder
from lensborn.known import KnownChannel, KnownLook
from lensborn.known_head import KnownHead
from lensborn.memory import CALIBRATE, LEARN, Memory
from lensborn.photo import read_photo

# A busy machine is no bug: time is measured in benchmarks/, not here.
settings.register_profile("lensborn", deadline=None)
settings.load_profile("lensborn")

# A thread each for the workers of pytest-xdist, and what they start: torch would take all cores in each of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = Preprocessing(size=32)
TINY_DIM = 8
TINY_TEXTURES = 32  # beside them, where an encoder gives some


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of pictures that the project ships: three portraits and a large group."""
    return EXAMPLES


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of random weights, as `lensborn pretrain` exports one."""
    folder = tmp_path_factory.mktemp("run") / "export"
    write_tiny_encoder(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def textured_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same encoder with textures beside its features."""
    folder = tmp_path_factory.mktemp("run") / "textured"
    write_tiny_encoder(folder, seed=0, textures=True)
    return folder


@pytest.fixture(scope="session")
def example_crops() -> npt.NDArray[np.uint8]:
    """Crops (240, 32, 32, 3): six faces of the examples, forty times each, box and brightness varied."""
    rng, finder, crops = np.random.default_rng(0), FaceFinder(), []
    for path in sorted(EXAMPLES.glob("*.jpg")):
        pixels = read_photo(path).pixels
        for face in finder.find(pixels)[:3]:
            for _ in range(40):
                x, y, w, h = np.array(face.box) + rng.normal(0, 0.08, 4) * face.box[2]
                crop = crop_face(pixels, (x, y, max(w, 8), max(h, 8)), TINY.size)
                crops.append(np.clip(crop * rng.uniform(0.7, 1.3), 0, 255).astype(np.uint8))
    return np.stack(crops)


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_export: Path, example_crops: npt.NDArray[np.uint8]
) -> Bundle:
    """A bundle fitted to `example_crops`, in which each crop is its own group."""
    return fit_tiny(tiny_export, example_crops).save(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def contrast_bundle(
    tmp_path_factory: pytest.TempPathFactory, textured_export: Path, example_crops: npt.NDArray[np.uint8]
) -> Bundle:
    """A bundle whose encoder gives textures, and whose score is a contrast, fitted to the same crops."""
    return fit_tiny(textured_export, example_crops).save(tmp_path_factory.mktemp("bundles") / "contrast")


@pytest.fixture
def detector(tiny_bundle: Bundle) -> Iterator[Detector]:
    """The tiny bundle, loaded."""
    yield Detector.load(tiny_bundle.path)


@pytest.fixture(scope="session")
def tiny_channel(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, example_crops: npt.NDArray[np.uint8]
) -> KnownChannel:
    """A known channel of random weights, for which generated faces are photographs made coarse."""
    xml = tmp_path_factory.mktemp("known") / KNOWN_XML
    save_tiny_graph(xml, seed=1)
    detector = Detector.load(tiny_bundle.path)
    crops = {"photos": example_crops, "coarse": np.stack([coarse(crop) for crop in example_crops])}
    encoders = (Encoder(xml), detector.encoder)
    features = {
        name: np.concatenate([encoder.encode(some) for encoder in encoders], axis=1)
        for name, some in crops.items()
    }
    memory, unusual = Memory.empty(features["photos"]), detector.score(example_crops)[:, None]
    for name, rows in features.items():
        memory = memory.add(name, name == "coarse", rows[::2, None], unusual[::2], LEARN)
        memory = memory.add(name, name == "coarse", rows[1::2, None], unusual[1::2], CALIBRATE)
    look = KnownLook(2 * TINY.size, TINY.size, least_side=100, least_detail=0.5)
    part = KnownPart(KnownHead.learn(memory, TINY_DIM), asdict(look), frozenset({"0123456789abcdef"}))
    return KnownChannel(xml, part)


@pytest.fixture(scope="session")
def known_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, tiny_channel: KnownChannel
) -> Bundle:
    """`tiny_bundle` with a known channel."""
    detector = Detector.load(tiny_bundle.path).with_known(tiny_channel)
    return detector.save(tmp_path_factory.mktemp("bundles") / "known")


def fit_tiny(export: Path, crops: npt.NDArray[np.uint8]) -> Detector:
    """A detector called "tiny", fitted to crops."""
    encoder = read_encoder(export)
    features = Encoder(encoder.xml).encode(crops)
    groups = [str(number) for number in range(len(features))]
    return Detector.fit(
        features, groups, encoder, name="tiny", population="the examples", licence="CC0-1.0", n_components=2
    )


def coarse(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A picture of half as many pixels, each twice as large, with little blue: what a poor generator might make."""
    half = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    size = (pixels.shape[1], pixels.shape[0])
    return np.asarray(cv2.resize(half, size, interpolation=cv2.INTER_NEAREST) * (1, 1, 0.4), dtype=np.uint8)


def write_tiny_encoder(folder: Path, seed: int, *, textures: bool = False) -> EncoderExport:
    """Write a tiny graph with its preprocessing, as an export."""
    folder.mkdir(parents=True)
    save_tiny_graph(folder / "encoder.xml", seed, textures=textures)
    more = TINY_TEXTURES if textures else 0
    export = EncoderExport(folder / "encoder.xml", TINY, "tiny", TINY_DIM + more, {}, more)
    settings = {**TINY.to_json(), **export.described}
    (folder / "preprocessing.json").write_text(json.dumps(settings), "utf-8")
    return read_encoder(folder)


def save_tiny_graph(path: Path, seed: int, *, textures: bool = False) -> None:
    """Write an OpenVINO graph of random weights: convolution, ReLU, average, linear; textures are moments of the
    maps."""
    import openvino
    from openvino import opset13 as ops

    rng = np.random.default_rng(seed)
    crops = ops.parameter([-1, 3, TINY.size, TINY.size], np.float32, name="crops")
    mean = (255 * np.array(TINY.mean, np.float32)).reshape(1, 3, 1, 1)
    std = (255 * np.array(TINY.std, np.float32)).reshape(1, 3, 1, 1)
    normalised = ops.divide(ops.subtract(crops, mean), std)
    kernel = rng.normal(0, 0.2, (16, 3, 5, 5)).astype(np.float32)
    maps = ops.relu(ops.convolution(normalised, kernel, [2, 2], [0, 0], [0, 0], [1, 1]))
    pooled = ops.reduce_mean(maps, np.array([2, 3]), keep_dims=False)
    feature = ops.matmul(pooled, rng.normal(0, 1, (TINY_DIM, 16)).astype(np.float32), False, True)
    if textures:
        away = ops.subtract(maps, ops.reduce_mean(maps, np.array([2, 3]), keep_dims=True))
        deviations = ops.sqrt(ops.reduce_mean(ops.multiply(away, away), np.array([2, 3]), keep_dims=False))
        feature = ops.concat([feature, pooled, deviations], 1)
    feature.output(0).get_tensor().set_names({"feature"})
    openvino.save_model(openvino.Model([feature], [crops], "tiny"), path, compress_to_fp16=False)
