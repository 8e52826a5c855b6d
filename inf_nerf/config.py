"""One typed configuration: all defaults live here, a YAML file holds only differences.

The same dotted keys serve files, ``--set key=value`` and sweeps.  Unknown keys are refused by name with the nearest
known one, and numbers such as ``1e-2``, which YAML reads as text, are numbers.  The text below a key is what it means,
with its unit in brackets at the end; :mod:`inf_nerf.key_meaning` shows it.
"""

import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from inf_nerf.config_file import flattened, in_own_keys, merge, read_yaml, set_keys, validated
from inf_nerf.places import Place

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
AlertName = Literal[
    "not_finite",
    "loss_spike",
    "anomaly",
    "host_memory",
    "device_memory",
    "data_stall",
    "unbalanced",
    "device_idle",
    "throughput",
    "stalled",
]


class Section(BaseModel):
    """A group of keys; immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SceneConfig(Section):
    """Which photos, how large, in which frame, and which are held out."""

    format: Literal["auto", "colmap", "transforms"] = "auto"
    """How the data folder describes photos: a COLMAP model, a transforms.json, or whichever is there."""
    images_dir: str = "images"
    """Folder of the photos in the data folder."""
    masks_dir: str | None = None
    """Folder of masks: same relative names as the photos, any suffix; black pixels are ignored. null: none."""
    max_side: Annotated[int, Field(ge=16)] | None = None
    """Longest side of pyramid level 0; null: as photographed. [pixels]"""
    pyramid_levels: Annotated[int, Field(ge=1, le=12)] = 5
    """Sizes of every photo that are learned from, each half as large as the one before."""
    min_observations: Annotated[int, Field(ge=2)] = 3
    """Photos that must have seen a sparse point for it to count."""
    percentile: Annotated[float, Field(ge=0, lt=50)] = 1.0
    """Sparse points beyond it on either side do not shape the root cube. [percent]"""
    margin: NonNegative = 0.04
    """The percentile box grows by this share of its extent on each side."""
    orientation: Literal["auto", "none"] = "auto"
    """auto turns the scene so that z is up and the ground lies flat; none keeps the axes of the model."""
    test_every: Annotated[int, Field(ge=2)] = 8
    """Of the photos in the order of their names, every so-manyth is a test photo, which is only reported on."""
    val_every: Annotated[int, Field(ge=0)] = 16
    """Of the photos that are not test, every so-manyth is a val photo, by which checkpoints are scored; 0: none."""
    train_list: Path | None = None
    """Text file of the training photos, one name a line; replaces the rule. null: none."""
    val_list: Path | None = None
    """Text file of the val photos, one name a line; replaces the rule. null: none."""
    test_list: Path | None = None
    """Text file of the test photos, one name a line; replaces the rule. null: none."""
    val_images: tuple[str, ...] = ()
    """Photos that are val in place of the rule, if the scene has them; those that it lacks are a warning."""


class OctreeConfig(Section):
    """How finely space is divided."""

    num_levels: Annotated[int, Field(ge=1, le=20)] = 4
    """Most levels of the tree, the root's included."""
    min_points: Count = 6
    """Finer points that an octant must hold to become a node."""
    footprint_px: Positive = 1.0
    """Radius of a footprint, for points and samples alike. [sides of a pixel]"""
    res_upsample: Positive = 2.0
    """A node's resolution (gsd) is its side / (field.max_res * res_upsample)."""
    update_every: Annotated[int, Field(ge=0)] = 0
    """How often nodes are added while training, where many samples ask for finer ones and errors stay; 0: never.
    [steps]"""
    subdivision_threshold: NonNegative = 0.5
    """Mean squared error of the rays that ask for a finer node, above which it is added. [of that of all rays]"""
    prune_every: Annotated[int, Field(ge=0)] = 0
    """How often leaves are removed while training that no ray needs; their parents answer then. 0: never. [steps]"""
    pruning_threshold: NonNegative = 0.01
    """Light that a leaf without anything in it may answer and still be removed. [of what a mean node answers]"""
    min_node_size: NonNegative = 0.0
    """Side below which no node is added. [scene units, half sides of the root cube]"""
    max_nodes: Count | None = None
    """Nodes beyond which none is added; null: twice those that the sparse points made."""

    @property
    def adapts(self) -> bool:
        """Whether nodes come or go while training."""
        return self.update_every > 0 or self.prune_every > 0


class FieldConfig(Section):
    """The radiance field of every node."""

    backend: Literal["auto", "torch", "numba", "triton", "tinycudann"] = "auto"
    """Code that looks up hash grids; auto takes the fastest that runs here and says which."""
    num_levels: Annotated[int, Field(ge=1, le=32)] = 16
    """Resolutions of a node's hash grid."""
    features_per_level: Literal[1, 2, 4, 8] = 2
    """Numbers that an entry of the hash grid holds."""
    log2_table_size: Annotated[int, Field(ge=8, le=24)] = 19
    """Entries of each resolution's table, as a power of two."""
    base_res: Annotated[int, Field(ge=2)] = 16
    """Cells along a node's side at the coarsest resolution. [cells]"""
    max_res: Annotated[int, Field(ge=4)] = 2048
    """Cells along a node's side at the finest resolution. [cells]"""
    hidden_density: Count = 64
    """Width of the hidden layer of the density head."""
    hidden_color: Count = 64
    """Width of the two hidden layers of the colour head."""
    geo_features: Count = 15
    """Numbers that the density head hands to the colour head."""
    appearance_dim: Annotated[int, Field(ge=0)] = 32
    """Numbers that describe the light and exposure of a photo; 0: all photos look alike."""
    initial_density: Positive = 10.0
    """Density that training starts from: haze that a thin slab of ground shows through. [1 / scene unit]"""

    @model_validator(mode="after")
    def _resolutions_grow(self) -> "FieldConfig":
        if self.base_res > self.max_res:
            raise ValueError(f"base_res ({self.base_res}) must not exceed max_res ({self.max_res})")
        return self


class SamplerConfig(Section):
    """Where along a ray the field is asked."""

    kind: Literal["occupancy", "tree"] = "occupancy"
    """occupancy skips space that is known to be empty; tree places samples by densities, as the paper does."""
    step: Positive = 0.7
    """Shortest step along a ray. [footprints]"""
    near: Positive = 0.02
    """A camera inside the cube sees nothing nearer. The paper: 0.03; a street in a city of kilometres needs less: 0.02
    of 3 km are 60 m. [scene units: half sides of the root cube]"""
    max_samples: Count = 1024
    """Most candidate steps of a ray from entering to leaving the root cube, skipped ones included."""
    tree_samples: tuple[Count, Count, Count] = (192, 96, 48)
    """Samples of a ray in the three rounds of the tree sampler; the last are rendered."""
    background_samples: Annotated[int, Field(ge=0, le=256)] = 8
    """Samples of a ray beyond the root cube; 0: there is no background."""
    occupancy_res: Annotated[int, Field(ge=4, le=256)] = 32
    """Cells along the side of a node's occupancy grid. [cells]"""
    occupancy_threshold: Positive = 0.05
    """Optical depth of a cell below which it counts as empty."""
    occupancy_every: Count = 16
    """Steps between probes of the occupancy grids. [steps]"""
    occupancy_warmup: Annotated[int, Field(ge=0)] = 128
    """Steps in which all space counts as occupied; at least four probes long. [steps]"""
    samples: Positive = 15.0
    """Samples asked for their density, mean per ray in training; while more would be, steps lengthen."""
    occupancy_decay: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Part of a cell's density that is left from probe to probe."""


class LossConfig(Section):
    """Weights of the losses; zero switches one off."""

    lambda_rgb: NonNegative = 1.0
    """Weight of the squared error of the colours."""
    lambda_depth: NonNegative = 0.003
    """Weight of the distance of tracked sparse points along their rays."""
    lambda_sparsity: NonNegative = 0.002
    """Weight of density in places drawn in the nodes: empty unless photos say otherwise."""
    lambda_consistency: NonNegative = 0.01
    """Weight of the difference between a node and its children seen from afar."""
    lambda_regularization: NonNegative = 0.0005
    """Weight of the spread of a ray's samples (mip-NeRF 360's distortion)."""
    lambda_appearance: NonNegative = 1e-4
    """Weight of the size of appearance vectors, lest they explain geometry."""
    regularised_nodes: Count = 4
    """Nodes drawn in a step for each of the two node losses."""
    regularised_points: Count = 512
    """Points drawn in each of them."""
    depth_rays: Annotated[int, Field(ge=0)] = 256
    """Rays of tracked points in a step over all workers. [rays]"""


class DataConfig(Section):
    """Image tiles on disk and in memory."""

    tile_size: Annotated[int, Field(ge=8, le=1024)] = 64
    """Side of an image tile. [pixels]"""
    level_boost: Positive = 2.0
    """A pixel of pyramid level l is drawn level_boost**l times as often as one of level 0."""
    reservoir_mb: Positive = 1024.0
    """Decoded tiles that one worker keeps. [MB]"""
    swap_every: Count = 100
    """Steps between exchanges of part of a reservoir that is smaller than its shard. [steps]"""


class TrainConfig(Section):
    """Optimiser, budget and workers."""

    steps: Count = 200_000
    """Steps of a whole training, if train.max_seconds does not end it before. [steps]"""
    epochs: Positive | None = None
    """Passes over the pixels of the training photos, all pyramid levels of them, in place of train.steps; null: steps
    count. [passes]"""
    max_seconds: Positive | None = None
    """A training ends then even if steps are left, from the first step on and without the final evaluation; null: no
    limit. [seconds]"""
    batch_size: Count = 65_536
    """Rays of one step over all workers. [rays]"""
    accumulate: Count = 1
    """Parts in which the rays of a step are rendered and differentiated one after another, for less memory."""
    lr_init: Positive = 1e-2
    """Learning rate of the first step."""
    lr_final: Positive = 1e-4
    """Learning rate of the last step, and the least there is."""
    schedule: Literal["exponential", "step"] = "exponential"
    """How the rate falls: evenly on a log axis from lr_init to lr_final, or by lr_gamma every lr_every steps."""
    lr_decay_start: Annotated[int, Field(ge=0)] = 0
    """Steps at lr_init before the rate falls. [steps]"""
    lr_decay_steps: Count | None = None
    """Steps in which schedule exponential goes from lr_init to lr_final; null: until the budget ends. [steps]"""
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Factor on the rate of schedule step."""
    lr_every: Count = 1000
    """Steps between falls of schedule step. [steps]"""
    weight_decay: NonNegative = 0.0
    """Part of the heads' weights, times the rate, that a step takes away; tables and appearance are left alone."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the heads' products while training; float16 gets a loss scale and needs a GPU; auto is float16 on a GPU
    and float32 on a CPU."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Adam's memory of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Adam's memory of squared gradients."""
    eps: Positive = 1e-15
    """Keeps Adam from dividing by zero; entries of hash grids have tiny gradients, so it has to be tiny."""
    grad_clip: NonNegative = 0.0
    """Largest norm of the joint gradient of all workers; 0: no clipping."""
    num_workers: int | tuple[int, int] = 1
    """Ray Train workers; [least, most] while machines come and go; 0: in this process."""
    cpus_per_worker: Positive = 1.0
    """Cores that Ray reserves for a worker, and threads that it uses."""
    gpus_per_worker: NonNegative = 0.0
    """GPUs that Ray reserves for a worker; 0: it trains on the CPU."""
    shared_upper_levels: Count = 1
    """Levels of the tree, from the root down, that all workers hold and train together; where subtrees are uneven, more
    is shared."""
    node_memory_mb: Annotated[float, Field(ge=1e-3)] | None = None
    """Nodes in training on a worker; what does not fit is trained in turns. null: all at once. [MB]"""
    turn_steps: Count = 500
    """Steps of each turn. [steps]"""
    subtree: str | None = None
    """Node, for example r05, below which a trained model is trained again; null: all of it."""
    shared_every: Count = 1
    """Steps in which gradients of shared nodes and appearance collect before they are applied. [steps]"""
    shared_gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients of shared nodes travel between workers."""
    foreign: Literal["discount", "exchange"] = "discount"
    """What other workers' nodes would answer on a ray: discount counts a pixel less the more of it that is; exchange
    has workers tell each other what their parts of a ray look like."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything that is drawn at random."""
    deterministic: bool = False
    """Whether torch refuses operations that give other bits on the next run; on a GPU only backend torch has none."""
    log_every: Count = 20
    """Steps between rows of metrics. [steps]"""
    save_every: Count = 5000
    """Steps between checkpoints. [steps]"""
    save_seconds: Positive = 300.0
    """Most seconds between checkpoints. [seconds]"""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept, beside the one that val photos like best."""
    eval_every: Annotated[int, Field(ge=0)] = 0
    """Steps between scores of the val rays; 0: with every checkpoint. [steps]"""
    picture_every: Annotated[int, Field(ge=0)] = 0
    """Steps between pictures of a val photo beside its render, in pictures/training; 0: none. [steps]"""
    val_rays: Count = 4096
    """Fixed rays of the val photos that scores are taken of. [rays]"""
    profiler: bool = False
    """Whether torch's profiler writes traces of some steps of every worker into profiler/."""
    profiler_schedule: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Count, Count] = (1, 1, 3, 2)
    """Steps that the profiler waits, warms up and records, and how often it does all that. [steps]"""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Lost workers and broken attempts that a training survives."""
    resize_seconds: Positive = 60.0
    """Seconds between looks whether there is room for more of [least, most] workers. [seconds]"""
    collective_timeout_seconds: Annotated[float, Field(ge=1)] = 120.0
    """Silence after which a worker is given up; whole seconds count. [seconds]"""

    @field_validator("num_workers", mode="before")
    @classmethod
    def _a_number_of_workers_or_a_range(cls, value: Any) -> Any:
        counts = list(value) if isinstance(value, list | tuple) else [value]
        whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
        if isinstance(value, list | tuple):
            usable = whole and len(counts) == 2 and 1 <= counts[0] <= counts[1]
        else:
            usable = whole and value >= 0
        if not usable:
            raise ValueError("expected a number from 0 on, or [least, most] with 1 <= least <= most")
        return value

    def steps_for(self, pixels: int) -> int:
        """Steps of a training on photos of so many pixels on all pyramid levels."""
        return self.steps if self.epochs is None else max(1, math.ceil(self.epochs * pixels / self.batch_size))

    @property
    def least_workers(self) -> int:
        """Ranks without which there is no training; 1 for a training in this process."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else max(1, self.num_workers)

    @property
    def most_workers(self) -> int:
        """Ranks that a training uses if the cluster holds them."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else max(1, self.num_workers)

    @model_validator(mode="after")
    def _rates_decay(self) -> "TrainConfig":
        if self.lr_final > self.lr_init:
            raise ValueError(f"lr_final ({self.lr_final}) must not exceed lr_init ({self.lr_init})")
        return self

    @model_validator(mode="after")
    def _clipping_knows_the_norm(self) -> "TrainConfig":
        if self.grad_clip and self.shared_every > 1:
            raise ValueError(
                f"grad_clip ({self.grad_clip:g}) needs the joint gradient of every step, so shared_every must be 1, "
                f"not {self.shared_every}"
            )
        return self


class EvalConfig(Section):
    """How held-out photos are scored."""

    chunk_samples: Annotated[int, Field(ge=1024)] = 8_388_608
    """Candidate samples of a picture held at once. [samples]"""
    right_half: bool = True
    """Whether photos are also scored on their right half with an appearance fitted on the left one."""
    appearance_steps: Annotated[int, Field(ge=0)] = 100
    """Steps of fitting an appearance. [steps]"""
    appearance_rays: Count = 1024
    """Rays of a step of fitting an appearance. [rays]"""
    appearance_lr: Positive = 0.05
    """Learning rate of fitting an appearance."""
    lpips_backbone: Path | None = None
    """File with torchvision's weights of AlexNet or VGG-16, for LPIPS; nothing is ever downloaded. null: no LPIPS."""
    sheet_photos: Annotated[int, Field(ge=0)] = 4
    """Test photos on the sheet beside their renders and errors; 0: no sheet."""


class RenderConfig(Section):
    """Pictures and videos."""

    width: Count = 640
    """Width of a picture. [pixels]"""
    height: Count = 480
    """Height of a picture. [pixels]"""
    frames: Count = 90
    """Pictures of a video."""
    fps: Count = 24
    """Pictures a second of a video. [1 / second]"""
    fov_degrees: Annotated[float, Field(gt=0, lt=175)] = 55.0
    """Horizontal field of view. [degrees]"""
    appearance: Literal["mean", "photos"] = "mean"
    """Light and exposure: mean of all photos, or, along the path photos, that of the photos passed."""
    lod_blend: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Width over which two octree levels are mixed. [octaves]"""


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = True
    """Whether MLflow records the run."""
    experiment: str = "inf-nerf"
    """MLflow experiment that the run belongs to."""
    run_name: str | None = None
    """Name of the MLflow run; null: that of the run directory."""
    description: str | None = None
    """What the run is about, shown with it; null: nothing."""
    version: str | None = None
    """Tag version of the run; null: none."""
    labels: tuple[str, ...] = ()
    """Names by which runs are found: the run's tag labels holds them, joined by commas."""
    uri: str | None = None
    """MLflow store; null: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory."""
    log_checkpoint: bool = False
    """Whether checkpoints are uploaded; otherwise only their paths and hashes are recorded."""
    register_as: str | None = None
    """Name in the model registry under which trained models become versions; null: none."""

    @field_validator("register_as")
    @classmethod
    def _a_name_that_a_registry_takes(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or set(value) & set("/:'")):
            raise ValueError("expected a name without '/', ':' and quotation marks")
        return value


class DebugConfig(Section):
    """Looking into gradients, values and activations of every node while training; reports in RUN/debug."""

    enabled: bool = False
    """Whether a training looks into its numbers."""
    every: Count = 20
    """Steps between two looks."""
    samples: Annotated[int, Field(ge=2)] = 32
    """Samples of a node of which a look computes hidden activations again."""
    gradient_norm: Positive = 100.0
    """Norm of the gradient of one part of a node above which it explodes."""
    gradient_growth: Annotated[float, Field(gt=1)] = 100.0
    """So many times the largest norm that is usual, the median over the last 32 looks, is an explosion as well."""
    activation: Positive = 1e4
    """Size of a feature or of what a layer gives above which it is an anomaly."""


class MonitorConfig(Section):
    """When somebody is told about a training, and what is done about it; docs/diagnosis.md."""

    enabled: bool = True
    """Whether a training is watched."""
    window: Annotated[int, Field(ge=20)] = 1000
    """Rows of metrics.jsonl that are looked back on."""
    sustained: Count = 3
    """Latest rows that all have to say so where one row alone says little."""
    loss_spike: Annotated[float, Field(gt=1)] = 2.0
    """So many times the mean loss of the nine rows before is a spike."""
    host_memory: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Used share of a machine's memory that is too much."""
    device_memory: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Used share of a GPU's memory that is too much."""
    device_busy: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the time below which a GPU is idle."""
    data_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the time spent waiting for data that is too much."""
    throughput: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the usual rays per second below which a training is slow."""
    imbalance: Positive = 0.3
    """By how much of the mean the slowest worker's own time may exceed it."""
    stall_seconds: Positive = 120.0
    """Time without a row, or ten times what is usual, after which a training stands still. [seconds]"""
    cooldown_seconds: NonNegative = 600.0
    """Training time until something that was over is told again. [seconds]"""
    checkpoint_on: tuple[AlertName, ...] = ()
    """Alerts that have the workers save a checkpoint."""
    pause_on: tuple[AlertName, ...] = ()
    """Alerts that have the workers wait until inf-nerf monitor RUN --request resume."""
    stop_on: tuple[AlertName, ...] = ()
    """Alerts that end the training with a checkpoint."""
    command: str | None = None
    """Program, with its arguments, that gets each alert as a line of JSON on its standard input; null: none."""
    webhook: str | None = None
    """Address that each alert is sent to as JSON by POST; null: none."""

    @field_validator("command")
    @classmethod
    def _words(cls, value: str | None) -> str | None:
        if value is not None and not shlex.split(value):  # which says what is wrong with quotation marks
            raise ValueError("expected a program and its arguments, or null")
        return value

    @field_validator("webhook")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("expected an address that begins with http:// or https://, or null")
        return value


class ProfileConfig(Section):
    """Where the time of a training goes, kept in RUN/profile and shown by `inf-nerf report`."""

    sections: bool = True
    """Whether the parts of a step are timed, which takes some microseconds each."""
    synchronise: bool = False
    """Whether a part waits for the GPU at both its ends: times are exact, but nothing overlaps any more."""


class CityConfig(Section):
    """A synthetic city, see `inf-nerf synth`."""

    blocks: Count = 3
    """City blocks along each side."""
    photos: Annotated[int, Field(ge=3)] = 60
    """Photos, from several heights."""
    size: Annotated[int, Field(ge=32)] = 320
    """Longest side of a photo. [pixels]"""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed is another city."""


class SweepConfig(Section):
    """What `inf-nerf sweep` tries: the section `sweep` of its file, beside the configuration that all trials share."""

    space: dict[str, dict[str, Any]]
    """Config key -> where its values come from: {grid: [...]}, {choice: [...]}, {uniform: [a, b]}, {loguniform: [a, b]}
    or {integer: [a, b]}."""
    searcher: Literal["random", "optuna", "one-at-a-time"] = "random"
    """How values are chosen: at random, by Optuna, or one key at a time."""
    num_samples: Count = 1
    """Draws of what is no grid, for every point of the grid."""
    metric: Literal["val_psnr"] = "val_psnr"
    """What trials are compared by; test photos are never looked at."""
    reports: Annotated[int, Field(ge=2)] = 8
    """Reports of a trial, each with a checkpoint, at equal parts of its budget."""
    grace: Annotated[float, Field(gt=0, lt=1)] | None = 0.25
    """Part of its budget that a trial always gets; null: all of it."""
    reduction: Annotated[float, Field(gt=1)] = 2.0
    """One trial of so many goes on after the grace, and again and again."""
    trials: Literal["auto", "direct", "trainer"] = "auto"
    """direct: a process each; trainer: Ray Train workers each; auto: trainer where a trial has several workers."""
    max_concurrent: Count | None = None
    """Trials at a time; null: as many as the cluster holds."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the search."""
    city: CityConfig | None = None
    """A synthetic city that is drawn where no photos are named; null: none."""


class Config(Section):
    """Everything a run depends on."""

    scene: SceneConfig = SceneConfig()
    octree: OctreeConfig = OctreeConfig()
    field: FieldConfig = FieldConfig()
    sampler: SamplerConfig = SamplerConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    render: RenderConfig = RenderConfig()
    tracking: TrackingConfig = TrackingConfig()
    debug: DebugConfig = DebugConfig()
    monitor: MonitorConfig = MonitorConfig()
    profile: ProfileConfig = ProfileConfig()

    @model_validator(mode="after")
    def _shared_levels_fit(self) -> "Config":
        if self.train.shared_upper_levels > self.octree.num_levels:
            raise ValueError(
                f"train.shared_upper_levels ({self.train.shared_upper_levels}) must not exceed "
                f"octree.num_levels ({self.octree.num_levels})"
            )
        return self

    @model_validator(mode="after")
    def _repeatable(self) -> "Config":
        backend, on_gpu = self.field.backend, self.train.gpus_per_worker > 0
        if self.train.deterministic and (backend in ("triton", "tinycudann") or (on_gpu and backend == "auto")):
            raise ValueError(
                f"train.deterministic on a GPU needs field.backend 'torch', not {backend!r}, whose gradients are added "
                "in any order"
            )
        return self

    @model_validator(mode="after")
    def _exchanged_samples_stay(self) -> "Config":
        if self.train.foreign == "exchange" and self.sampler.kind != "occupancy":
            raise ValueError(
                f"train.foreign 'exchange' needs sampler.kind 'occupancy', not {self.sampler.kind!r}, which places a "
                "ray's samples by densities that other workers hold"
            )
        if self.train.foreign == "exchange" and self.train.subtree is not None:
            raise ValueError(
                f"train.foreign 'exchange' is for whole trees, but train.subtree is {self.train.subtree!r}, beyond "
                "which nothing is trained"
            )
        return self

    @model_validator(mode="after")
    def _growing_trees_are_whole(self) -> "Config":
        if not self.octree.adapts:
            return self
        key = "update_every" if self.octree.update_every else "prune_every"
        reason = None
        if self.train.node_memory_mb is not None:
            reason = "all nodes in memory, so train.node_memory_mb must be null"
        elif self.train.foreign == "exchange":
            reason = "workers that answer their own rays, so train.foreign must be 'discount', not 'exchange'"
        elif self.train.subtree is not None:
            reason = f"a whole tree, so train.subtree must be null, not {self.train.subtree!r}"
        elif self.octree.prune_every and self.sampler.kind != "occupancy":
            key, reason = "prune_every", f"sampler.kind 'occupancy', not {self.sampler.kind!r}, to know what is empty"
        if reason is not None:
            raise ValueError(f"octree.{key} ({getattr(self.octree, key)}) needs {reason}")
        return self

    def to_yaml(self) -> str:
        """All keys, readable by :func:`load_config`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def flat(self) -> dict[str, Any]:
        """Dotted key -> plain value, in declaration order."""
        return dict(flattened(self.model_dump(mode="json")))

    def digest(self, *sections: str) -> str:
        """Hash of the named sections (all of them if none is named)."""
        dump = self.model_dump(mode="json")
        chosen = {name: dump[name] for name in sections or dump}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def load_config(
    path: Place | None = None, overrides: Iterable[str] = (), base: Mapping[str, Any] | None = None
) -> Config:
    """Read a YAML file of differences and apply ``key=value`` overrides.

    ``base`` replaces the defaults, e.g. with the configuration stored in a run.  Raises :class:`InputError` naming the
    file, the key, and the nearest known key.
    """
    values: dict[str, Any] = json.loads(json.dumps(base)) if base else {}
    source = "the command line"
    if path is not None:
        source = str(path)
        merge(values, in_own_keys(read_yaml(path, Config.model_fields), source))
    set_keys(values, overrides)
    return validated(values, Config, source)
