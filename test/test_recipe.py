"""Recipes: what ships is whole, what is wrong is named."""

import pytest

from marigold_ros.config import Unusable
from trainer.recipe import TASKS, Augment
from trainer.recipe_files import load_recipe, plain, recipe_from
from trainer.train import changes_in
from training import RECIPES


def test_every_published_kind_of_training_ships():
    wanted = "marigold-depth e2e-depth e2e-normals marigold-normals marigold-iid-appearance marigold-iid-lighting lcm"
    assert {*wanted.split(), "metric-log", "tiny", "nano", "nano-diffusion", "robot"} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_being_written(name):
    recipe = load_recipe(name)
    assert recipe_from(plain(recipe), "again") == recipe
    assert set(TASKS[recipe.task]) <= set(recipe.maps)


def test_published_numbers():
    """reference/marigold.md §§3.1 to 3.4."""
    depth, e2e, normals, lcm = (load_recipe(n) for n in ("marigold-depth", "e2e-depth", "marigold-normals", "lcm"))
    stage = depth.stages[0]
    assert (stage.batch, stage.passes, stage.steps) == (32, 16, 30000)
    assert (stage.optimiser.lr, stage.optimiser.weight_decay, stage.optimiser.clip_norm) == (3e-5, 0, 0)
    assert (stage.optimiser.decay_steps, stage.optimiser.final_lr / stage.optimiser.lr) == (25000, pytest.approx(0.01))
    assert [source.weight for source in depth.data] == [0.9, 0.1]
    assert (depth.data[1].crop, depth.data[1].folder) == ("kitti", "")
    assert (e2e.stages[0].optimiser.weight_decay, e2e.stages[0].optimiser.clip_norm) == (0.01, 1.0)
    assert e2e.gradient_checkpointing
    assert (e2e.data[1].crop, e2e.data[1].folder) == ("kitti", "vkitti2-e2e")
    # GonzaloMG/marigold-normals, from which the published one starts, draws x to the left.
    assert load_recipe("e2e-normals").start.checkpoint == "stabilityai/stable-diffusion-2"
    assert normals.stages[0].optimiser.lr == 6e-5
    assert not normals.stages[0].objective.mask
    assert normals.augment == Augment(flip=0.5, gaussian_blur=0.3, motion_blur=0.3, jitter=0.3)
    assert [source.weight for source in normals.data] == [0.5, 0.49, 0.01]
    assert [source.sizes for source in normals.data] == [((640.0, 480.0, 1.0),)] * 3
    # Without a mask only sets that were prepared for normals alone will do.
    assert [source.folder or source.name for source in normals.data] == [
        "hypersim-normals", "interiorverse-normals", "sintel",
    ]  # fmt: skip
    for name, lr, decay_steps, mask in (("appearance", 3e-5, 25000, True), ("lighting", 8e-5, 45000, False)):
        recipe = load_recipe(f"marigold-iid-{name}")
        stage, rates = recipe.stages[0], recipe.stages[0].optimiser
        assert (rates.lr, rates.final_lr, rates.decay_steps) == (lr, pytest.approx(lr / 100), decay_steps)
        assert (stage.objective.mask, recipe.augment) == (mask, Augment())
    assert (lcm.stages[0].objective.timesteps, lcm.stages[0].objective.ema_target) == (5, 0.95)
    # What is published is what the last step left.
    assert {load_recipe(name).result for name in RECIPES if name != "robot"} == {"last"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": "disparity"}, "space='disparity'"),
        ({"task": "flow"}, "task='flow'"),
        ({"stages.0.stepps": 1}, "'stepps': no such setting; did you mean 'steps'"),
        ({"stages.0.optimiser.lr": "much"}, "lr: 'much': must be a number"),
        ({"stages.0.optimiser.lr": 0}, "lr=0.0: must be greater than 0"),
        ({"stages.0.steps": 1.5}, "steps: 1.5: must be of type int"),
        ({"stages.0.steps": True}, "steps: True: must be of type int"),
        ({"stages.0.batch": 5}, "batch=5: must be a multiple of micro_batch=2"),
        ({"stages.0.objective.kind": "magic"}, "kind='magic'"),
        ({"stages.0.objective.loss": "l7"}, "objective.loss='l7'"),
        ({"stages.0.objective.prior": 0.5}, "prior=0.5: is for loss 'relative'"),
        ({"stages.0.train": ["unet", "text"]}, "train='text'"),
        ({"stages.7.steps": 5}, "'stages.7.steps': the recipe has no such place"),
        ({"stages": []}, "at least one stage"),
        ({"data.0.sizes": [[65, 64, 1]]}, r"\(65, 64, 1.0\): must be width and height, multiples of 8"),
        ({"data.0.sizes": [[64, 64]]}, "must have 3 items"),
        ({"data.0.sizes": 64}, "64: must be a list"),
        ({"task": "normals"}, "objective end_to_end, loss 'affine_metres' is for task 'depth', not 'normals'"),
        ({"space": "inverse_depth"}, "affine_metres makes depth affine in 'depth'"),
        ({"stages.0.objective": {"kind": "latents"}, "task": "normals"}, "objective latents is for task 'depth'"),
        ({"stages.0.train": []}, r"train=\[\]: objective end_to_end trains at least one of"),
        ({"stages.0.objective": {"kind": "diffusion"}, "stages.0.train": ["encoder"]}, "diffusion trains unet of unet"),
        (
            {"stages.0.objective": {"kind": "diffusion"}, "space": "log_depth"},
            "diffusion makes depth affine in 'depth'",
        ),
        ({"stages.0.objective": {"kind": "diffusion"}, "start.tiny_vae": "x"}, "tiny_vae: is for objective end_to_end"),
        ({"stages.0.objective": {"kind": "consistency", "timesteps": 0}}, "timesteps=0"),
        ({"stages.0.optimiser.betas": [2, 0.9]}, "betas"),
        ({"seed": -1}, "seed=-1"),
        ({"threads": -1}, "threads=-1"),
        ({"result": "first"}, "result='first': must be one of 'last', 'best'"),
        ({"validate_samples": 0}, "validate_samples=0: must be greater than 0"),
        ({"validate_steps": -1}, "validate_steps=-1, patience=0: must be at least 0"),
        ({"validate_steps": 0, "result": "best"}, "validate_steps=0: without validation there is no best"),
        ({"validate_steps": 0, "patience": 3}, "validate_steps=0: without validation there is no best"),
        ({"augment": {"zoom": [1, 2]}}, "zoom"),
        ({"data.0.sizes": []}, "has sizes; give them"),
        ({"data.0.weight": float("inf")}, "weight=inf"),
        ({"network": {"vae_channels": [8, 10]}}, "vae_channels"),
        ({"augment": 3}, "must be a mapping"),
        ({"metric": {"d_min_m": 0.1}}, "metric: missing 2 required"),
        ({"metric": {"d_min_m": 9, "d_max_m": 1, "canonical_focal_px": 5}}, "must be less than"),
        ({"metric": {"d_min_m": 1, "d_max_m": 9, "canonical_focal_px": 5}}, "metric depth needs"),
        ({"stages.0.objective.loss": "log_metric"}, "metric depth needs"),
    ],
)
def test_bad_recipes_are_refused_by_name(changes, words):
    with pytest.raises(Unusable, match=words):
        load_recipe("e2e-depth", changes)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(Unusable, match="'none': no such file; give one, or one of e2e-depth"):
        load_recipe("none")
    (tmp_path / "r.yaml").write_text("stages: [")
    with pytest.raises(Unusable, match=r"r\.yaml: cannot be read"):
        load_recipe(str(tmp_path / "r.yaml"))
    (tmp_path / "r.yaml").write_text("seed: 1")
    with pytest.raises(Unusable, match=r"missing 2 required .*arguments: 'stages' and 'data'"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_settings_from_the_command_line():
    assert changes_in(["stages.0.steps=5", "start.checkpoint=a=b"]) == {"stages.0.steps": 5, "start.checkpoint": "a=b"}
    with pytest.raises(Unusable, match="'steps': must be NAME=VALUE"):
        changes_in(["steps"])
    with pytest.raises(Unusable, match="its value is no YAML"):
        changes_in(["steps=["])
