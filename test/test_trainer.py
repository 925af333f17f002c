"""The trainer: recipes, batches, losses, resuming, evaluation."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from marigold_ros.checkpoints import describe, find_checkpoint, load_network  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from trainer import card  # noqa: E402
from trainer import frames as on_frames  # noqa: E402
from trainer.augment import Cut, cut, vary  # noqa: E402
from trainer.card import package_run  # noqa: E402
from trainer.data import Scenes, make_batch  # noqa: E402
from trainer.loop import read_state  # noqa: E402
from trainer.losses import Target, depth_loss, fit_scale_shift, full_range, make_target  # noqa: E402
from trainer.nano import load_run, train_nano  # noqa: E402
from trainer.package import write_checkpoint  # noqa: E402
from trainer.ranks import Ranks  # noqa: E402
from trainer.recipe import Phase, Recipe, load_recipe, recipe_from  # noqa: E402
from trainer.vae import evaluate_vae, train_vae  # noqa: E402

TINY = {
    "network": {
        "vae_channels": [8, 8, 16, 16],
        "latent_channels": 4,
        "vae_groups": 4,
        "unet_channels": [32, 32],
        "prompt_width": 16,
    },
    "optimiser": {"warmup_steps": 2},
    "log_steps": 1,
    "vae": {"phases": [{"name": "v", "steps": 3, "batch": 4, "lr": [1e-3, 1e-3], "sizes": [[64, 32, 1]]}]},
    "nano": {
        "phases": [
            {"name": "l", "target": "latent", "steps": 2, "batch": 2, "lr": [1e-3, 1e-3], "sizes": [[64, 32, 1]]},
            {"name": "a", "steps": 3, "batch": 2, "lr": [1e-3, 5e-4], "sizes": [[64, 32, 1], [32, 32, 1]]},
            {"name": "b", "steps": 3, "batch": 2, "lr": [5e-4, 1e-4], "sizes": [[64, 64, 1]]},
        ]
    },
}


def write_scene(folder, name, shape=(48, 64), seed=0):
    """Ground plane, a box, sky: image brightness follows depth, so there is something to learn."""
    rng = np.random.default_rng(seed)
    rows = np.mgrid[: shape[0], : shape[1]][0]
    horizon = shape[0] * rng.uniform(0.2, 0.4)
    with np.errstate(divide="ignore"):
        depth = np.where(rows > horizon, 40.0 / (rows - horizon), np.inf)
    left = int(rng.integers(0, shape[1] // 2))
    depth[shape[0] // 3 : shape[0] * 2 // 3, left : left + shape[1] // 4] = rng.uniform(1.5, 3)
    rgb = np.repeat((255 / (1 + np.minimum(depth, 1e3) / 4))[..., None], 3, axis=2)
    for part in ("rgb", "depth_m", "camera"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "rgb" / f"{name}.jpg"), rgb.astype(np.uint8))
    np.save(folder / "depth_m" / f"{name}.npy", depth.astype(np.float16))
    (folder / "camera" / f"{name}.json").write_text("{}")


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for index in range(6):
        write_scene(folder / "train", f"{index:06d}", (48, 64) if index % 3 else (32, 96), seed=index)
        write_scene(folder / "held_out", f"{index:06d}", seed=100 + index)
    return folder


@pytest.fixture(scope="module")
def recipe():
    return recipe_from(TINY, "test")


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory, scenes_folder, recipe):
    folder = tmp_path_factory.mktemp("vae")
    assert train_vae(folder, recipe, Scenes(scenes_folder / "train"))
    return folder


@pytest.fixture(scope="module")
def nano_run(tmp_path_factory, scenes_folder, recipe, vae_run):
    folder = tmp_path_factory.mktemp("nano")
    assert train_nano(folder, recipe, Scenes(scenes_folder / "train"), vae_run, None)
    return folder


# Recipes


def test_default_recipe_is_complete_and_known():
    recipe = load_recipe()
    assert recipe.nano.phases
    assert recipe.vae.phases
    assert recipe_from(recipe.as_dict(), "again") == recipe


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"space": "disparity"}, "space='disparity'"),
        ({"nano.gradients": 1}, "'gradients'"),
        ({"vae.kl": "much"}, "kl='much'"),
        ({"nano.phases": [{"name": "x", "batch": 1, "lr": [1, 1], "sizes": [[64, 64, 1]]}]}, "steps or minutes"),
        (
            {"nano.phases": [{"name": "x", "steps": 1, "batch": 1, "lr": [1, 1], "sizes": [[65, 64, 1]]}]},
            "65x64",
        ),
        (
            {"nano.phases": [{"name": "x", "steps": 1, "batch": 1, "lr": [1, 1], "sizes": [], "target": "y"}]},
            "target='y'",
        ),
    ],
)
def test_bad_recipes_are_refused_by_name(changes, word):
    with pytest.raises(Unusable, match=word):
        load_recipe(None, changes)


def test_missing_recipe(tmp_path):
    with pytest.raises(Unusable, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")


# Data


def test_new_scenes_are_picked_up_and_unfinished_ones_are_not(tmp_path):
    write_scene(tmp_path, "000000")
    scenes = Scenes(tmp_path)
    write_scene(tmp_path, "000001")
    (tmp_path / "rgb" / "000002.jpg").write_bytes(b"half")
    assert scenes.rescan() == 2


def test_no_scenes(tmp_path):
    with pytest.raises(Unusable, match="0 samples"):
        Scenes(tmp_path)


def test_damaged_scene_is_named(tmp_path):
    write_scene(tmp_path, "000000")
    (tmp_path / "depth_m" / "000000.npy").write_bytes(b"half")
    with pytest.raises(Unusable, match="000000"):
        Scenes(tmp_path)


def test_batches_depend_on_seed_and_step_alone(scenes_folder, recipe):
    phase = recipe.nano.phases[0]
    one, two = (Scenes(scenes_folder / "train") for _ in range(2))
    make_batch(two, phase, recipe.augment, 0, 6)
    for a, b in zip(
        make_batch(one, phase, recipe.augment, 0, 7), make_batch(two, phase, recipe.augment, 0, 7), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    other = make_batch(one, phase, recipe.augment, 1, 7)[0]
    assert other.shape != a.shape or (other != make_batch(one, phase, recipe.augment, 0, 7)[0]).any()


def test_cut_keeps_image_and_depth_together():
    depth = np.tile(np.arange(1, 65, dtype=np.float32), (48, 1))
    rgb = np.repeat((depth * 3)[..., None], 3, axis=2).astype(np.uint8)
    window = Cut(left=8, top=4, width=32, height=32, size=(64, 64), flip=True)
    small_rgb, small_depth = cut(rgb, depth, window)
    assert small_rgb.shape == (64, 64, 3)
    assert np.abs(small_rgb[..., 0] / 3.0 - small_depth).max() < 1.01
    assert small_depth[0, 0] > small_depth[0, -1]


def test_every_change_of_the_picture_keeps_shape_and_type():
    rng = np.random.default_rng(0)
    always = replace(Recipe().augment, colour=1, haze=1, shadow=1, glare=1, vignette=1, blur=1, noise=1, jpeg=1, grey=1)
    rgb = rng.integers(0, 256, (96, 128, 3), np.uint8)
    depth = np.full((96, 128), np.inf, np.float32)
    for _ in range(20):
        out = vary(rgb, depth, rng, always)
        assert out.shape == rgb.shape
        assert out.dtype == np.uint8


# Losses


def test_scale_and_shift_agree_with_lstsq():
    rng = np.random.default_rng(0)
    p, w = rng.normal(size=(2, 6, 5)), rng.uniform(0, 2, (2, 6, 5))
    y = 1.7 * p + 0.3 + 0.5 * rng.normal(size=p.shape)
    scale, shift = fit_scale_shift(torch.tensor(p), Target(torch.tensor(y), torch.tensor(w)))
    for index in range(2):
        root = np.sqrt(w[index].ravel())
        design = np.stack([p[index].ravel(), np.ones(30)], 1) * root[:, None]
        expected = np.linalg.lstsq(design, y[index].ravel() * root, rcond=None)[0]
        np.testing.assert_allclose([scale[index], shift[index]], expected, rtol=1e-4)


def test_scale_is_never_negative():
    p = torch.linspace(-1, 1, 12).view(1, 3, 4)
    scale, shift = fit_scale_shift(p, Target(5 - 2 * p, torch.ones_like(p)))
    assert float(scale) == 0
    assert float(shift) == pytest.approx(5)


@pytest.mark.parametrize("space", ["inverse_depth", "depth", "log_depth"])
def test_targets_increase_with_distance_and_leave_out_the_unknown(space):
    depth = torch.tensor([[[1.0, 2.0, 4.0, 8.0, torch.inf, torch.nan, 0.0]]])
    target = make_target(depth, space, Recipe().nano)
    assert (target.y[0, 0, :5].diff() > 0).all()
    assert (target.weight[0, 0, 5:] == 0).all()
    assert (target.weight[0, 0, :5] > 0).all()
    spread = full_range(target)[0, 0, :5]
    assert float(spread[0]) < -0.8
    assert float(spread.max()) <= 1


def test_loss_is_blind_to_scale_and_shift_but_for_the_range():
    recipe = replace(Recipe().nano, anchor=0.0, outside=0.0)
    depth = 1 + 5 * torch.rand(2, 16, 16)
    target = make_target(depth, "log_depth", recipe)
    prediction = torch.rand(2, 16, 16)
    loss = depth_loss(prediction, target, recipe)[0]
    assert float(depth_loss(3 * prediction - 2, target, recipe)[0]) == pytest.approx(float(loss), rel=1e-3)
    assert float(depth_loss(0.2 * target.y + 0.1, target, recipe)[0]) < 1e-3


def test_image_without_known_depth_gives_a_finite_loss():
    recipe = Recipe().nano
    prediction = torch.zeros(2, 16, 16, requires_grad=True)
    depth = torch.full((2, 16, 16), torch.nan)
    depth[1] = 1 + torch.rand(16, 16)
    loss, _ = depth_loss(prediction, make_target(depth, "inverse_depth", recipe), recipe)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prediction.grad).all()


# Training


def test_vae_scores(vae_run, scenes_folder):
    scores = evaluate_vae(vae_run, Scenes(scenes_folder / "held_out"))
    assert 0 < scores["depth_mse"] < 4
    assert scores["scaling_factor"] > 0


def test_training_learns_one_image(tmp_path, recipe, vae_run):
    write_scene(tmp_path / "one", "000000")
    phase = Phase("a", batch=2, lr=(2e-3, 2e-3), sizes=((64, 32, 1.0),), steps=30)
    still = replace(
        recipe,
        nano=replace(recipe.nano, phases=(phase,), train_decoder=True),
        augment=replace(recipe.augment, zoom=(1, 1), aspect=0, flip=0, colour=0, haze=0, shadow=0, glare=0, vignette=0),
    )
    train_nano(tmp_path / "run", still, Scenes(tmp_path / "one"), vae_run, None)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_interrupted_run_equals_an_uninterrupted_one(tmp_path, scenes_folder, recipe, vae_run, nano_run):
    from trainer import loop

    real, calls = loop.Training.run, []

    def stopping(self, scenes, stop_after=None):
        calls.append(0)
        return real(self, scenes, stop_after=2 * len(calls))

    scenes = Scenes(scenes_folder / "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "run", stopping)
        assert not train_nano(tmp_path, recipe, scenes, vae_run, None)
        assert not train_nano(tmp_path, recipe, scenes, vae_run, None)
    assert train_nano(tmp_path, recipe, scenes, vae_run, None)
    whole, parts = read_state(nano_run), read_state(tmp_path)
    assert same(whole["network"], parts["network"])
    assert same(whole["average"], parts["average"])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 8


def test_killed_run_goes_on(tmp_path, scenes_folder, recipe, vae_run):
    import yaml

    long = recipe.as_dict()
    long["save_minutes"] = 0.0
    long["nano"]["phases"][1]["steps"] = 12
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(strip(long)))
    command = [sys.executable, "-m", "trainer", "nano", "--scenes", scenes_folder, "--vae", vae_run]
    command = [*map(str, command), "--recipe", str(tmp_path / "r.yaml"), "--run", str(tmp_path / "run")]
    process = subprocess.Popen(command)
    while process.poll() is None and not (tmp_path / "run" / "state.pt").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, check=False).returncode == 0
    assert read_state(tmp_path / "run")["progress"]["step"] == 17


def test_a_run_goes_on_with_its_own_recipe_only(tmp_path, scenes_folder, recipe, vae_run, nano_run):
    shutil.copytree(nano_run, tmp_path / "run")
    scenes = Scenes(scenes_folder / "train")
    with pytest.raises(Unusable, match="begun with space='inverse_depth', not 'log_depth'"):
        train_nano(tmp_path / "run", replace(recipe, space="log_depth"), scenes, vae_run, None)
    with pytest.raises(Unusable, match=r"nano\.gradient"):
        train_nano(tmp_path / "run", replace(recipe, nano=replace(recipe.nano, gradient=0.9)), scenes, vae_run, None)
    shorter = (replace(recipe.nano.phases[0], steps=1), *recipe.nano.phases[1:])
    with pytest.raises(Unusable, match="phase 1="):
        train_nano(tmp_path / "run", replace(recipe, nano=replace(recipe.nano, phases=shorter)), scenes, vae_run, None)
    more = replace(recipe.nano, phases=(*recipe.nano.phases, replace(recipe.nano.phases[2], name="c", steps=1)))
    assert train_nano(tmp_path / "run", replace(recipe, nano=more, log_steps=2), scenes, vae_run, None)
    assert read_state(tmp_path / "run")["progress"]["step"] == 9


def test_ranks_share_a_batch(scenes_folder, recipe):
    phase = replace(recipe.nano.phases[1], batch=6)
    scenes = Scenes(scenes_folder / "train")
    whole = make_batch(scenes, phase, recipe.augment, 0, 3)
    shares = [make_batch(scenes, phase, recipe.augment, 0, 3, Ranks(rank, 3)) for rank in range(3)]
    for part in range(2):
        for rank, share in enumerate(shares):
            np.testing.assert_array_equal(share[part], whole[part][rank::3])


def average_as(rank, store, folder):
    """What one of two processes does in the test below."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    gradients = [torch.full((2, 3), 1.0 + rank), torch.arange(4.0) * rank]
    facts = Ranks(rank, 2).average_(gradients, torch.tensor([10.0 * rank, float(rank == 1)], dtype=torch.float64))
    torch.save([*gradients, facts], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_gradients_are_averaged_over_real_processes(tmp_path):
    torch.multiprocessing.spawn(average_as, (tmp_path / "store", tmp_path), nprocs=2)
    for rank in range(2):
        first, second, facts = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(first, torch.full((2, 3), 1.5))
        torch.testing.assert_close(second, torch.arange(4.0) / 2)
        assert facts.tolist() == [5.0, 0.5]


def test_torchrun_trains_in_two_processes_of_which_one_writes(tmp_path, scenes_folder, vae_run, recipe):
    import yaml

    (tmp_path / "r.yaml").write_text(yaml.safe_dump(strip(recipe.as_dict())))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "trainer", "nano"]
    command += ["--scenes", scenes_folder, "--vae", vae_run, "--recipe", tmp_path / "r.yaml", "--run", tmp_path / "run"]
    subprocess.run([str(word) for word in command], check=True)
    assert load_run(tmp_path / "run")[2]["progress"]["step"] == 8
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 8


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, scenes_folder, vae_run, recipe, monkeypatch):
    monkeypatch.setattr(Ranks, "join", staticmethod(lambda: Ranks(0, 3)))
    with pytest.raises(Unusable, match="batch=2: 3 processes"):
        train_nano(tmp_path, recipe, Scenes(scenes_folder / "train"), vae_run, None)


def strip(tree):
    """Without the None values: a phase has either steps or minutes."""
    if isinstance(tree, dict):
        return {key: strip(value) for key, value in tree.items() if value is not None}
    return [strip(value) for value in tree] if isinstance(tree, list) else tree


def test_new_run_needs_a_vae(tmp_path, scenes_folder, recipe):
    with pytest.raises(Unusable, match="--vae"):
        train_nano(tmp_path, recipe, Scenes(scenes_folder / "train"), None, None)


def test_latent_phases_need_the_vae_run_when_resumed_too(tmp_path, scenes_folder, recipe, nano_run):
    shutil.copytree(nano_run, tmp_path / "run")
    with pytest.raises(Unusable, match="--vae"):
        train_nano(tmp_path / "run", recipe, Scenes(scenes_folder / "train"), None, None)


def test_damaged_state_is_named(tmp_path, scenes_folder, recipe):
    (tmp_path / "state.pt").write_bytes(b"half")
    with pytest.raises(Unusable, match=r"state\.pt"):
        train_nano(tmp_path, recipe, Scenes(scenes_folder / "train"), None, None)


def test_packaged_run_predicts_what_the_run_predicts(tmp_path, nano_run):
    network, recipe, _ = load_run(nano_run)
    write_checkpoint(tmp_path / "tiny", network, recipe.space, (64, 64), "# card\n", onnx=False)
    loaded = load_network(describe(tmp_path / "tiny"))
    rgb = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert float((loaded(rgb) - network.eval()(rgb)).abs().max()) < 5e-3


# Evaluation


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


def test_evaluation_of_a_checkpoint_on_scenes(tmp_path, nano_run, scenes_folder):
    network, recipe, _ = load_run(nano_run)
    write_checkpoint(tmp_path / "tiny", network, recipe.space, (64, 64), "# card\n", onnx=False)
    results = on_frames.evaluate(tmp_path / "tiny", scenes_folder, [])
    assert len(results["held-out"]) == 6
    assert "held-out (6)" in on_frames.table(results)
    values = on_frames.as_json(results, describe(tmp_path / "tiny"))
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
    with pytest.raises(Unusable, match="neither indoor/ nor kitti/"):
        list(on_frames.real_frames(tmp_path))


def test_what_lies_at_out_stays_when_packaging_fails(tmp_path, nano_run, scenes_folder, monkeypatch):
    monkeypatch.setattr(card, "real_frames", list)
    package_run(nano_run, tmp_path / "tiny", None, None, onnx=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(Unusable, match=r"none\.md"):
        package_run(nano_run, tmp_path / "tiny", None, tmp_path / "none.md", onnx=False)
    with pytest.raises(Unusable, match="holds no samples"):
        package_run(nano_run, tmp_path / "tiny", tmp_path, None, onnx=False)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_packaging_replaces_checkpoints_only(tmp_path, nano_run):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    network, recipe, _ = load_run(nano_run)
    with pytest.raises(Unusable, match="is no checkpoint"):
        write_checkpoint(tmp_path / "thesis", network, recipe.space, (64, 64), "# card\n", onnx=False)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_package_writes_checkpoint_card_and_numbers(tmp_path, nano_run, scenes_folder, monkeypatch):
    monkeypatch.setattr(card, "real_frames", list)
    (tmp_path / "notes.md").write_text("## Limits\n\nTiny.\n")
    table = package_run(nano_run, tmp_path / "tiny", scenes_folder, tmp_path / "notes.md", onnx=False)
    text = (tmp_path / "tiny" / "README.md").read_text()
    assert table in text
    assert "Seed 0; 8 steps" in text
    assert text.endswith("Tiny.\n")
    assert json.loads((tmp_path / "tiny" / "evaluation.json").read_text())["held_out"]["count"] == 6
    assert describe(tmp_path / "tiny").space == "inverse_depth"
