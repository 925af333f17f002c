"""Whether an NVIDIA GPU's driver is here, of which CUDA it is, and which packages go with it; needs none of them."""

from __future__ import annotations

import ctypes
from pathlib import Path

# The release file is missing on some Jetsons and in most containers on them; the devices are there.
_JETSON_SIGNS = ("/etc/nv_tegra_release", "/dev/nvmap", "/dev/nvhost-gpu")
_PC_SIGNS = ("/dev/nvidiactl", "/dev/dxg")  # dxg: Windows' Linux


def driver_is_here() -> bool:
    """Whether there are signs of an NVIDIA GPU's driver."""
    return any(Path(sign).exists() for sign in (*_JETSON_SIGNS, *_PC_SIGNS))


def on_jetson() -> bool:
    """Whether this is a Jetson, where TensorRT comes with JetPack and PyPI's does not run."""
    return any(Path(sign).exists() for sign in _JETSON_SIGNS)


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA, (major, minor), that the driver runs; None where there is no driver."""
    version = ctypes.c_int(0)
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return divmod(version.value // 10, 100) if status == 0 and version.value else None


def install_command(package: str, pip: str = "pip install") -> str:
    """How to install `package` here; 'tensorrt' and 'cuda-python' so that they fit the driver."""
    if package == "tensorrt" and on_jetson():
        return "sudo apt install python3-libnvinfer (a virtual environment sees it with --system-site-packages)"
    cuda = driver_cuda()
    if cuda is not None and package == "tensorrt":
        # Plain 'tensorrt' is for the newest CUDA.
        package = f"tensorrt-cu{cuda[0]}"
    elif cuda is not None and package == "cuda-python":
        # PCs' drivers run all of their major version; Jetsons' may refuse what is newer than they are.
        package = f"'cuda-python=={cuda[0]}.{cuda[1]}.*'" if on_jetson() else f"'cuda-python=={cuda[0]}.*'"
    return f"{pip} {package}"
