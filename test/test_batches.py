"""Samples on disk, and the batches made of them."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from marigold_ros.canonical import MetricScale  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from trainer.assembly import first_model  # noqa: E402
from trainer.augment import Changes, Cut, cut  # noqa: E402
from trainer.data import Passes, passes_of  # noqa: E402
from trainer.objectives import build_objective  # noqa: E402
from trainer.recipe import Augment, Source  # noqa: E402
from trainer.recipe_files import load_recipe  # noqa: E402
from trainer.samples import KINDS, Sample, SampleFolder, read_sample, write_sample  # noqa: E402
from training import scene, small_recipe, write_data  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), count=7)


def passes(folder, steps=4, name="marigold-depth", **changes):
    recipe = small_recipe(name, "", steps, **changes)
    return Passes(recipe, replace(recipe.stages[0], sizes=()) if "data" in changes else recipe.stages[0], 0, folder)


# Samples


def test_a_sample_comes_back_as_it_was_written(tmp_path):
    sample = scene(3)
    write_sample(tmp_path, sample, {"dataset": "x"}, jpeg_quality=0)
    again = read_sample(tmp_path, sample.name, tuple(KINDS))
    np.testing.assert_array_equal(again.rgb, sample.rgb)
    np.testing.assert_array_equal(again.k, sample.k)
    for kind, values in sample.maps.items():
        np.testing.assert_allclose(again.maps[kind], values, rtol=1e-3, atol=1e-4)
    assert SampleFolder(tmp_path).about(0) == {"dataset": "x", "width": 64, "height": 48, "K": sample.k.tolist()}


def test_a_sample_exists_when_its_camera_file_does(tmp_path):
    write_sample(tmp_path, scene(0))
    (tmp_path / "rgb" / "000001.jpg").write_bytes(b"half")
    assert SampleFolder(tmp_path).names == ["000000"]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("rgb/000000.jpg", b"half", r"rgb/000000\.jpg"),
        ("rgb/000000.jpg", 0.7, r"rgb/000000\.jpg"),
        ("camera/000000.json", b'{"K": [1, 2]}', r"K=\[1, 2\]: must be 3 rows"),
        ("rgb/000000.jpg", None, r"rgb/000000\.png: is missing"),
        ("depth_m/000000.npy", b"half", r"depth_m/000000\.npy: cannot be read"),
        ("depth_m/000000.npy", None, "the sample has no depth_m"),
        ("camera/000000.json", b"{", r"camera/000000\.json: cannot be read"),
        ("camera/000000.json", b"[]", "must hold a JSON object"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, words):
    write_sample(tmp_path, scene(0))
    before = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if isinstance(content, float):
        content = before[: int(len(before) * content)]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(Unusable, match=words):
        SampleFolder(tmp_path).read(0, ("depth_m",))


def test_maps_of_another_size_are_named(tmp_path):
    write_sample(tmp_path, scene(0))
    np.save(tmp_path / "depth_m" / "000000.npy", np.zeros((4, 4), np.float16))
    with pytest.raises(Unusable, match=r"has shape \(4, 4\) instead of \(32, 96\)|instead of \(48, 64\)"):
        SampleFolder(tmp_path).read(0, ("depth_m",))


def test_a_folder_without_samples_is_named(tmp_path):
    with pytest.raises(Unusable, match="there are none"):
        SampleFolder(tmp_path)


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "rgb").write_text("a file in the way")
    with pytest.raises(Unusable, match="cannot be written"):
        write_sample(tmp_path, scene(0))


# Batches


def test_batches_depend_on_seed_stage_and_place_alone(data):
    one, two = passes(data), passes(data)
    two[0]
    assert torch.equal(one[5].rgb, two[5].rgb)
    assert torch.equal(one[5].maps["depth_m"].nan_to_num(), two[5].maps["depth_m"].nan_to_num())
    other = passes(data, seed=7)
    assert any(one[i].rgb.shape != other[i].rgb.shape or not torch.equal(one[i].rgb, other[i].rgb) for i in range(4))


def test_processes_share_out_the_passes_of_a_step_and_resuming_skips_none(data):
    whole = [batch.rgb for batch in passes_of(passes(data), 0, 0, 1, 0)]
    shares = [[batch.rgb for batch in passes_of(passes(data), 1, rank, 2, 0)] for rank in range(2)]
    assert len(whole) == 8
    for number, expected in enumerate(whole[2:]):
        assert torch.equal(shares[number % 2][number // 2], expected)


def test_worker_processes_give_the_same(data):
    here = [batch.rgb for batch in passes_of(passes(data), 0, 0, 1, 0)]
    there = [batch.rgb for batch in passes_of(passes(data), 0, 0, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_every_sample_comes_once_before_one_comes_twice(tmp_path):
    for seed in range(5):
        sample = scene(seed)
        write_sample(tmp_path / "x" / "train", replace(sample, rgb=np.full((48, 64, 3), 50 * seed, np.uint8), k=None,
                     maps={"depth_m": np.ones((48, 64))}), jpeg_quality=0)  # fmt: skip
    source = Source("x", sizes=((64, 48, 1.0),))
    made = passes(tmp_path, steps=5, name="nano", data=(source,), augment=Augment(flip=0))
    seen = [int(value) // 50 for batch in passes_of(made, 0, 0, 1, 0) for value in batch.rgb[:, 0, 0, 0]]
    assert len(seen) == 20
    assert all(sorted(seen[start : start + 5]) == [0, 1, 2, 3, 4] for start in range(0, 20, 5))
    assert seen[:5] != seen[5:10]


def test_weights_and_shapes_decide_how_often_batches_come(data):
    recipe = small_recipe("marigold-depth", "", steps=200)
    made = Passes(recipe, recipe.stages[0], 0, data)
    sources = [made.buckets[index].source.name for index in made._bucket]
    assert 0.05 < sources.count("vkitti2") / len(sources) < 0.15
    wide = [bucket for bucket in made.buckets if bucket.size == (64, 32)]
    assert [len(bucket.numbers) for bucket in wide] == [3, 3]  # of seven samples, three are wide


def test_depth_beyond_what_a_dataset_can_say_is_unknown(data):
    source = Source("hypersim", sizes=((32, 32, 1.0),), valid_m=(1.0, 10.0))
    batch = passes(data, data=(source,))[0]
    known = batch.maps["depth_m"][batch.maps["depth_m"].isfinite()]
    assert float(known.min()) > 1.0
    assert float(known.max()) < 10.0
    assert batch.maps["depth_m"].isinf().any()  # what is too far to be told is far, like the sky


def test_a_damaged_sample_ends_the_training_or_is_skipped_and_counted(tmp_path):
    folder = write_data(tmp_path, count=4) / "hypersim" / "train"
    np.save(folder / "depth_m" / "000001.npy", np.full((48, 64), np.nan, np.float16))
    refusing = [passes(tmp_path)[number] for number in range(8)]
    problems = [str(batch) for batch in refusing if isinstance(batch, Unusable)]
    assert problems
    assert all("000001: has not one pixel of known depth_m" in text and "damaged: skip" in text for text in problems)
    with pytest.raises(Unusable, match="000001"):
        list(passes_of(passes(tmp_path), 0, 0, 1, 1))
    batches = list(passes_of(passes(tmp_path, damaged="skip"), 0, 0, 1, 0))
    assert {name for batch in batches for name in batch.skipped} <= {"hypersim/000001", "vkitti2/000001"}
    assert sum(bool(batch.skipped) for batch in batches) == len(problems)
    for name in folder.joinpath("camera").iterdir():
        np.save(folder / "depth_m" / f"{name.stem}.npy", np.full((4, 4), 1, np.float16))
    assert "more samples in a row are damaged" in str(passes(tmp_path, damaged="skip")[0])


def test_a_dataset_without_a_prior_mixes_with_one_that_has_it(tmp_path):
    """Its batches go without, and learn from the rest of the loss."""
    for seed in range(2):
        sample = scene(seed)
        write_sample(tmp_path / "recordings" / "train", sample)
        write_sample(tmp_path / "bare" / "train", replace(sample, maps={"depth_m": sample.maps["depth_m"]}))
    bare, both = ([Source(name, ((32, 32, 1.0),)) for name in names] for names in (["bare"], ["bare", "recordings"]))
    with pytest.raises(Unusable, match=r"bare/train: have no prior, and no other .*; collect them with --prior"):
        passes(tmp_path, name="robot", data=tuple(bare))
    mixed = passes(tmp_path, name="robot", data=tuple(both))
    batches = {batch.source: batch for batch in (mixed[number] for number in range(8))}
    assert batches["bare"].maps["prior"].isnan().all()
    recipe = replace(mixed.recipe, start=replace(mixed.recipe.start, checkpoint=""))
    objective = build_objective(first_model(recipe), recipe, recipe.stages[0])
    for source, batch in batches.items():
        losses = objective(batch, torch.Generator())
        losses["loss"].backward()
        assert (float(losses["prior"].detach()) == 0) == (source == "bare")
        assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    (tmp_path / "recordings" / "train" / "prior" / "000001.npy").unlink()
    with pytest.raises(Unusable, match=r"prior/000001\.npy: is missing: the sample has no prior"):
        list(passes_of(mixed, 0, 0, 1, 0))


def test_a_prior_in_another_space_is_refused(tmp_path):
    """One is enough: recordings in one folder may have been collected with several networks."""
    folder, robot = tmp_path / "recordings" / "train", {"data": (Source("recordings", ((32, 32, 1.0),)),)}
    write_sample(folder, scene(0))
    write_sample(folder, scene(1), {"prior": {"space": "inverse_depth"}})
    assert passes(tmp_path, name="robot", **robot)[0].maps["prior"].isfinite().any()
    (folder / "camera" / "000000.json").write_text("{")  # left to whoever reads the sample
    write_sample(folder, scene(2), {"prior": {"space": "log_depth"}})
    words = r"recordings/train: the prior of 000002 is affine in 'log_depth', the recipe's space is 'inverse_depth'; .*"
    with pytest.raises(Unusable, match=words + r"set space to 'log_depth', or stages\.N\.objective\.prior to 0"):
        passes(tmp_path, name="robot", **robot)
    stage = small_recipe("robot", "").stages[0]
    without = replace(stage, objective=replace(stage.objective, prior=0.0))
    assert len(passes(tmp_path, name="robot", stages=(without,), **robot)) == 4


def test_a_missing_dataset_is_named(tmp_path):
    with pytest.raises(Unusable, match=r"hypersim/train: there are none"):
        passes(tmp_path)


def test_a_camera_file_without_a_size_is_named(tmp_path):
    folder = write_data(tmp_path, count=1) / "hypersim" / "train"
    (folder / "camera" / "000000.json").write_text(json.dumps({"K": None}))
    with pytest.raises(Unusable, match="000000: its camera file has no width and height"):
        passes(tmp_path)


# Geometry


def ramp(width=64, height=48):
    depth = np.tile(np.arange(1, width + 1, dtype=np.float32), (height, 1))
    return np.repeat((depth * 3)[..., None], 3, axis=2).astype(np.uint8), depth


def test_cut_keeps_image_and_maps_together():
    rgb, depth = ramp()
    window = Cut(left=8, top=4, width=32, height=32, size=(64, 64), flip=True)
    small, maps = cut(rgb, {"depth_m": depth}, window)
    assert small.shape == (64, 64, 3)
    assert np.abs(small[..., 0] / 3.0 - maps["depth_m"]).max() < 1.01
    assert maps["depth_m"][0, 0] > maps["depth_m"][0, -1]


def test_no_point_of_a_sparse_map_is_lost_but_to_a_nearer_one():
    sparse = np.full((48, 64), np.nan, np.float32)
    sparse[5, ::4] = np.arange(1, 17)
    sparse[4, 0] = 0.5
    _, maps = cut(ramp()[0], {"depth_m": sparse}, Cut(0, 0, 64, 48, (32, 24), flip=False))
    np.testing.assert_array_equal(maps["depth_m"][2, ::2], [0.5, *range(2, 17)])
    assert np.isfinite(maps["depth_m"]).sum() == 16
    _, maps = cut(ramp()[0], {"depth_m": sparse}, Cut(0, 0, 64, 48, (128, 96), flip=False))
    assert np.isfinite(maps["depth_m"]).sum() == 17


def test_smaller_maps_do_not_lag_behind_the_picture():
    rgb, depth = ramp()
    for size in ((32, 24), (16, 12), (20, 15)):
        small, maps = cut(rgb, {"depth_m": depth}, Cut(0, 0, 64, 48, size, flip=False))
        lag = small[..., 0].astype(float) / 3 - maps["depth_m"]
        assert abs(lag.mean()) <= 0.51, size  # of an even number of pixels none is the middle one


def test_a_wide_sky_is_no_sparse_map():
    sky = np.full((48, 64), np.inf, np.float32)
    sky[40:] = 5.0
    _, maps = cut(ramp()[0], {"depth_m": sky}, Cut(0, 0, 64, 48, (128, 96), flip=False))
    assert not np.isnan(maps["depth_m"]).any()


def test_a_mirrored_normal_looks_to_the_other_side():
    normals = np.tile(np.float32((0.6, 0.0, -0.8)), (48, 64, 1))
    _, maps = cut(ramp()[0], {"normals": normals}, Cut(0, 0, 64, 48, (64, 48), flip=True))
    np.testing.assert_allclose(maps["normals"][3, 5], (-0.6, 0, -0.8))


def test_focal_length_follows_the_cut():
    k = np.diag((100.0, 100.0, 1.0))
    assert Cut(0, 0, 32, 24, (64, 48), flip=False).focal_px(k) == 200
    assert Cut(0, 0, 32, 24, (64, 96), flip=False).focal_px(k) == pytest.approx(np.sqrt(200 * 400))


def test_kittis_crop_lies_at_the_bottom_in_the_middle():
    """1242x375 to 1216x352: columns from 13, rows from 23 (reference/marigold.md §4.2)."""
    window = Cut.kitti((375, 1242), (1216, 352), np.random.default_rng(0), Augment(flip=0))
    assert (window.left, window.top, window.width, window.height) == (13, 23, 1216, 352)
    with pytest.raises(Unusable, match="is smaller than the crop of 1216x352"):
        Cut.kitti((300, 1242), (1216, 352), np.random.default_rng(0), Augment())


def test_a_source_that_asks_for_kittis_crop_gets_it_unscaled(data):
    """The samples are 64x48 and 96x32; shapes of 56x24 fit into both."""
    source = Source("vkitti2", sizes=((56, 24, 1.0),), crop="kitti")
    for number in range(4):
        batch = passes(data, data=(source,), augment=Augment(flip=0))[number]
        samples = [scene(seed, (48, 64) if seed % 3 else (32, 96)).maps["depth_m"] for seed in range(7)]
        cuts = [depth[-24:, (depth.shape[1] - 56) // 2 :][:, :56] for depth in samples]
        for depth in batch.maps["depth_m"].numpy():
            assert any(np.allclose(depth, wanted, rtol=2e-3) for wanted in cuts)


def test_metric_pictures_come_near_the_canonical_focal_length(data):
    """Samples have a focal length of 50 pixels; a crop enlarges it, and what cannot be reached is left to the label."""
    source = Source("hypersim", sizes=((32, 32, 1.0),))
    made = passes(data, name="metric-log", data=(source,), metric=MetricScale(0.1, 80.0, 60.0))
    focal_px = torch.cat([made[number].focal_px for number in range(8)])
    assert float((focal_px / 60).log().abs().max()) < np.log(1 / 0.7) + 0.05
    assert float(focal_px.std()) > 1


def vary(rgb, depth_m, rng, augment):
    """A sample of which nothing is cut off."""
    changes = Changes.draw(rng, rgb.shape[0], augment)
    return changes.of_cut(changes.of_sample(rgb, rng), depth_m, rng)


def test_every_change_of_the_picture_keeps_shape_and_type():
    rng = np.random.default_rng(0)
    always = Augment(colour=1, haze=1, shadow=1, glare=1, vignette=1, blur=1, noise=1, jpeg=1, grey=1,
                     gaussian_blur=1, motion_blur=1, jitter=1)  # fmt: skip
    for depth in (np.full((768, 128), np.inf, np.float32), None):
        rgb = rng.integers(0, 256, (768, 128, 3), np.uint8)
        for _ in range(10):
            out = vary(rgb, depth, rng, always)
            assert out.shape == rgb.shape
            assert out.dtype == np.uint8


@pytest.mark.parametrize("kind", ["gaussian_blur", "motion_blur", "jitter"])
def test_the_published_changes_for_normals_are_made_as_often_as_asked(kind):
    """0.3 each; blurred by the published kernels only where the sample is 768 high (reference/marigold.md §3.2)."""
    rgb = np.random.default_rng(0).integers(0, 256, (768, 24, 3), np.uint8)
    rng, augment = np.random.default_rng(1), Augment(**{kind: getattr(load_recipe("marigold-normals").augment, kind)})
    changed = [np.abs(vary(rgb, None, rng, augment).astype(int) - rgb).mean() > 1 for _ in range(300)]
    assert 0.22 < np.mean(changed) < 0.38
    low = [np.any(vary(rgb[:760], None, rng, augment) != rgb[:760]) for _ in range(30)]
    assert any(low) == (kind == "jitter")


@pytest.mark.parametrize(("kind", "least", "most"), [("gaussian_blur", 8, 12), ("motion_blur", 4, 7)])
def test_the_published_blurs_are_of_the_sample_before_it_is_made_smaller(tmp_path, kind, least, most):
    """An edge, which sigma 4 and 11 pixels widen to 21 and 10 rows of a sample 768 high, and to half of that in 384."""
    rows = {}
    for height in (768, 760):
        rgb = np.zeros((height, 32, 3), np.uint8)
        rgb[height // 2 :] = 255
        maps = {"normals": np.zeros((height, 32, 3))}
        write_sample(tmp_path / str(height) / "train", Sample("edge", rgb, maps), jpeg_quality=0)
        source = Source(str(height), sizes=((16, height // 16 * 8, 1.0),))
        made = passes(tmp_path, 20, "marigold-normals", data=(source,), augment=Augment(**{kind: 1.0}))
        pictures = torch.cat([made[number].rgb for number in range(40)])
        rows[height] = int(((pictures > 0) & (pictures < 255)).any(dim=(2, 3)).sum(dim=1).max())
    assert least <= rows[768] <= most
    assert rows[760] <= 1  # none, but for the row in which 760 / 376 cuts the edge


def test_without_changes_the_picture_stays_what_it_was():
    rgb = cv2.randu(np.empty((96, 128, 3), np.uint8), 0, 255)
    assert vary(rgb, None, np.random.default_rng(0), Augment()) is rgb
