"""What a training starts from, against Stable Diffusion's layout in small: the surgery, other checkpoints, refusals."""

import json
import shutil
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import UNet2DConditionModel  # noqa: E402

from family_checkpoints import FAMILY, write_family_checkpoint, write_sd2  # noqa: E402
from marigold_ros import hub  # noqa: E402
from marigold_ros.checkpoints import describe, load_modules  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from marigold_ros.network import SingleStepNetwork, depth_head  # noqa: E402
from small_checkpoint import edit_json, write_small_checkpoint  # noqa: E402
from trainer.assembly import first_model, scheduler_of  # noqa: E402
from trainer.objectives import build_objective  # noqa: E402
from trainer.recipe import Consistency, Diffusion, EndToEnd  # noqa: E402
from trainer.recipe_files import load_recipe  # noqa: E402
from trainer.start import from_scratch, load_start, widen  # noqa: E402
from training import RECIPES, small_recipe  # noqa: E402

ROWS = {row.name: row for row in FAMILY}


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    """Stable Diffusion 2's layout, narrow, with a safety checker's empty place, as published."""
    return write_sd2(tmp_path_factory.mktemp("start") / "stable-diffusion-2")


def changed(folder, tmp_path, file, **facts):
    """A copy of `folder` with other values in one of its JSON files."""
    copy = shutil.copytree(folder, tmp_path / folder.name)
    config = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**config, **facts}))
    return copy


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A function that gives a narrow stand-in, as deep as published, for what a recipe starts from."""
    parent = tmp_path_factory.mktemp("published")

    def stand_in(checkpoint):
        name = checkpoint.rpartition("/")[2]
        if checkpoint in ("", "nano") or (parent / name).is_dir():
            return str(parent / name) if "/" in checkpoint else checkpoint
        return str(write_family_checkpoint(parent, ROWS[name]) if name in ROWS else write_sd2(parent / name, levels=4))

    return stand_in


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_starts_at_its_size_and_trains_on_the_schedule_of_its_kind(name, published):
    """Zero SNR at the last timestep for networks that start from noise, 0.00466 for those that start from zeros."""
    recipe = load_recipe(name)
    tiny = "random" if recipe.start.tiny_vae else ""
    start = replace(recipe.start, checkpoint=published(recipe.start.checkpoint), tiny_vae=tiny)
    recipe = replace(recipe, start=start, gradient_checkpointing=False)
    first = first_model(recipe)
    assert first.size == (recipe.size if recipe.size[0] else (384, 288))
    for stage in recipe.stages:
        objective = build_objective(replace(first, scheduler=scheduler_of(stage, first.scheduler)), recipe, stage)
        schedule = getattr(objective, "schedule", None) or getattr(objective, "_schedule", None)
        if isinstance(stage.objective, (Diffusion, Consistency)):
            assert schedule.alphas_cumprod[-1] == 0
        if isinstance(stage.objective, EndToEnd):
            assert schedule.alphas_cumprod[-1] == pytest.approx(0.0046601, rel=1e-4)


@pytest.mark.parametrize("surgery", ["marigold", "e2e"])
@pytest.mark.parametrize("targets", [1, 2, 3])
def test_the_input_is_repeated_and_divided_and_the_output_repeated(sd2, surgery, targets):
    """conv_in / (P + 1) for P + 1 latents, conv_out as it is; the bias is divided only in the end-to-end surgery."""
    before, after = load_modules(sd2).unet, load_start(str(sd2), targets, surgery).unet
    assert (after.config.in_channels, after.config.out_channels) == (4 * (targets + 1), 4 * targets)
    for latent in after.conv_in.weight.split(4, dim=1):
        torch.testing.assert_close(latent * (targets + 1), before.conv_in.weight)
    share = 1 / (targets + 1) if surgery == "e2e" else 1.0
    torch.testing.assert_close(after.conv_in.bias, share * before.conv_in.bias)
    for target in after.conv_out.weight.split(4):
        assert torch.equal(target, before.conv_out.weight)
    assert torch.equal(after.conv_out.bias, before.conv_out.bias.repeat(targets))


def test_for_one_target_the_weights_are_halved(sd2):
    before, after = load_modules(sd2).unet.conv_in, load_start(str(sd2), 1, "marigold").unet.conv_in
    assert torch.equal(after.weight, torch.cat([before.weight, before.weight], dim=1) * 0.5)
    assert torch.equal(after.bias, before.bias)
    assert torch.equal(load_start(str(sd2), 1, "e2e").unet.conv_in.bias, before.bias * 0.5)


def test_with_equal_latents_the_widened_network_answers_as_before(sd2):
    """Which is what the division is for; and everything else was left alone."""
    start, plain = load_start(str(sd2), 2), load_modules(sd2).unet
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wide = start.unet(latent.repeat(1, 3, 1, 1), 500, start.prompt)[0]
        narrow = plain(latent, 500, start.prompt)[0]
    for answer in wide.split(4, dim=1):
        torch.testing.assert_close(answer, narrow, rtol=1e-4, atol=1e-5)


def test_the_rest_comes_as_it_is(sd2, tmp_path):
    start = load_start(str(sd2), 1)
    assert start.source == sd2
    assert (start.latent_channels, start.targets) == (4, 1)
    assert start.scheduler["prediction_type"] == "v_prediction"
    assert start.prompt.shape == (1, 2, 16)
    assert start.prompt.dtype == start.unet.dtype == torch.float32
    start.unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert again.config.in_channels == 8
    assert torch.equal(again.conv_in.weight, start.unet.conv_in.weight)


def test_encoding_is_the_mean_times_the_factor_and_decoding_its_inverse(sd2):
    """No sample: the first half of the encoder's moments, times 0.18215."""
    start = load_start(str(sd2), 1)
    network = SingleStepNetwork(start.vae, start.unet, start.prompt, -1.0, depth_head(disparity=False))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        moments = start.vae.quant_conv(start.vae.encoder(image))
        assert torch.equal(network.encode(image), moments[:, :4] * 0.18215)
        assert torch.equal(network.encode(image), network.encode(image))
        decoded = start.vae.decoder(start.vae.post_quant_conv(moments[:, :4])).mean(dim=1, keepdim=True)
        torch.testing.assert_close(network.decode(moments[:, :4] * 0.18215), decoded, rtol=1e-4, atol=1e-6)


def test_the_networks_input_is_the_image_and_then_the_target(sd2):
    """Weights of the second half see the target, which is zero in the single step."""
    start = load_start(str(sd2), 1)
    network = SingleStepNetwork(start.vae, start.unet, start.prompt, -1.0, depth_head(disparity=False))
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.predict(latent)
        start.unet.conv_in.weight[:, 4:] = 9.0
        assert torch.equal(network.predict(latent), expected)
        start.unet.conv_in.weight[:, :4] = 9.0
        assert not torch.allclose(network.predict(latent), expected)


@pytest.mark.parametrize("name", ["marigold-depth-v1-1", "marigold-iid-lighting-v1-1", "stable-diffusion-e2e-ft-depth"])
def test_a_checkpoint_of_the_family_is_taken_as_it_is(tmp_path, name):
    row = ROWS[name]
    folder = write_family_checkpoint(tmp_path, row)
    start = load_start(str(folder), len(row.targets), "e2e")
    assert start.targets == len(row.targets)
    for ours, theirs in zip(start.unet.parameters(), load_modules(folder).unet.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(
        Unusable, match=r"a checkpoint of another recipe: it draws . target image\(s\), this .* wants 5"
    ):
        load_start(str(folder), 5)


@pytest.mark.parametrize("recipe", ["e2e-normals", "marigold-normals"])
def test_training_of_normals_starts_from_no_network_that_draws_x_to_the_left(sd2, tmp_path, recipe):
    published = [row for row in FAMILY if row.task == "normals"]
    for row in published:
        folder = write_family_checkpoint(tmp_path, row)
        if row.x_left:
            with pytest.raises(Unusable, match=rf"{row.name}': draws normals with x to the left.*/stable-diffusion-2'"):
                first_model(small_recipe(recipe, str(folder)))
        else:
            assert first_model(small_recipe(recipe, str(folder))).source == folder
    assert {row.x_left for row in published} == {True, False}
    # Stable Diffusion draws none yet; one of depth is another recipe's.
    assert first_model(small_recipe(recipe, str(sd2))).source == sd2
    depth = write_family_checkpoint(tmp_path, ROWS["stable-diffusion-e2e-ft-depth"])
    with pytest.raises(Unusable, match="is of task 'depth', the recipe of 'normals'"):
        first_model(small_recipe(recipe, str(depth)))


def test_where_nothing_says_where_x_points_a_training_of_normals_does_not_start(tmp_path):
    row = ROWS["marigold-e2e-ft-normals"]
    folder = write_family_checkpoint(tmp_path, row).rename(tmp_path / "renamed")
    recipe = small_recipe("e2e-normals", str(folder))
    with pytest.raises(Unusable, match='"normals_x": "left"'):
        first_model(recipe)
    edit_json(folder / "marigold_ros.json", normals_x="right")
    assert first_model(recipe).task == "normals"


def test_our_own_checkpoints_have_another_number_of_latent_channels():
    start = load_start("nano", 1)
    assert (start.latent_channels, start.targets) == (8, 1)
    assert start.source == describe(start.source).folder


def test_a_damaged_checkpoint_of_our_own_is_noticed(tmp_path):
    folder = write_small_checkpoint(tmp_path / "small")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(Unusable, match="is damaged"):
        load_start(str(folder), 1)


def test_a_truncated_file_is_named(sd2, tmp_path):
    copy = shutil.copytree(sd2, tmp_path / "copy")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(Unusable, match=r"diffusion_pytorch_model\.safetensors: cannot be loaded"):
        load_start(str(copy), 1)


def test_other_surgeries_networks_and_schedules_are_refused(sd2, tmp_path):
    with pytest.raises(Unusable, match="surgery 'none': must be one of 'marigold', 'e2e'"):
        load_start(str(sd2), 1, "none")
    epsilon = changed(sd2, tmp_path / "a", "scheduler/scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(Unusable, match="stable-diffusion-2: prediction_type='epsilon'"):
        load_start(str(epsilon), 1)
    geowizard = changed(sd2, tmp_path / "b", "unet/config.json", class_embed_type="projection")
    with pytest.raises(Unusable, match="GeoWizard"):
        load_start(str(geowizard), 1)


def test_a_network_for_inpainting_is_refused(sd2, tmp_path):
    copy = shutil.copytree(sd2, tmp_path / "inpainting")
    unet = load_modules(copy).unet
    unet.conv_in = torch.nn.Conv2d(9, 32, 3, padding=1)
    unet.register_to_config(in_channels=9)
    unet.save_pretrained(copy / "unet")
    with pytest.raises(Unusable, match="9 channels in and 4 out with latents of 4: is neither Stable Diffusion's nor"):
        load_start(str(copy), 1)


def test_the_text_encoder_of_another_model_is_refused(sd2, tmp_path):
    copy = shutil.copytree(sd2, tmp_path / "mixed")
    unet = from_scratch((4, 4, 4, 4), 2, 2, (32, 32), 8).unet
    unet.save_pretrained(copy / "unet")
    with pytest.raises(Unusable, match=r"embedding has shape \(1, 2, 16\), its U-Net wants \(1, tokens, 8\)"):
        load_start(str(copy), 1)


def test_hub_ids_come_from_the_cache_or_in_full_precision_from_the_hub(sd2, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name, asked = "somebody/stable", {}
    with pytest.raises(Unusable, match=r"not in the cache of the hub; download it with \"hf download somebody/stable"):
        load_start(name, 1)
    monkeypatch.setattr(hub, "download", lambda name, what, half: asked.update({name: half}) or sd2)
    assert load_start(name, 1, download=True).source == sd2
    assert asked == {name: False}
    with pytest.raises(Unusable, match="no such folder"):
        load_start("/nowhere/at/all", 1)


@pytest.mark.parametrize("targets", [1, 3])
def test_a_small_network_from_scratch_has_nanos_shape(targets):
    torch.manual_seed(1)
    start = from_scratch((4, 4, 4, 4), 2, 2, (32, 32), 8, targets)
    assert (start.latent_channels, start.targets, start.source) == (2, targets, None)
    latent = start.vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode()
    v = start.unet(latent.repeat(1, targets + 1, 1, 1), 999, start.prompt)[0]
    assert v.shape == (1, 2 * targets, 4, 4)
    torch.manual_seed(1)
    again = from_scratch([4, 4, 4, 4], 2, 2, [32, 32], 8, targets)
    assert torch.equal(again.unet.conv_in.weight, start.unet.conv_in.weight)


def test_widening_leaves_the_layers_trainable(sd2):
    unet = load_modules(sd2).unet
    widen(unet, 1, "marigold")
    assert unet.conv_in.weight.requires_grad
    assert unet.conv_out.bias.requires_grad
