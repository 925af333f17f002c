"""Checkpoints of every task and protocol as the trainer writes them: run by our loader and by diffusers' own."""

import json
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers  # noqa: E402
import transformers  # noqa: E402
from diffusers import AutoencoderTiny  # noqa: E402
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor  # noqa: E402

from family_checkpoints import (  # noqa: E402
    APPEARANCE,
    FAMILY,
    LIGHTING,
    write_family_checkpoint,
    write_text_encoder,
    write_tiny_vae,
)
from marigold_ros.canonical import MetricScale  # noqa: E402
from marigold_ros.checkpoints import describe, load_modules, load_network, with_tiny_vae  # noqa: E402
from marigold_ros.config import Unusable  # noqa: E402
from marigold_ros.family import INTRINSICS  # noqa: E402
from marigold_ros.multistep import MultiStep, Settings  # noqa: E402
from marigold_ros.sd2 import SCHEDULER  # noqa: E402
from trainer.architecture import build_scheduler  # noqa: E402
from trainer.model_index import PIPELINES, STEPS, TARGET_PROPERTIES, model_index  # noqa: E402
from trainer.noise import Schedule  # noqa: E402
from trainer.package import Member, one_channel, three_channels, write_member  # noqa: E402
from trainer.start import load_start  # noqa: E402
from trainer.targets import TARGET_NAMES  # noqa: E402

ROWS = {row.name: row for row in FAMILY}
# A published checkpoint with as many targets as each task has.
LIKE = {
    "depth": "marigold-depth-v1-1",
    "normals": "marigold-normals-v1-1",
    "iid-appearance": "marigold-iid-appearance-v1-1",
    "iid-lighting": "marigold-iid-lighting-v1-1",
}
PROTOCOLS = ("e2e", "diffusion", "lcm")


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """Published checkpoints in small, with text encoders, as starts of a training, by task."""
    parent = tmp_path_factory.mktemp("starts")
    folders = {task: write_family_checkpoint(parent, ROWS[name]) for task, name in LIKE.items()}
    return {task: load_start(str(folder), len(TARGET_NAMES[task])) for task, folder in folders.items()}


@pytest.fixture(scope="module")
def rgb():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def member_of(start, task, protocol, **changes):
    known = {"scheduler": start.scheduler, "source": start.source, "size": (64, 64)}
    return Member(start.unet, start.vae, start.prompt, task, protocol, **{**known, **changes})


def written(folder, starts, task="depth", protocol="e2e", dtype=torch.float32, **changes):
    write_member(folder, member_of(starts[task], task, protocol, **changes), "# card\n", dtype)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, starts):
    """A checkpoint in float32 by task and protocol, written once and only read."""
    parent, known = tmp_path_factory.mktemp("checkpoints"), {}

    def get(task, protocol):
        if (task, protocol) not in known:
            known[task, protocol] = written(parent / f"{task}-{protocol}", starts, task, protocol)
        return known[task, protocol]

    return get


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("task", LIKE)
def test_every_task_and_protocol_is_run_by_us_and_by_diffusers(checkpoint, rgb, task, protocol):
    folder = checkpoint(task, protocol)
    info = describe(folder)
    assert info.kind.task == (INTRINSICS if task.startswith("iid") else task)
    assert info.kind.targets == TARGET_NAMES[task]
    assert (info.kind.protocol, info.kind.steps) == (protocol, {"e2e": 1, "diffusion": 4, "lcm": 1}[protocol])
    assert (info.name, info.width, info.height) == (f"{task}-{protocol}", 64, 64)
    own = json.loads((folder / "marigold_ros.json").read_text())
    assert own.get("normals_x") == ("right" if task == "normals" else None)
    assert not info.kind.x_left
    ours = MultiStep(info, Settings(resolution=-1))(rgb)
    assert tuple(ours) == TARGET_NAMES[task]

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert type(pipeline).__name__ == ROWS[LIKE[task]].pipeline
    assert pipeline.default_processing_resolution == 64
    pipeline.set_progress_bar_config(disable=True)
    if protocol == "e2e":
        latents = torch.zeros(1, pipeline.unet.config.out_channels, 8, 8)
        # See MultiStep: so that diffusers' last step gives the denoised latent.
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, set_alpha_to_one=True)
        start = {"latents": latents}
    else:
        start = {"generator": torch.Generator().manual_seed(0)}
    theirs = pipeline(torch.from_numpy(rgb).permute(2, 0, 1) / 255.0, processing_resolution=0, **start).prediction
    for name, image in zip(TARGET_NAMES[task], theirs, strict=True):
        if task == "normals":
            image = image * np.float32((1, -1, -1))
        np.testing.assert_allclose(ours[name].values, np.squeeze(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_the_fast_path_runs_what_was_trained_end_to_end(checkpoint, rgb, task):
    info = describe(checkpoint(task, "e2e"))
    with torch.inference_mode():
        fast = load_network(info)(torch.from_numpy(rgb)[None])[0].numpy()
    slow = MultiStep(info, Settings(resolution=-1))(rgb)[task].values
    np.testing.assert_allclose(fast, slow, rtol=0, atol=2e-3)


@pytest.mark.parametrize("row", [row for row in FAMILY if row.pipeline in PIPELINES.values()], ids=lambda row: row.name)
def test_the_index_is_the_published_one(row):
    """Field by field, of the published checkpoints that say all of it."""
    task = next(task for task, targets in TARGET_NAMES.items() if targets == row.targets)
    # The first ones asked for ten steps, from leading timesteps.
    steps = row.steps if row.steps == 10 else STEPS[row.protocol]
    ours = model_index(task, "depth", False, steps, 768, type(row.scheduler).__name__, True)
    assert ours["_class_name"] == row.pipeline
    assert ours["default_denoising_steps"] == row.steps
    for field, value in row.index.items():
        assert ours[field] == value, field
    modules = {name: tuple(value) for name, value in ours.items() if isinstance(value, list)}
    assert all(
        hasattr(diffusers if library == "diffusers" else transformers, kind) for library, kind in modules.values()
    )


def test_target_properties_are_what_diffusers_shows_pictures_by():
    assert TARGET_PROPERTIES == {"iid-appearance": APPEARANCE, "iid-lighting": LIGHTING}
    for task, properties in TARGET_PROPERTIES.items():
        assert tuple(properties["target_names"]) == TARGET_NAMES[task]
        prediction = np.random.default_rng(0).random((len(TARGET_NAMES[task]), 8, 8, 3), np.float32)
        shown = MarigoldImageProcessor.visualize_intrinsics(prediction, properties)[0]
        parts = {"iid-appearance": {"roughness", "metallicity"}, "iid-lighting": set()}[task]
        assert set(shown) == {*TARGET_NAMES[task], *parts}


# Schedulers


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_step_starts_at_the_last_timestep(checkpoint, protocol):
    """With leading timesteps one step would start at 1, and answer noise."""
    folder = checkpoint("depth", protocol)
    facts = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert facts["timestep_spacing"] == "trailing"
    assert facts["set_alpha_to_one"] is False
    assert facts["rescale_betas_zero_snr"] == (protocol != "e2e")
    assert facts["_class_name"] == ("LCMScheduler" if protocol == "lcm" else "DDIMScheduler")
    assert facts.get("original_inference_steps") == (50 if protocol == "lcm" else None)
    scheduler = getattr(diffusers, facts["_class_name"]).from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]
    last = Schedule(facts).alphas_cumprod[999].sqrt().item()
    assert last == pytest.approx(0.0682649 if protocol == "e2e" else 0.0, abs=1e-6)


def test_the_schedule_keeps_the_betas_that_the_training_started_from():
    base = {**SCHEDULER, "beta_end": 0.02, "timestep_spacing": "leading", "skip_prk_steps": True}
    config = build_scheduler("diffusion", base).config
    assert (config["beta_end"], config["timestep_spacing"]) == (0.02, "trailing")
    with pytest.raises(Unusable, match="protocol 'ddpm'"):
        build_scheduler("ddpm")


# Files


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_are_written_in_the_precision_asked_for(tmp_path, starts, dtype):
    from safetensors.torch import load_file

    folder = written(tmp_path / "model", starts, dtype=dtype)
    for module, original in (("unet", starts["depth"].unet), ("vae", starts["depth"].vae)):
        state = load_file(folder / module / "diffusion_pytorch_model.safetensors")
        assert state.keys() == original.state_dict().keys()
        for name, values in original.state_dict().items():
            assert torch.equal(state[name], values.to(dtype))
    assert starts["depth"].unet.dtype == torch.float32, "the network that was given goes on training"
    assert load_modules(folder).prompt.to(dtype).equal(starts["depth"].prompt.to(dtype))


def test_channels_last_weights_can_be_written(tmp_path, starts):
    start = starts["depth"]
    last = start.unet.to(memory_format=torch.channels_last)
    folder = written(tmp_path / "model", starts)
    assert torch.equal(load_modules(folder).unet.conv_in.weight, last.conv_in.weight)
    start.unet.to(memory_format=torch.contiguous_format)


def test_text_encoder_and_tokenizer_come_along_or_the_prompt_alone_serves(tmp_path, starts):
    with_encoder = written(tmp_path / "with", starts)
    index = json.loads((with_encoder / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    (with_encoder / "empty_prompt.safetensors").unlink()
    with pytest.raises(Unusable, match=r"empty_prompt\.safetensors: is missing"):
        describe(with_encoder)
    without = written(tmp_path / "without", starts, source=None)
    index = json.loads((without / "model_index.json").read_text())
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    assert not (without / "text_encoder").exists()
    assert torch.equal(load_modules(without).prompt, starts["depth"].prompt)


def test_a_text_encoder_in_half_precision_alone_is_found_by_diffusers(tmp_path, starts):
    source = tmp_path / "source"
    source.mkdir()
    encoder = write_text_encoder(source, variant="fp16")
    folder = written(tmp_path / "model", starts, source=source)
    assert (folder / "text_encoder" / "model.safetensors").is_file()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    loaded = pipeline.text_encoder.state_dict()
    assert all(torch.equal(loaded[name].half(), values) for name, values in encoder.state_dict().items())


def test_the_folder_does_not_say_where_the_start_lay(checkpoint, starts):
    folder, parent = checkpoint("depth", "e2e"), starts["depth"].source.parent
    for name, content in files(folder).items():
        if name.endswith(".json"):
            assert str(parent).encode() not in content, name


def test_the_folder_is_sealed(tmp_path, starts):
    folder = written(tmp_path / "model", starts)
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(Unusable, match=r"text_encoder/config\.json: has"):
        describe(folder)


def test_a_metric_network_says_its_range_and_camera(tmp_path, starts, checkpoint):
    metric = MetricScale(0.1, 80.0, 500.0)
    folder = written(tmp_path / "model", starts, space="log_depth", metric=metric)
    own = json.loads((folder / "marigold_ros.json").read_text())
    assert own["metric"] == {"d_min_m": 0.1, "d_max_m": 80.0, "canonical_focal_px": 500.0}
    info = describe(folder)
    assert info.space == "log_depth"
    assert not info.scale_invariant
    assert not info.shift_invariant
    relative = checkpoint("depth", "e2e")
    assert "metric" not in json.loads((relative / "marigold_ros.json").read_text())
    assert describe(relative).scale_invariant


@pytest.mark.parametrize("channels", [3, 1])
def test_a_tiny_vae_lies_beside_and_takes_the_place_of_the_large_one(tmp_path, starts, rgb, channels):
    tiny = AutoencoderTiny.from_pretrained(write_tiny_vae(tmp_path / "tiny"))
    if channels == 1:
        tiny = AutoencoderTiny.from_config({**tiny.config, "out_channels": 1})
    folder = written(tmp_path / "model", starts, tiny_vae=tiny)
    info = describe(folder)
    assert info.digest != describe(written(tmp_path / "large", starts)).digest
    assert with_tiny_vae(info, "tiny", str(folder / "tiny_vae")) == with_tiny_vae(info, "full", "") == info
    with pytest.raises(Unusable, match=r"was trained with a tiny VAE of its own; set model.vae to 'full'"):
        with_tiny_vae(info, "tiny-decoder", str(tmp_path / "tiny"))
    network = load_network(info)
    assert network.tiny.config.out_channels == 3
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert network(torch.from_numpy(rgb)[None]).isfinite().all()
        expected = tiny.decoder(latent).mean(dim=1, keepdim=True)
        torch.testing.assert_close(network.decode(latent), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one_channel(tiny).decoder(latent), expected, rtol=1e-4, atol=1e-6)
    if channels == 3:
        assert three_channels(tiny) is tiny


# Refusals


def test_what_was_there_stays_when_the_disk_is_full(tmp_path, starts):
    folder = written(tmp_path / "model", starts)
    before, limits = files(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # No file may grow beyond this, which is what a full disk does, but can be had without one.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(Unusable, match="model: cannot be written"):
            written(folder, starts, protocol="diffusion")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == before
    assert describe(folder).kind.protocol == "e2e"


def test_a_checkpoint_is_replaced_whole(tmp_path, starts):
    folder = written(tmp_path / "model", starts)
    (folder / "left_over.json").write_text("{}")
    written(folder, starts, "normals", "diffusion", source=None)
    assert describe(folder).kind.task == "normals"
    assert not (folder / "left_over.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_are_not_finite_are_not_written(tmp_path, starts):
    start = load_start(str(starts["depth"].source), 1)
    with torch.no_grad():
        start.unet.conv_out.bias[0] = 1e5
    member = member_of(start, "depth", "e2e")
    with pytest.raises(
        Unusable, match=r"weights conv_out\.bias of UNet2DConditionModel: are not finite in torch.float16"
    ):
        write_member(tmp_path / "model", member, "# card\n")
    assert not list(tmp_path.iterdir())
    write_member(tmp_path / "model", member, "# card\n", torch.float32)


def test_parts_that_do_not_fit_together_are_refused(tmp_path, starts):
    with pytest.raises(Unusable, match="U-Net of 8 channels in and 4 out: for albedo and material it must be 12 and 8"):
        write_member(tmp_path / "m", member_of(starts["depth"], "iid-appearance", "diffusion"), "# card\n")
    with pytest.raises(Unusable, match="working size 60x64"):
        written(tmp_path / "m", starts, size=(60, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "flow"}, "task 'flow': must be one of 'depth', 'normals'"),
        ({"protocol": "ddpm"}, "protocol 'ddpm': must be one of 'e2e', 'diffusion', 'lcm'"),
        ({"space": "disparity"}, "space 'disparity'"),
        ({"metric": MetricScale(0.1, 80.0, 500.0)}, "is for depth in 'log_depth'"),
    ],
)
def test_what_no_published_model_is_is_refused(starts, changes, words):
    member = member_of(starts["depth"], "depth", "e2e")
    with pytest.raises(Unusable, match=words):
        replace(member, **changes)


def test_a_trained_start_can_be_started_from_again(tmp_path, starts):
    folder = written(tmp_path / "model", starts, "iid-lighting", "diffusion", dtype=torch.float16)
    again = load_start(str(folder), 3)
    torch.testing.assert_close(again.unet.conv_in.weight, starts["iid-lighting"].unet.conv_in.weight.half().float())
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(Unusable, match=r"text_encoder/config\.json: is missing"):
        load_start(str(folder), 3)
