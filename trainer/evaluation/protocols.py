"""The published protocols as a table: which images, which pixels, which size.

Sources (reference: arXiv 2312.02145, arXiv 2409.11355): the evaluation configurations, file lists and readers of
prs-eth/Marigold (commit b1dffaa), and for the DSINE protocol those in VisualComputingInstitute/diffusion-e2e-ft (commit
4ff5aad). Names of folders and lists below are as published there; none is from memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from marigold_ros.config import Unusable
from marigold_ros.family import DEPTH, INTRINSICS, NORMALS

MARIGOLD, DSINE = "marigold", "dsine"


@dataclass(frozen=True)
class Protocol:
    """What all protocols have.

    name: as in `--on`; title: as in the tables. images: how many the published numbers rest on.
    places: where the files lie below the folder of data, a folder or a .tar of it; the first that exists counts.
    lists: names of the list of files, below that folder, the folder of data or `data_split` in it.
    columns: what the words of a line of the list are; 'truth' is derived from the image's name where it is not there.
    resolution: pixels of the long side at which the network sees an image; 0 is the image's own. seed: of the noise.
    """

    name: str
    title: str
    images: int
    places: tuple[str, ...]
    lists: tuple[str, ...]
    columns: tuple[str, ...]
    resolution: int
    seed: int = 1234


@dataclass(frozen=True)
class DepthProtocol(Protocol):
    """Depth: file format, crops and the range in metres to which predictions are clipped.

    depth: 'png_mm' (16 bits, millimetres), 'png_256' (16 bits, 1/256 m), 'raw' (float32, metres, no header), 'npy'.
    min_m, max_m: pixels whose truth lies strictly between count, unless `mask` is 'file'; predictions are clipped to
    it.
    mask: 'eigen_nyu', 'eigen_kitti' or '' for all pixels; 'file': as a file of its own says.
    crop: 'kitti' cuts image and depth to the benchmark's 1216x352 before anything else.
    size: (width, height) that images must have; (0, 0) takes any.
    alignment_px: longest side of the map in the alignment's fit; 0 takes all pixels.
    focal_px: geometric mean of fx and fy, which only networks that answer metres ask for; 0 is in the list. NYUv2: its
    toolbox; DIODE: its devkit; ScanNet and ETH3D: about what their cameras have, each a little else.
    """

    depth: str = "png_mm"
    min_m: float = 1e-3
    max_m: float = 10.0
    mask: str = ""
    crop: str = ""
    size: tuple[int, int] = (0, 0)
    alignment_px: int = 0
    focal_px: float = 0.0


@dataclass(frozen=True)
class NormalsProtocol(Protocol):
    """Normals: file format of the truth, and its frame as factors that turn it into the optical frame.

    truth: 'npy' (float), 'png' (8 bits, (n + 1) / 2), 'exr'.
    optical: factors of x, y, z. Marigold's files: x right, y up, z to the viewer. DSINE's: x left, y up, z to the
    viewer.
    stretch: the image's colours are stretched as in the evaluation of end-to-end fine-tuning.
    pooled: the published numbers are over the pixels of all images together, not means over images.
    """

    truth: str = "npy"
    optical: tuple[float, float, float] = (1.0, -1.0, -1.0)
    stretch: bool = False
    pooled: bool = False


@dataclass(frozen=True)
class IntrinsicsProtocol(Protocol):
    """Intrinsic images: what is compared, and how.

    targets: as the checkpoint must name them. masked: only pixels of known truth count.
    gamma: powers with which truth and prediction of a target are compared, where not as they are.
    up_to_scale: targets whose scale is fitted.
    """

    targets: tuple[str, ...] = ()
    masked: bool = False
    gamma: tuple[tuple[str, float], ...] = ()
    up_to_scale: tuple[str, ...] = ()


_DEPTH = (
    DepthProtocol(
        name="nyuv2",
        title="NYUv2",
        images=654,
        places=("nyuv2/nyu_labeled_extracted", "nyuv2/nyu_labeled_extracted.tar", "nyuv2"),
        lists=("filename_list_test.txt", "labeled/filename_list_test.txt", "nyu_depth/labeled/filename_list_test.txt"),
        columns=("rgb", "depth", "filled"),
        resolution=0,
        mask="eigen_nyu",
        size=(640, 480),
        focal_px=519.16,
    ),
    DepthProtocol(
        name="kitti",
        title="KITTI Eigen",
        images=652,
        places=("kitti/kitti_eigen_split_test", "kitti/kitti_eigen_split_test.tar", "kitti"),
        lists=("eigen_test_files_with_gt.txt", "kitti_depth/eigen_test_files_with_gt.txt"),
        columns=("rgb", "depth", "focal"),
        resolution=0,
        depth="png_256",
        min_m=1e-5,
        max_m=80.0,
        mask="eigen_kitti",
        crop="kitti",
    ),
    DepthProtocol(
        name="eth3d",
        title="ETH3D",
        images=454,
        places=("eth3d/eth3d", "eth3d/eth3d.tar", "eth3d"),
        lists=("eth3d_filename_list.txt", "eth3d_depth/eth3d_filename_list.txt"),
        columns=("rgb", "depth"),
        resolution=756,
        depth="raw",
        min_m=1e-5,
        max_m=math.inf,
        size=(6048, 4032),
        alignment_px=1024,
        focal_px=3415.0,
    ),
    DepthProtocol(
        name="scannet",
        title="ScanNet",
        images=800,
        places=("scannet/scannet_val_sampled_800_1", "scannet/scannet_val_sampled_800_1.tar", "scannet"),
        lists=("scannet_val_sampled_list_800_1.txt", "scannet_depth/scannet_val_sampled_list_800_1.txt"),
        columns=("rgb", "depth"),
        resolution=0,
        focal_px=577.87,
    ),
    DepthProtocol(
        name="diode",
        title="DIODE",
        images=771,
        places=("diode/diode_val", "diode/diode_val.tar", "diode"),
        lists=("diode_val_all_filename_list.txt", "diode_depth/diode_val_all_filename_list.txt"),
        columns=("rgb", "depth", "mask"),
        resolution=640,
        depth="npy",
        min_m=0.6,
        max_m=350.0,
        mask="file",
        focal_px=906.71,
    ),
)

_NORMALS = (
    NormalsProtocol(
        name="nyuv2",
        title="NYUv2",
        images=654,
        places=("nyuv2/test",),
        lists=("nyuv2_test.txt", "nyu_normals/nyuv2_test.txt"),
        columns=("rgb", "truth"),
        resolution=640,
        seed=4321,
    ),
    NormalsProtocol(
        name="scannet",
        title="ScanNet",
        images=300,
        places=("scannet",),
        lists=("scannet_test.txt", "scannet_normals/scannet_test.txt"),
        columns=("rgb", "truth"),
        resolution=640,
    ),
    NormalsProtocol(
        name="ibims",
        title="iBims-1",
        images=100,
        places=("ibims/ibims",),
        lists=("ibims_test.txt", "ibims_normals/ibims_test.txt"),
        columns=("rgb", "truth"),
        resolution=640,
        seed=4321,
    ),
    NormalsProtocol(
        name="diode",
        title="DIODE",
        images=771,
        places=("diode/val",),
        lists=("diode_test.txt", "diode_normals/diode_test.txt"),
        columns=("rgb", "truth"),
        resolution=768,
    ),
    NormalsProtocol(
        name="oasis",
        title="OASIS",
        images=9999,
        places=("oasis/val",),
        lists=("oasis_test.txt", "oasis_normals/oasis_test.txt"),
        columns=("rgb", "truth"),
        resolution=768,
    ),
)

_FROM_DSINE = (-1.0, -1.0, -1.0)
_DSINE = (
    NormalsProtocol(
        name="nyuv2",
        title="NYUv2",
        images=654,
        places=("dsine_eval/nyuv2", "nyuv2"),
        lists=("split/test.txt", "nyuv2/split/test.txt"),
        columns=("rgb",),
        resolution=0,
        truth="png",
        optical=_FROM_DSINE,
        stretch=True,
        pooled=True,
    ),
    NormalsProtocol(
        name="scannet",
        title="ScanNet",
        images=300,
        places=("dsine_eval/scannet", "scannet"),
        lists=("split/test.txt", "scannet/split/test.txt"),
        columns=("rgb",),
        resolution=0,
        truth="png",
        optical=_FROM_DSINE,
        stretch=True,
        pooled=True,
    ),
    NormalsProtocol(
        name="ibims",
        title="iBims-1",
        images=100,
        places=("dsine_eval/ibims", "ibims"),
        lists=("split/ibims.txt", "ibims/split/ibims.txt"),
        columns=("rgb",),
        resolution=0,
        truth="exr",
        optical=_FROM_DSINE,
        stretch=True,
        pooled=True,
    ),
    NormalsProtocol(
        name="sintel",
        title="Sintel",
        images=1064,
        places=("dsine_eval/sintel", "sintel"),
        lists=("split/sintel.txt", "sintel/split/sintel.txt"),
        columns=("rgb",),
        resolution=0,
        truth="exr",
        optical=_FROM_DSINE,
        stretch=True,
        pooled=True,
    ),
)

_INTRINSICS = (
    IntrinsicsProtocol(
        name="interiorverse",
        title="InteriorVerse",
        images=2672,
        places=("interiorverse/InteriorVerse", "interiorverse/InteriorVerse.tar", "interiorverse"),
        lists=("interiorverse_test_scenes_85.txt", "interiorverse_iid/interiorverse_test_scenes_85.txt"),
        columns=("rgb", "albedo", "material", "mask"),
        resolution=640,
        targets=("albedo", "material"),
        gamma=(("material", 2.2),),
    ),
    IntrinsicsProtocol(
        name="hypersim",
        title="Hypersim",
        images=5238,
        places=("hypersim",),
        lists=("hypersim_test.txt", "hypersim_iid/hypersim_test.txt"),
        columns=("rgb", "albedo", "shading", "residual", "stats"),
        resolution=0,
        targets=("albedo", "shading", "residual"),
        masked=True,
        gamma=(("albedo", 1 / 2.2),),
        up_to_scale=("shading", "residual"),
    ),
)


def protocols(task: str, normals: str = DSINE) -> dict[str, Protocol]:
    """The protocols of a task by the names of their datasets; normals: 'marigold' or 'dsine'."""
    rows = {DEPTH: _DEPTH, NORMALS: _DSINE if normals == DSINE else _NORMALS, INTRINSICS: _INTRINSICS}[task]
    return {protocol.name: protocol for protocol in rows}


def protocol_of(task: str, name: str, normals: str = DSINE) -> Protocol:
    """The protocol of one dataset; raises `Unusable` where it is not known."""
    known = protocols(task, normals)
    if name in known:
        return known[name]
    kind = f"{task}, protocol {normals!r}" if task == NORMALS else task
    also = ""
    if task == NORMALS and name in protocols(task, MARIGOLD if normals == DSINE else DSINE):
        also = f"; --protocol {MARIGOLD if normals == DSINE else DSINE} has it"
    raise Unusable(f"--on {name}: no such dataset for {kind}; give some of {', '.join(known)}{also}")
