"""The benchmark from files to tables, on small trees and real parts."""

import csv
import hashlib
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_DIM, TINY_TEXTURES
from PIL import Image
from typer.testing import CliRunner

from lensborn.bench import metrics, observing, protocols
from lensborn.bench.contestants import (
    BundleContestant,
    ContestantError,
    FunctionContestant,
    contestant,
    told_apart,
)
from lensborn.bench.judging import ALL, CALIBRATE, FIT, TEST, Refit, entries_of, judge, originals, parts_of
from lensborn.bench.observing import Condition, Observed, observe
from lensborn.bench.protocols import EQUALISED, PUBLISHED, conditions_of, show
from lensborn.bench.tables import Judged, make_tables
from lensborn.bench.views import View
from lensborn.calibration import Conformal
from lensborn.cli import app
from lensborn.contrast import Contrast
from lensborn.datasets.pictures import Picture, pictures_of_folder
from lensborn.density import fit_mixture
from lensborn.detector import Detector
from lensborn.photo import read_photo

PORTRAIT = Path(__file__).parent.parent / "examples" / "portrait-fujifilm-x-t10.jpg"


def portrait(folder, name, width=480, **options):
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(PORTRAIT) as image:
        picture = image.convert("RGB")
    picture.resize((width, width * picture.height // picture.width)).save(folder / name, **options)
    return folder / name


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """One picture of each outcome."""
    folder = tmp_path_factory.mktemp("odd")
    portrait(folder, "a.jpg")
    Image.new("RGB", (300, 300), "grey").save(folder / "empty.png")
    (folder / "text.jpg").write_text("no picture")
    portrait(folder, "tiny.png", 130)
    shutil.copy(PORTRAIT, folder / "z.jpg")
    return pictures_of_folder("odd", folder, "real")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Photographs as JPEG and the same generated as PNG; one without a face."""
    folder = tmp_path_factory.mktemp("sets")
    for n in range(24):
        portrait(folder / "r", f"{n}.jpg", 420 + 4 * n, quality=70 + n)
    for n in range(12):
        portrait(folder / "f", f"{n}.png", 420 + 7 * n)
    Image.new("RGB", (300, 300), "grey").save(folder / "f" / "none.png")
    return folder


# --- views --------------------------------------------------------------------------------------------


def test_pictures_are_shown_as_the_protocols_say(odd):
    conditions = conditions_of(protocols.PROTOCOLS)
    shown = {seen.picture.path.name: seen for seen in show(odd, conditions)}
    assert set(shown["empty.png"].views.values()) == {"no_face"}
    assert set(shown["text.jpg"].views.values()) == {"unreadable"}
    small = shown["tiny.png"].views
    assert isinstance(small[PUBLISHED], View)
    assert {small[name] for name in conditions if name != PUBLISHED} == {"too_small"}
    views = shown["a.jpg"].views
    assert views[PUBLISHED].data == odd[0].path.read_bytes()
    assert views["equalised-512"] == "too_small"
    for name in (EQUALISED, *protocols.DELIVERY):
        assert isinstance(views[name], View), name
    assert views[EQUALISED].pixels.shape == (256, 256, 3)
    assert len(views[EQUALISED].data) == 3 * 256 * 256
    assert views["delivery/resize-50"].pixels.shape == (128, 128, 3)
    # the crop is THE crop, whichever way it comes
    box = views[PUBLISHED].box
    assert np.abs(views[PUBLISHED].crop(256).astype(int) - views[EQUALISED].pixels).mean() < 3
    native = protocols.native_crop(views[PUBLISHED])
    assert native.shape[0] == pytest.approx(1.3 * max(box[2:]), abs=1.5)


def test_a_large_picture_waits_undecoded_and_is_seen_alike(odd, monkeypatch):
    (kept,) = (seen.views[PUBLISHED] for seen in show(odd[:1], [PUBLISHED]))
    monkeypatch.setattr(protocols, "DECODED_PIXELS", 1000)
    (let_go,) = (seen.views[PUBLISHED] for seen in show(odd[:1], [PUBLISHED]))
    assert kept.decoded is not None
    assert let_go.decoded is None
    np.testing.assert_array_equal(kept.pixels, let_go.pixels)


def test_a_bundle_says_in_the_benchmark_what_it_says_to_a_user(odd, detector):
    mine = BundleContestant(detector, refits=False)
    observed = observe(odd, [PUBLISHED], [mine])
    scores = observing.own_scores(mine, PUBLISHED, observed.conditions[PUBLISHED])
    for picture, score in zip(odd, scores, strict=True):
        faces = detector.detect(picture.path).faces
        if faces:
            assert score == pytest.approx(faces[0].score, rel=1e-6)
            assert (score >= mine.threshold) == (faces[0].p_value <= detector.info.alpha)
        else:
            assert math.isnan(score)


def test_its_other_channels_say_there_what_they_say_to_a_user(odd, known_bundle):
    """And flag what a user sees flagged, by either channel."""
    place = str(known_bundle.path)
    detector = Detector.load(known_bundle.path)
    known, fused = contestant(f"{place}:known"), contestant(f"{place}:fused")
    assert [one.name for one in (known, fused)] == ["tiny known", "tiny fused"]
    observed = observe(odd, [PUBLISHED], [known, fused]).conditions[PUBLISHED]
    scores = [observing.own_scores(one, PUBLISHED, observed) for one in (known, fused)]
    spoke = 0
    for picture, alone, both in zip(odd, *scores, strict=True):
        faces = detector.detect(picture.path).faces
        if faces and (said := faces[0].known_generator):
            spoke += 1
            assert alone == pytest.approx(said.score, abs=1e-3)
            assert (alone >= known.threshold) == (said.p_value <= detector.info.alpha)
            assert (both >= fused.threshold) == (faces[0].verdict == "ai_generated")
            assert math.exp(-both) == pytest.approx(faces[0].combined_p_value, rel=0.02)
        else:
            assert math.isnan(alone)
    assert spoke
    assert known.seen == detector.known.part.seen


def test_a_bundle_without_the_channel_says_so(tiny_bundle):
    with pytest.raises(ContestantError, match="no known channel"):
        contestant(f"{tiny_bundle.path}:known")


def test_what_a_model_has_seen_is_not_measured(odd, detector, tmp_path):
    known = next(show(odd, [PUBLISHED])).sha256[:16]
    detector.seen = frozenset({known})
    bundle = detector.save(tmp_path / "bundle")
    assert bundle.seen == {known}
    observed = observe(odd, [PUBLISHED], [contestant(str(bundle.path))])
    assert observed.conditions[PUBLISHED].reasons[0] == "seen"


def test_a_run_that_was_cut_off_goes_on_and_says_the_same(odd, detector, tmp_path, monkeypatch):
    monkeypatch.setattr(observing, "CHUNK", 2)
    mine, conditions = BundleContestant(detector, refits=True), [PUBLISHED, EQUALISED]
    whole = observe(odd, conditions, [mine])

    class CutError(Exception):
        pass

    def cut(_):
        if len(list(tmp_path.iterdir())) == 1:
            raise CutError

    with pytest.raises(CutError):
        observe(odd, conditions, [mine], keep=tmp_path, progress=cut)
    (first,) = tmp_path.iterdir()
    stamp = first.stat().st_mtime_ns
    again = observe(odd, conditions, [mine], keep=tmp_path)
    assert first.stat().st_mtime_ns == stamp
    for one, other in zip(whole.conditions.values(), again.conditions.values(), strict=True):
        assert one.reasons == other.reasons
        assert one.containers == other.containers
        np.testing.assert_array_equal(one.texture, other.texture)
        np.testing.assert_array_equal(one.observed[mine.name], other.observed[mine.name])
    next(iter(tmp_path.iterdir())).write_bytes(b"broken")  # what is damaged is seen again
    observe(odd, conditions, [mine], keep=tmp_path)


# --- judging ------------------------------------------------------------------------------------------


def made(scores, labels, names, condition=PUBLISHED):
    """Observations of a function's scores, without a file."""
    pictures = [
        Picture(Path("x"), f"{name}/{n}", name, label)
        for n, (label, name) in enumerate(zip(labels, names, strict=True))
    ]
    values = np.array(scores, dtype=float)[:, None]
    seen = Condition(
        [None] * len(scores), [None] * len(scores), np.full((len(scores), 0), math.nan), {"f": values}
    )
    return Observed(pictures, [""] * len(scores), np.full(len(scores), 300.0), {condition: seen})


def test_halves_follow_the_source_where_there_are_enough():
    many = [Picture(Path("x"), f"{n}", "r", "real", f"s{n % 20}") for n in range(400)]
    parts = parts_of(many, True)
    for source in range(20):
        assert len(set(parts[source::20])) == 1
    few = [Picture(Path("x"), f"{n}", "r", "real", f"s{n % 3}") for n in range(400)]
    parts = parts_of(few, True)
    assert {name: 0.15 < np.mean(parts == name) < 0.6 for name in (TEST, FIT, CALIBRATE)} == dict.fromkeys(
        (TEST, FIT, CALIBRATE), True
    )
    assert set(parts_of(many, False)) == {TEST}
    assert set(parts_of([Picture(Path("x"), "1", "f", "fake")], True)) == {TEST}


def test_a_file_that_is_there_twice_falls_into_one_part():
    names = [f"{n}" for n in range(200)] + [f"copy of {n}" for n in range(200)]
    copies = [Picture(Path("x"), name, "r", "real") for name in names]
    parts = parts_of(copies, True, originals(copies, [f"hash {n % 200}" for n in range(400)]))
    np.testing.assert_array_equal(parts[:200], parts[200:])
    copies = [Picture(Path("x"), f"{n}", "A", "real") for n in range(40)]
    copies += [Picture(Path("x"), f"{n}", "B", "real", f"s{n % 40}") for n in range(400)]
    hashes = [f"hash {n % 400}" for n in [*range(40), *range(400)]]
    found = parts_of(copies, True, originals(copies, hashes))
    assert all(len(set(found[source::40])) == 1 for source in range(40))  # the copies, too
    copies = [Picture(Path("x"), name, "r", "real") for name in names]
    unknown = parts_of(copies, True, originals(copies, [""] * 400))
    assert (unknown[:200] != unknown[200:]).any()


def test_a_source_falls_into_one_part_in_a_small_set_too():
    many = [Picture(Path("x"), f"{n}", "A", "real", f"s{n % 20}") for n in range(200)]
    few = [Picture(Path("x"), f"{n}", "B", "real", f"s{n % 3}") for n in range(60)]
    parts = parts_of([*many, *few], True)
    for source in range(3):
        assert len({*parts[:200][source::20], *parts[200:][source::3]}) == 1


@pytest.mark.parametrize("condition", [PUBLISHED, EQUALISED])
def test_thresholds_come_from_the_reference_half(condition):
    rng = np.random.default_rng(0)
    n = 400
    observed = made(rng.normal(size=n), ["real"] * n, ["r"] * n, condition)
    parts = parts_of(observed.pictures, True)
    entry = entries_of([FunctionContestant("f", len)])[0]
    found = judge(entry, observed, condition, "r", parts, alpha=0.05, refit=Refit())
    reference = found.scores[parts != TEST]
    if condition == PUBLISHED:
        assert found.threshold == np.nextafter(np.quantile(reference, 0.95), np.inf)
    else:
        flagged = Conformal.fit(reference).p_values(found.scores) <= 0.05
        np.testing.assert_array_equal(found.scores >= found.threshold, flagged)


@pytest.mark.parametrize("condition", [PUBLISHED, EQUALISED])
def test_scores_that_most_photographs_share_flag_none_of_them(condition):
    labels, sets = ["real"] * 400 + ["fake"] * 100, ["r"] * 400 + ["f"] * 100
    observed = made([0] * 400 + [1] * 100, labels, sets, condition)
    judged = Judged(observed, reference=True, alpha=0.05, refit=Refit())
    (row,) = make_tables(judged, entries_of([FunctionContestant("f", len)]), seed=0).pairs
    assert (row["auc"], row["accuracy"], row["false_alarms"]) == (1, 1, 0)


def test_a_refitted_encoder_is_fitted_to_the_named_photographs(detector):
    rng = np.random.default_rng(0)
    n = 240
    features = np.concatenate([rng.normal(0, 1, (n, 8)), rng.normal(6, 1, (n, 8)), rng.normal(3, 1, (60, 8))])
    pictures = [Picture(Path("x"), f"{k}", "ab"[k // n], "real") for k in range(2 * n)]
    pictures += [Picture(Path("x"), f"{k}", "g", "fake") for k in range(60)]
    size = len(pictures)
    mine = BundleContestant(detector, refits=True)
    seen = Condition([None] * size, [None] * size, np.full((size, 0), math.nan), {mine.name: features})
    observed = Observed(pictures, [""] * size, np.full(size, 300.0), {EQUALISED: seen})
    judged = Judged(observed, reference=True, alpha=0.05, refit=Refit(n_components=(1, 2)))
    entry = entries_of([mine])[1]
    assert entry.name == "tiny (refitted)"
    tables = make_tables(judged, [entry], seed=0)
    auc = {row["real"]: row["auc"] for row in tables.pairs}
    assert auc["a"] > 0.99
    assert auc["b"] > 0.99
    alarms = {row["real"]: row["false_alarms"] for row in tables.photographs}
    assert all(alarms[name] < 0.15 for name in ("a", "b", ALL))
    own = judged(entry, EQUALISED, "a")
    assert np.mean(own.scores[n : 2 * n] >= own.threshold) > 0.99  # b is strange to a


def test_an_encoder_with_textures_is_refitted_as_it_was_fitted(contrast_bundle):
    mine = BundleContestant(Detector.load(contrast_bundle.path), refits=True)
    rng = np.random.default_rng(0)
    n = 480
    features = rng.normal(0, 1, (n + 60, TINY_DIM + TINY_TEXTURES))
    features[n:, :TINY_DIM] *= 4
    pictures = [
        Picture(Path("x"), f"{k}", "a" if k < n else "g", "real" if k < n else "fake") for k in range(n + 60)
    ]
    size = len(pictures)
    seen = Condition([None] * size, [None] * size, np.full((size, 0), math.nan), {mine.name: features})
    observed = Observed(pictures, [""] * size, np.full(size, 300.0), {EQUALISED: seen})
    judged = Judged(observed, reference=True, alpha=0.05, refit=Refit())
    found = judged(entries_of([mine])[1], EQUALISED, "a")
    for_fit = parts_of(pictures, reference=True) == FIT
    np.testing.assert_array_equal(
        found.scores, Contrast.fit(features[for_fit], TINY_TEXTURES).score(features)
    )
    assert np.mean(found.scores[n:] >= found.threshold) > 0.9
    mixtures = Judged(observed, reference=True, alpha=0.05, refit=Refit(contrasts=False, n_components=(1,)))
    without = mixtures(entries_of([mine])[1], EQUALISED, "a").scores
    plain = features[:, :-TINY_TEXTURES]
    dims = min(64, for_fit.sum() // 4, plain.shape[1])
    fitted = fit_mixture(plain[for_fit], n_components=1, n_dims=int(dims), shrinkage=0.1)
    np.testing.assert_allclose(without, fitted.score(plain))
    few = Condition([None] * size, [None] * size, np.full((size, 0), math.nan), {mine.name: features.copy()})
    few.observed[mine.name][100:n] = math.nan
    observed = Observed(pictures, [""] * size, np.full(size, 300.0), {EQUALISED: few})
    judged = Judged(observed, reference=True, alpha=0.05, refit=Refit())
    assert judged(entries_of([mine])[1], EQUALISED, "a") is None  # too few are left to fit to


# --- tables -------------------------------------------------------------------------------------------


def test_tables_of_known_scores():
    real_a, real_b, good, bad = [0, 1, 2, 3, math.nan], [0] * 4, [4, 5], [-1, 3, math.nan]
    scores = [*real_a, *real_b, *good, *bad]
    names = ["a"] * 5 + ["b"] * 4 + ["good"] * 2 + ["bad"] * 3
    observed = made(scores, ["real"] * 9 + ["fake"] * 5, names)
    observed.conditions[PUBLISHED].reasons[4] = "no_face"
    observed.conditions[PUBLISHED].reasons[13] = "unreadable"
    mine = FunctionContestant("f", len, threshold=3.0)
    judged = Judged(observed, reference=False, alpha=0.05, refit=Refit())
    tables = make_tables(judged, entries_of([mine]), seed=0)
    rows = {(row["generated"], row["real"]): row for row in tables.pairs}
    assert len(rows) == 6
    assert rows["good", "a"]["auc"] == rows["good", ALL]["auc"] == 1
    assert rows["bad", "a"]["auc"] == pytest.approx(3.5 / 8)
    assert (rows["bad", "a"]["n_generated"], rows["bad", "a"]["unreadable"]) == (2, 1)
    assert rows["bad", "a"]["accuracy"] == pytest.approx(4 / 6)
    assert rows["bad", "a"]["balanced_accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    assert rows["bad", ALL]["found"] == 0.5
    photographs = {row["real"]: row for row in tables.photographs}
    row = photographs["a"]
    assert (row["n"], row["no_face"], row["flagged"], row["false_alarms"]) == (4, 1, 1, 0.25)
    assert row["no_score"] == 0
    assert (row["false_alarms_low"], row["false_alarms_high"]) == pytest.approx((0.04559, 0.69936), abs=1e-5)
    (summary,) = tables.summary
    assert summary["generators"] == 2
    assert summary["macro_auc"] == pytest.approx((1 + 7.5 / 16) / 2)
    assert summary["micro_auc"] == pytest.approx((16 + 7.5) / 32)
    assert (summary["worst"], summary["worst_auc"]) == ("bad", pytest.approx(7.5 / 16))
    assert not tables.comparisons


def test_a_score_that_a_detector_withholds_is_counted():
    scores = [0.0] * 20 + [1.0] * 6 + [math.nan] * 4
    observed = made(scores, ["real"] * 20 + ["fake"] * 10, ["r"] * 20 + ["f"] * 10)
    judged = Judged(observed, reference=False, alpha=0.05, refit=Refit())
    tables = make_tables(judged, entries_of([FunctionContestant("f", len, threshold=0.5)]), seed=0)
    row = tables.pairs[0]
    assert (row["n_generated"], row["no_score"], row["unreadable"]) == (6, 4, 0)
    assert {row["no_score"] for row in tables.photographs} == {0}


def test_accuracies_are_compared_by_source_and_only_at_thresholds():
    """A source of twenty alike pictures is one witness."""
    rng = np.random.default_rng(0)
    mine, theirs = (np.repeat(rng.normal(size=12), 20) for _ in range(2))
    labels = ["real"] * 240 + ["fake"] * 20
    observed = made([*mine, *[9.0] * 20], labels, ["r"] * 240 + ["f"] * 20)
    observed.conditions[PUBLISHED].observed["g"] = np.array([*theirs, *[9.0] * 20])[:, None]
    for n in range(240):
        observed.pictures[n] = replace(observed.pictures[n], source=f"s{n // 20}")
    for threshold, known in ((0.5, True), (math.inf, False)):
        rivals = [
            FunctionContestant("f", len, threshold=0.5),
            FunctionContestant("g", len, threshold=threshold),
        ]
        judged = Judged(observed, reference=False, alpha=0.05, refit=Refit())
        (row,) = make_tables(judged, entries_of(rivals), seed=0).comparisons
        if known:
            right = [np.r_[scores < 0.5, np.ones(20, bool)] for scores in (mine, theirs)]
            assert row["p_accuracy"] > 5 * metrics.equally_right(*right) > 0
        else:
            assert row["p_accuracy"] is row["p_accuracy_holm"] is None


def test_a_threshold_from_too_few_photographs_is_none():
    observed = made(range(30), ["real"] * 20 + ["fake"] * 10, ["r"] * 20 + ["f"] * 10, EQUALISED)
    judged = Judged(observed, reference=True, alpha=0.05, refit=Refit())
    tables = make_tables(judged, entries_of([FunctionContestant("f", len)]), seed=0)
    row = tables.pairs[0]
    assert row["auc"] == 1
    assert row["accuracy"] is row["found"] is tables.summary[0]["macro_accuracy"] is None
    assert tables.photographs[0]["flagged"] is None


# --- contestants --------------------------------------------------------------------------------------


def test_a_table_of_scores_is_a_detector(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text("file,score,condition\n./a.png,1.5,\na.png,2.5,equalised-256\n")
    theirs = contestant(str(path))
    views = [View(b"", (0, 0, 1, 1), "s", name, condition) for name, condition in
             (("a.png", PUBLISHED), ("a.png", EQUALISED), ("b.png", PUBLISHED))]  # fmt: skip
    np.testing.assert_array_equal(theirs.observe(views)[:, 0], [1.5, 2.5, math.nan])
    assert theirs.name == "theirs"


def test_two_sets_may_have_pictures_of_one_name(tmp_path):
    path = tmp_path / "theirs.csv"
    views = [View(b"", (0, 0, 1, 1), name, "1.jpg", PUBLISHED) for name in "ab"]
    path.write_text("set,file,score\na,1.jpg,0.25\nb,1.jpg,0.75\n")
    np.testing.assert_array_equal(contestant(str(path)).observe(views)[:, 0], [0.25, 0.75])
    path.write_text("file,score\n1.jpg,0.25\n")
    with pytest.raises(ContestantError, match="column set"):
        contestant(str(path)).observe(views)


def test_names_may_hold_what_some_take_for_the_end_of_a_line(tmp_path):
    path = tmp_path / "theirs.csv"
    names = ["a\u2028b", "a\x85b", "a\nb"]
    path.write_text("file,score\n" + "".join(f'"{name}",1\n' for name in names))
    views = [View(b"", (0, 0, 1, 1), "s", name, PUBLISHED) for name in names]
    assert contestant(str(path)).observe(views)[:, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "file,score\n",
        "file,score\na.png,high\n",
        "name\na\n",
        "\xff\xfe",
        "score,file\n1\n",
        "file,score\na.png,1\na.png,2\n",
        'file,score\n"a.png,1\nb.png,2\n',
    ],
)
def test_a_bad_table_of_scores_is_refused(tmp_path, content):
    path = tmp_path / "theirs.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ContestantError, match=r"theirs\.csv"):
        contestant(str(path))


@pytest.mark.parametrize(
    "spec", ["nothing", "no_such_module:score", "math:score", ":score", ".a:score", "math:pi"]
)
def test_a_detector_that_cannot_be_found_is_refused(spec):
    with pytest.raises(ContestantError, match=r"no detector|cannot be imported|no function"):
        contestant(spec)


def test_a_detector_must_give_one_score_a_view():
    view = View(b"", (0, 0, 1, 1), "s", "a", PUBLISHED)
    with pytest.raises(ContestantError, match="one a view"):
        FunctionContestant("f", lambda views: 1.0).observe([view])
    with pytest.raises(ContestantError, match="numbers"):
        FunctionContestant("f", lambda views: ["high"] * len(views)).observe([view])


def test_an_infinite_score_is_the_largest():
    scores = FunctionContestant("f", lambda views: [math.inf, -math.inf, math.nan, 2]).observe([None] * 4)
    assert np.isfinite(scores[[0, 1, 3]]).all()
    assert scores[0] > 2 > scores[1]
    assert math.isnan(scores[2, 0])


# --- the commands -------------------------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_strangers_detector_gets_its_table_and_the_same_bytes_twice(
    tiny_bundle, sets, tmp_path, monkeypatch, examples
):
    monkeypatch.syspath_prepend(str(examples))
    for out in ("one", "two"):
        result = run(
            "bench", "--real", f"cam={sets / 'r'}", "--fake", f"gen={sets / 'f'}", "--out", tmp_path / out,
            "--detector", tiny_bundle.path, "--detector", "highpass_detector:score",
            "--protocol", "published", "--protocol", "equalised",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    files = {file.name for file in (tmp_path / "one").iterdir() if file.is_file()}
    assert files >= {"report.md", "tables.tex", "pairs.csv", "photographs.csv", "summary.csv", "comparisons.csv",
                     "scores.csv", "bench.json", "auc-published.svg"}  # fmt: skip
    for name in files:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert str(sets).encode() not in content
        assert str(tiny_bundle.path.parent).encode() not in content
    bench = json.loads((tmp_path / "one" / "bench.json").read_text())
    assert bench["manifest"]["command"].startswith("lensborn bench --detector tiny --detector highpass")
    assert len(bench["manifest"]["detectors"][0]["sha256"]) == 64
    rows = {(row["detector"], row["condition"]): row for row in bench["pairs"]}
    published, equalised = rows["highpass_detector", PUBLISHED], rows["highpass_detector", EQUALISED]
    assert "container" in published["marked"].split()  # PNG against JPEG
    assert published["container"] > 0.99
    assert equalised["container_low"] <= 0.5 <= equalised["container_high"]
    assert "container" not in equalised["marked"].split()
    assert published["no_face"] == 1
    report = (tmp_path / "one" / "report.md").read_text()
    assert "(f)" in report
    assert "not measured here" in report
    with (tmp_path / "one" / "scores.csv").open() as stream:
        scores = {(row["condition"], row["file"]): row for row in csv.DictReader(stream)}
    assert scores[PUBLISHED, "gen/none.png"]["reason"] == "no_face"
    assert scores[PUBLISHED, "gen/none.png"]["tiny"] == ""
    assert float(scores[PUBLISHED, "cam/0.jpg"]["tiny"])


def test_delivery_is_measured_step_by_step(tiny_bundle, sets, tmp_path):
    result = run(
        "bench", "--real", f"cam={sets / 'r'}", "--fake", f"gen={sets / 'f'}", "--out", tmp_path,
        "--detector", tiny_bundle.path, "--protocol", "delivery", "--limit", 6, "--no-refit",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    bench = json.loads((tmp_path / "bench.json").read_text())
    assert {row["condition"] for row in bench["pairs"]} == {EQUALISED, *protocols.DELIVERY}
    assert {row["family"] for row in bench["photographs"]} > {
        "jpeg",
        "resize",
        "blur",
        "webp",
        "screenshot",
        "crop",
    }
    assert (tmp_path / "delivery-1.svg").exists()
    assert not bench["manifest"]["reference"]  # a bundle brings its own threshold


@pytest.mark.parametrize("limit", [1, 2])
def test_hardly_any_pictures_are_no_error(tiny_bundle, sets, tmp_path, monkeypatch, examples, limit):
    monkeypatch.syspath_prepend(str(examples))
    result = run(
        "bench", "--real", f"cam={sets / 'r'}", "--real", f"also={sets / 'f'}",
        "--fake", f"gen={sets / 'r'}", "--detector", tiny_bundle.path, "--limit", limit, "--out", tmp_path,
        "--detector", "highpass_detector:score",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "bench.json").read_text())["pairs"]


def test_without_plots_everything_else_is_written(tiny_bundle, sets, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run(
        "evaluate", "--real", f"cam={sets / 'r'}", "--fake", f"gen={sets / 'f'}", "--model", tiny_bundle.path,
        "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "no plots" in result.output
    assert (tmp_path / "report.md").exists()
    assert not list(tmp_path.glob("*.svg"))


def test_views_can_be_scored_elsewhere(tiny_bundle, sets, tmp_path):
    words = [
        "bench",
        "--real",
        f"cam={sets / 'r'}",
        "--fake",
        f"gen={sets / 'f'}",
        "--limit",
        4,
        "--out",
        tmp_path / "out",
    ]
    result = run(
        *words, "--views", tmp_path / "views", "--detector", tiny_bundle.path, "--protocol", "equalised"
    )
    assert result.exit_code == 0, result.output
    with (tmp_path / "views" / "views.csv").open() as stream:
        views = list(csv.DictReader(stream))
    lines = ["condition,file,score"]
    for view in views:
        pixels = read_photo(tmp_path / "views" / view["view"]).pixels
        lines.append(f"{view['condition']},{view['file']},{pixels.mean()}")
    (tmp_path / "mean.csv").write_text("\n".join(lines))
    result = run(*words, "--detector", tmp_path / "mean.csv", "--protocol", "equalised")
    assert result.exit_code == 0, result.output
    bench = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert bench["pairs"][0]["detector"] == "mean"


def test_a_table_that_names_none_of_the_pictures_is_refused(sets, tmp_path):
    (tmp_path / "other.csv").write_text("file,score\nelsewhere.jpg,1\n")
    words = ["bench", "--real", f"cam={sets / 'r'}", "--fake", f"gen={sets / 'f'}", "--limit", 2]
    result = run(
        *words,
        "--detector",
        tmp_path / "other.csv",
        "--protocol",
        "published",
        "--out",
        tmp_path / "out",
    )
    assert result.exit_code == 2
    assert "gave no picture a score" in " ".join(result.output.replace("│", " ").split())


def test_nothing_to_measure_is_no_result(sets, tiny_bundle, tmp_path):
    (tmp_path / "f").mkdir()
    shutil.copy(sets / "f" / "none.png", tmp_path / "f")
    result = run(
        "evaluate", "--real", f"cam={sets / 'r'}", "--fake", f"gen={tmp_path / 'f'}", "--model", tiny_bundle.path,
        "--limit", 2,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "none of the generated pictures can be measured (1 no_face)" in " ".join(
        result.output.replace("│", " ").split()
    )


def test_views_tell_of_what_cannot_be_shown(sets, tmp_path):
    for name in ("r", "f"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes((sets / "f" / "0.png").read_bytes())
    (tmp_path / "f" / "broken.png").write_bytes(b"\x89PNG\r\n")
    words = ["--real", f"cam={tmp_path / 'r'}", "--fake", f"gen={tmp_path / 'f'}", "--out", tmp_path / "out"]
    result = run("bench", *words, "--views", tmp_path / "views", "--protocol", "published")
    assert result.exit_code == 1
    assert "1 unreadable" in result.output


def test_a_place_that_cannot_be_written_is_told_before_the_work(sets, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["--real", f"cam={sets / 'r'}", "--fake", f"gen={sets / 'f'}"]
    result = run(
        "bench", *words, "--detector", "highpass_detector:score", "--out", tmp_path / "file" / "below"
    )
    assert result.exit_code == 2
    assert "24" not in result.output


def test_evaluate_measures_one_model_on_everything(tiny_bundle, sets, tmp_path):
    for protocol in ("published", "equalised"):
        result = run(
            "evaluate", "--real", f"cam={sets / 'r'}", "--fake", f"gen={sets / 'f'}", "--model", tiny_bundle.path,
            "--protocol", protocol, "--out", tmp_path / protocol,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        bench = json.loads((tmp_path / protocol / "bench.json").read_text())
        row = bench["pairs"][0]
        assert (row["n_generated"], row["n_real"], row["no_face"]) == (12, 24, 1)
        assert bench["manifest"]["command"].startswith(
            f"lensborn evaluate --protocol {protocol} --model tiny"
        )


def test_evaluate_says_how_many_pictures_the_model_was_made_from(detector, sets, tmp_path):
    detector.seen = frozenset(
        {hashlib.sha256(sorted((sets / "r").glob("*.*"))[0].read_bytes()).hexdigest()[:16]}
    )
    bundle = detector.save(tmp_path / "bundle")
    words = ("--real", f"cam={sets / 'r'}", "--fake", f"gen={sets / 'f'}")
    result = run("evaluate", *words, "--model", bundle.path)
    assert "1 of 37 pictures are left out" in result.output


def test_evaluate_measures_every_channel_of_a_model(known_bundle, tiny_bundle, sets, tmp_path):
    words = (
        "evaluate",
        "--real",
        f"cam={sets / 'r'}",
        "--fake",
        f"gen={sets / 'f'}",
        "--out",
        tmp_path / "out",
    )
    for channels, expected in (([], ["", " known", " fused"]), (["--channel", "fused"], [" fused"])):
        result = run(*words, "--model", known_bundle.path, *channels)
        assert result.exit_code == 0, result.output
        bench = json.loads((tmp_path / "out" / "bench.json").read_text())
        name = known_bundle.manifest["name"]
        assert list(dict.fromkeys(row["detector"] for row in bench["pairs"])) == [name + e for e in expected]
        assert bench["manifest"]["command"].count("--channel") == len(channels) / 2
    result = run(*words, "--model", tiny_bundle.path, "--channel", "known")
    assert result.exit_code == 2
    assert "no known channel" in result.output


def test_unreadable_files_are_counted_and_change_the_exit_status(tiny_bundle, sets, tmp_path):
    shutil.copytree(sets, tmp_path / "sets")
    (tmp_path / "sets" / "f" / "broken.png").write_text("x")
    result = run(
        "evaluate", "--real", f"cam={tmp_path / 'sets' / 'r'}", "--fake", f"gen={tmp_path / 'sets' / 'f'}",
        "--model", tiny_bundle.path, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["pairs"][0]["unreadable"] == 1


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--real", "nothing"],
        ["evaluate", "--real", "a=/nowhere", "--fake", "b=/nowhere"],
        ["evaluate", "--table", "/nowhere.csv"],
        ["evaluate"],
        ["evaluate", "--protocol", "other"],
        ["evaluate", "--limit", "0"],
        ["bench", "--out", "x"],
        ["bench", "/nowhere", "--out", "x"],
        ["bench", "--detector", "nothing", "--out", "x"],
        ["bench", "--encoder", "nothing", "--out", "x"],
        ["bench", "--encoder", "a=clip:/nowhere", "--out", "x"],
        ["bench", "--alpha", "2", "--out", "x"],
        ["paper", "table9", "--fitted-to", "a", "--out", "x"],
        ["paper", "table1", "--fitted-to", "a", "--out", "x"],
    ],
)
def test_wrong_usage_has_its_own_exit_status(words):
    result = run(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_place_that_cannot_be_written_is_named(tiny_bundle, sets, tmp_path):
    (tmp_path / "file").write_text("in the way")
    words = ["bench", "--real", f"cam={sets / 'r'}", "--fake", f"gen={sets / 'f'}", "--limit", 3]
    words += ["--detector", tiny_bundle.path, "--protocol", "published"]
    for out in ("file", "file/below"):
        result = run(*words, "--out", tmp_path / out)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output


def test_the_example_detector_fits_on_a_page():
    lines = (Path(__file__).parent.parent / "examples" / "highpass_detector.py").read_text().splitlines()
    assert len(lines) < 40


def test_the_benchmark_needs_no_torch(tiny_bundle):
    import subprocess

    code = (
        "import sys\nfrom lensborn.bench import report, tables, observing, experiments\n"
        f"from lensborn.bench.contestants import contestant\ncontestant({str(tiny_bundle.path)!r})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_detectors_are_independent_of_the_order_of_pictures(odd, detector):
    mine = BundleContestant(Detector.load(), refits=False)
    forward, backward = (observe(list(order), [PUBLISHED], [mine]) for order in (odd, odd[::-1]))
    one, other = (seen.conditions[PUBLISHED].observed[mine.name] for seen in (forward, backward))
    np.testing.assert_allclose(one, other[::-1], rtol=1e-5)


def test_two_detectors_of_one_name_are_told_apart_or_refused(tiny_bundle, sets, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(tiny_bundle.path, twin)
    result = run(
        "bench", "--real", f"cam={sets / 'r'}", "--fake", f"gen={sets / 'f'}", "--detector", tiny_bundle.path,
        "--detector", twin, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "given twice" in result.output
    (twin / "CARD.md").write_text("another")
    manifest = json.loads((twin / "bundle.json").read_text())
    manifest["files"]["CARD.md"] = hashlib.sha256(b"another").hexdigest()
    (twin / "bundle.json").write_text(json.dumps(manifest))
    one, other = told_apart([contestant(str(tiny_bundle.path)), contestant(str(twin))])
    assert one.name == f"tiny {tiny_bundle.sha256[:8]}"
    assert other.name.startswith("tiny ")
    assert other.name != one.name
