import io

import cv2
import numpy as np
import pytest
from PIL import Image

from lensborn.bench.delivery import STEPS, equalise
from lensborn.photo import decode_photo

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (256, 256, 3)).astype(np.uint8)
SMOOTH = np.asarray(Image.fromarray(NOISE[:16, :16]).resize((256, 256), Image.Resampling.BICUBIC))
PICTURES = {"noise": NOISE, "smooth": SMOOTH, "black": np.zeros_like(NOISE)}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("side", [64, 256])
def test_equalised_files_have_one_length_and_every_decoder_reads_them(kind, side):
    crop = np.ascontiguousarray(PICTURES[kind][:side, :side])
    data = equalise(crop)
    assert len(data) == crop.size
    decoded = decode_photo(data).pixels
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (side, side))
        assert all(layer[1:3] == (1, 1) for layer in image.layer)  # 4:4:4
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), decoded)
    other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(other.astype(int) - decoded).mean() < 1
    assert np.abs(decoded.astype(int) - crop).mean() < 12


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kind", PICTURES)
def test_every_step_gives_the_same_decodable_file_twice(name, kind):
    step, picture = STEPS[name], Image.fromarray(PICTURES[kind])
    data = step.apply(picture)
    assert data == step.apply(picture)
    found = decode_photo(data)
    side = {"resize": 2.56 * step.strength, "screenshot": 256 * step.strength, "crop": 2.56 * step.strength}
    assert found.pixels.shape[:2] == (round(side.get(step.family, 256)),) * 2
    assert found.format == {"webp": "WEBP", "screenshot": "PNG"}.get(step.family, "JPEG")
    assert name == f"{step.family}-{step.strength:g}"


def test_stronger_steps_lose_more():
    def loss(name):
        return np.abs(
            decode_photo(STEPS[name].apply(Image.fromarray(NOISE))).pixels.astype(int) - NOISE
        ).mean()

    assert loss("jpeg-95") < loss("jpeg-75") < loss("jpeg-50")
    assert loss("blur-0.5") < loss("blur-1") < loss("blur-2")
    assert loss("webp-80") < loss("webp-50")
    with Image.open(io.BytesIO(STEPS["jpeg-85"].apply(Image.fromarray(SMOOTH)))) as image:
        assert image.layer[0][1:3] == (2, 2)  # 4:2:0, as sites have it
