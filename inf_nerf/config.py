"""One typed configuration: all defaults live here, a YAML file holds only differences.

The same dotted keys serve files, ``--set key=value`` and sweeps.  Unknown keys are refused by name with the nearest
known one, and numbers such as ``1e-2``, which YAML reads as text, are numbers.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from inf_nerf.errors import InputError
from inf_nerf.places import Place

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
AnySection = TypeVar("AnySection", bound="Section")


class Section(BaseModel):
    """A group of keys; immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SceneConfig(Section):
    """Which photos, how large, in which frame, and which are held out."""

    format: Literal["auto", "colmap", "transforms"] = "auto"
    images_dir: str = "images"
    masks_dir: str | None = None  # same relative names as the photos, any suffix; black pixels are ignored
    max_side: Annotated[int, Field(ge=16)] | None = (
        None  # longest side of pyramid level 0 in pixels; None: as photographed
    )
    pyramid_levels: Annotated[int, Field(ge=1, le=12)] = 5
    min_observations: Annotated[int, Field(ge=2)] = 3
    percentile: Annotated[float, Field(ge=0, lt=50)] = 1.0  # points beyond it on either side do not shape the cube
    margin: NonNegative = 0.04  # the percentile box grows by this share of its extent on each side
    orientation: Literal["auto", "none"] = "auto"
    test_every: Annotated[int, Field(ge=2)] = 8
    val_every: Annotated[int, Field(ge=0)] = 16  # of the photos that are not test; 0: none
    train_list: Path | None = None  # text file, one photo name a line; replaces the default split
    val_list: Path | None = None
    test_list: Path | None = None


class OctreeConfig(Section):
    """How finely space is divided."""

    num_levels: Annotated[int, Field(ge=1, le=20)] = 4
    min_points: Count = 6  # finer points that an octant must hold to become a node
    footprint_px: Positive = 1.0  # a footprint's radius in units of the pixel's side, for points and samples alike
    res_upsample: Positive = 2.0  # a node's gsd is its side / (field.max_res * res_upsample)


class FieldConfig(Section):
    """The radiance field of every node."""

    backend: Literal["auto", "torch", "numba", "triton", "tinycudann"] = "auto"
    num_levels: Annotated[int, Field(ge=1, le=32)] = 16
    features_per_level: Literal[1, 2, 4, 8] = 2
    log2_table_size: Annotated[int, Field(ge=8, le=24)] = 19
    base_res: Annotated[int, Field(ge=2)] = 16
    max_res: Annotated[int, Field(ge=4)] = 2048
    hidden_density: Count = 64
    hidden_color: Count = 64
    geo_features: Count = 15
    appearance_dim: Annotated[int, Field(ge=0)] = 32
    initial_density: Positive = 10.0  # per scene unit: haze that a thin slab of ground shows through

    @model_validator(mode="after")
    def _resolutions_grow(self) -> "FieldConfig":
        if self.base_res > self.max_res:
            raise ValueError(f"base_res ({self.base_res}) must not exceed max_res ({self.max_res})")
        return self


class SamplerConfig(Section):
    """Where along a ray the field is asked."""

    kind: Literal["occupancy", "tree"] = "occupancy"
    step: Positive = 0.7  # shortest step in footprints
    # scene units (half sides of the root cube); a camera inside the cube sees nothing nearer.  The paper: 0.03.  A
    # street in a city of kilometres needs less: 0.02 of 3 km are 60 m.
    near: Positive = 0.02
    max_samples: Count = 1024  # most candidate steps from entering to leaving the root cube, skipped ones included
    tree_samples: tuple[Count, Count, Count] = (192, 96, 48)
    background_samples: Annotated[int, Field(ge=0, le=256)] = 8
    occupancy_res: Annotated[int, Field(ge=4, le=256)] = 32  # cells of a node's grid per side
    occupancy_threshold: Positive = 0.05  # optical depth of a cell below which it is empty
    occupancy_every: Count = 16
    occupancy_warmup: Annotated[int, Field(ge=0)] = 128  # steps in which all counts as occupied; 4 probes at least
    samples: Positive = 15.0  # asked for their density, mean per ray in training; while more would be, steps lengthen
    occupancy_decay: Annotated[float, Field(gt=0, lt=1)] = 0.8  # of a cell's density from probe to probe


class LossConfig(Section):
    """Weights of the losses; zero switches one off."""

    lambda_rgb: NonNegative = 1.0
    lambda_depth: NonNegative = 0.003
    lambda_sparsity: NonNegative = 0.002
    lambda_consistency: NonNegative = 0.01
    lambda_regularization: NonNegative = 0.0005
    lambda_appearance: NonNegative = 1e-4
    regularised_nodes: Count = 4  # nodes drawn in a step for the two node losses
    regularised_points: Count = 512  # points drawn in each of them
    depth_rays: Annotated[int, Field(ge=0)] = 256  # track rays of a step over all workers


class DataConfig(Section):
    """Image tiles on disk and in memory."""

    tile_size: Annotated[int, Field(ge=8, le=1024)] = 64
    level_boost: Positive = 2.0  # a pixel of pyramid level l is drawn level_boost**l times as often as one of level 0
    reservoir_mb: Positive = 1024.0  # decoded tiles that one worker keeps
    swap_every: Count = 100  # steps between exchanges of part of a reservoir that is smaller than its shard


class TrainConfig(Section):
    """Optimiser, budget and workers."""

    steps: Count = 200_000
    max_seconds: Positive | None = None  # from the first step; the final evaluation is not counted
    batch_size: Count = 65_536  # rays of one step over all workers
    lr_init: Positive = 1e-2
    lr_final: Positive = 1e-4
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the heads' products while training
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    eps: Positive = 1e-15
    grad_clip: NonNegative = 0.0  # largest norm of the joint gradient; 0: no clipping
    num_workers: int | tuple[int, int] = 1  # or [least, most] while nodes come and go; 0: in this process
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: NonNegative = 0.0
    shared_upper_levels: Count = 1
    node_memory_mb: Positive | None = None  # nodes in training on a worker; what does not fit is trained in turns
    turn_steps: Count = 500  # of each turn
    subtree: str | None = None  # node, for example r05, below which a trained model is trained again; None: all of it
    shared_every: Count = 1  # steps in which gradients of shared nodes and appearance collect before they are applied
    shared_gradient_dtype: Literal["float32", "bfloat16"] = "float32"  # in which they travel between workers
    # what other workers' nodes would answer on a ray: "discount" counts a pixel less the more of it that is, "exchange"
    # has workers tell each other what their parts of a ray look like
    foreign: Literal["discount", "exchange"] = "discount"
    seed: Annotated[int, Field(ge=0)] = 0
    log_every: Count = 20
    save_every: Count = 5000  # steps
    save_seconds: Positive = 300.0
    keep_checkpoints: Count = 2
    val_rays: Count = 4096  # fixed rays of the val photos that every checkpoint is scored on
    max_failures: Annotated[int, Field(ge=0)] = 3
    resize_seconds: Positive = 60.0  # between looks whether there is room for more of [least, most] workers
    collective_timeout_seconds: Positive = 120.0

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

    chunk_samples: Annotated[int, Field(ge=1024)] = 8_388_608  # candidate samples held at once
    right_half: bool = True
    appearance_steps: Annotated[int, Field(ge=0)] = 100
    appearance_rays: Count = 1024
    appearance_lr: Positive = 0.05
    lpips_backbone: Path | None = None  # torchvision's weights of AlexNet or VGG-16; nothing is ever downloaded
    sheet_photos: Annotated[int, Field(ge=0)] = 4


class RenderConfig(Section):
    """Pictures and videos."""

    width: Count = 640
    height: Count = 480
    frames: Count = 90
    fps: Count = 24
    fov_degrees: Annotated[float, Field(gt=0, lt=175)] = 55.0  # horizontal
    appearance: Literal["mean", "photos"] = "mean"  # of all photos, or along the path `photos` of those passed
    lod_blend: Annotated[float, Field(ge=0, le=1)] = 0.5  # width in octaves over which two levels are mixed


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = True
    experiment: str = "inf-nerf"
    run_name: str | None = None
    uri: str | None = None  # None: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory
    log_checkpoint: bool = False  # upload the checkpoint itself; otherwise only its path and hash are recorded
    register_as: str | None = None  # name in the model registry under which trained models become versions

    @field_validator("register_as")
    @classmethod
    def _a_name_that_a_registry_takes(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or set(value) & set("/:'")):
            raise ValueError("expected a name without '/', ':' and quotation marks")
        return value


class CityConfig(Section):
    """A synthetic city, see `inf-nerf synth`."""

    blocks: Count = 3
    photos: Annotated[int, Field(ge=3)] = 60
    size: Annotated[int, Field(ge=32)] = 320
    seed: Annotated[int, Field(ge=0)] = 0


class SweepConfig(Section):
    """What `inf-nerf sweep` tries: the section `sweep` of its file, beside the configuration that all trials share."""

    # config key -> where its values come from: {grid: [...]}, {choice: [...]}, {uniform: [a, b]}, {loguniform: [a, b]}
    # or {integer: [a, b]}
    space: dict[str, dict[str, Any]]
    searcher: Literal["random", "optuna", "one-at-a-time"] = "random"
    num_samples: Count = 1  # draws of what is no grid, for every point of the grid
    metric: Literal["val_psnr"] = "val_psnr"  # test photos are never looked at
    reports: Annotated[int, Field(ge=2)] = 8  # of a trial, each with a checkpoint, at equal parts of its budget
    grace: Annotated[float, Field(gt=0, lt=1)] | None = 0.25  # part of its budget that a trial always gets; None: all
    reduction: Annotated[float, Field(gt=1)] = 2.0  # one trial of so many goes on after the grace, and again and again
    trials: Literal["auto", "direct", "trainer"] = "auto"  # direct: a process each; trainer: Ray Train workers each
    max_concurrent: Count | None = None  # trials at a time; None: as many as the cluster holds
    seed: Annotated[int, Field(ge=0)] = 0
    city: CityConfig | None = None  # drawn where no photos are named


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

    @model_validator(mode="after")
    def _shared_levels_fit(self) -> "Config":
        if self.train.shared_upper_levels > self.octree.num_levels:
            raise ValueError(
                f"train.shared_upper_levels ({self.train.shared_upper_levels}) must not exceed "
                f"octree.num_levels ({self.octree.num_levels})"
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

    def to_yaml(self) -> str:
        """All keys, readable by :func:`load_config`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def flat(self) -> dict[str, Any]:
        """Dotted key -> plain value, in declaration order."""
        return dict(_flatten(self.model_dump(mode="json")))

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
        merge(values, read_yaml(path))
    set_keys(values, overrides)
    return validated(values, Config, source)


def set_keys(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Apply ``key=value`` overrides to nested ``values``."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"--set {override!r} is not of the form key=value, for example --set train.steps=2000.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {override!r} has a value that is not valid YAML; quote it.") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        merge(values, value)


def validated(values: Mapping[str, Any], section: type[AnySection], source: str, prefix: str = "") -> AnySection:
    """``values`` as a section whose keys have ``prefix``; :class:`InputError` names ``source`` and a bad key."""
    _refuse_unknown(values, section, source, prefix, known_keys(section, prefix))
    try:
        return section.model_validate(_numbers(values, section))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        key = prefix + key if key else key
        found = f" (found {first['input']!r})" if key and not isinstance(first["input"], Mapping) else ""
        message = first["msg"].removeprefix("Value error, ")
        where = f"key {key!r}" if key else "the configuration"
        raise InputError(f"In {source}, {where} is not usable: {message}{found}; correct its value.") from error


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key in declaration order."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def nearest_key(key: str, known: list[str]) -> str:
    """The known key that is spelled most like ``key``."""
    return (difflib.get_close_matches(key, known, n=1, cutoff=0.3) or known[:1])[0]


def read_yaml(path: Place) -> Mapping[str, Any]:
    """The mapping in a configuration file, unchecked; :class:`InputError` where there is none."""
    if not path.is_file():
        raise InputError(f"The config file {path} does not exist; name one such as configs/laptop.yaml.")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML ({str(error).splitlines()[0]}); correct the file.") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a mapping of config sections; see configs/.")
    return content


def merge(into: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Put the values of nested ``update`` in their places in ``into``."""
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _refuse_unknown(
    values: Mapping[str, Any], section: type[BaseModel], source: str, prefix: str, known: list[str]
) -> None:
    for key, value in values.items():
        field = section.model_fields.get(key)
        dotted = f"{prefix}{key}"
        if field is None:
            below = value
            while isinstance(below, Mapping) and below:  # an unknown section is named with its first key
                key, below = next(iter(below.items()))
                dotted = f"{dotted}.{key}"
            near = nearest_key(dotted, known)
            raise InputError(f"In {source}, the key {dotted!r} is unknown; did you mean {near!r}?")
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if not isinstance(value, Mapping):
                raise InputError(
                    f"In {source}, {dotted!r} is a section of keys, but a {type(value).__name__} was found."
                )
            _refuse_unknown(value, kind, source, f"{dotted}.", known)


def _numbers(values: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """Turn text such as ``1e-2`` into numbers where the key is numeric (YAML 1.1 wants ``1.0e-2``)."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        kind = section.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            value = _numbers(value, kind)
        elif "str" not in str(kind) and "Path" not in str(kind):
            value = [_number(item) for item in value] if isinstance(value, list) else _number(value)
        result[key] = value
    return result


def _number(value: object) -> object:
    """The number that a text is, or the value as it was."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
