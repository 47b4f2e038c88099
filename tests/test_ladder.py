"""The ladder of tools/: destroyed traces keep the picture, and a rung trains and is measured as it was trained."""

import sys
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
import traces  # noqa: E402
from test_training import corpus  # noqa: E402, F401 - a fixture

from lensborn.datasets.corpus import read_corpus, split_of  # noqa: E402


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
    climb = ladder.Climb(rung, crops, tmp_path, tmp_path / "run-0", ladder.Means(destroy, {}), lambda *_: None)
    climb.fit()
    assert (climb.model.rank.weight != before["rank.weight"]).any()
    extractor = ladder.RungExtractor(tmp_path / "run-0")
    face = np.random.default_rng(0).integers(0, 256, (1, ladder.SIDE, ladder.SIDE, 3), dtype=np.uint8)
    seen = [
        ladder.look(face[0], rung, at, rng) for rng in [np.random.default_rng(0)] for at in ladder.grid(rung)
    ]
    planes = torch.from_numpy(np.stack(seen).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        wanted = climb.model.eval()(planes).mean(0)
    found = extractor.encode(face)[0]
    features = ladder.columns(tmp_path / "run-0", [0])
    assert_allclose(found[features], wanted, atol=1e-3 + 1e-3 * float(wanted.abs().max()))
    widths = [16, 24, 40, 80, 112]  # of the stages, whose means and deviations follow
    layers = [ladder.columns(tmp_path / "run-0", [n]) for n in range(6)]
    assert [len(part) for part in layers] == [ladder.FEATURES, *(2 * width for width in widths)]
    assert np.concatenate(layers).tolist() == list(range(len(found)))
    assert ladder.columns(tmp_path / "run-0", [4, 1]).tolist() == [*layers[4], *layers[1]]
    with torch.no_grad():
        maps = climb.model.encoder.backbone._blocks[0]
        seen_by = []
        maps.register_forward_hook(lambda _module, _given, out: seen_by.append(out))
        climb.model.eval()(planes)
    moments = torch.cat([seen_by[0].mean((2, 3)), seen_by[0].std((2, 3))], 1).mean(0)
    assert_allclose(found[layers[1]], moments, atol=1e-3 + 1e-3 * float(moments.abs().max()))
    with pytest.raises(ValueError, match="no stage 6"):
        ladder.columns(tmp_path / "run-0", [0, 6])
