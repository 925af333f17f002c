"""Small folders in the layouts in which the evaluation sets are published, with truth that the tests choose."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import OpenEXR
from PIL import Image


def write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_image(path: Path, rgb: np.ndarray) -> None:
    """PNG or JPEG by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)


def write_png16(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


def write_npy(path: Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_bytes(path, buffer.getvalue())


def write_exr(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": np.ascontiguousarray(rgb, np.float32)}
    OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, channels).write(str(path))


def write_list(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows))


def code(relative: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] as an image whose red is it, in steps of 1/255: `Reads` answers it."""
    rgb = np.zeros((*relative.shape, 3), np.uint8)
    rgb[..., 0] = np.round(relative * 255)
    return rgb


def write_nyuv2(data: Path, relatives: list[np.ndarray], depths_m: list[np.ndarray]) -> None:
    """The maps are laid over images of 640x480 from row 45 and column 41 on; the rest has no depth."""
    rows = []
    for number, (relative, depth_m) in enumerate(zip(relatives, depths_m, strict=True), 1):
        big = np.zeros((2, 480, 640))
        height, width = depth_m.shape
        big[0, 45 : 45 + height, 41 : 41 + width] = relative
        big[1, 45 : 45 + height, 41 : 41 + width] = depth_m
        names = [f"test/kitchen_0004/{kind}_{number:04d}.png" for kind in ("rgb", "depth", "filled")]
        folder = data / "nyuv2" / "nyu_labeled_extracted"
        write_image(folder / names[0], code(big[0]))
        write_png16(folder / names[1], np.round(big[1] * 1000))
        rows.append(" ".join(names))
    write_list(data / "data_split" / "nyu_depth" / "labeled" / "filename_list_test.txt", rows)


def write_kitti(data: Path, relatives: list[np.ndarray], depths_m: list[np.ndarray]) -> None:
    """Images of any KITTI size, and after each a line without truth, as 45 of the published list are."""
    rows = []
    for number, (relative, depth_m) in enumerate(zip(relatives, depths_m, strict=True)):
        rgb = f"2011_09_26/2011_09_26_drive_0002_sync/image_02/data/{number:010d}.png"
        depth = f"2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/{number:010d}.png"
        write_image(data / "kitti" / rgb, code(relative))
        write_png16(data / "kitti" / depth, np.round(depth_m * 256))
        rows += [f"{rgb} {depth} 721.5377", f"{rgb} None 721.5377"]
    write_list(data / "kitti" / "eigen_test_files_with_gt.txt", rows)


def write_eth3d(data: Path, relatives: list[np.ndarray], depths_m: list[np.ndarray]) -> None:
    rows = []
    for number, (relative, depth_m) in enumerate(zip(relatives, depths_m, strict=True)):
        rgb = f"rgb/office/images/dslr_images/DSC_{number:04d}.png"  # lossless, unlike the published .JPG
        depth = f"depth/office_dslr_depth/office/ground_truth_depth/dslr_images/DSC_{number:04d}.JPG"
        write_image(data / "eth3d" / rgb, code(relative))
        write_bytes(data / "eth3d" / depth, depth_m.astype("<f4").tobytes())
        rows.append(f"{rgb} {depth}")
    write_list(data / "eth3d" / "eth3d_filename_list.txt", rows)


def write_scannet(data: Path, relatives: list[np.ndarray], depths_m: list[np.ndarray]) -> None:
    rows = []
    for number, (relative, depth_m) in enumerate(zip(relatives, depths_m, strict=True)):
        rgb, depth = f"scene0406_02/color/{number:06d}.png", f"scene0406_02/depth/{number:06d}.png"
        write_image(data / "scannet" / rgb, code(relative))
        write_png16(data / "scannet" / depth, np.round(depth_m * 1000))
        rows.append(f"{rgb} {depth}")
    write_list(data / "scannet" / "scannet_val_sampled_list_800_1.txt", rows)


def write_diode(data: Path, relatives: list[np.ndarray], depths_m: list[np.ndarray], masks: list[np.ndarray]) -> None:
    rows = []
    for number, (relative, depth_m, mask) in enumerate(zip(relatives, depths_m, masks, strict=True)):
        stem = f"indoors/scene_00021/scan_00189/00021_00189_indoors_{number:03d}_010"
        write_image(data / "diode" / f"{stem}.png", code(relative))
        write_npy(data / "diode" / f"{stem}_depth.npy", depth_m[..., None].astype(np.float32))
        write_npy(data / "diode" / f"{stem}_depth_mask.npy", mask.astype(np.float64))
        rows.append(f"{stem}.png {stem}_depth.npy {stem}_depth_mask.npy")
    write_list(data / "diode" / "diode_val_all_filename_list.txt", rows)


def write_normals(data: Path, name: str, protocol: str, rgbs: list[np.ndarray], normals: list[np.ndarray]) -> None:
    """normals: (H, W, 3) in the optical frame, zeros where unknown; they are stored in the protocol's own frame."""
    marigold = {
        "nyuv2": ("nyuv2/test", "nyu_normals/nyuv2_test.txt"),
        "scannet": ("scannet", "scannet_normals/scannet_test.txt"),
        "ibims": ("ibims/ibims", "ibims_normals/ibims_test.txt"),
        "diode": ("diode/val", "diode_normals/diode_test.txt"),
        "oasis": ("oasis/val", "oasis_normals/oasis_test.txt"),
    }
    # Folder of the images in that of the dataset, list, and what normals are stored as.
    dsine = {
        "nyuv2": ("test", "split/test.txt", "png"),
        "scannet": ("scene0532_00", "split/test.txt", "png"),
        "ibims": ("ibims", "split/ibims.txt", "exr"),
        "sintel": ("alley_1", "split/sintel.txt", "exr"),
    }
    rows = []
    for number, (rgb, optical) in enumerate(zip(rgbs, normals, strict=True)):
        stem = f"{number:06d}"
        if protocol == "marigold":
            folder = data / marigold[name][0]
            write_image(folder / f"{stem}_img.png", rgb)
            write_npy(folder / f"{stem}_normal.npy", (optical * (1, -1, -1)).astype(np.float32))
            rows.append(f"{stem}_img.png {stem}_normal.npy")
            continue
        folder, kind = data / "dsine_eval" / name / dsine[name][0], dsine[name][2]
        write_image(folder / f"{stem}_img.png", rgb)
        stored = -optical
        if kind == "exr":
            write_exr(folder / f"{stem}_normal.exr", stored)
        else:
            coded = np.round((stored + 1) * 127.5).astype(np.uint8)
            coded[~optical.any(axis=2)] = 0
            write_image(folder / f"{stem}_normal.png", coded)
        rows.append(f"{dsine[name][0]}/{stem}_img.png")
    if protocol == "marigold":
        write_list(data / "data_split" / marigold[name][1], rows)
    else:
        write_list(data / "dsine_eval" / name / dsine[name][1], rows)


def write_interiorverse(data: Path, images: list[dict[str, np.ndarray]]) -> None:
    """images: linear 'im', 'albedo' and 'material', (H, W, 3)."""
    rows = []
    for number, image in enumerate(images):
        stem = f"scenes_85/L3D124S21ENDIMPH3DQUI5NFSLUF3P3XG888/{number:03d}"
        for kind, values in {**image, "mask": np.ones_like(image["im"])}.items():
            write_exr(data / "interiorverse" / f"{stem}_{kind}.exr", values)
        rows.append(" ".join(f"{stem}_{kind}.exr" for kind in ("im", "albedo", "material", "mask")))
    write_list(data / "interiorverse" / "interiorverse_test_scenes_85.txt", rows)


def write_hypersim(data: Path, images: list[dict[str, np.ndarray]]) -> None:
    """images: 'rgb' uint8, linear 'albedo', 'shading' and 'residual', (H, W, 3)."""
    rows = []
    for number, image in enumerate(images):
        folder, end = "test/ai_001_010", f"cam_00_fr{number:04d}"
        write_image(data / "hypersim" / folder / f"rgb_{end}.png", image["rgb"])
        words = [f"{folder}/rgb_{end}.png"]
        for kind in ("albedo", "shading", "residual"):
            write_npy(data / "hypersim" / folder / f"{kind}_{end}.npy", image[kind].astype(np.float32))
            words.append(f"{folder}/{kind}_{end}.npy")
        rows.append(" ".join([*words, f"{folder}/shading_stats_{end}.json"]))
    write_list(data / "hypersim" / "hypersim_test.txt", rows)
