"""TensorRT engines: built once, kept, checked, run as one graph, and every failure told with its way out.

Not real: TensorRT's library and the GPU (see fake_nvidia). Real: the exported network, its arithmetic (ONNX Runtime on
the processor), files, locks, processes and signals.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from family_checkpoints import FAMILY, write_family_checkpoint, write_tiny_vae
from marigold_ros import estimator, export, nvidia_driver
from marigold_ros.checkpoints import describe, find_checkpoint, with_tiny_vae
from marigold_ros.config import ModelConfig, Unusable
from marigold_ros.estimator import load_estimator
from marigold_ros.parts import PARTS, all_parts, read_parts
from nvidia import environment, stand_ins
from tensorrt_signatures import NEWEST, OLDEST, VERSIONS

SIZE = (128, 96)


@pytest.fixture(scope="module")
def exported(small_parts):
    """The checkpoint's folder and its exported parts, not to be changed."""
    folder, cache = small_parts
    (parts,) = all_parts(cache)
    return SimpleNamespace(folder=folder, cache=cache, parts=parts)


@pytest.fixture
def own(exported, tmp_path):
    """A cache of the test's own with the exported parts."""
    cache = tmp_path / "cache"
    shutil.copytree(exported.cache, cache)
    (parts,) = all_parts(cache)
    return SimpleNamespace(folder=exported.folder, cache=cache, parts=parts)


@pytest.fixture
def nvidia():
    with stand_ins() as modules:
        yield modules


@pytest.fixture
def nvidia_10():
    with stand_ins(OLDEST) as modules:
        yield modules


def silent(part):
    return lambda share, what: None


def build(nvidia, own, progress=silent, **options):
    return nvidia.ready.build_and_open(own.parts, own.cache, nvidia.build.BuildSettings(), progress, **options)


@pytest.mark.parametrize(
    ("row", "vae"), [("marigold-e2e-ft-normals", "tiny"), ("marigold-e2e-ft-depth", "tiny-decoder")]
)
def test_published_layouts_with_a_tiny_vae_and_odd_maps(tmp_path, nvidia, row, vae):
    """At 96x96 the U-Net's maps are 12, 6, 3 and 2 wide: doubling does not lead back."""
    folder = write_family_checkpoint(tmp_path, next(entry for entry in FAMILY if entry.name == row))
    info = with_tiny_vae(describe(folder), vae, str(write_tiny_vae(tmp_path / "taesd")))
    parts = export.parts_of(info, 96, 96, tmp_path / "cache")
    settings = nvidia.build.BuildSettings()
    engine, verdict = nvidia.ready.build_and_open(parts, tmp_path / "cache", settings, silent)
    assert verdict.passed
    assert verdict.mean < 3e-3
    assert engine(np.zeros((96, 96, 3), np.uint8)).shape == ((96, 96, 3) if "normals" in row else (96, 96))
    engine.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_loads_and_answers_like_torch(own, version):
    with stand_ins(version) as nvidia:
        engine, verdict = build(nvidia, own)
        assert verdict.passed
        assert verdict.mean < 1e-3
        assert version in engine.description
        with np.load(own.parts.folder / "network.check.npz") as stored:
            rgb, answers = stored["rgb"], stored["answers"].astype(np.float32)
        for frame, answer in zip(rgb, answers, strict=True):
            assert np.abs(engine(frame) - answer).max() < 0.01
        engine.close()
        engine, _ = nvidia.ready.open_built(own.parts, own.cache)
        engine.close()
        assert nvidia.trt.trouble.builds == len(PARTS)
        assert not nvidia.cuda.device
        assert not nvidia.cuda.host


def test_without_a_graph_every_frame_is_queued_anew(own, nvidia, caplog):
    nvidia.cuda.trouble.capture = True
    engine, verdict = build(nvidia, own)
    assert verdict.passed
    assert "no CUDA graph" in caplog.text
    engine.close()


def test_an_empty_graph_is_noticed_and_not_used(own, nvidia, caplog):
    nvidia.cuda.trouble.empty_graph = True
    engine, verdict = build(nvidia, own)
    assert verdict.passed
    assert "the CUDA graph answers otherwise" in caplog.text
    engine.close()


def test_why_a_recording_failed_is_told(nvidia):
    session = nvidia.engine.Session()

    def work():
        raise Unusable("TensorRT fails in step")

    with pytest.raises(Unusable, match="TensorRT fails in step"):
        session.capture(work)
    session.stop()
    session.free()


def test_the_sidecar_says_what_the_plan_is_for(own, nvidia):
    build(nvidia, own)[0].close()
    plans = sorted((own.cache / "tensorrt").glob("*.plan"))
    assert len(plans) == 3
    for plan in plans:
        facts = json.loads(plan.with_suffix(".json").read_text())
        assert facts["key"]["gpu"]["name"] == "Fake GPU"
        assert facts["key"]["tensorrt"] == NEWEST
        assert facts["built"] == {"level": 3, "workspace_gib": 0.0}
        assert plan.name.startswith("small-128x96-")
        assert "-float16-sm87-trt" in plan.name


def test_the_folder_of_plans_is_the_users_alone(own, nvidia):
    build(nvidia, own)[0].close()
    folder = own.cache / "tensorrt"
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(Unusable, match=r"others can write to it.*chmod 700"):
        nvidia.ready.open_built(own.parts, own.cache)


def test_a_folder_of_somebody_else_is_refused(own, nvidia, monkeypatch):
    build(nvidia, own)[0].close()
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(Unusable, match=rf"belongs to user {uid}.*--cache-dir"):
        nvidia.ready.open_built(own.parts, own.cache)


def test_another_gpu_or_version_does_not_load_the_plan_but_builds_its_own(own, nvidia):
    build(nvidia, own)[0].close()
    nvidia.cuda.trouble.gpu_name = "Other GPU"
    assert nvidia.ready.open_built(own.parts, own.cache) is None
    build(nvidia, own)[0].close()
    assert len(list((own.cache / "tensorrt").glob("*.plan"))) == 6
    with stand_ins(OLDEST) as older:
        assert older.ready.open_built(own.parts, own.cache) is None


def test_a_plan_under_anothers_name_is_not_loaded(own, nvidia, caplog):
    """Copied with its sidecar from another machine, and renamed until it fits."""
    build(nvidia, own)[0].close()
    for sidecar in (own.cache / "tensorrt").glob("*step*.json"):
        facts = json.loads(sidecar.read_text())
        facts["key"]["gpu"]["multiprocessors"] = 8
        sidecar.write_text(json.dumps(facts))
    assert nvidia.ready.open_built(own.parts, own.cache) is None
    assert "for another engine" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"half of a plan"])
def test_a_damaged_plan_is_not_loaded_and_the_next_build_puts_it_aside(own, nvidia, damage, caplog):
    build(nvidia, own)[0].close()
    (plan,) = (own.cache / "tensorrt").glob("*decode*.plan")
    plan.write_bytes(damage)
    assert nvidia.ready.open_built(own.parts, own.cache) is None
    # To who does not hold its lock, a plan that is being written looks the same.
    assert plan.read_bytes() == damage
    engine, _ = build(nvidia, own)
    engine.close()
    assert plan.with_suffix(".bad").read_bytes() == damage
    assert nvidia.trt.trouble.builds == len(PARTS) + 1
    assert "damaged" in caplog.text


def test_a_plan_that_tensorrt_cannot_load_is_built_once_more_and_then_given_up(own, nvidia):
    """Its checksum is right: the driver changed under it, say."""
    nvidia.trt.trouble.load = "Serialization assertion failed"
    with pytest.raises(Unusable, match=r"cannot load it \(Serialization assertion failed\).*export it again"):
        build(nvidia, own)
    # encode is loaded first: it was built, put aside, built again.
    assert nvidia.trt.trouble.builds == len(PARTS) + 1
    assert len(list((own.cache / "tensorrt").glob("*.bad"))) == 1


def test_a_good_plan_stays_when_memory_is_short(own, nvidia):
    build(nvidia, own)[0].close()
    nvidia.trt.trouble.load = "[defaultAllocator.cpp] OutOfMemory (Requested size was 1731592192 bytes.)"
    for attempt in (build, lambda *_: nvidia.ready.open_built(own.parts, own.cache)):
        with pytest.raises(Unusable, match=r"OutOfMemory.*where memory is short, stop other programs"):
            attempt(nvidia, own)
    nvidia.trt.trouble.load = ""
    nvidia.ready.open_built(own.parts, own.cache)[0].close()
    assert nvidia.trt.trouble.builds == len(PARTS)


def test_what_a_killed_build_left_is_removed_by_the_next(own, nvidia):
    build(nvidia, own)[0].close()
    (plan,) = (own.cache / "tensorrt").glob("*decode*.plan")
    left = plan.with_name(f"{plan.stem}abcd.part.plan")
    left.write_bytes(b"half")
    build(nvidia, own, rebuild=True)[0].close()
    assert not left.exists()


def test_other_settings_than_a_plan_was_built_with_are_told(own, nvidia, caplog):
    build(nvidia, own)[0].close()
    settings = nvidia.build.BuildSettings(level=5)
    nvidia.ready.build_and_open(own.parts, own.cache, settings, silent)[0].close()
    assert "step is built already, with {'level': 3, 'workspace_gib': 0.0}; --rebuild" in caplog.text


def test_a_full_gpu_does_not_have_tensorrt_10_build_with_weak_types(own, nvidia_10):
    nvidia_10.cuda.trouble.memory_bytes = 70_000
    with pytest.raises(Unusable, match="memory is full"):
        build(nvidia_10, own)
    assert nvidia_10.trt.trouble.builds == len(PARTS)


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("strong_parse", "Strongly typed network rejects calls to setComputePrecision"),
        ("strong_build", "Could not find any implementation for node"),
    ],
)
def test_tensorrt_10_falls_back_to_weak_types_where_strong_ones_fail(own, nvidia_10, caplog, when, reason):
    setattr(nvidia_10.trt.trouble, when, reason)
    engine, verdict = build(nvidia_10, own)
    assert verdict.passed
    assert "weak types" in engine.description
    assert reason in caplog.text
    engine.close()
    # The next start finds it without building.
    nvidia_10.trt.trouble.any_build = "must not build"
    nvidia_10.ready.open_built(own.parts, own.cache)[0].close()


def test_what_failed_with_strong_types_does_not_keep_its_memory(own, nvidia_10):
    """The weights are in there once more, on a Jetson in the memory that the next try needs."""
    nvidia_10.trt.trouble.strong_build = "Could not find any implementation for node"
    build(nvidia_10, own)[0].close()
    assert nvidia_10.trt.trouble.most_builders == 1


def test_the_typing_that_was_exported_last_runs(own, nvidia_10):
    def opened():
        engine, _ = nvidia_10.ready.open_built(own.parts, own.cache)
        engine.close()
        return engine.description

    for wanted, found in (("strong", "strong"), ("weak", "weak"), ("auto", "strong")):
        build(nvidia_10, own, wanted=wanted)[0].close()
        assert f"{found} types" in opened()
    assert nvidia_10.trt.trouble.builds == 2 * len(PARTS)


def test_weak_types_can_only_be_asked_for_where_there_are_any(own, nvidia, capsys):
    arguments = ["--checkpoint", str(own.folder), "--engine", "tensorrt", "--cache-dir", str(own.cache)]
    assert export.main([*arguments, "--size", "128x96", "--typing", "weak"]) == 1
    assert f"--typing weak: TensorRT {NEWEST} has strong types only" in capsys.readouterr().err


def test_a_build_that_was_short_of_memory_says_so(own, nvidia, caplog):
    nvidia.trt.trouble.warning = "Tactic Device request: 4194MB Available: 2875MB. Device memory is insufficient to use"
    build(nvidia, own)[0].close()
    assert "encode.onnx: 1 faster ways to compute it were left out for want of GPU memory" in caplog.text


def test_tensorrt_10_falls_back_to_weak_types_where_strong_ones_answer_nan(own, nvidia_10):
    nvidia_10.trt.trouble.wrong_strong_answers = True
    engine, verdict = build(nvidia_10, own)
    assert verdict.passed
    assert "weak types" in engine.description
    engine.close()


def test_tensorrt_11_has_no_weak_types_to_fall_back_to(own, nvidia):
    nvidia.trt.trouble.strong_build = "Could not find any implementation for node"
    with pytest.raises(Unusable, match=r"cannot build it with strong types \(Could not find any implementation"):
        build(nvidia, own)


def test_an_engine_that_answers_wrongly_is_refused_with_the_numbers_and_stays_refused(own, nvidia):
    nvidia.trt.trouble.wrong_answers = True
    for attempt in (build, lambda *_: nvidia.ready.open_built(own.parts, own.cache)):
        with pytest.raises(Unusable, match=r"differs from torch by nan on average.*at most 0\.01 and 0\.1 are allowed"):
            attempt(nvidia, own)
    assert not nvidia.cuda.device


def test_no_gpu_is_one_sentence(own, nvidia):
    nvidia.trt.trouble.no_gpu = True
    with pytest.raises(Unusable, match=r"finds no GPU that it can use.*doctor"):
        build(nvidia, own)
    nvidia.cuda.trouble.no_device = True
    with pytest.raises(Unusable, match=r"CUDA: cudaErrorNoDevice \(error 100\); run 'ros2 run marigold_ros doctor'"):
        build(nvidia, own)


@pytest.mark.parametrize(
    ("driver", "message"),
    [(0, "there is no NVIDIA driver, or this container"), (11080, r"of CUDA 11, .* pip install 'cuda-python==11\.\*'")],
)
def test_a_driver_that_does_not_fit_is_told_with_what_does(own, nvidia, driver, message, monkeypatch):
    nvidia.cuda.trouble.driver = driver
    monkeypatch.setattr(nvidia_driver, "driver_cuda", lambda: divmod(driver // 10, 100))
    with pytest.raises(Unusable, match=message):
        nvidia.ready.open_built(own.parts, own.cache)


def test_bindings_that_are_newer_than_the_driver_are_told_with_what_fits(own, nvidia, monkeypatch):
    monkeypatch.setattr(nvidia_driver, "driver_cuda", lambda: (12, 6))
    monkeypatch.setattr(nvidia_driver, "on_jetson", lambda: True)
    nvidia.cuda.trouble.insufficient_driver = True
    with pytest.raises(Unusable, match=r"too old for this cuda-python; pip install 'cuda-python==12\.6\.\*', or"):
        nvidia.ready.open_built(own.parts, own.cache)


def test_older_bindings_raise_where_there_is_no_driver(own, nvidia, monkeypatch):
    def raises():
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(nvidia.cuda, "cudaDriverGetVersion", raises)
    with pytest.raises(Unusable, match=r"no NVIDIA driver \(Failed to dlopen libcuda\.so\.1\)"):
        nvidia.ready.open_built(own.parts, own.cache)


def test_too_little_memory_to_build_and_to_run(own, nvidia):
    nvidia.trt.trouble.any_build = "Requested amount of GPU memory (2 GB) could not be allocated"
    with pytest.raises(Unusable, match=r"2 GB\) could not be allocated\).*smaller --size"):
        build(nvidia, own)
    nvidia.trt.trouble.any_build = ""
    nvidia.cuda.trouble.memory_bytes = 70_000
    with pytest.raises(Unusable, match=r"GPU's memory is full.*model\.vae: tiny"):
        build(nvidia, own)
    # What had been allocated before is free again.
    assert not nvidia.cuda.device
    assert not nvidia.cuda.host


@pytest.mark.parametrize("what", ["execute", "context"])
def test_calls_that_only_return_false_or_none_are_errors(own, nvidia, what):
    setattr(nvidia.trt.trouble, what, True)
    with pytest.raises(Unusable, match=r"TensorRT (fails in encode|cannot start encode)"):
        build(nvidia, own)
    assert not nvidia.cuda.device


def test_a_frame_of_another_size_is_refused(own, nvidia):
    engine, _ = build(nvidia, own)
    with pytest.raises(Unusable, match=r"image of 64x32: the TensorRT engine is built for 128x96; .*--size 64x32"):
        engine(np.zeros((32, 64, 3), np.uint8))
    engine.close()


def test_a_full_disk_is_told_before_the_build(own, nvidia, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(Unusable, match=r"0\.0 GB are free, building encode takes 0\.0 GB; make room"):
        build(nvidia, own)
    assert nvidia.trt.trouble.builds == 0


def test_onnx_that_tensorrt_cannot_read_is_named(own, nvidia):
    own.parts.onnx("step").write_bytes(b"not onnx")
    with pytest.raises(Unusable, match=r"step\.onnx: TensorRT .* cannot read it \(Conv node_1"):
        build(nvidia, own)


def test_timings_are_kept_for_the_next_build_and_damaged_ones_begin_anew(own, nvidia):
    build(nvidia, own)[0].close()
    (timings,) = (own.cache / "tensorrt").glob("timing-*.cache")
    assert json.loads(timings.read_bytes()) == ["decode.onnx", "encode.onnx", "step.onnx"]
    for useless in (b"damaged", b'["of another GPU"]'):
        timings.write_bytes(useless)
        build(nvidia, own, rebuild=True)[0].close()
        assert json.loads(timings.read_bytes()) == ["decode.onnx", "encode.onnx", "step.onnx"]


@pytest.mark.parametrize("method", ["create_timing_cache", "serialize"])
def test_a_plan_is_not_lost_for_its_timings(own, nvidia, method, monkeypatch):
    owner = nvidia.trt.IBuilderConfig if method == "create_timing_cache" else nvidia.trt.ITimingCache
    monkeypatch.setattr(owner, method, lambda *arguments: None)
    engine, verdict = build(nvidia, own)
    assert verdict.passed
    engine.close()


def test_progress_rises_to_the_end_for_each_part(own, nvidia):
    seen = {}

    def progress(part):
        return lambda share, what: seen.setdefault(part, []).append(share)

    build(nvidia, own, progress)[0].close()
    assert list(seen) == list(PARTS)
    for shares in seen.values():
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert len(set(shares)) > 4


@pytest.mark.parametrize("arguments", [[], ["--build-only"]])
def test_the_program_builds_and_the_node_s_estimator_runs_it(own, nvidia, arguments, capsys):
    call = ["--checkpoint", str(own.folder), "--engine", "tensorrt", "--cache-dir", str(own.cache), *arguments]
    assert export.main(call) == 0
    assert "accepted" in capsys.readouterr().out
    opened = load_estimator(ModelConfig(str(own.folder), "tensorrt", cache_dir=str(own.cache)), export=False)
    assert opened.engine.startswith("tensorrt")
    assert "differs from torch by" in opened.engine
    # A camera of another shape: the engine has one size.
    assert opened(np.zeros((90, 160, 3), np.uint8)).shape == (90, 160)
    assert opened.working_size(160, 90) == SIZE
    opened.close()


def test_without_an_engine_the_command_is_named_and_auto_goes_on(own, nvidia, small_export, tmp_path, caplog):
    folder, cache = small_export[0], shutil.copytree(small_export[1], tmp_path / "openvino")
    wanted = ModelConfig(str(folder), "tensorrt", cache_dir=str(cache))
    with pytest.raises(
        Unusable, match=r"no TensorRT engine for 128x96 .*export --checkpoint .* --engine tensorrt --size"
    ):
        load_estimator(wanted, export=False)
    opened = load_estimator(ModelConfig(str(folder), "auto", cache_dir=str(cache)), export=False)
    assert opened.engine.startswith("openvino")
    assert "--engine tensorrt --size 128x96" in caplog.text
    opened.close()


def test_an_estimator_that_fails_half_way_frees_its_engine(own, nvidia):
    build(nvidia, own)[0].close()
    wanted = ModelConfig(str(own.folder), "tensorrt", cache_dir=str(own.cache), confidence="mirror_half")
    with pytest.raises(Unusable, match=r"'mirror_half', its second pass: .*no TensorRT engine for 64x64"):
        load_estimator(wanted, export=False)
    assert not nvidia.cuda.device
    assert not nvidia.cuda.host


def test_auto_survives_a_torch_that_cannot_be_loaded(own, nvidia, small_export, tmp_path, monkeypatch):
    """None in the place of a module has importing it raise ImportError."""
    folder, cache = small_export[0], shutil.copytree(small_export[1], tmp_path / "openvino")
    monkeypatch.setattr(estimator, "driver_is_here", lambda: True)
    monkeypatch.setattr(estimator, "_installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "torch", None)
    opened = load_estimator(ModelConfig(str(folder), "auto", cache_dir=str(cache)), export=False)
    assert opened.engine.startswith("openvino")
    opened.close()


def hear_ctrl_c():
    """Undo for a child what a test process that shares the tests with others has set for itself."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def program(own, *arguments, **variables):
    call = [sys.executable, "-m", "marigold_ros.export", "--checkpoint", str(own.folder), "--engine", "tensorrt"]
    return subprocess.Popen(
        [*call, "--cache-dir", str(own.cache), *arguments],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def test_two_programs_that_want_the_same_engine_build_it_once(own):
    both = [program(own, FAKE_TENSORRT_STEP_S="0.2") for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    built = Counter(part for text in printed for part in PARTS if f"building {part}" in text)
    assert built == dict.fromkeys(PARTS, 1), printed
    assert sum("another process is at work" in text for text in printed) == 1


def test_ctrl_c_ends_a_build_soon_and_leaves_nothing_half(own):
    process = program(own, FAKE_TENSORRT_STEPS="600", FAKE_TENSORRT_STEP_S="0.1")
    text = ""
    while "Timing Graph Nodes" not in text:
        text += process.stdout.read(1)
        assert process.poll() is None, text
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    text += process.communicate(timeout=20)[0]
    assert time.monotonic() - start < 10  # of a build of a minute
    assert process.returncode == 1, text
    assert "export: interrupted" in text
    assert "Traceback" not in text
    left = [path.name for path in (own.cache / "tensorrt").iterdir() if not path.name.endswith(".lock")]
    assert left == []
    assert program(own).wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "tensorrt", "--size", "100x96"], "must be multiples of 32 pixels; the nearest is 96x96"),
        (["--size", "640x480"], "--size: means nothing to --engine openvino"),
        (["--build-only"], "--build-only: means nothing to --engine openvino"),
        (["--engine", "tensorrt", "--output", "x.onnx"], "--output: means nothing to --engine tensorrt"),
        (["--engine", "tensorrt", "--workspace", "-1"], "--workspace -1.0: must be GPU memory in GiB"),
        (["--engine", "tensorrt", "--build-only", "--size", "64x64"], "run this without --build-only"),
        (["--engine", "tensorrt"], "tensorrt is not installed: pip install tensorrt"),
    ],
)
def test_the_program_s_bad_arguments(exported, tmp_path, request, arguments, message, capsys):
    if "--build-only" in arguments:
        request.getfixturevalue("nvidia")
    call = ["--checkpoint", str(exported.folder), "--cache-dir", str(tmp_path), *arguments]
    assert export.main(call) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--build-only"]])
def test_parts_that_are_not_whole_are_not_built(own, nvidia, capsys, more):
    (own.parts.folder / "step.onnx.data").write_bytes(b"")
    call = ["--checkpoint", str(own.folder), "--engine", "tensorrt", "--cache-dir", str(own.cache), *more]
    assert export.main(call) == 1
    assert "step.onnx.data: is missing or damaged" in capsys.readouterr().err
    assert nvidia.trt.trouble.builds == 0
    (own.parts.folder / "step.onnx.data").unlink()
    assert read_parts(own.parts.folder) is None
    assert describe(find_checkpoint(str(own.folder)))
