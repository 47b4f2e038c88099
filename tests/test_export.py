"""Bundles as ONNX: the same features by onnxruntime as by the bundle, from the exported folder alone."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
import pytest
from conftest import TINY, save_tiny_graph
from openvino import opset8 as ops
from PIL import Image
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx", reason="needs pip install 'lensborn[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'lensborn[onnx]'")

from lensborn import export, onnx_graph  # noqa: E402
from lensborn.bundle import Bundle, write_bundle  # noqa: E402
from lensborn.cli import app  # noqa: E402
from lensborn.detector import Detector  # noqa: E402
from lensborn.export import Comparison, ExportError, export_bundle  # noqa: E402
from lensborn.faces import FaceFinder, crop_face  # noqa: E402
from lensborn.features import Encoder  # noqa: E402
from lensborn.graph import Graph, core  # noqa: E402
from lensborn.photo import read_photo  # noqa: E402

PORTRAITS = ("generated-man.jpg", "generated-woman.jpg", "portrait-fujifilm-x-t10.jpg")
FILES = {"encoder.onnx", "export.json"}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def features_by_the_description(folder: Path, name: str, picture: Path) -> npt.NDArray[np.float32]:
    """The features (1, D) of the largest face of a picture, as someone who has only the folder would make them."""
    network = json.loads((folder / "export.json").read_text("utf-8"))["networks"][name]
    crop, entry = network["crop"], network["input"]
    pixels = read_photo(picture).pixels
    face = crop_face(pixels, FaceFinder().find(pixels)[0].box, crop["size"], crop["scale"])
    if "middle" in crop:
        start = (crop["size"] - crop["middle"]) // 2
        face = face[start : start + crop["middle"], start : start + crop["middle"]]
    assert entry["shape"] == ["N", 3, *face.shape[:2]]
    assert (entry["type"], entry["channels"], entry["range"]) == ("float32", "RGB", [0, 255])
    session = onnxruntime.InferenceSession(folder / network["file"], providers=["CPUExecutionProvider"])
    planes = face.transpose(2, 0, 1)[None].astype(np.float32)
    (features,) = session.run([network["output"]["name"]], {entry["name"]: planes})
    assert features.shape == (1, network["output"]["shape"][1])
    return np.asarray(features)


def test_the_shipped_model_scores_alike_as_onnx(examples: Path, tmp_path: Path) -> None:
    pictures = [examples / name for name in PORTRAITS]
    result = run("--out", tmp_path / "onnx", *(part for picture in pictures for part in ("--check", picture)))
    assert result.exit_code == 0, result.output
    assert "encoder: within" in result.output and "3 faces" in result.output
    detector = Detector.load()
    for picture in pictures:
        (score,) = detector.density.score(features_by_the_description(tmp_path / "onnx", "encoder", picture))
        assert score == pytest.approx(detector.detect(picture).faces[0].score, abs=1e-3)


def test_what_is_written(tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert run(tiny_bundle.path, "--out", tmp_path / "one").exit_code == 0
    assert run(tiny_bundle.path, "--out", tmp_path / "two").exit_code == 0
    assert {path.name for path in (tmp_path / "one").iterdir()} == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    description = json.loads((tmp_path / "one" / "export.json").read_text("utf-8"))
    assert description["bundle"] == {"name": "tiny", "sha256": tiny_bundle.sha256, "licence": "CC0-1.0"}
    (network,) = description["networks"].values()
    data = (tmp_path / "one" / "encoder.onnx").read_bytes()
    assert network["sha256"] == hashlib.sha256(data).hexdigest()
    assert network["crop"] == {"scale": TINY.crop_scale, "size": TINY.size, "resample": TINY.resample}
    assert network["parity"]["random"]["largest_difference"] < network["parity"]["tolerance"]
    assert "faces" not in network["parity"]
    assert data == (tmp_path / "two" / "encoder.onnx").read_bytes()


def test_textures_go_along(contrast_bundle: Bundle, examples: Path, tmp_path: Path) -> None:
    export_bundle(contrast_bundle, tmp_path / "onnx", [examples / PORTRAITS[0]])
    detector = Detector.load(contrast_bundle.path)
    features = features_by_the_description(tmp_path / "onnx", "encoder", examples / PORTRAITS[0])
    (score,) = detector.density.score(features)
    assert score == pytest.approx(detector.detect(examples / PORTRAITS[0]).faces[0].score, abs=1e-3)


def test_the_known_channel_goes_along(known_bundle: Bundle, examples: Path, tmp_path: Path) -> None:
    description = export_bundle(known_bundle, tmp_path / "onnx", [examples / PORTRAITS[0]])
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {*FILES, "known.onnx"}
    assert all(network["parity"]["faces"]["crops"] == 1 for network in description["networks"].values())
    detector = Detector.load(known_bundle.path)
    assert detector.known is not None
    features = features_by_the_description(tmp_path / "onnx", "known", examples / PORTRAITS[0])
    (score,) = detector.known.head.score(features)
    said = detector.detect(examples / PORTRAITS[0]).faces[0].known_generator
    assert said is not None
    assert score == pytest.approx(said.score, abs=1e-3)


# --- refusals -----------------------------------------------------------------------------------------


def test_another_network_is_not_taken_for_the_same(
    tiny_bundle: Bundle, example_crops: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    save_tiny_graph(tmp_path / "other.xml", seed=7)
    models = [
        onnx_graph.to_onnx(core().read_model(xml), "x")
        for xml in (tiny_bundle.encoder_xml, tmp_path / "other.xml")
    ]
    comparisons = [Comparison(Encoder(tiny_bundle.encoder_xml), model) for model in models]
    for comparison in comparisons:
        comparison.add(example_crops[:5])
    assert comparisons[0].error < export.TOLERANCE < 0.1 < comparisons[1].error


def test_features_that_differ_are_refused(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    result = run(tiny_bundle.path, "--out", tmp_path / "onnx")
    assert result.exit_code == 2
    assert "'encoder' differs by" in result.output
    assert not list(tmp_path.iterdir())


def test_features_that_are_not_numbers_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    crops = ops.parameter([-1, 3, TINY.size, TINY.size], np.float32)
    mean = ops.reduce_mean(crops, np.array([2, 3]), keep_dims=False)
    feature = ops.matmul(mean, np.full((3, 8), np.nan, np.float32), False, False)
    bundle = with_graph(tiny_bundle, openvino.Model([feature], [crops], "broken"), tmp_path / "bundle")
    with pytest.raises(ExportError, match="differs by nan"):
        export_bundle(bundle, tmp_path / "onnx")


def with_graph(bundle: Bundle, graph: openvino.Model, folder: Path) -> Bundle:
    """The bundle with another encoder."""
    folder.mkdir()
    openvino.save_model(graph, folder / "encoder.xml", compress_to_fp16=False)
    files: dict[str, Path | bytes] = {name: folder / name for name in ("encoder.xml", "encoder.bin")}
    return write_bundle(
        folder / "whole",
        encoder_files=files,
        density=bundle.density,
        conformal=bundle.conformal,
        manifest=bundle.manifest,
        card="",
    )


def test_an_unknown_operation_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    crops = ops.parameter([-1, 3, TINY.size, TINY.size], np.float32)
    mean = ops.tanh(ops.reduce_mean(crops, np.array([2, 3]), keep_dims=False))
    feature = ops.matmul(mean, np.ones((3, 8), np.float32), False, False)
    bundle = with_graph(tiny_bundle, openvino.Model([feature], [crops], "strange"), tmp_path / "bundle")
    result = run(bundle.path, "--out", tmp_path / "onnx")
    assert result.exit_code == 2
    assert "operation Tanh" in result.output
    assert not (tmp_path / "onnx").exists()


def test_what_stands_at_the_place_stays(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    result = run(tiny_bundle.path, "--out", tmp_path / "mine")
    assert result.exit_code == 2
    assert "choose another folder" in result.output
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_check_needs_faces_and_whole_pictures(tiny_bundle: Bundle, tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), "grey").save(tmp_path / "plain.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    for name, message in (("plain.png", "no face was found"), ("broken.jpg", "leave it out of the check")):
        result = run(tiny_bundle.path, "--out", tmp_path / "onnx", "--check", tmp_path / name)
        assert result.exit_code == 2
        assert message in result.output
        assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra_the_remedy_is_named(missing: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from lensborn.cli import main; main()"
    command = [sys.executable, "-c", code, "export", "--out", tmp_path / "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"needs {missing}" in done.stderr
    assert "pip install 'lensborn[onnx]'" in " ".join(done.stderr.split())


# --- operations ---------------------------------------------------------------------------------------


def check_alike(feature: Any, crops: Any) -> None:
    """The graph from `crops` to `feature` gives the same by both runtimes, for one input and for three."""
    graph = openvino.Model([feature], [crops], "trial")
    session = onnxruntime.InferenceSession(onnx_graph.to_onnx(graph, "trial"))
    shape = [side.get_length() for side in list(graph.input(0).partial_shape)[1:]]
    inputs = np.random.default_rng(0).uniform(0, 255, (3, *shape)).astype(np.float32)
    compiled = Graph(graph)
    wanted = np.concatenate([next(iter(compiled.one(row[None]).values())).copy() for row in inputs])
    assert wanted.std(axis=0).min() > 0  # else nothing is compared
    for rows in (inputs, inputs[:1]):
        (got,) = session.run(["feature"], {"crops": rows})
        np.testing.assert_allclose(got, wanted[: len(rows)], rtol=1e-4, atol=1e-4)


def pooled(maps: Any) -> Any:
    return ops.reduce_mean(maps, np.array([2, 3]), keep_dims=False)


def parameter(channels: int = 4, side: int = 9) -> Any:
    return ops.parameter([-1, channels, side, side], np.float32)


def test_arithmetic_in_both_orders() -> None:
    crops = parameter()
    row = np.array([3.0, 5.0, 7.0, 9.0], np.float32).reshape(1, 4, 1, 1)
    maps = ops.add(ops.multiply(ops.divide(ops.subtract(crops, row), 2 * row), row), row)
    check_alike(pooled(ops.divide(ops.subtract(row, maps), ops.add(row, ops.relu(maps)))), crops)


@pytest.mark.parametrize("kept", [False, True])
def test_clamp_and_mean(kept: bool) -> None:
    crops = parameter()
    maps = ops.clamp(ops.divide(crops, np.float32(64)), 0.5, 3.5)
    means = ops.reduce_mean(maps, np.array([2, 3]), keep_dims=kept)
    check_alike(pooled(ops.multiply(maps, means)) if kept else means, crops)


def test_convolutions_with_groups_strides_and_uneven_padding() -> None:
    rng, crops = np.random.default_rng(1), parameter()
    kernel = rng.normal(size=(2, 3, 2, 3, 3)).astype(np.float32)  # groups, out, in, height, width
    maps = ops.group_convolution(crops, kernel, [2, 2], [0, 1], [1, 2], [1, 1])
    kernel = rng.normal(size=(5, 6, 2, 2)).astype(np.float32)
    check_alike(pooled(ops.convolution(maps, kernel, [1, 1], [0, 0], [1, 1], [2, 2])), crops)


def test_padding_by_uneven_places() -> None:
    crops = parameter()
    maps = ops.pad(crops, [0, 0, 0, 1], [0, 0, 2, 0], "constant", np.float32(7))
    check_alike(
        pooled(ops.convolution(maps, np.ones((5, 4, 3, 3), np.float32), [1, 1], [0, 0], [0, 0], [1, 1])),
        crops,
    )


def test_max_pool_pads_with_nothing_rather_than_with_zeros() -> None:
    crops = parameter()
    below = ops.subtract(crops, np.full((1, 1, 1, 1), 300, np.float32))
    maps = ops.max_pool(below, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3], "floor", "explicit", "i64")
    check_alike(pooled(maps.output(0)), crops)


@pytest.mark.parametrize("turned", [False, True])
def test_matrix_product(turned: bool) -> None:
    crops, matrix = parameter(), np.random.default_rng(2).normal(size=(4, 6)).astype(np.float32)
    check_alike(ops.matmul(pooled(crops), matrix.T.copy() if turned else matrix, False, turned), crops)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (lambda crops: ops.max_pool(crops, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2], "ceil"), "rounding_type"),
        (
            lambda crops: ops.convolution(
                crops, np.ones((1, 4, 2, 2), np.float32), [1, 1], [0, 0], [0, 0], [1, 1], "same_upper"
            ),
            "auto_pad",
        ),
        (lambda crops: ops.convert(crops, "f16"), "Convert takes the result of Parameter"),
        (lambda crops: ops.matmul(crops, crops, False, False), "MatMul takes the result of Parameter"),
    ],
)
def test_settings_that_are_not_known_are_refused(maps: Any, message: str) -> None:
    crops = parameter()
    graph = openvino.Model([pooled(maps(crops).output(0))], [crops], "trial")
    with pytest.raises(onnx_graph.TranslationError, match=message):
        onnx_graph.to_onnx(graph, "trial")


# --- from torch to ONNX -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "moments"),
    [("resnet_tiny", False), ("resnet_tiny", True), ("efficientnet_lite0", False)],
    ids=["resnet", "resnet-moments", "efficientnet"],
)
def test_backbones_from_torch_over_openvino_to_onnx(backbone: str, moments: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from lensborn.pretext.export import to_openvino
    from lensborn.pretext.known import Moments
    from lensborn.pretext.model import Encoder as TorchEncoder

    torch.manual_seed(0)
    torch.set_num_threads(1)
    encoder = Moments([TorchEncoder(backbone, 16)]) if moments else TorchEncoder(backbone, 16)
    crops = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    planes = torch.from_numpy(crops.transpose(0, 3, 1, 2).astype(np.float32))
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of the crops, so that they tell in the features
    with torch.no_grad():
        encoder.train()(planes)
        wanted = encoder.eval()(planes).numpy()
    for half in (False, True):  # as exports keep their weights; then torch's features differ
        openvino.save_model(to_openvino(encoder, 64), tmp_path / "encoder.xml", compress_to_fp16=half)
        model = onnx_graph.to_onnx(core().read_model(tmp_path / "encoder.xml"), backbone)
        comparison = Comparison(Encoder(tmp_path / "encoder.xml"), model)
        comparison.add(crops)
        assert comparison.error < export.TOLERANCE
        if not half:
            (got,) = onnxruntime.InferenceSession(model).run(["feature"], {"crops": planes.numpy()})
            assert np.abs(got - wanted).max() < 1e-3 * wanted.std(axis=0).mean()
    assert {entry.version for entry in onnx.load_from_string(model).opset_import} == {onnx_graph.OPSET}
