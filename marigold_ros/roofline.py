"""How much arithmetic a single-step network is, and the time below which no device can do it.

    python -m marigold_ros.roofline --checkpoint sd2|nano|FOLDER [--size 768x576] [--vae tiny] [--precision int8]

A multiply-add counts as two operations (FLOP). The lower bound is the sum over all operators of the longer of two
times: that of its arithmetic at the device's peak, and that of reading its input and weights and writing its output
once at the memory's full bandwidth. A normalisation counts as one more read of its input; all else is taken to be free.
Attention is one operator (queries, keys and values in, result out). Nothing real reaches these bounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marigold_ros.config import Unusable
from marigold_ros.parts import PARTS

if TYPE_CHECKING:
    from marigold_ros.counting import Subject

KINDS = ("convolution", "linear", "attention")
NORM = "normalisation"
FP16, INT8 = "fp16", "int8"


@dataclass(frozen=True)
class Device:
    """Dense peaks of a device: TFLOP/s of float16 and of 8-bit numbers, GB/s of its memory.

    cuda_name: as the driver names it. processors: streaming multiprocessors, where the name alone does not tell.
    """

    name: str
    fp16_tflops: float
    int8_tflops: float
    gb_s: float
    cuda_name: str
    processors: int


DEVICES = (
    # reference/tensorrt.md (f): 8 of the AGX's 16 processors, at 918 MHz.
    Device("Jetson Orin NX 16GB", 15.0, 30.1, 102.4, "Orin", 8),
    # reference/tensorrt.md (f): the technical brief's 170 sparse INT8 TOPS of the GPU: a half dense, a quarter float16.
    Device("Jetson AGX Orin 64GB", 42.5, 85.0, 204.8, "Orin", 16),
    # reference/tensorrt.md (f): whitepaper, float16 summed in float32 (330 where it is summed in float16).
    Device("RTX 4090", 165.0, 660.0, 1008.0, "NVIDIA GeForce RTX 4090", 128),
    # reference/tensorrt.md (f): whitepaper.
    Device("H100 SXM", 989.0, 1979.0, 3350.0, "NVIDIA H100 80GB HBM3", 132),
    # The H100's chip, so its rates, and 4.8 TB/s of memory by NVIDIA's data sheet (not in the reference).
    Device("H200", 989.0, 1979.0, 4800.0, "NVIDIA H200", 132),
)


def device_named(cuda_name: str, processors: int) -> Device | None:
    """The device in the table that the CUDA driver calls so and that has so many streaming multiprocessors, if any."""
    return next((d for d in DEVICES if (d.cuda_name, d.processors) == (cuda_name, processors)), None)


@dataclass(frozen=True)
class Operator:
    """One call: its arithmetic in FLOP, and how many numbers it reads and writes."""

    kind: str
    flop: int
    numbers: int

    def seconds(self, device: Device, precision: str) -> float:
        """The lower bound of its time with numbers of two bytes ('fp16') or one ('int8')."""
        tflops, width = (device.fp16_tflops, 2) if precision == FP16 else (device.int8_tflops, 1)
        return max(self.flop / (tflops * 1e12), self.numbers * width / (device.gb_s * 1e9))


# The operators of each of PARTS.
Counts = Mapping[str, Sequence[Operator]]


def flop(operators: Iterable[Operator]) -> int:
    """FLOP of all of them."""
    return sum(operator.flop for operator in operators)


def bound_ms(operators: Iterable[Operator], device: Device, precision: str = FP16) -> float:
    """Milliseconds that they take at least, one after the other."""
    return 1e3 * sum(operator.seconds(device, precision) for operator in operators)


def subject(checkpoint: str, size: tuple[int, int] | None, vae: str = "full", tiny_vae: str = "") -> Subject:
    """What is to be counted; raises `Unusable` where it is not there, does not fit, or torch is missing."""
    try:
        from marigold_ros import counting
    except ImportError as error:
        raise Unusable(
            f"{error.name} is not installed: counting needs torch and diffusers (pip install torch diffusers)"
        ) from error
    return counting.subject(checkpoint, size, vae, tiny_vae)


def size_of(text: str) -> tuple[int, int]:
    """'768x576' as (768, 576), width and height in pixels; for argparse."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r}: must be WIDTHxHEIGHT in pixels, such as 768x576")
    return int(width), int(height)


def flop_table(lean: Counts, whole: Counts) -> str:
    """Parts down; arithmetic folded, unfolded, and the folded one's kinds across."""
    heads = ("folded", "unfolded", *KINDS)
    lines = [f"{'GFLOP':<22}" + "".join(f"{head:>13}" for head in heads)]
    lines.append("-" * len(lines[0]))
    rows = [(part, lean[part], whole[part]) for part in PARTS]
    for name, of_lean, of_whole in [*rows, ("all", everything(lean), everything(whole))]:
        kinds = [flop(operator for operator in of_lean if operator.kind == kind) for kind in KINDS]
        lines.append(f"{name:<22}" + "".join(f"{n / 1e9:>13.1f}" for n in (flop(of_lean), flop(of_whole), *kinds)))
    return "\n".join(lines)


def roofline_table(lean: Counts, whole: Counts, precision: str) -> str:
    """Devices down; the lower bound in milliseconds of each folded part, of all, and of all unfolded across."""
    heads = ("TFLOP/s", "GB/s", *PARTS, "all", "unfolded")
    lines = [f"{'at least, ms':<22}" + "".join(f"{head:>10}" for head in heads)]
    lines.append("-" * len(lines[0]))
    for device in DEVICES:
        tflops = device.fp16_tflops if precision == FP16 else device.int8_tflops
        columns = (*(lean[part] for part in PARTS), everything(lean), everything(whole))
        cells = "".join(f"{bound_ms(column, device, precision):>10.2f}" for column in columns)
        lines.append(f"{device.name:<22}{tflops:>10.1f}{device.gb_s:>10.1f}{cells}")
    return "\n".join(lines)


def everything(counts: Counts) -> list[Operator]:
    """The operators of all parts."""
    return [operator for part in PARTS for operator in counts[part]]


def report(of: Subject, vae: str, precision: str) -> str:
    """Both tables, and what they are of."""
    lean, whole = of.counts(), of.counts(fold=False)
    return "\n".join(
        [
            f"checkpoint: {of.name}, vae: {vae}, working size: {of.width}x{of.height}",
            "counted: the folded network, which engines run ('unfolded': the one that was trained)",
            "",
            flop_table(lean, whole),
            "",
            f"precision: {precision}, peaks without sparsity",
            roofline_table(lean, whole, precision),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="roofline", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="sd2", help="'sd2' (Stable Diffusion 2's size, default), or any other")
    parser.add_argument("--size", type=size_of, default=None, metavar="WxH", help="working size (default: its own)")
    parser.add_argument("--vae", default="full", choices=("full", "tiny", "tiny-decoder"), help="as model.vae")
    parser.add_argument("--tiny-vae", default="madebyollin/taesd", help="as model.tiny_vae; 'sd2' needs none")
    parser.add_argument("--precision", default=FP16, choices=(FP16, INT8), help="of all weights and activations")
    arguments = parser.parse_args(argv)
    try:
        of = subject(arguments.checkpoint, arguments.size, arguments.vae, arguments.tiny_vae)
        print(report(of, arguments.vae, arguments.precision))
    except Unusable as problem:
        print(f"roofline: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
