"""A recipe: everything that decides a training run, checked (recipe_files.py reads them from YAML).

A run is one stage or several; each starts from the weights that the one before it left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from marigold_ros.canonical import MetricScale
from marigold_ros.config import Unusable
from marigold_ros.family import TARGET_INPUTS, ZEROS
from marigold_ros.metric import SPACES

_MOST_SEEDS = 2**20
# What a network is trained to say, and the maps of a sample that it needs for it.
TASKS: Mapping[str, tuple[str, ...]] = {
    "depth": ("depth_m",),
    "normals": ("normals",),
    "iid-appearance": ("albedo", "material"),
    "iid-lighting": ("albedo", "shading", "residual"),
}
TRAINABLE = ("unet", "encoder", "decoder")
# What a stage leaves.
LAST, BEST = "last", "best"


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises `Unusable` for a value that is not among those allowed."""
    if value not in allowed:
        raise Unusable(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")


def positive(**values: float) -> None:
    """Raises `Unusable` for the first of the values that is not above zero."""
    for name, value in values.items():
        if not value > 0:
            raise Unusable(f"{name}={value!r}: must be greater than 0")


@dataclass(frozen=True)
class Start:
    """Where the weights come from.

    checkpoint: a folder, a hub id or 'nano': Stable Diffusion 2 or any of the family; '' is random weights of
    the sizes in `network`.
    surgery: how the first convolution of a U-Net made for images alone is widened, 'marigold' or 'e2e' (that one also
    halves its bias).
    tiny_vae: a tiny VAE (a folder or a hub id) in place of the checkpoint's; 'random' is an untrained one.
    """

    checkpoint: str = ""
    surgery: str = "marigold"
    tiny_vae: str = ""

    def __post_init__(self) -> None:
        one_of("start.surgery", self.surgery, ("marigold", "e2e"))


@dataclass(frozen=True)
class Network:
    """Sizes of a network that starts from random weights; see trainer/architecture.py."""

    vae_channels: tuple[int, ...] = (8, 24, 48, 64)
    latent_channels: int = 8
    vae_groups: int = 8
    unet_channels: tuple[int, ...] = (64, 128, 160)
    prompt_width: int = 64

    def __post_init__(self) -> None:
        if any(channels % self.vae_groups for channels in self.vae_channels):
            raise Unusable(f"network.vae_channels={list(self.vae_channels)}: must be multiples of {self.vae_groups}")
        if any(channels % 32 for channels in self.unet_channels):
            raise Unusable(f"network.unet_channels={list(self.unet_channels)}: must be multiples of 32")


@dataclass(frozen=True)
class Source:
    """A dataset in the layout of trainer/samples.py, and how its pictures become batches.

    folder: where, below --data unless absolute; name by default. weight: its share of the batches.
    sizes: (width, height, chance) of the shapes that batches have, pixels; a picture goes into the shape nearest to
    its own. crop: 'random', or 'kitti' (unscaled, at the bottom in the middle: KITTI's benchmark crop).
    valid_m: depths from and to which a pixel is known; the sky counts as beyond.
    """

    name: str
    sizes: tuple[tuple[int, int, float], ...]
    folder: str = ""
    split: str = "train"
    weight: float = 1.0
    crop: str = "random"
    valid_m: tuple[float, float] = (0.0, float("inf"))

    def __post_init__(self) -> None:
        one_of(f"data {self.name!r}: crop", self.crop, ("random", "kitti"))
        positive(weight=self.weight)
        if self.weight == float("inf"):
            raise Unusable(f"data {self.name!r}: weight={self.weight}: must be finite")
        check_sizes(f"data {self.name!r}", self.sizes)


def check_sizes(where: str, sizes: tuple[tuple[int, int, float], ...]) -> None:
    """Raises `Unusable` for a batch's shape that the networks cannot take."""
    for size in sizes:
        if len(size) != 3 or size[0] % 8 or size[1] % 8 or min(size) <= 0:
            raise Unusable(f"{where}: size {size}: must be width and height, multiples of 8, and a chance")


@dataclass(frozen=True)
class Augment:
    """How samples are varied: chances, but for `zoom` (side of the crop as a share of the largest crop of that shape)
    and `aspect` (crops are stretched by up to this factor minus one).

    gaussian_blur, motion_blur: as published for normals, of samples at least 768 pixels high, before they are cut.
    """

    zoom: tuple[float, float] = (1.0, 1.0)
    aspect: float = 0.0
    flip: float = 0.5
    jitter: float = 0.0
    gaussian_blur: float = 0.0
    motion_blur: float = 0.0
    colour: float = 0.0
    grey: float = 0.0
    haze: float = 0.0
    shadow: float = 0.0
    glare: float = 0.0
    vignette: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.zoom[0] <= self.zoom[1] <= 1:
            raise Unusable(f"augment.zoom={list(self.zoom)}: must grow, and lie above 0 and not above 1")


@dataclass(frozen=True)
class Optimiser:
    """Adam with decoupled weight decay; the learning rate warms up linearly, then falls exponentially to `final_lr`
    at `decay_steps` (0: at the stage's end) and stays there.

    clip_norm: 0 does not clip. ema: decay per step of the moving average of the weights, which is what ships; 0: none.
    """

    lr: float = 3e-5
    final_lr: float = 3e-7
    decay_steps: int = 0
    warmup_steps: int = 100
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        positive(lr=self.lr, final_lr=self.final_lr)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise Unusable(f"optimiser.betas={list(self.betas)}: must be at least 0 and less than 1")
        if not 0 <= self.ema < 1:
            raise Unusable(f"optimiser.ema={self.ema}: must be at least 0 and less than 1")


@dataclass(frozen=True)
class RelativeLoss:
    """Knobs of the loss in the checkpoint's own space, after scale and shift; see trainer/losses.py."""

    far_m: float = 150.0
    sky_weight: float = 0.3
    relative_power: float = 0.75
    weight_spread: float = 8.0
    gradient: float = 0.2
    gradient_scales: int = 4
    anchor: float = 0.3
    outside: float = 1.0


@dataclass(frozen=True)
class Diffusion:
    """Marigold's own training: the velocity of a noisy target latent at a random timestep.

    noise: 'annealed' (multi-resolution, its strength falling with the timestep), 'pyramid' or 'gaussian'.
    mask: only latent cells all of whose pixels are known count.
    """

    KIND = "diffusion"

    noise: str = "annealed"
    strength: float = 0.9
    mask: bool = True

    def __post_init__(self) -> None:
        one_of("objective.noise", self.noise, ("annealed", "pyramid", "gaussian"))


@dataclass(frozen=True)
class EndToEnd:
    """One step from the last timestep, decoded, against the truth (E2E-FT).

    target_input: what stands for the noisy target, 'zeros', or 'gaussian' or 'pyramid' noise for the published ablation
    (validation, `evaluate` and `estimate` start from the same; the node and `export` refuse the result).
    loss: 'affine_metres' and 'angular' as published; 'relative' in the checkpoint's space; 'log_metric'.
    prior: weight of keeping the details that the samples' map `prior` has (relative loss only).
    """

    KIND = "end_to_end"

    loss: str = "affine_metres"
    target_input: str = ZEROS
    relative: RelativeLoss = RelativeLoss()
    prior: float = 0.0

    def __post_init__(self) -> None:
        one_of("objective.loss", self.loss, ("affine_metres", "angular", "relative", "log_metric"))
        one_of("objective.target_input", self.target_input, TARGET_INPUTS)
        if self.prior and self.loss != "relative":
            raise Unusable(f"objective.prior={self.prior}: is for loss 'relative', not {self.loss!r}")


@dataclass(frozen=True)
class Latents:
    """The latent of the depth map that the VAE's encoder gives, from the image in one step: no decoder, hence fast."""

    KIND = "latents"

    relative: RelativeLoss = RelativeLoss()


@dataclass(frozen=True)
class Autoencoder:
    """The VAE alone: images and depth maps in all spaces."""

    KIND = "autoencoder"

    image_share: float = 0.5
    l1: float = 1.0
    l2: float = 1.0
    kl: float = 1e-5
    relative: RelativeLoss = RelativeLoss()


@dataclass(frozen=True)
class Consistency:
    """Consistency distillation of a diffusion network (LCM): the same answer from neighbouring points of its path.

    timesteps: how many the path has; ema_target: decay of the network that is to be agreed with; huber: c of the loss.
    """

    KIND = "consistency"

    timesteps: int = 5
    ema_target: float = 0.95
    huber: float = 0.001
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5
    mask: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.timesteps <= 1000:
            raise Unusable(f"objective.timesteps={self.timesteps}: must lie between 1 and 1000")


Objective = Diffusion | EndToEnd | Latents | Autoencoder | Consistency
OBJECTIVES: Mapping[str, type] = {kind.KIND: kind for kind in (Diffusion, EndToEnd, Latents, Autoencoder, Consistency)}


# The parts that an objective must train, and those that it can.
_LEARNING: Mapping[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Diffusion: (("unet",), ("unet",)),
    Consistency: (("unet",), ("unet",)),
    Latents: (("unet",), ("unet", "encoder")),
    Autoencoder: (("encoder", "decoder"), ("encoder", "decoder")),
    EndToEnd: ((), TRAINABLE),
}


@dataclass(frozen=True)
class Stage:
    """A stretch of training.

    batch: pictures per step, of all processes; micro_batch: pictures that a process takes at once, from one dataset.
    train: the parts that learn: 'unet', 'encoder', 'decoder'. sizes: instead of those of every source.
    """

    steps: int
    objective: Objective
    name: str = "main"
    batch: int = 32
    micro_batch: int = 2
    train: tuple[str, ...] = ("unet",)
    optimiser: Optimiser = Optimiser()
    sizes: tuple[tuple[int, int, float], ...] = ()

    def __post_init__(self) -> None:
        positive(steps=self.steps, batch=self.batch, micro_batch=self.micro_batch)
        for part in self.train:
            one_of(f"stage {self.name!r}: train", part, TRAINABLE)
        if self.batch % self.micro_batch:
            raise Unusable(
                f"stage {self.name!r}: batch={self.batch}: must be a multiple of micro_batch={self.micro_batch}"
            )
        check_sizes(f"stage {self.name!r}", self.sizes)

    @property
    def passes(self) -> int:
        """Micro-batches per step, of all processes together."""
        return self.batch // self.micro_batch


def target_input_of(stage: Stage) -> str:
    """What the one step of the network that `stage` leaves starts from; of those of several steps it means nothing."""
    return getattr(stage.objective, "target_input", ZEROS)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, the samples aside.

    task: what is predicted, see `TASKS`. space: depth is affine in 'depth', 'inverse_depth' or 'log_depth'.
    size: working size (width, height) that the result asks for, pixels; zeros are the start's own.
    precision: 'no' (float32), 'bf16' or 'fp16' for the heavy arithmetic. gradient_checkpointing: of the U-Net, less
    memory for more time. damaged: 'refuse' or 'skip' samples that cannot be read.
    validate_steps: held-out samples are measured this often, and at the end of each stage; 0: never. validate_samples:
    how many, see trainer/validation. result: the weights that a stage leaves, of its 'last' step or of the 'best' of
    those that were validated. patience: so many validations in a row that are no better than the best end a stage; 0:
    nothing does.
    save_steps: state is saved this often; keep: so many states are kept; log_steps, picture_steps: how often numbers
    and pictures are written. bad_steps: so many steps in a row without a finite loss end the run.
    latent_cache: folder that keeps what a frozen encoder gives, for recipes that vary pictures by flips alone; '' keeps
    nothing. Pictures of another shape than the batch are cut at random places, each of which is one to keep.
    workers: processes that prepare batches, for each that trains; -1 chooses. threads: of the CPU; 0 chooses.
    """

    stages: tuple[Stage, ...]
    data: tuple[Source, ...]
    task: str = "depth"
    space: str = "depth"
    metric: MetricScale | None = None
    seed: int = 2024
    size: tuple[int, int] = (0, 0)
    start: Start = Start()
    network: Network = Network()
    augment: Augment = Augment()
    precision: str = "no"
    gradient_checkpointing: bool = False
    damaged: str = "refuse"
    validate_steps: int = 500
    validate_samples: int = 48
    result: str = LAST
    patience: int = 0
    save_steps: int = 500
    keep: int = 2
    log_steps: int = 20
    picture_steps: int = 500
    bad_steps: int = 20
    latent_cache: str = ""
    workers: int = -1
    threads: int = 0

    def __post_init__(self) -> None:
        one_of("task", self.task, tuple(TASKS))
        one_of("space", self.space, tuple(SPACES))
        one_of("precision", self.precision, ("no", "bf16", "fp16"))
        one_of("damaged", self.damaged, ("refuse", "skip"))
        one_of("result", self.result, (LAST, BEST))
        positive(validate_samples=self.validate_samples)
        if min(self.validate_steps, self.patience) < 0:
            raise Unusable(
                f"validate_steps={self.validate_steps}, patience={self.patience}: must be at least 0; 0 does without"
            )
        if not self.validate_steps and (self.result == BEST or self.patience):
            raise Unusable(
                f"validate_steps=0: without validation there is no best for result={self.result!r} and "
                f"patience={self.patience}; set it above 0, or these to 'last' and 0"
            )
        positive(save_steps=self.save_steps, keep=self.keep, log_steps=self.log_steps, bad_steps=self.bad_steps)
        positive(picture_steps=self.picture_steps)
        if not self.stages or not self.data:
            raise Unusable("a recipe needs at least one stage and one source of data")
        if not 0 <= self.seed < _MOST_SEEDS:
            raise Unusable(f"seed={self.seed}: must lie between 0 and {_MOST_SEEDS - 1}")
        if self.threads < 0 or min(self.size) < 0:
            raise Unusable(f"threads={self.threads}, size={list(self.size)}: must be at least 0")
        if self.latent_cache:
            self._check_cache()
        for stage in self.stages:
            self._check_objective(stage)
            if not stage.sizes and not all(source.sizes for source in self.data):
                raise Unusable(f"stage {stage.name!r}: neither it nor every source of data has sizes; give them")
        metric_loss = any(getattr(stage.objective, "loss", "") == "log_metric" for stage in self.stages)
        if metric_loss != (self.metric is not None) or (self.metric and self.space != "log_depth"):
            raise Unusable(
                f"metric={self.metric} with space={self.space!r}: metric depth needs the section metric, space "
                "'log_depth' and the loss 'log_metric', all three"
            )

    def _check_cache(self) -> None:
        """Raises `Unusable` where a latent would hardly be asked for twice, or no encoder is frozen."""
        if replace(self.augment, flip=0.0) != Augment(flip=0.0) or self.metric is not None:
            what = "the zoom of metric depth" if self.metric is not None else "this recipe's augment (but its flip)"
            raise Unusable(f"latent_cache={self.latent_cache!r}: with {what} no picture comes twice; set it to ''")
        if self.start.tiny_vae or all("encoder" in stage.train for stage in self.stages):
            raise Unusable(f"latent_cache={self.latent_cache!r}: no stage has a frozen encoder; set it to ''")

    def _check_objective(self, stage: Stage) -> None:
        """Raises `Unusable` for an objective that means nothing to the task or the space."""
        objective = stage.objective
        loss = getattr(objective, "loss", "")
        if isinstance(objective, EndToEnd):
            fitting = ("normals",) if loss == "angular" else ("depth",)
        else:
            fitting = ("depth",) if isinstance(objective, (Latents, Autoencoder)) else tuple(TASKS)
        if self.task not in fitting:
            what = f"{objective.KIND}, loss {loss!r}" if loss else objective.KIND
            raise Unusable(f"stage {stage.name!r}: objective {what} is for task {fitting[0]!r}, not {self.task!r}")
        if (loss == "affine_metres" or isinstance(objective, (Diffusion, Consistency))) and self.space != "depth":
            raise Unusable(
                f"stage {stage.name!r}: {loss or objective.KIND} makes depth affine in 'depth', not {self.space!r}; "
                "use end_to_end with loss 'relative', or space 'depth'"
            )
        needed, possible = _LEARNING[type(objective)]
        if not set(needed) <= set(stage.train) <= set(possible) or not stage.train:
            raise Unusable(
                f"stage {stage.name!r}: train={list(stage.train)}: objective {objective.KIND} trains "
                f"{' and '.join(needed) or 'at least one'} of {', '.join(possible)}"
            )
        if self.start.tiny_vae and not isinstance(objective, EndToEnd):
            raise Unusable(f"start.tiny_vae: is for objective end_to_end, not {objective.KIND}")

    @property
    def maps(self) -> tuple[str, ...]:
        """The maps that samples must have."""
        prior = any(getattr(stage.objective, "prior", 0) for stage in self.stages)
        return (*TASKS[self.task], "prior") if prior else TASKS[self.task]
