"""What to install beside an NVIDIA driver. Not real: the driver; without one the functions run as they are."""

import pytest

from marigold_ros import nvidia_driver
from marigold_ros.nvidia_driver import driver_cuda, driver_is_here, install_command, on_jetson


@pytest.mark.parametrize(
    ("package", "cuda", "jetson", "command"),
    [
        ("tensorrt", (12, 6), False, "pip install tensorrt-cu12"),
        ("tensorrt", (13, 0), False, "pip install tensorrt-cu13"),
        ("tensorrt", None, False, "pip install tensorrt"),
        ("tensorrt", (12, 6), True, "sudo apt install python3-libnvinfer (a virtual environment sees it with "),
        ("cuda-python", (12, 6), False, "pip install 'cuda-python==12.*'"),
        ("cuda-python", (12, 6), True, "pip install 'cuda-python==12.6.*'"),
        ("cuda-python", None, False, "pip install cuda-python"),
        ("openvino", (12, 6), True, "pip install openvino"),
    ],
)
def test_what_fits_the_driver(package, cuda, jetson, command, monkeypatch):
    monkeypatch.setattr(nvidia_driver, "driver_cuda", lambda: cuda)
    monkeypatch.setattr(nvidia_driver, "on_jetson", lambda: jetson)
    assert install_command(package).startswith(command)


def test_the_version_is_read_as_cuda_writes_it(monkeypatch):
    class Library:
        def cuDriverGetVersion(self, version):
            version._obj.value = 12060
            return 0

    monkeypatch.setattr(nvidia_driver.ctypes, "CDLL", lambda name: Library())
    assert driver_cuda() == (12, 6)


def test_no_driver(monkeypatch, tmp_path):
    def missing(name):
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(nvidia_driver.ctypes, "CDLL", missing)
    monkeypatch.setattr(nvidia_driver, "_JETSON_SIGNS", (str(tmp_path / "nvmap"),))
    monkeypatch.setattr(nvidia_driver, "_PC_SIGNS", (str(tmp_path / "nvidiactl"),))
    assert driver_cuda() is None
    assert not driver_is_here()
    # A container on a Jetson has the device, and not the file of its release.
    (tmp_path / "nvmap").touch()
    assert driver_is_here()
    assert on_jetson()
