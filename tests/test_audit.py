import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lensborn.bench.audit import (
    MINIMUM,
    Container,
    _folds,
    audit,
    container_features,
    highpass_statistics,
    read_container,
)
from lensborn.bench.delivery import equalise

EXAMPLES = Path(__file__).parent.parent / "examples"


def coded(pixels, codec="JPEG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, codec, **options)
    return stream.getvalue()


def test_a_container_says_what_the_file_does():
    pixels = np.zeros((30, 40, 3), np.uint8)
    jpeg = coded(pixels, quality=75, subsampling=2)
    found = read_container(jpeg, 40, 30)
    assert (found.width, found.height, found.length, found.codec) == (40, 30, len(jpeg), "JPEG")
    assert (found.subsampling, found.progressive) == (2, False)
    assert found.chroma > found.luma > found.first > 0
    finer = read_container(coded(pixels, quality=95, subsampling=0), 40, 30)
    assert finer.luma < found.luma
    assert finer.subsampling == 0
    assert read_container(coded(pixels, progressive=True), 40, 30).progressive
    assert read_container(coded(pixels, "PNG"), 40, 30).codec == "PNG"
    assert read_container(b"no picture", 40, 30) == Container(40, 30, 10, "other")


def containers(rng, n, **fixed):
    sizes = zip(rng.integers(200, 900, n).tolist(), rng.integers(10_000, 90_000, n).tolist(), strict=True)
    return [
        replace(Container(width, 300, length, "JPEG", 6.0, 8.0, 3.0, 2), **fixed) for width, length in sizes
    ]


def container_auc(real, fake, seed=0):
    features = container_features([*real, *fake])
    return audit(features[: len(real)], features[len(real) :], seed=seed)


@pytest.mark.parametrize(
    "fixed", [{"codec": "PNG", "luma": 0.0}, {"luma": 6.5}, {"subsampling": 0}, {"length": 200_000}]
)
def test_the_audit_sees_each_part_of_the_container(fixed):
    rng = np.random.default_rng(0)
    assert container_auc(containers(rng, 200), containers(rng, 60, **fixed)).value > 0.99


def test_the_audit_sees_a_size_between_two_others():
    rng = np.random.default_rng(0)
    outside = containers(rng, 100, width=256) + containers(rng, 100, width=512)
    assert container_auc(outside, containers(rng, 100, width=300)).value > 0.99


def test_two_halves_of_one_set_look_alike():
    rng = np.random.default_rng(0)
    for seed in range(8):
        everything = containers(rng, 400)
        found = container_auc(everything[:200], everything[200:], seed)
        assert found.value < 0.6
        assert found.low <= 0.5 <= found.high


def test_sources_that_each_look_their_own_way_are_no_difference_between_two_classes():
    """Sources shared out by chance: pictures of one in two folds would let the classifier learn the sources."""
    plain, by_source = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sources = np.repeat(np.arange(40), 10)
        values = rng.normal(size=(40, 12))[sources] + 0.3 * rng.normal(size=(400, 12))
        fake = np.isin(sources, rng.permutation(40)[:20])
        names = sources.astype(str)
        plain.append(audit(values[~fake], values[fake], seed=seed))
        by_source.append(audit(values[~fake], values[fake], names[~fake], names[fake], seed=seed))
    assert np.mean([found.value for found in plain]) > 0.7
    assert abs(np.mean([found.value for found in by_source]) - 0.5) < 0.08
    assert sum(found.low <= 0.5 <= found.high for found in by_source) >= 10
    assert sum(found.low <= 0.5 <= found.high for found in plain) <= 4


def test_folds_keep_groups_whole_and_are_of_one_size():
    groups, chosen = np.repeat(np.arange(23), np.arange(1, 24)).astype(str), {}
    folds = _folds(groups, np.random.default_rng(0), chosen)
    assert all(len(set(folds[groups == one])) == 1 for one in groups)
    assert np.ptp(np.bincount(folds, minlength=5)) <= 3
    others = np.array(["7", "7", "new", "22"])
    again = _folds(others, np.random.default_rng(0), chosen)
    assert again.tolist() == [chosen["7"], chosen["7"], chosen["new"], folds[-1]]


def test_a_source_of_both_classes_is_in_one_fold():
    """Faces that a generator made of a source's photographs: alike within each source, whatever the class."""
    sources = np.repeat(np.arange(30), 6)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(30, 12))
        real, fake = (centres[sources] + 0.3 * rng.normal(size=(180, 12)) for _ in range(2))
        found = audit(real, fake, sources.astype(str), sources.astype(str), seed=seed)
        assert found.low <= 0.5 <= found.high
        assert abs(found.value - 0.5) < 0.1


def test_what_does_not_differ_gives_one_half_exactly():
    same = [Container(192, 192, 9000, "JPEG", 2.0)] * 30
    assert container_auc(same, same) == pytest.approx((0.5, 0.5, 0.5))
    assert audit(np.zeros((MINIMUM - 1, 3)), np.zeros((50, 3))) is None


def faces(n, seed):
    """Crops of the example pictures, shifted and dimmed: like content, whichever class they are given."""
    rng = np.random.default_rng(seed)
    with Image.open(EXAMPLES / "portrait-fujifilm-x-t10.jpg") as image:
        pixels = np.asarray(image.convert("RGB"))
    places = rng.integers(0, [pixels.shape[0] - 256, pixels.shape[1] - 256], size=(n, 2))
    dimmed = rng.uniform(0.6, 1, n)
    return [
        (pixels[y : y + 256, x : x + 256] * share).astype(np.uint8)
        for (y, x), share in zip(places, dimmed, strict=True)
    ]


def test_png_against_jpeg_is_marked_and_equalising_ends_it():
    real, fake = faces(40, 1), faces(40, 2)
    published = [read_container(coded(one, quality=80), 256, 256) for one in real]
    generated = [read_container(coded(one, "PNG"), 256, 256) for one in fake]
    assert container_auc(published, generated).value > 0.99
    published, generated = (
        [read_container(equalise(one), 256, 256) for one in pictures] for pictures in (real, fake)
    )
    found = container_auc(published, generated)
    assert found.low <= 0.5 <= found.high
    assert found.value == 0.5


def texture_auc(real, fake):
    return audit(*([highpass_statistics(one) for one in pictures] for pictures in (real, fake)))


def test_high_pass_statistics_see_recompression_and_enlarging_but_not_chance():
    real, fake = faces(40, 1), faces(40, 2)
    alike = texture_auc(real, fake)
    assert alike.low <= 0.5 <= alike.high
    hard = []
    for one in fake:
        with Image.open(io.BytesIO(coded(one, quality=40))) as image:
            hard.append(np.asarray(image))
    assert texture_auc(real, hard).value > 0.95
    enlarged = [np.asarray(Image.fromarray(one[:160, :160]).resize((256, 256))) for one in fake]
    assert texture_auc(real, enlarged).value > 0.95


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["black", "white", "noise"]))
def test_statistics_are_finite_whatever_the_picture(height, width, kind):
    rng = np.random.default_rng(height * width)
    pixels = {
        "black": np.zeros((height, width, 3), np.uint8),
        "white": np.full((height, width, 3), 255, np.uint8),
        "noise": rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
    }[kind]
    found = highpass_statistics(pixels)
    assert np.isfinite(found).all()
    assert found.shape == highpass_statistics(np.zeros((300, 300, 3), np.uint8)).shape


def test_only_the_middle_of_a_large_crop_counts():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (400, 400, 3)).astype(np.uint8)
    framed = pixels.copy()
    framed[:60] = framed[-60:] = framed[:, :60] = framed[:, -60:] = 0
    np.testing.assert_array_equal(highpass_statistics(pixels), highpass_statistics(framed))
