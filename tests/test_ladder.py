"""The ladder of tools/: destroyed traces keep the picture, and a rung trains and is measured as it was trained."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip("torch")
TOOLS = Path(__file__).parent.parent / "tools"
if not TOOLS.is_dir():
    pytest.skip("the tools are not part of an installation", allow_module_level=True)
sys.path.insert(0, str(TOOLS))

import ladder  # noqa: E402
import ship  # noqa: E402
import traces  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from test_training import corpus  # noqa: E402, F401 - a fixture

from lensborn.datasets.corpus import read_corpus, split_of  # noqa: E402
from lensborn.detector import Detector  # noqa: E402
from lensborn.features import Encoder, read_encoder  # noqa: E402


def picture(seed=0, side=90):
    """Smooth shapes with noise, (side, side + 7, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, : side + 7] / side
    waves = np.stack([np.sin(5 * x + k) + np.cos(7 * y * (k + 1)) for k in range(3)], axis=2)
    return np.clip(128 + 40 * waves + rng.normal(0, 4, waves.shape), 0, 255).astype(np.uint8)


DICTIONARY = traces.principal_patches([picture(seed) for seed in range(8)])


@pytest.mark.parametrize("way", ["resample", "denoise", "dictionary", "decode"])
def test_a_destroyed_trace_leaves_the_picture(way):
    image = picture(99)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        found = traces.destroy(image, [way], rng, dictionary=DICTIONARY, decoders=[lambda x: 255 - (255 - x)])
        assert found.shape == image.shape and found.dtype == np.uint8
        error = np.abs(found.astype(float) - image)
        assert error.mean() < 12, "the content is kept"
        if way != "decode":
            assert error.mean() > 0.5, "the noise is not"


def test_a_way_that_lacks_what_it_needs_is_refused():
    for way in ("decode", "dictionary", "magic"):
        with pytest.raises(ValueError, match="resample, denoise"):
            traces.destroy(picture(), [way], np.random.default_rng(0))


def test_all_axes_of_the_dictionary_give_the_picture_back(monkeypatch):
    monkeypatch.setattr(traces, "KEPT", (192, 192))
    found = traces.from_dictionary(picture(5), DICTIONARY, np.random.default_rng(1))
    assert_allclose(found.astype(int), picture(5).astype(int), atol=1)


def test_a_transposed_convolution_keeps_the_light_and_leaves_a_chequerboard():
    grey = np.full((40, 40, 3), 120, dtype=np.uint8)
    patterns = [traces.transposed(grey, np.random.default_rng(seed)) for seed in range(20)]
    for found in patterns:
        inner = found[8:-8, 8:-8].astype(float)
        assert inner.mean() == pytest.approx(120, abs=4)
        assert_array_equal(inner[::2, ::2], inner[0, 0, 0])  # each phase by itself is flat
    assert 3 <= max(np.ptp(found[8:-8, 8:-8].astype(int)) for found in patterns) <= 8


def test_shuffling_moves_blocks_and_changes_none():
    patch = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = ladder.shuffled(patch, 16, np.random.default_rng(1))
    assert (found != patch).any()

    def blocks(image):
        return sorted(
            image[y : y + 16, x : x + 16].tobytes() for y in range(0, 64, 16) for x in range(0, 64, 16)
        )

    assert blocks(found) == blocks(patch)


def test_fixed_high_pass_kernels_see_no_flat_or_sloping_light():
    slope = torch.arange(32.0).expand(1, 3, 32, 32)
    found = ladder.Front("residual")(slope)[..., 4:-4, 4:-4]
    assert_allclose(found.numpy(), 127, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": ("ranking", "manipulation", "trace", "categories"), "weighting": "bilevel"},
        {"sees": "both", "weighting": "uncertainty", "shuffle": 32},
        {"sees": "learnt", "view": "aliased", "tasks": ("trace",), "delivery": "none"},
    ],
    ids=["bilevel", "both", "learnt"],
)
def test_a_rung_trains_and_is_measured_as_it_was_trained(corpus, tmp_path, changes):  # noqa: F811
    crops = {split: [] for split in ("train", "validate")}
    for crop in read_corpus(corpus):
        crop.row.update(make="Canon", flash="16", software="GIMP 2")
        if split_of(crop.source) in crops:
            crops[split_of(crop.source)].append(crop)
    settings = {"patch": 64, "epochs": 1, "batch": 8, "precision": "fp32", "pretrained": False}
    rung = ladder.Rung(**settings, **changes)

    def destroy(image, ways, rng):
        return traces.destroy(image, ways, rng, dictionary=DICTIONARY)

    before = ladder.RungModel(rung).state_dict()
    climb = ladder.Climb(
        rung, crops, tmp_path, tmp_path / "run-0", ladder.Means(destroy, {}), lambda *_: None
    )
    climb.fit()
    trained = climb.model.cpu().eval()
    assert (trained.rank.weight != before["rank.weight"]).any()
    extractor = ladder.RungExtractor(tmp_path / "run-0")
    face = np.random.default_rng(0).integers(0, 256, (1, ladder.SIDE, ladder.SIDE, 3), dtype=np.uint8)
    seen = [
        ladder.look(face[0], rung, at, rng) for rng in [np.random.default_rng(0)] for at in ladder.grid(rung)
    ]
    planes = torch.from_numpy(np.stack(seen).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        wanted = trained(planes).mean(0)
    found = extractor.encode(face)[0]
    features = ladder.columns(tmp_path / "run-0", [0])
    assert_allclose(found[features], wanted, atol=1e-3 + 1e-3 * float(wanted.abs().max()))
    widths = [16, 24, 40, 80, 112]  # of the stages, whose means and deviations follow
    layers = [ladder.columns(tmp_path / "run-0", [n]) for n in range(6)]
    assert [len(part) for part in layers] == [ladder.FEATURES, *(2 * width for width in widths)]
    assert np.concatenate(layers).tolist() == list(range(len(found)))
    assert ladder.columns(tmp_path / "run-0", [4, 1]).tolist() == [*layers[4], *layers[1]]
    with torch.no_grad():
        maps = trained.encoder.backbone._blocks[0]
        seen_by = []
        maps.register_forward_hook(lambda _module, _given, out: seen_by.append(out))
        trained(planes)
    moments = torch.cat([seen_by[0].mean((2, 3)), seen_by[0].std((2, 3))], 1).mean(0)
    assert_allclose(found[layers[1]], moments, atol=1e-3 + 1e-3 * float(moments.abs().max()))
    with pytest.raises(ValueError, match="no stage 6"):
        ladder.columns(tmp_path / "run-0", [0, 6])


@pytest.fixture(scope="module")
def rung(tmp_path_factory):
    """A finished run of random weights, whose normalisations know the faces of `noise`."""
    settings = ladder.Rung(tasks=("ranking", "manipulation", "trace"))
    torch.manual_seed(0)
    model = ladder.RungModel(settings)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.from_numpy(noise(4).transpose(0, 3, 1, 2)).float())
    run = tmp_path_factory.mktemp("ladder") / "five-trace-0"
    run.mkdir()
    save_file(model.state_dict(), run / "best.safetensors")
    (run / "settings.json").write_text(json.dumps(asdict(settings)))
    best = {"rank_iso": 0.7, "manipulation_auc": 0.8, "trace_auc": 0.9}
    data = {"train": {"crops": 50, "sources": 7}}
    card = {"settings": asdict(settings), "data": data, "best_epoch": best, "versions": {"torch": "2"}}
    (run / "card.json").write_text(json.dumps(card))
    return run


def noise(n):
    """Faces of noise, smooth or sharp."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, ladder.SIDE // 8, ladder.SIDE // 8, 3))
    fine = rng.normal(0, 20, (n, ladder.SIDE, ladder.SIDE, 3)) * rng.uniform(0, 2, (n, 1, 1, 1))
    return np.clip(coarse.repeat(8, 1).repeat(8, 2) + fine, 0, 255).astype(np.uint8)


def test_a_rung_is_exported_with_its_textures(rung):
    assert ladder.export([rung]) == rung
    export = read_encoder(rung)
    assert (export.backbone, export.preprocessing.size) == ("efficientnet_lite0_short", ladder.SIDE)
    assert (export.feature_dim, export.texture_dim) == (ladder.FEATURES + 2 * (40 + 80), 2 * (40 + 80))
    assert export.training["best_epoch"]["trace_auc"] == 0.9
    faces = noise(3)
    found = Encoder(export.xml).encode(faces)
    model = ladder.trained(rung).eval()
    seen = []
    for block in (4, 7):  # the last of stages 3 and 4
        model.encoder.backbone._blocks[block].register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        features = model(torch.from_numpy(faces.transpose(0, 3, 1, 2)).float())
    moments = [moment for maps in seen for moment in (maps.mean((2, 3)), maps.std((2, 3), correction=0))]
    wanted = torch.cat([features, *moments], 1).numpy()
    assert wanted.std(axis=0).min() > 0
    assert np.abs(found - wanted).max() < 0.02 * wanted.std()
    # about what the experiments saw of its patches: the maps differ at their borders alone
    patches = [faces[:, y : y + 128, x : x + 128] for y, x in ladder.grid(ladder.rung_of(rung))]
    with torch.no_grad():
        layers = ladder.Layers(ladder.trained(rung), ladder.TEXTURES).eval()
        looks = [layers(torch.from_numpy(one.transpose(0, 3, 1, 2)).float()).numpy() for one in patches]
    assert np.corrcoef(np.mean(looks, axis=0).ravel(), found.ravel())[0, 1] > 0.95


def test_rungs_side_by_side_give_the_features_of_both_and_then_their_textures(rung, tmp_path):
    other = tmp_path / "other-0"
    shutil.copytree(rung, other)
    weights = load_file(rung / "best.safetensors")
    weights = {name: 0.9 * value if value.ndim == 4 else value for name, value in weights.items()}
    save_file(weights, other / "best.safetensors")
    card = json.loads((other / "card.json").read_text())
    (other / "card.json").write_text(json.dumps(card | {"best_epoch": {"rank_iso": 0.6}}))
    pair = ladder.export([rung, other])
    assert pair == rung.with_name(f"{rung.name}+other-0")
    exports = [read_encoder(place) for place in (ladder.export([rung]), ladder.export([other]), pair)]
    both = exports[2]
    assert (both.feature_dim, both.texture_dim) == (2 * exports[0].feature_dim, 2 * exports[0].texture_dim)
    assert both.training == exports[0].training | {"beside": [exports[1].training]}
    assert both.training["beside"][0]["best_epoch"] == {"rank_iso": 0.6}
    one, two, together = (Encoder(export.xml).encode(noise(2)) for export in exports)
    plain = ladder.FEATURES
    wanted = np.hstack([one[:, :plain], two[:, :plain], one[:, plain:], two[:, plain:]])
    assert np.abs(one - two).max() > 0.01
    np.testing.assert_allclose(together, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{"view": "face"}, {"sees": "residual"}, {"shuffle": 32}])
def test_a_rung_that_sees_something_else_is_not_exported(tmp_path, changes):
    (tmp_path / "settings.json").write_text(json.dumps(asdict(ladder.Rung(**changes))))
    with pytest.raises(ValueError, match="take a rung that sees patches of RGB"):
        ladder.export([tmp_path])


def test_a_rung_becomes_the_first_channel(rung, tmp_path):
    export = ship.encoder_of([rung])
    rng = np.random.default_rng(0)
    features = rng.normal(size=(240, export.feature_dim)).astype(np.float32)
    groups = [str(number) for number in range(240)]
    detector = Detector.fit(features, groups, export, name="trial", population="noise", **ship.DENSITY)
    card = ship.card(detector, [])
    for words in (
        "efficientnet_lite0_short, 192 px, trained on patches of 128 px, started from ImageNet weights",
        "to rank pairs of photographs by four EXIF tags, to spot manipulated faces and to spot faces whose",
        "(resampled, filtered or put together from patches of photographs); all on photographs alone",
        "50 crops, 7 sources",
        "the greater of two signs",
        "rank accuracy iso 0.700; manipulated against pristine, AUC 0.800; without its trace",
    ):
        assert words in " ".join(card.split())
    detector.card = card
    bundle = detector.save(tmp_path / "bundle")
    faces = noise(2)
    assert_array_equal(Detector.load(bundle.path).score(faces), detector.score(faces))


@pytest.mark.parametrize("several", [1, 2])
def test_a_first_channel_made_of_rungs_can_be_exported(rung, tmp_path, several):
    pytest.importorskip("onnx", reason="needs pip install 'lensborn[onnx]'")
    from lensborn.export import export_bundle

    export = ship.encoder_of([rung] * several)
    features = np.random.default_rng(0).normal(size=(240, export.feature_dim)).astype(np.float32)
    groups = [str(number) for number in range(240)]
    detector = Detector.fit(features, groups, export, name="trial", population="noise")
    described = export_bundle(detector.save(tmp_path / "bundle"), tmp_path / "onnx")  # which compares the two
    assert described["networks"]["encoder"]["output"]["shape"] == ["N", export.feature_dim]
