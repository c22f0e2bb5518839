"""The fields of a run's config, with their defaults; their docstrings are the command line's help."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from jaxdiff.app.config.compression import Autoencoder, Vae
from jaxdiff.app.config.distillation import Distillation
from jaxdiff.app.config.dit import Dit
from jaxdiff.app.config.field_types import (
    BelowOne,
    PositiveInt,
    Prediction,
    SamplerName,
    ScheduleName,
    Spacing,
    StudentName,
    UpToOne,
    Workers,
)
from jaxdiff.app.config.flow import Flow
from jaxdiff.app.config.matching import Matching
from jaxdiff.app.config.published import Betas, Published
from jaxdiff.app.config.text import Text


@dataclass(frozen=True)
class Data:
    """Images and how they are read."""

    name: str = "digits"
    """A data set of tensorflow-datasets with the feature image and maybe label, or one that `jaxdiff data import` made."""
    split: str = "train"
    held_out: str = "test"
    """The split that nothing is trained on: for measures and pictures."""
    image_shape: tuple[int, int, int] = (8, 8, 1)
    """Height, width, channels; images are brought to it by fit."""
    fit: Literal["pad", "resize", "crop"] = "pad"
    """pad: black on all sides; resize: whatever the proportions; crop: the middle, resized in proportion."""
    reduce: PositiveInt = 1
    """Images are brought to image_shape times so many pixels, and averaged over squares of that size: a cascade's base."""
    flip: bool = False
    """Mirror half of the images."""
    batch_size: PositiveInt = 128
    """Over all devices and processes."""
    workers: Workers = -1
    """Processes that read and decode images which do not fit in memory; -1: one for eight cores, beside the threads of all."""
    latents: str = ""
    """The directory of a cache of latents of sources.autoencoder, as `jaxdiff latents` writes it; empty: encode at each step."""


@dataclass(frozen=True)
class Model:
    """The UNet (see jaxdiff.models.unet), or the half of it that is a classifier (jaxdiff.models.classifier); or a transformer."""

    network: Literal["unet", "dit"] = "unet"
    """Of diffusion: dit is a diffusion transformer, which the group dit describes."""
    channels: PositiveInt = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Width of each level; every level but the last halves the image."""
    blocks: PositiveInt = 2
    attention: tuple[int, ...] = ()
    """Image sizes at which attention follows each residual block."""
    head_channels: PositiveInt = 64
    heads: NonNegativeInt = 0
    """Of attention at every width; 0: as many as head_channels gives."""
    transformer: NonNegativeInt = 0
    """Transformer blocks in each attention's place; 0 is attention alone."""
    context_channels: NonNegativeInt = 0
    """Width of the vectors that transformer blocks attend to: of text, or the data set's feature context. 0: none."""
    scale_shift: bool = True
    """Condition residual blocks by scale and shift, not by a sum."""
    num_classes: NonNegativeInt = 10
    """0: a diffusion network that is given no labels."""
    dropout: BelowOne = 0.0
    fourier: tuple[int, ...] = ()
    """Exponents n of inputs sin and cos of 2^n pi x, with which a UNet sees single pixel values: for likelihoods."""
    residual_resampling: bool = False
    """Change the size inside residual blocks; a classifier always does."""
    remat: Literal["none", "attention", "blocks", "everything"] = "none"
    """Layers computed again in the backward pass instead of kept: attention, residual blocks, or both."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are float32."""


@dataclass(frozen=True)
class Diffusion:
    """Noise schedule, what the network predicts, and the weight of the loss."""

    schedule: Literal[ScheduleName, "lognormal", "learned"] = "cosine"
    """Levels that training draws from; learned: by a network of its own, for low variance of the elbo."""
    sampling_schedule: Literal["", ScheduleName] = ""
    """Levels that samplers walk along; empty: the training schedule."""
    prediction: Prediction = "v"
    weight: Literal[Prediction, "truncated_snr", "min_snr", "elbo"] = "v"
    """The weight of a prediction type is the plain error of that network output; elbo is maximum likelihood."""
    label_dropout: UpToOne = 0.1
    """Share of examples trained without their label or caption, for classifier-free guidance."""


@dataclass(frozen=True)
class Cascade:
    """A super-resolution model, which sees the image of sources.base enlarged, and how noisy it is made."""

    factor: PositiveInt = 1
    """How many times higher and wider its images are than those of sources.base; 1 is no cascade."""
    max_augmentation: UpToOne = 0.5
    """Training noises the low-resolution image to a time between 0 and this of the schedule."""
    augmentation: UpToOne = 0.1
    """The time to which sampling noises it."""


@dataclass(frozen=True)
class Sources:
    """Runs that this one starts from: each a directory, or a recipe (.py), whose run is beside this one's, by the recipe's name."""

    autoencoder: str = ""
    """In whose latents diffusion is trained."""
    text: str = ""
    """The run of a text encoder, which encodes captions and prompts."""
    text_2: str = ""
    """Of a second one, whose states stand beside those of the first, and whose pooled vector is used (Stable Diffusion XL)."""
    base: str = ""
    """The model before this one in a cascade, whose samples it enlarges."""
    teacher: str = ""
    """The model that a student is distilled from; a guided student maybe."""
    init: str = ""
    """The diffusion run whose params training starts from, or whose params adapters adapt (distillation.lora_rank)."""
    features: str = ""
    """The classifier whose features an autoencoder's perceptual distance compares, or a file of VGG16 or LPIPS weights (.npz)."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up, clipping and accumulation."""

    learning_rate: PositiveFloat = 2e-4
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up; cosine falls to 0 at the last step."""
    warmup_steps: NonNegativeInt = 0
    b1: BelowOne = 0.9
    b2: BelowOne = 0.999
    weight_decay: NonNegativeFloat = 0.0
    """Of kernels and embeddings; norms and biases, arrays of one dimension, do not decay unless decay_all says so."""
    decay_all: bool = False
    clip_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this global norm; 0 is off."""
    accumulate: PositiveInt = 1
    """Parts of a batch whose gradients are computed one after another and averaged: less memory."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Of Adam's first moment; its second is float32, since bfloat16 would not see it change."""


@dataclass(frozen=True)
class Mesh:
    """How many devices share what; -1 is all that the others leave. Both data and fsdp -1: by the number of devices."""

    data: int = -1
    """Over which the batch is spread."""
    fsdp: int = -1
    """Over which the batch is spread too, and which hold a part of the parameters each: 1 up to eight devices, else eight."""
    tensor: int = 1
    """Over which the features inside a layer are spread."""
    gradients: Literal["float32", "bfloat16"] = "float32"
    """In which gradients are summed over devices."""
    mapping: Literal["jit", "pmap"] = "jit"
    """pmap: the replicated data-parallel twin."""


@dataclass(frozen=True)
class Sampling:
    """How pictures are made during and after training."""

    sampler: SamplerName = "ddim"
    """heun_edm (the published rule) and euler_maruyama want a spacing of logsnr or karras."""
    steps: PositiveInt = 50
    spacing: Spacing = "time"
    """What is uniform along the levels: the schedule's time, logsnr, (sigma / alpha)^(1/7), the root of time; or how the time
    steps of betas are chosen, leading, linspace, trailing or lcm."""
    steps_offset: NonNegativeInt = 0
    """Added to these time steps alone; 1 in Stable Diffusion, whose spacing is leading."""
    eta: UpToOne = 0.0
    """Share of fresh noise in ddim, and gamma of flow_map; ddpm and dpmpp_2m_sde always have all of it."""
    guidance: float = 2.0
    """1 is none, 0 the unconditional model."""
    classifier: str = ""
    """The directory of a classifier's run, whose gradient guides the samples to their labels; empty: none."""
    classifier_scale: float = 1.0
    """Of that gradient."""
    clip: bool = True
    """Clip each predicted x0 to [-1, 1]."""
    num: PositiveInt = 100
    batch_size: PositiveInt = 32
    """Images that a device makes at once, at most."""
    every: NonNegativeInt = 0
    """Steps between grids of samples during training; 0 is never."""
    prompts: tuple[str, ...] = ()
    """Of these grids, in turn, for a run with text."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured at the end of a run."""

    num: NonNegativeInt = 0
    """Samples to judge by a classifier trained on the real data, at least 10; 0 is no evaluation."""
    epochs: PositiveInt = 30
    """Of the classifier's training."""
    batch_size: PositiveInt = 128
    """Samples that a device makes at once, at most, and images whose features are computed at once."""


@dataclass(frozen=True)
class Experiment:
    """One recipe: everything that makes a run what it is."""

    objective: Literal["diffusion", "classifier", "vae", "autoencoder", "text", StudentName] = "diffusion"
    """What is trained: a diffusion network; a classifier of noised images, which reads the schedule alone of diffusion; a
    variational autoencoder by its likelihood, or the autoencoder of latent diffusion, which read nothing of it; or a student
    (see distillation) that does with one call what guidance does with two, samples in few steps, or in one (a flow_map too, see
    flow). A text encoder (text) is imported, and trained only beside a diffusion network."""
    data: Data = Data()
    model: Model = Model()
    dit: Dit = Dit()
    text: Text = Text()
    published: Published = Published()
    betas: Betas = Betas()
    diffusion: Diffusion = Diffusion()
    distillation: Distillation = Distillation()
    flow: Flow = Flow()
    matching: Matching = Matching()
    vae: Vae = Vae()
    autoencoder: Autoencoder = Autoencoder()
    cascade: Cascade = Cascade()
    sources: Sources = Sources()
    optimizer: Optimizer = Optimizer()
    ema: Mapping[str, float] = field(default_factory=lambda: {"ema": 0.999})
    """Name and decay of each average of the parameters; samples come from the first."""
    ema_dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: half the memory, rounded at random."""
    power_ema: tuple[float, ...] = ()
    """Lengths of further averages (0.05 0.1), of whose snapshots `jaxdiff ema` makes an average of any length afterwards."""
    snapshot_every: NonNegativeInt = 0
    """Steps between these snapshots, of the size of the params a length; 0: as checkpoint_every. All are kept."""
    steps: PositiveInt = 10_000
    steps_per_call: NonNegativeInt = 0
    """Steps that the devices do one after another without the host; 0: as many as last 0.1 s, by the time of the first ones (on
    a CPU and under pmap: one)."""
    seed: NonNegativeInt = 0
    log_every: PositiveInt = 50
    checkpoint_every: PositiveInt = 500
    keep: PositiveInt = 3
    """Checkpoints kept: the last ones."""
    mesh: Mesh = Mesh()
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
