"""Decoders of tools/: every build rebuilds and learns, faces come back in order, and a rung sees them."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

torch = pytest.importorskip("torch")
TOOLS = Path(__file__).parent.parent / "tools"
if not TOOLS.is_dir():
    pytest.skip("the tools are not part of an installation", allow_module_level=True)
sys.path.insert(0, str(TOOLS))

import decoders  # noqa: E402
import ladder  # noqa: E402
from test_training import corpus  # noqa: E402, F401 - a fixture

from lensborn.datasets.corpus import read_corpus  # noqa: E402
from lensborn.photo import read_photo  # noqa: E402

BUILDS = (*decoders.BUILDS, *decoders.HELD_OUT)


class Inverted(torch.nn.Module):
    """Gives negatives, so that it can be told which face came back."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return -x


def faces(sides):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in sides]


@pytest.mark.parametrize("build", BUILDS, ids=[build.name for build in BUILDS])
def test_every_build_gives_a_picture_back_and_learns_in_all_its_layers(build):
    network = decoders.Autoencoder(build)
    out = network(torch.rand(2, 3, 32, 32))
    assert out.shape == (2, 3, 32, 32)
    out.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_no_build_of_the_validation_is_one_of_the_training():
    assert len({build.name for build in BUILDS}) == len(BUILDS)
    made = {replace(build, name="") for build in decoders.BUILDS}
    assert not made & {replace(build, name="") for build in decoders.HELD_OUT}


def test_faces_come_back_in_order_whatever_their_sides():
    given = faces([32, 48, 32, 48, 64])
    for before, after in zip(given, decoders.rebuild(Inverted(), given), strict=True):
        assert_array_equal(after, 255 - before)


def test_a_face_is_never_enlarged_to_be_rebuilt(corpus):  # noqa: F811
    for crop in read_corpus(corpus)[:20]:
        side = decoders.side_of(crop, 171)
        assert side <= 171 and side % decoders.STEP == 0
        assert side == decoders.side_of(crop, 171)


def test_a_rung_sees_the_face_as_it_was_rebuilt(corpus, tmp_path):  # noqa: F811
    crops = read_corpus(corpus)[:6]
    (tmp_path / "faces").mkdir()
    builds = decoders.BUILDS[:2]
    rows = decoders.write_faces(
        crops, builds, {build.name: Inverted() for build in builds}, tmp_path / "faces"
    )
    decoders.write_rows(tmp_path / decoders.TABLE, rows)
    rebuilt = decoders.read_rebuilt(tmp_path)
    assert set(rebuilt) == {crop.row["file"] for crop in crops}
    assert all(len(found) == decoders.PER_FACE for found in rebuilt.values())

    rung = ladder.Rung(tasks=("trace",), ways=(ladder.REBUILD,), delivery="none", view="face", patch=64)
    seen = ladder.Rungs(crops, rung, ladder.Means(ladder.traces.destroy, rebuilt))
    for number, crop in enumerate(crops):
        image = read_photo(rebuilt[crop.row["file"]][0]).pixels
        assert len(image) % decoders.STEP == 0
        item = seen[number]
        light, dark = (float(item[name].float().mean()) for name in ("pristine", "traceless"))
        assert abs(light + dark - 255) < 12  # one is the negative of the other, but for what is cut away
