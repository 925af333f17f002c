"""The datasets that `python -m trainer prepare` reads: where each comes from, what it holds, who reads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.datasets import hypersim, interiorverse, sintel, tartanair, vkitti2
from trainer.datasets.reading import Frame
from trainer.samples import Sample


@dataclass(frozen=True)
class Dataset:
    """A dataset as published: its place, size and licence, and how it is read.

    `frames` lists the frames of a split, or of all splits for None, in the same order every time; `read` reads one with
    the maps asked for, in their order. `size_px` is (width, height) that it is trained with, None as it is;
    `depth_range_m` the depths that count in training; `listed` matches a frame in a line of a published list, its
    groups being the frame's parts; `needs` are packages that its files are read with.
    """

    title: str
    source: str
    size: str
    licence: str
    frames: Callable[[Path, str | None], list[Frame]]
    read: Callable[[Frame, Collection[str]], Sample]
    maps: tuple[str, ...]
    default_maps: tuple[str, ...]
    splits: tuple[str, ...]
    listed: str
    size_px: tuple[int, int] | None = None
    depth_range_m: tuple[float, float] | None = None
    needs: tuple[str, ...] = ()


_VKITTI2 = r"(Scene\d\d)/([^/\s]+)/frames/rgb/(Camera_\d)/rgb_(\d{5})"
_SINTEL = r"(\w+)/(frame_\d{4})"
_SINTEL_LICENCE = "film (c) Blender Foundation, CC BY 3.0"

# Sizes and licences, Hypersim's and TartanAir's sizes and Hypersim's licence apart, are from memory: see the sources.
DATASETS: Mapping[str, Dataset] = {
    "hypersim": Dataset(
        title="Hypersim: 461 rendered indoor scenes, 74 619 images of 1024 x 768",
        source="https://github.com/apple/ml-hypersim",
        size="1.9 TB whole",
        licence="CC BY-SA 3.0",
        frames=hypersim.frames,
        read=hypersim.read,
        maps=("depth_m", "normals", "albedo", "shading", "residual"),
        default_maps=("depth_m",),
        splits=("train", "val", "test"),
        listed=r"(ai_\d{3}_\d{3})/\w*?(cam_\d\d)_(fr\d{4})",
        size_px=(640, 480),
        depth_range_m=(1e-5, 65.0),
        needs=("h5py",),
    ),
    "vkitti2": Dataset(
        title="Virtual KITTI 2, as Marigold is trained with it: 20 148 street images of 1242 x 375, 5 364 to validate",
        source="https://europe.naverlabs.com/research/computer-vision/proxy-virtual-worlds-vkitti-2/",
        size="about 7 GB of pictures, 8 GB of depth",
        licence="CC BY-NC-SA 3.0",
        frames=vkitti2.frames,
        read=vkitti2.read,
        maps=("depth_m", "normals"),
        default_maps=("depth_m",),
        splits=("train", "val"),
        listed=_VKITTI2,
        depth_range_m=(1e-5, 80.0),
    ),
    "vkitti2-e2e": Dataset(
        title="Virtual KITTI 2, as the end-to-end fine-tuning uses it: 21 260 images, all to train",
        source="https://europe.naverlabs.com/research/computer-vision/proxy-virtual-worlds-vkitti-2/",
        size="about 7 GB of pictures, 8 GB of depth",
        licence="CC BY-NC-SA 3.0",
        frames=vkitti2.frames_e2e,
        read=vkitti2.read,
        maps=("depth_m", "normals"),
        default_maps=("depth_m",),
        splits=("train",),
        listed=_VKITTI2,
        depth_range_m=(1e-5, 80.0),
    ),
    "tartanair": Dataset(
        title="TartanAir: flights through 18 rendered worlds, left images of 640 x 480",
        source="https://github.com/castacks/tartanair_tools",
        size="3 TB whole",
        licence="CC BY 4.0",
        frames=tartanair.frames,
        read=tartanair.read,
        maps=("depth_m",),
        default_maps=("depth_m",),
        splits=("train", "val"),
        listed=r"(\w+)/(Easy|Hard)/(P\d{3})/image_left/(\d{6})_left",
    ),
    "interiorverse": Dataset(
        title="InteriorVerse: over 4000 rendered indoor scenes with materials, over 50 000 images",
        source="https://interiorverse.github.io",
        size="not stated",
        licence="by application, for research",
        frames=interiorverse.frames,
        read=interiorverse.read,
        maps=("normals", "albedo", "material", "depth_m"),
        default_maps=("normals", "albedo", "material", "depth_m"),
        splits=("train", "val", "test"),
        listed=r"([^/\s]+)/(\d{3})_im",
        needs=("OpenEXR",),
    ),
    "sintel": Dataset(
        title="MPI Sintel with normals, from Marigold's authors: 1024 x 436, cropped to 582 x 436",
        source="https://share.phys.ethz.ch/~pf/bingkedata/marigold/marigold_normals/sintel.zip",
        size="about 6 GB unpacked",
        licence=_SINTEL_LICENCE,
        frames=sintel.frames,
        read=sintel.read,
        maps=("normals",),
        default_maps=("normals",),
        splits=("train",),
        listed=_SINTEL,
        size_px=(640, 480),
    ),
    "sintel-depth": Dataset(
        title="MPI Sintel with depth, 1064 images of 1024 x 436; the film's units, not metres",
        source="http://sintel.is.tue.mpg.de/depth",
        size="about 7 GB",
        licence=_SINTEL_LICENCE,
        frames=sintel.frames_depth,
        read=sintel.read_depth,
        maps=("depth_m",),
        default_maps=("depth_m",),
        splits=("train",),
        listed=_SINTEL,
    ),
}
