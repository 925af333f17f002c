"""The doctor: what it finds on this machine, and what it says of things that are wrong."""

import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

from marigold_ros import doctor, nvidia_driver
from marigold_ros.config import Unusable
from marigold_ros.parts import all_parts
from marigold_ros.selfcheck import reference_of
from nvidia import stand_ins
from small_checkpoint import make_metric, write_small_checkpoint
from tensorrt_signatures import NEWEST


@pytest.fixture
def cache(small_export, tmp_path):
    return shutil.copytree(small_export[1], tmp_path / "cache")


def only(findings):
    (finding,) = findings
    return finding


def test_this_machine_is_in_order(small_export, capsys):
    pytest.importorskip("rclpy")
    folder, cache = small_export
    assert doctor.main(["--cache-dir", str(cache), "--checkpoint", str(folder)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "cores",
        "openvino",
        "ROS 2",
        "nano",
        "differs from torch by",
        f"checkpoint {folder}: whole (e2e, gives depth), exported to {cache}",
        "0 wrong",
    ):
        assert words in printed


def test_a_metric_checkpoint_is_told_from_relative_ones(tmp_path):
    folder = make_metric(write_small_checkpoint(tmp_path / "small", "log_depth"))
    finding = doctor.checkpoint(str(folder), tmp_path)
    assert "whole (e2e, gives depth in metres, 0.1 to 80 m at 500 px)" in str(finding)


def test_a_damaged_export_is_named_with_what_to_do(cache, capsys):
    (network,) = cache.glob("*.onnx")
    network.write_bytes(network.read_bytes()[:1000])
    assert doctor.main(["--cache-dir", str(cache)]) == 1
    assert f"[WRONG] {network}: is damaged\n        -> rm {network}" in capsys.readouterr().out


def test_an_engine_that_answers_wrongly_is_found(cache):
    """Made up by changing what torch is said to have answered: no faulty library can be had here."""
    (network,) = cache.glob("*.onnx")
    with np.load(reference_of(network)) as stored:
        rgb, answers = stored["rgb"], stored["answers"]
    np.savez_compressed(reference_of(network), rgb=rgb, answers=1 - answers)
    finding = doctor.exported(network)
    assert finding.level == doctor.WRONG
    assert "too far" in finding.text
    assert "'torch'" in finding.mend


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    finding = only(doctor.cache(tmp_path / "file" / "cache"))
    assert finding.level == doctor.WRONG
    assert "model.cache_dir" in finding.mend


def test_a_checkpoint_that_is_not_there(tmp_path):
    finding = doctor.checkpoint("nowhere", tmp_path)
    assert (finding.level, "nowhere" in finding.text) == (doctor.WRONG, True)


def test_a_checkpoint_that_is_not_exported_comes_with_the_command(small_export, tmp_path):
    finding = doctor.checkpoint(str(small_export[0]), tmp_path)
    assert finding.level == doctor.OK
    assert finding.mend == f"ros2 run marigold_ros export --checkpoint {small_export[0]}"


def test_openvino_that_cannot_be_loaded(cache, monkeypatch):
    network = next(cache.glob("*.onnx"))
    monkeypatch.setitem(sys.modules, "marigold_ros.engines.openvino_engine", None)
    finding = doctor.exported(network)
    assert (finding.level, finding.text[:28]) == (doctor.WRONG, "OpenVINO cannot be loaded (i")
    assert "--force-reinstall openvino" in finding.mend


def test_torch_that_cannot_be_loaded(monkeypatch):
    # None in the place of a module has importing it raise ImportError.
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "_version", lambda package: "2.0")
    finding = only(doctor.torch_on_gpu())
    assert finding.level == doctor.WRONG
    assert finding.text.startswith("torch cannot be loaded")


def test_networks_for_tensorrt_without_a_gpu_are_not_checked(small_parts):
    (parts,) = all_parts(small_parts[1])
    assert doctor.exported_parts(parts, small_parts[1]).level == doctor.NOTE


def test_tensorrt_is_found_and_its_engines_are_checked_anew(small_parts, tmp_path, monkeypatch):
    """Not real: GPU and TensorRT (fake_nvidia)."""
    monkeypatch.setattr(doctor, "driver_is_here", lambda: True)
    cache = shutil.copytree(small_parts[1], tmp_path / "cache")
    (parts,) = all_parts(cache)
    with stand_ins() as nvidia:
        assert doctor.tensorrt().text.startswith(f"TensorRT {NEWEST} on Fake GPU (sm 8.7, 16 multiprocessors, 64 GiB)")
        missing = doctor.exported_parts(parts, cache)
        assert missing.level == doctor.NOTE
        options = f"--checkpoint {small_parts[0]} --size 128x96 --int8 none --cache-dir {cache}"
        assert missing.mend == f"ros2 run marigold_ros export --engine tensorrt {options}"
        settings = nvidia.build.BuildSettings()
        nvidia.ready.build_and_open(parts, cache, settings, lambda part: lambda share, what: None)[0].close()
        good = doctor.exported_parts(parts, cache)
        assert good.level == doctor.OK
        assert "differs from torch by 0.0" in good.text
        # The verdict that was kept would still be good.
        nvidia.trt.trouble.wrong_answers = True
        bad = doctor.exported_parts(parts, cache)
        assert bad.level == doctor.WRONG
        assert "differs from torch by nan" in bad.text
        assert bad.mend.endswith("--rebuild")
        # The node refuses what the doctor found wrong.
        with pytest.raises(Unusable, match="differs from torch by nan"):
            nvidia.ready.open_built(parts, cache)
        # Made for another CUDA than the driver's: bindings work, TensorRT's library does not start.
        nvidia.trt.trouble.no_gpu = True
        monkeypatch.setattr(nvidia_driver, "driver_cuda", lambda: (12, 6))
        finding = doctor.tensorrt()
        assert finding.level == doctor.WRONG
        assert finding.mend.endswith("pip install tensorrt-cu12")
        nvidia.cuda.trouble.no_device = True
        assert doctor.tensorrt().level == doctor.WRONG


def test_engines_that_were_put_aside_are_told(tmp_path):
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "a.bad").write_bytes(b"x")
    finding = list(doctor.cache(tmp_path))[-1]
    assert finding.level == doctor.NOTE
    assert finding.mend == f"rm {tmp_path}/tensorrt/*.bad"


def test_nothing_to_run_networks_with(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    findings = list(doctor.libraries())
    assert findings[0].level == doctor.WRONG
    assert "pip install openvino" in findings[0].mend


def test_the_dds_profile(monkeypatch, tmp_path):
    pytest.importorskip("rclpy")
    monkeypatch.delenv("RMW_IMPLEMENTATION", raising=False)
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)

    def found():
        return next(finding for finding in doctor.ros() if "Fast DDS profile" in finding.text)

    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    assert found().level == doctor.NOTE
    assert found().mend.endswith("config/fastdds.xml")
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(tmp_path / "none.xml"))
    assert found().level == doctor.WRONG
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", found().mend.partition("=")[2])
    assert found().level == doctor.OK


def test_kilted_reads_the_new_name_of_the_profile_alone(monkeypatch):
    pytest.importorskip("rclpy")
    monkeypatch.delenv("RMW_IMPLEMENTATION", raising=False)
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(doctor.shared("config/fastdds.xml")))
    for distribution, level in (("jazzy", doctor.OK), ("kilted", doctor.NOTE)):
        monkeypatch.setenv("ROS_DISTRO", distribution)
        finding = next(finding for finding in doctor.ros() if "Fast DDS profile" in finding.text)
        assert finding.level == level
    assert finding.mend.startswith("export FASTDDS_DEFAULT_PROFILES_FILE=")


def test_pip_is_told_to_install_beside_what_apt_did_where_it_would_refuse(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(doctor.sys, "prefix", doctor.sys.base_prefix)
    assert doctor._pip("openvino").endswith(" -m pip install openvino")
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    assert doctor._pip("openvino").endswith(" -m pip install --break-system-packages openvino")
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path))  # in a virtual environment
    assert doctor._pip("openvino").endswith(" -m pip install openvino")


@pytest.mark.parametrize(
    ("megabytes", "free", "level", "mend"),
    [
        (64, 64, doctor.WRONG, "--shm-size"),
        (8000, 30, doctor.WRONG, "fastdds shm clean"),
        (512, 512 - 5 * 71, doctor.NOTE, "fastdds shm clean"),  # five nodes that run
        (1000, 900, doctor.OK, ""),
    ],
)
def test_shared_memory(megabytes, free, level, mend):
    finding = only(doctor.shared_memory(megabytes * 10**6, free * 10**6))
    assert finding.level == level
    assert mend in finding.mend


@pytest.mark.parametrize(("megabytes", "level"), [(0.2, doctor.NOTE), (32, doctor.OK)])
def test_socket_buffers(megabytes, level):
    assert only(doctor.socket_buffer(int(megabytes * 10**6))).level == level
