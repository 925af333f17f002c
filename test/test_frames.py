"""Scores on generated scenes and real frames, beside what sees no image; and the packaging that tells them."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from marigold_ros.checkpoints import describe, find_checkpoint, load_network  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from small_checkpoint import write_small_checkpoint  # noqa: E402
from trainer import card  # noqa: E402
from trainer import frames as on_frames  # noqa: E402
from trainer.card import package_run  # noqa: E402
from trainer.loop import train  # noqa: E402
from trainer.package import Member, write_member  # noqa: E402
from trainer.samples import write_sample  # noqa: E402
from training import scene, small_recipe, write_data  # noqa: E402


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(4):
        write_sample(folder / "held_out", scene(seed))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    recipe = small_recipe("robot", str(write_small_checkpoint(folder / "start")))
    assert train(recipe, folder / "run", write_data(folder / "data"))
    return folder / "run"


def test_scores_of_a_hand_worked_case():
    depth = np.array([[1.0, 2.0, 4.0, np.nan]], np.float32).repeat(8, axis=0)
    frame = on_frames.Frame("hand", np.zeros((8, 4, 3), np.uint8), depth)
    relative = -1 / np.nan_to_num(depth, nan=1.0) * 0.3 + 0.5
    scores = on_frames.evaluate_frame(frame, relative, "inverse_depth")
    assert scores.best.abs_rel < 1e-6
    assert scores.plain.abs_rel < 1e-6
    assert scores.best.delta1 == 1
    assert scores.near < 1e-6
    # Plain least squares of (1, 2, 4) on (0, 1, 3): z = 1 + p exactly; on (0, 3, 3): residuals 0, -1, 1.
    plain = on_frames.aligned(
        np.array([0.0, 3.0, 3.0]), np.array([1.0, 2.0, 4.0]), np.ones(3, bool), "depth", best=False
    )
    np.testing.assert_allclose(plain, [1.0, 3.0, 3.0], atol=1e-6)


def test_who_takes_near_for_far_is_as_good_as_who_sees_nothing():
    depth_m, known = np.array([1.0, 2.0, 4.0]), np.ones(3, bool)
    mirrored = on_frames.aligned(np.array([4.0, 2.0, 1.0]), depth_m, known, "depth", best=False)
    np.testing.assert_allclose(mirrored, np.full(3, 7 / 3))


def test_plane_is_what_the_blind_baseline_fits():
    v, u = np.mgrid[:20, :30]
    depth = (1 / (0.1 + 0.01 * v + 0.002 * u)).astype(np.float32)
    known = np.ones_like(depth, bool)
    for best in (True, False):
        np.testing.assert_allclose(on_frames.blind_depth(depth, known, best), depth, rtol=1e-4)


def test_best_fit_has_the_least_abs_rel_and_survives_outliers():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 30, 400)
    p = -1 / depth
    p[:40] = rng.uniform(-1, 0, 40)
    design = np.stack([p, np.ones(400)], axis=1)
    np.testing.assert_allclose(on_frames.fit(design, depth, "inverse_depth", best=True), [1, 0], atol=1e-3)
    assert abs(on_frames.fit(design, depth, "inverse_depth", best=False)[0] - 1) > 0.1


def test_beyond_infinity_counts_as_far_not_as_unknown():
    np.testing.assert_allclose(on_frames.limited(np.array([0.5, -0.5]), "inverse_depth"), [on_frames.FARTHEST_M, 2.0])
    np.testing.assert_allclose(on_frames.limited(np.array([-3.0, 2.0]), "depth"), [on_frames.NEAREST_M, 2.0])


def test_kitti_points_are_projected_and_the_nearest_wins(tmp_path):
    (tmp_path / "calib.txt").write_text(
        "P2: 10 0 5 0 0 10 4 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
    )
    points = np.array([[8, 0, 0, 1], [4, 0, 0, 1], [5, -1, 1, 1], [-3, 0, 0, 1]], np.float32)
    points.tofile(tmp_path / "velodyne.bin")
    depth = on_frames.kitti_depth(tmp_path, (8, 10))
    assert depth[4, 5] == 4
    assert depth[2, 7] == 5
    assert np.isfinite(depth).sum() == 2


def test_evaluation_of_a_checkpoint_on_scenes(run, scenes_folder):
    results = on_frames.evaluate(run / "checkpoint", scenes_folder, [])
    assert len(results["held-out"]) == 4
    assert "held-out (4)" in on_frames.table(results)
    values = on_frames.as_json(results, describe(run / "checkpoint"))
    assert np.isfinite(values["held_out"]["best"]["abs_rel"])


def test_nano_beats_what_sees_no_image_on_every_real_frame():
    """What README says of the bundled checkpoint; skipped where the frames are not at hand."""
    frames = list(on_frames.real_frames())
    if not frames:
        pytest.skip("no real frames beside the checkout")
    results = on_frames.evaluate(find_checkpoint("nano"), None, frames, engine="openvino")
    worse = [s.name for scores in results.values() for s in scores if s.best.abs_rel >= s.blind.abs_rel]
    assert not worse


def test_a_folder_without_real_frames_is_named(tmp_path):
    with pytest.raises(Unusable, match="there is no kitti/ nor indoor/"):
        list(on_frames.real_frames(tmp_path))


def test_what_lies_at_out_stays_when_packaging_fails(tmp_path, run, scenes_folder, monkeypatch):
    monkeypatch.setattr(card, "real_frames", list)
    package_run(run, tmp_path / "tiny", None, None, onnx=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(Unusable, match=r"none\.md"):
        package_run(run, tmp_path / "tiny", None, tmp_path / "none.md", onnx=False)
    with pytest.raises(Unusable, match="there are none"):
        package_run(run, tmp_path / "tiny", tmp_path, None, onnx=False)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_packaging_replaces_checkpoints_only(tmp_path, run):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    network = load_network(describe(run / "checkpoint"))
    member = Member(network.unet, network.vae, network.prompt, "depth", "e2e", (64, 64), "inverse_depth")
    with pytest.raises(Unusable, match="is no checkpoint"):
        write_member(tmp_path / "thesis", member, "# card\n")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_package_writes_checkpoint_card_and_numbers(tmp_path, run, scenes_folder, monkeypatch):
    monkeypatch.setattr(card, "real_frames", list)
    (tmp_path / "notes.md").write_text("## Limits\n\nTiny.\n")
    table = package_run(run, tmp_path / "tiny", scenes_folder, tmp_path / "notes.md", onnx=False)
    text = (tmp_path / "tiny" / "README.md").read_text()
    assert table in text
    assert "Seed 2024; 2 steps" in text
    assert text.endswith("Tiny.\n")
    assert json.loads((tmp_path / "tiny" / "evaluation.json").read_text())["held_out"]["count"] == 4
    assert describe(tmp_path / "tiny").space == "inverse_depth"


def test_a_run_that_has_not_ended_cannot_be_packaged(tmp_path):
    with pytest.raises(Unusable, match="has not ended yet"):
        package_run(tmp_path, tmp_path / "out", None, None, onnx=False)


def test_a_packaged_run_predicts_what_the_run_predicts(tmp_path, run, monkeypatch):
    monkeypatch.setattr(card, "real_frames", list)
    package_run(run, tmp_path / "half", None, None, onnx=False)
    rgb = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        answers = [load_network(describe(folder))(rgb) for folder in (run / "checkpoint", tmp_path / "half")]
    torch.testing.assert_close(*answers, atol=5e-3, rtol=0)
