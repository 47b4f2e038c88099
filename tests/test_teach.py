"""Teaching the known channel: from folders of pictures to a bundle that knows them, and nothing forgotten."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_DIM, coarse
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from lensborn import detector as module
from lensborn.bench.audit import Container
from lensborn.bundle import Bundle, read_bundle
from lensborn.cli import app
from lensborn.detector import Detector
from lensborn.faces import FaceFinder, Pixels
from lensborn.known import KnownChannel
from lensborn.known_head import MARGIN
from lensborn.memory import CALIBRATE, LEARN
from lensborn.photo import read_photo
from lensborn.teach import (
    DELIVERIES,
    ENOUGH,
    LEAST,
    NEAR,
    OWN,
    Lesson,
    LessonError,
    Studied,
    difference_hash,
    distances,
    near_duplicates,
    study,
    teach,
)

D = 2 * TINY_DIM  # features of both channels


def studied(number: int, look: int | None = None, shift: float = 0.0) -> Studied:
    """A face of random features; of a random look, which differs from others by about 32 bits."""
    rng = np.random.default_rng(number)
    bits = int(rng.integers(2**63)) if look is None else look
    features = rng.normal(shift, 1, (5, D)).astype(np.float32)
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    thumbnail = np.ones(4, np.float32) / 2  # all alike: the bits alone decide
    container = Container(100, 100, 1000, "JPEG")
    return Studied(
        Path(f"{number}.jpg"), digest, container, bits, thumbnail, features, rng.normal(shift, 1, 5)
    )


def lesson(name: str, generated: bool, numbers: Sequence[int], shift: float = 0.0) -> Lesson:
    return Lesson(name, generated, tuple(studied(number, shift=shift) for number in numbers), 0)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """Two folders of forty pictures with a face each, cut from the group: as they are, and mirrored and coarse."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = read_photo(examples / "group-of-eight.jpg").pixels
    for name in ("real", "fake"):
        (folder / name).mkdir()
    for number, face in enumerate(FaceFinder().find(pixels)[:40]):
        x, y, w, h = face.box
        side = 2 * max(w, h)
        left, top = max(0, round(x + w / 2 - side / 2)), max(0, round(y + h / 2 - side / 2))
        cut: Pixels = pixels[top : top + round(side), left : left + round(side)]
        Image.fromarray(cut).resize((260, 260)).save(folder / "real" / f"{number}.jpg", quality=95)
        Image.fromarray(coarse(np.asarray(Image.fromarray(cut[:, ::-1]).resize((260, 260))))).save(
            folder / "fake" / f"{number}.jpg", quality=95
        )
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["teach", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_name_without_a_folder_teaches_nothing(known_bundle: Bundle, tmp_path: Path) -> None:
    """As of a shell variable that is not set: the folder of that name would be the current one."""
    status, text = run("--fake", "new=", "--base", known_bundle.path, "--out", tmp_path / "out")
    assert status == 2
    assert "NAME=DIR" in text


def test_a_generator_is_learnt_from_folders(known_bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "taught"
    status, text = run(
        "--fake",
        f"new={pictures / 'fake'}",
        "--real",
        pictures / "real",
        "--base",
        known_bundle.path,
        "--out",
        out,
    )
    assert status == 0, text
    assert "| new | taught |" in text
    assert "| coarse | known before |" in text
    assert f"| {OWN} |" in text
    assert "give 60 or more" in text  # forty photographs are no population
    bundle = read_bundle(out)
    assert bundle.name == "taught"
    assert bundle.manifest["created"] > known_bundle.manifest["created"]
    card = (out / "CARD.md").read_text("utf-8")
    assert card.startswith("# taught\n")
    assert f"margin for photographs of others is {MARGIN:g}" in card
    for name, digest in read_bundle(known_bundle.path).manifest["files"].items():
        if not name.startswith("known") and name != "CARD.md":
            assert bundle.manifest["files"][name] == digest  # the first channel is the same, to the bit
    assert "| new | taught |" in (out / "CARD.md").read_text("utf-8")
    assert bundle.known is not None
    memory = bundle.known.head.memory
    assert dict(zip(memory.names, memory.generated.tolist(), strict=True)) == {
        "photos": False,
        "coarse": True,
        "new": True,
        OWN: False,
    }
    fake = hashlib.sha256((pictures / "fake" / "0.jpg").read_bytes()).hexdigest()
    assert fake[:16] in bundle.known.seen  # never to be measured with this bundle
    assert fake[:16] not in bundle.seen
    detection = Detector.load(out).detect(pictures / "fake" / "0.jpg")
    assert detection.faces[0].known_generator is not None


def test_pictures_of_formats_of_their_own_are_warned_of(
    known_bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    other = tmp_path / "png"
    other.mkdir()
    for path in (pictures / "fake").iterdir():
        Image.open(path).save(other / f"{path.stem}.png")
    status, text = run(
        "--fake",
        f"new={other}",
        "--real",
        pictures / "real",
        "--base",
        known_bundle.path,
        "--out",
        tmp_path / "t",
    )
    assert status == 0
    assert "size and coding of the files alone tell" in text


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ([], "nothing to learn"),
        (["--fake", "new"], "NAME=DIR"),
        (["--fake", "={fake}"], "NAME=DIR"),
        (["--fake", "new={fake}/nowhere"], "not a folder"),
        (["--fake", "new={fake}", "--fake", "new={real}"], "given twice"),
        (["--fake", OWN + "={fake}"], "choose another"),
        (["--fake", "photos={fake}"], "choose another name"),
        (["--fake", "new={fake}", "--real", "{fake}"], "given as photographs and as generated"),
        (["--fake", "new={few}"], "30 are needed"),
        (["--fake", "new={same}"], "nearly equal another one"),
        (["--fake", "new={real}", "--real", "{again}"], "nearly equal a photograph"),
        (["--fake", "new={fake}", "--base", "{fake}"], "bundle.json"),
        (["--fake", "new={fake}", "--out", "{fake}"], "exists"),
    ],
)
def test_what_cannot_be_learnt_is_refused_with_a_remedy(
    known_bundle: Bundle, pictures: Path, tmp_path: Path, arguments: list[str], remedy: str
) -> None:
    folders = {"fake": pictures / "fake", "real": pictures / "real"}
    for name in ("few", "same", "again"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
    files = sorted((pictures / "real").iterdir())
    for number, path in enumerate(files):
        Image.open(path).save(folders["again"] / path.name, quality=70)
        Image.open(files[0]).save(folders["same"] / path.name, quality=60 + number % 35)
        if number < LEAST - 1:
            (folders["few"] / path.name).write_bytes(path.read_bytes())
    words = [word.format(**folders) for word in arguments]
    words += [] if "--base" in words else ["--base", str(known_bundle.path)]
    words += [] if "--out" in words else ["--out", str(tmp_path / "out")]
    status, text = run(*words)
    assert status == 2
    assert remedy in " ".join(text.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_the_channel_is_refused(tiny_bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    status, text = run(
        "--fake", f"new={pictures / 'fake'}", "--base", tiny_bundle.path, "--out", tmp_path / "out"
    )
    assert status == 2
    assert "no known channel" in text


def test_pictures_without_a_usable_face_are_none(
    known_bundle: Bundle, tmp_path: Path, examples: Path
) -> None:
    Image.new("RGB", (300, 300)).save(tmp_path / "black.png")
    (tmp_path / "text.jpg").write_text("no picture")
    Image.open(examples / "generated-man.jpg").resize((60, 60)).save(tmp_path / "small.png")
    paths = [tmp_path / "black.png", tmp_path / "text.jpg", tmp_path / "small.png", tmp_path / "none.png"]
    assert list(study(paths, Detector.load(known_bundle.path))) == [None] * 4


@pytest.mark.parametrize("error", [MemoryError, OSError])
def test_an_error_in_one_picture_makes_it_none(
    known_bundle: Bundle, examples: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail_for_one(finder: FaceFinder, pixels: Pixels) -> object:
        if pixels.shape == (800, 800, 3):
            raise error
        return find(finder, pixels)

    find = FaceFinder.find
    monkeypatch.setattr(FaceFinder, "find", fail_for_one)
    paths = [examples / "portrait-fujifilm-x-t10.jpg", examples / "generated-man.jpg"]
    bad, good = study(paths, Detector.load(known_bundle.path))
    assert bad is None and good is not None


def test_large_pictures_are_studied_one_at_a_time(
    known_bundle: Bundle, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    most = 0

    def watched(finder: FaceFinder, pixels: Pixels) -> object:
        nonlocal most
        inside.append(1)
        most = max(most, len(inside))
        time.sleep(0.02)
        inside.pop()
        return find(finder, pixels)

    find = FaceFinder.find
    monkeypatch.setattr(FaceFinder, "find", watched)
    monkeypatch.setattr(module, "LARGE_PX", 1000)
    assert None not in study([examples / "generated-man.jpg"] * 4, Detector.load(known_bundle.path))
    assert most == 1


def test_studying_twice_gives_the_same(known_bundle: Bundle, examples: Path) -> None:
    paths = [examples / "generated-man.jpg", examples / "generated-woman.jpg"]
    detector = Detector.load(known_bundle.path)
    for path, one, other in zip(paths, study(paths, detector), study(paths, detector), strict=True):
        assert one is not None and other is not None
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.unusual, other.unusual)
        assert one.unusual[0] == pytest.approx(detector.detect(path).faces[0].score)  # as it is
        assert len(set(one.unusual.tolist())) == len(one.features) == 1 + DELIVERIES


def test_a_model_without_the_channel_studies_nothing(tiny_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="no known channel"):
        next(iter(study([], Detector.load(tiny_bundle.path))))


def test_looks_survive_recompression_and_tell_faces_apart(examples: Path, tmp_path: Path) -> None:
    looks = {}
    for name in ("generated-man", "generated-woman"):
        image = Image.open(examples / f"{name}.jpg")
        image.resize((200, 200)).save(tmp_path / f"{name}.jpg", quality=50)
        looks[name] = [
            difference_hash(np.asarray(one.convert("RGB")))
            for one in (image, Image.open(tmp_path / f"{name}.jpg"))
        ]
    for one, other in looks.values():
        assert (one ^ other).bit_count() <= NEAR
    assert (looks["generated-man"][0] ^ looks["generated-woman"][0]).bit_count() > 2 * NEAR


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
    st.lists(st.integers(0, 2**64 - 1), min_size=1),
)
def test_distances_count_differing_bits(some: list[int], others: list[int]) -> None:
    found = distances([studied(0, look) for look in some], [studied(0, look) for look in others])
    assert found.tolist() == [[(a ^ b).bit_count() for b in others] for a in some]


def test_near_duplicates_are_found_both_ways() -> None:
    one, other = studied(1, 0b1111), studied(2, 0b1111 ^ 0b111000000)
    far = studied(3, 2**64 - 1)
    assert near_duplicates([one, far], [other]) == [(one, other)]
    assert near_duplicates([other], [far, one]) == [(other, one)]
    assert near_duplicates([], [one]) == near_duplicates([one], []) == []
    unlike = replace(other, thumbnail=np.array([0.5, -0.5, 0.5, -0.5], np.float32))
    assert near_duplicates([one], [unlike]) == []  # few bits differ, but the pictures do


def test_near_duplicates_stay_in_one_half() -> None:
    faces = [studied(number) for number in range(40)]
    faces += [studied(100 + number, faces[number].look ^ (1 << number)) for number in range(40)]
    twice = Lesson("new", True, tuple(faces), 0)
    learn, judge = (({face.path.name for face in half}) for half in twice.halves)
    assert len(learn) + len(judge) == 80
    assert min(len(learn), len(judge)) > 20
    for number in range(40):
        assert (f"{number}.jpg" in learn) == (f"{100 + number}.jpg" in learn)


def test_a_lesson_is_learnt_and_the_old_is_kept(tiny_channel: KnownChannel) -> None:
    lessons = [lesson("new", True, range(60), 3.0), lesson(OWN, False, range(300, 310 + ENOUGH), -3.0)]
    channel, report = teach(tiny_channel, lessons)
    before, after = tiny_channel.head.memory, channel.head.memory
    rows = len(before.features)
    np.testing.assert_array_equal(after.features[:rows], before.features)  # what was known is remembered
    names = list(after.names)
    new, own = (after.sets == names.index(name) for name in ("new", OWN))
    assert (after.uses[new] == LEARN).all()
    assert new.sum() == 2 * 60  # all of them, in the head that is written
    assert (own & (after.uses == LEARN)).any()
    assert (own & (after.uses == CALIBRATE)).any()
    by_name = {change.generator: change for change in report.changes}
    assert by_name["new"].new and not by_name["coarse"].new
    assert by_name["new"].after.value > 0.99
    assert by_name["new"].faces == len(lessons[0].halves[1])
    photographs = before.rows(CALIBRATE) & ~before.positive & before.first
    assert by_name["new"].photographs == photographs.sum() + len(lessons[1].halves[1])
    assert by_name["coarse"].photographs == photographs.sum()
    assert channel.part.seen >= {face.sha256[:16] for one in lessons for face in one.faces}
    again, _ = teach(channel, [lesson("newer", True, range(200, 240), 3.0)])
    assert again.head.memory.names == (*after.names, "newer")


def test_each_taught_generator_has_a_regression_and_more_of_it_joins_that(tiny_channel: KnownChannel) -> None:
    def taught(channel: KnownChannel) -> dict[str, bool]:
        memory = channel.head.memory
        return {name: bool(own) for name, own in zip(memory.names, memory.taught, strict=True)}

    one, _ = teach(tiny_channel, [lesson("new", True, range(40), 3.0)])
    assert taught(one) == {"photos": False, "coarse": False, "new": True}
    shown_before = tiny_channel.head.signs.alike.weights
    np.testing.assert_array_equal(one.head.signs.alike.weights, shown_before)
    two, _ = teach(one, [lesson("newer", True, range(40, 80), -3.0)])
    assert taught(two) == {**taught(one), "newer": True}
    np.testing.assert_array_equal(two.head.signs.taught[0].weights, one.head.signs.taught[0].weights)
    more, _ = teach(two, [lesson("new", True, range(80, 120), 3.0)])
    assert taught(more) == taught(two)
    assert len(more.head.signs.taught) == 2
    shown, _ = teach(tiny_channel, [lesson("coarse", True, range(40), 3.0)])
    assert not any(taught(shown).values())
    assert not shown.head.signs.taught
    assert not np.array_equal(shown.head.signs.alike.weights, shown_before)


def test_pictures_that_are_known_are_not_taught_twice(tiny_channel: KnownChannel) -> None:
    once, _ = teach(tiny_channel, [lesson("new", True, range(40))])
    with pytest.raises(LessonError, match="known to the bundle already"):
        teach(once, [lesson("new", True, range(10, 50))])


def remembered(channel: KnownChannel, numbers: Sequence[int]) -> Lesson:
    """Photographs of which a fifth look like generated faces that the channel knows."""
    memory, faces = channel.head.memory, []
    for number in numbers:
        rows = np.flatnonzero(memory.positive == (number % 5 == 0))
        row = rows[number % len(rows)]
        noise = np.random.default_rng(number).normal(0, 1e-3, (5, D))
        faces.append(
            replace(
                studied(number),
                features=(memory.values([row]) + noise).astype(np.float32),
                unusual=np.full(5, memory.unusual[row], np.float64),
            )
        )
    return Lesson(OWN, False, tuple(faces), 0)


def test_photographs_are_counted_that_were_flagged_before(tiny_channel: KnownChannel) -> None:
    head, own = tiny_channel.head, remembered(tiny_channel, range(200))
    once, report = teach(tiny_channel, [own])
    (alarms,) = report.alarms
    scores = head.score(np.stack([face.plain for face in own.faces]))
    known = np.mean(scores > head.threshold(0.05))
    together = np.mean(head.fused_p(scores, [face.unusual[0] for face in own.faces]) <= 0.05)
    assert len({0.0, known, together, 1.0}) == 4  # else the next lines would say little
    assert (alarms.known.value, alarms.verdict.value) == (known, together)
    assert (alarms.faces, alarms.calibrating) == (200, len(own.halves[1]))
    more = remembered(tiny_channel, range(200, 240))
    (alarms,) = teach(once, [more])[1].alarms
    assert (alarms.faces, alarms.calibrating) == (40, len(own.halves[1]) + 40)


def test_of_few_photographs_all_calibrate(tiny_channel: KnownChannel) -> None:
    def uses(n: int) -> tuple[int, int]:
        memory = teach(tiny_channel, [lesson(OWN, False, range(n), 1.0)])[0].head.memory
        own = memory.first & (memory.sets == memory.names.index(OWN))
        return int((own & memory.rows(LEARN)).sum()), int((own & memory.rows(CALIBRATE)).sum())

    assert uses(ENOUGH) == (0, ENOUGH)
    assert uses(ENOUGH + 50) == (50, ENOUGH)
    assert uses(2 * ENOUGH + 50) == (ENOUGH + 25, ENOUGH + 25)


def test_of_near_duplicates_one_photograph_calibrates(tiny_channel: KnownChannel) -> None:
    faces = [studied(number) for number in range(40)]
    faces += [studied(100 + number, faces[number].look ^ 1) for number in range(40)]
    memory = teach(tiny_channel, [Lesson(OWN, False, tuple(faces), 0)])[0].head.memory
    own = memory.first & (memory.sets == memory.names.index(OWN))
    assert (own & memory.rows(CALIBRATE)).sum() == own.sum() == 40


def test_the_margin_of_a_bundle_stays_until_it_knows_the_users_photographs(
    tiny_channel: KnownChannel,
) -> None:
    assert tiny_channel.head.margin == MARGIN
    part = replace(tiny_channel.part, head=replace(tiny_channel.head, margin=0.125))
    again, _ = teach(KnownChannel(tiny_channel.xml, part), [lesson("new", True, range(40))])
    assert again.head.margin == 0.125
    few, _ = teach(again, [lesson(OWN, False, range(100, 140))])
    assert few.head.margin == 0.125
    enough, _ = teach(again, [lesson(OWN, False, range(100, 160))])
    assert enough.head.margin == 0  # the bundle is for these
    more, _ = teach(enough, [lesson("newer", True, range(200, 240))])
    assert more.head.margin == 0


def test_photographs_alone_can_be_taught(tiny_channel: KnownChannel) -> None:
    """Those of the user's own platform become a population to calibrate on."""
    own = lesson(OWN, False, range(200), 1.0)
    channel, report = teach(tiny_channel, [own])
    assert [change.generator for change in report.changes] == ["coarse"]
    assert OWN in channel.head.memory.populations()
    features = np.random.default_rng(9).normal(1.0, 1, (2000, D))
    before, after = (
        (one.head.p_values(one.head.score(features)) <= 0.05).mean() for one in (tiny_channel, channel)
    )
    assert after <= max(before, 0.05) + 0.03
