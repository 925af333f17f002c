"""The program `estimate`: files in, files out."""

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from family_checkpoints import FAMILY, write_family_checkpoint
from marigold_ros.config import Unusable
from marigold_ros.estimate import main, write_result
from small_checkpoint import make_metric

ROWS = {row.name: row for row in FAMILY}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(str(folder / name), random.integers(0, 256, (48, 64, 3), np.uint8))
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def checkpoint_v1_1(tmp_path_factory):
    return write_family_checkpoint(tmp_path_factory.mktemp("family"), ROWS["marigold-depth-v1-1"])


def test_depth_of_a_folder_with_uncertainty(pictures, tmp_path):
    checkpoint = write_family_checkpoint(tmp_path, ROWS["marigold-depth-v1-1"])
    out = tmp_path / "out"
    options = ["--checkpoint", str(checkpoint), "--resolution", "64", "--steps", "1", "--ensemble", "3"]
    assert main([str(pictures), "--out", str(out), *options]) == 0
    kinds = (".npy", ".png", "_colour.png")
    expected = {f"{name}_{what}{kind}" for name in "ab" for what in ("depth", "depth_uncertainty") for kind in kinds}
    assert {path.name for path in out.iterdir()} == expected
    depth = np.load(out / "a_depth.npy")
    stored = cv2.imread(str(out / "a_depth.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(stored / 65535, depth, atol=1e-5)
    assert cv2.imread(str(out / "a_depth_colour.png")).shape == (48, 64, 3)


def test_a_wall_that_faces_the_camera(tmp_path):
    """Its normal is (0, 0, -1) in the optical frame, and lilac as the field draws it."""
    write_result(tmp_path / "wall", "normals", np.full((4, 4, 3), (0, 0, -1), np.float32))
    red, green, blue = cv2.imread(str(tmp_path / "wall_normals.png"), cv2.IMREAD_UNCHANGED)[0, 0, ::-1]
    assert (red, green, blue) == (32768, 32768, 0)
    assert tuple(cv2.imread(str(tmp_path / "wall_normals_colour.png"))[0, 0, ::-1]) == (128, 128, 255)


def test_intrinsic_images_by_their_names(pictures, tmp_path):
    checkpoint = write_family_checkpoint(tmp_path, ROWS["marigold-iid-appearance-v1-1"])
    out = tmp_path / "out"
    options = ["--checkpoint", str(checkpoint), "--resolution", "64", "--steps", "1"]
    assert main([str(pictures / "a.png"), "--out", str(out), *options]) == 0
    assert {path.name for path in out.glob("*.npy")} == {"a_albedo.npy", "a_material.npy"}


def test_a_result_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    values = np.zeros((4, 4), np.float32)
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable, match=r"folder .*/file: cannot be written .* or give another one"):
        write_result(tmp_path / "file" / "a", "depth", values)
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)
    with pytest.raises(Unusable, match=r"a_depth\.png: cannot be written"):
        write_result(tmp_path / "a", "depth", values)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "a_depth.npy"}


@pytest.mark.parametrize(
    ("row", "options"),
    [("marigold-e2e-ft-depth", []), ("marigold-depth-v1-1", ["--steps", "1", "--ensemble", "3"])],
)
def test_metres_of_a_metric_checkpoint_by_the_focal_length(pictures, tmp_path, capsys, row, options):
    """Working size 64x64: a zoom of 1.2 to the canonical 60 pixels, in steps of 8, makes 80x60 of a 64x48 image."""
    checkpoint = make_metric(write_family_checkpoint(tmp_path, ROWS[row], (64, 64)), canonical_focal_px=60.0)
    arguments, out = [str(pictures / "a.png"), "--checkpoint", str(checkpoint), *options], tmp_path / "out"
    assert main([*arguments, "--out", str(out), "--focal-px", "50"]) == 0
    assert "--focal-px" not in capsys.readouterr().out
    relative, depth_m = (np.load(out / f"a_{what}.npy") for what in ("depth", "depth_m"))
    assert depth_m.dtype == np.float32
    np.testing.assert_allclose(depth_m, 0.1 * 800.0**relative * (50.0 * 80 / 64) / 60.0, rtol=1e-5)
    stored = cv2.imread(str(out / "a_depth_m.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(stored / 256.0, depth_m, atol=0.5 / 256 + 1e-5)
    assert cv2.imread(str(out / "a_depth_m_colour.png")).shape == (48, 64, 3)
    assert not (out / "a_depth_m_uncertainty.npy").exists()

    # At 96x72, the focal length is half as long again as the image's own.
    assert main([*arguments, "--out", str(out), "--focal-px", "50", "--resolution", "96"]) == 0
    relative, depth_m = (np.load(out / f"a_{what}.npy") for what in ("depth", "depth_m"))
    np.testing.assert_allclose(depth_m, 0.1 * 800.0**relative * 75.0 / 60.0, rtol=1e-5)

    without = tmp_path / "without"
    assert main([*arguments, "--out", str(without)]) == 0
    assert "no --focal-px: no metres" in capsys.readouterr().out
    assert not list(without.glob("*depth_m*"))


def ramp_m():
    """Metres known at every third pixel of every fourth row."""
    v, u = np.indices((48, 64))
    return np.where((v % 4 == 0) & (u % 3 == 0), 2 + 0.05 * u + 0.02 * v, np.nan).astype(np.float32)


@pytest.mark.parametrize("row", ["marigold-depth-v1-1", "marigold-depth-lcm-v1-0"])
def test_a_sparse_depth_image_guides_to_metres(pictures, tmp_path, capsys, row):
    """The same anchors as metres, as KITTI writes them and in millimetres; the same answer but for their rounding."""
    checkpoint = write_family_checkpoint(tmp_path, ROWS[row])
    np.save(tmp_path / "sparse.npy", ramp_m())
    for name, per_metre in (("kitti.png", 256), ("mm.png", 1000)):
        cv2.imwrite(str(tmp_path / name), np.nan_to_num(ramp_m() * per_metre).round().astype(np.uint16))
    options = ["--checkpoint", str(checkpoint), "--resolution", "64", "--steps", "3"]
    answers = {}
    for anchors, more in (("sparse.npy", []), ("kitti.png", []), ("mm.png", ["--anchors-per-metre", "1000"])):
        out = tmp_path / f"out of {anchors}"
        arguments = [str(pictures / "a.png"), "--anchors", str(tmp_path / anchors), *more, *options]
        assert main([*arguments, "--out", str(out)]) == 0
        assert "a.png: 264 anchors, 2.00 to 6.03 m" in capsys.readouterr().out
        assert {path.name for path in out.iterdir()} == {f"a_depth_m{kind}" for kind in (".npy", ".png", "_colour.png")}
        answers[anchors] = np.load(out / "a_depth_m.npy")
        stored = cv2.imread(str(out / "a_depth_m.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_allclose(stored / 256, np.nan_to_num(answers[anchors]), atol=0.5 / 256 + 1e-5)
    assert answers["sparse.npy"].dtype == np.float32
    assert 2 < np.nanmedian(answers["sparse.npy"]) < 6
    for depth_m in answers.values():
        assert np.nanmedian(np.abs(depth_m / answers["sparse.npy"] - 1)) < 0.02


def test_anchors_of_a_folder_and_the_deviation_of_an_ensemble(pictures, tmp_path):
    checkpoint = write_family_checkpoint(tmp_path, ROWS["marigold-depth-v1-0"])
    (tmp_path / "sparse").mkdir()
    np.save(tmp_path / "sparse" / "a.npy", ramp_m())
    cv2.imwrite(str(tmp_path / "sparse" / "b.png"), np.nan_to_num(ramp_m() * 256).round().astype(np.uint16))
    options = ["--checkpoint", str(checkpoint), "--resolution", "64", "--steps", "1", "--ensemble", "3", "--half"]
    out = tmp_path / "out"
    assert main([str(pictures), "--anchors", str(tmp_path / "sparse"), "--out", str(out), *options]) == 0
    expected = {f"{name}_depth_m{what}.npy" for name in "ab" for what in ("", "_uncertainty")}
    assert {path.name for path in out.glob("*.npy")} == expected
    deviation_m = np.load(out / "a_depth_m_uncertainty.npy")
    stored = cv2.imread(str(out / "a_depth_m_uncertainty.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(stored / 256, np.nan_to_num(deviation_m), atol=0.5 / 256 + 1e-5)


@pytest.mark.parametrize(
    ("anchors", "arguments", "words"),
    [
        (ramp_m(), ["{pictures}"], "is one file for 2 images"),
        (ramp_m()[1:], [], "is 64x47, image a.png is 64x48"),
        (np.zeros((48, 64), np.float32), [], "has no known depth"),
        (np.full((48, 64), -2, np.float32), [], "negative depth (-2 m)"),
        (np.ones((48, 64), np.int32), [], "int32 values of shape (48, 64)"),
        (np.ones((48, 64, 1), np.float32), [], "shape (48, 64, 1)"),
        (np.full((48, 64), 3, np.float32), [], "about one depth (3.00 to 3.00 m)"),
        (np.where(np.arange(64) < 1, ramp_m(), np.nan), [], "12 anchors: at least 20"),
        (None, ["--anchors", "{pictures}/a.png"], "uint8 values"),
        (None, ["--anchors", "{pictures}/none.png"], "cannot be read"),
        (None, ["--anchors", "{pictures}/none.npy"], "cannot be read"),
        (None, ["--anchors", "{pictures}/notes.txt"], "must be a .png or .npy file"),
        (None, ["--anchors", "{pictures}"], "uint8 values"),
        (None, ["--anchors", "{pictures}/.."], "has neither of a.png and a.npy"),
        (ramp_m(), ["--anchors-per-metre", "0"], "--anchors-per-metre 0.0: must be a positive number"),
        (ramp_m(), ["--focal-px", "500"], "with anchors, metres come from these"),
        (ramp_m(), ["--alignment", "diffusers"], "not aligned"),
        (ramp_m(), ["--checkpoint", "nano"], "takes one step from zeros"),
    ],
)
def test_anchors_that_mean_nothing_are_one_sentence_and_leave_nothing(
    checkpoint_v1_1, pictures, capsys, anchors, arguments, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = ["{pictures}/a.png"] if "{pictures}" not in arguments[:1] else []
    given += ["--checkpoint", str(checkpoint_v1_1), "--steps", "1", "--resolution", "64"]
    if anchors is not None:
        np.save(pictures / "anchors.npy", anchors)
        given += ["--anchors", str(pictures / "anchors.npy")]
    assert main([argument.format(pictures=pictures) for argument in [*given, *arguments]]) == 1
    error = capsys.readouterr().err
    assert words in error
    sentence = error[error.index("estimate: ") :]
    assert sentence.count("\n") == 1
    assert list(tmp_path.iterdir()) == [pictures]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{pictures}/none.png"], "no such file"),
        (["{pictures}/notes.txt"], "cannot be read"),
        (["{pictures}/a.png", "{pictures}"], "more than one has this name"),
        (["{pictures}/a.png", "--checkpoint", "nowhere"], "nowhere"),
        (["{pictures}/a.png", "--out", "{pictures}/notes.txt"], "cannot be made"),
        (["{pictures}/a.png", "--ensemble", "4"], "deterministic"),
        (["{pictures}/a.png", "--device", "banana"], "--device banana: cannot be used here"),
        (["{pictures}/a.png", "--device", "meta"], "--device meta: cannot be used here"),
        (["{pictures}/a.png", "--seed", "-1"], "seed=-1"),
        (["{pictures}/a.png", "--focal-px", "500"], "focal_px=500.0 means nothing to it, it gives no metres"),
        (["{pictures}/a.png", "--focal-px", "nan"], "focal_px=nan: must be a positive number"),
        (["{pictures}/a.png", "--out", "{pictures}"], "holds images to be read"),
    ],
)
def test_nonsense_is_one_sentence_and_leaves_nothing(pictures, capsys, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(pictures=pictures) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("estimate: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [pictures]
