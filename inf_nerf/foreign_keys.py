"""Configuration files of general NeRF trainers: what becomes of each of their keys.

Such a file has the sections ``experiment model dataset trainer validation optimization hardware``.  Every key of them
stands in :data:`FOREIGN_KEYS`, and either sets keys of ours, says what is done anyway, or has a reason why it changes
nothing.  Where several set the same key of ours, the one that stands first in the table wins.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from inf_nerf.errors import InputError

Changes = dict[str, Any]  # dotted key of ours -> value


@dataclass(frozen=True)
class ForeignKey:
    """What becomes of one key."""

    changes: Callable[[Any], Changes] | None = None  # of its value; None: it sets nothing
    reason: str = ""  # why it sets nothing, or what to know of what it sets
    only: Any = None  # the one value that is what is done here; others cannot be had


@dataclass(frozen=True)
class Outcome:
    """What became of one key of a file."""

    key: str
    value: Any
    kind: Literal["sets", "same", "loses", "none"]  # sets ours; is what is done anyway; another wins; has no effect
    text: str


def _sets(*keys: str, reason: str = "") -> ForeignKey:
    """The value goes to these keys as it is."""
    return ForeignKey(lambda value: dict.fromkeys(keys, value), reason)


def _as(key: str, convert: Callable[[Any], Any], reason: str = "") -> ForeignKey:
    """The value goes to ``key`` in another unit or form."""
    return ForeignKey(lambda value: {key: convert(value)}, reason)


def _only(value: Any, reason: str) -> ForeignKey:
    """There is one such value here."""
    return ForeignKey(None, reason, value)


def _none(reason: str) -> ForeignKey:
    """Nothing here depends on it."""
    return ForeignKey(None, reason)


def _every(share: Any) -> int:
    """One photo in so many for a share of the photos."""
    number = _number(share)
    if not 0 <= number <= 0.5:
        raise ValueError("a share of the photos from 0 to 0.5 is expected")
    return round(1 / number) if number > 0 else 0


def _names(value: Any) -> list[str]:
    if not isinstance(value, str | list | tuple):
        raise ValueError("a list of names is expected")
    return [value] if isinstance(value, str) else [str(name) for name in value]


def _betas(value: Any) -> Changes:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("two numbers are expected")
    return {"train.beta1": value[0], "train.beta2": value[1]}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("a number is expected") from None


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _precision(mixed: Any) -> str:
    return "auto" if mixed else "float32"


def _metrics(names: Any) -> Changes:
    unknown = sorted(set(_names(names)) - set(METRICS))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no metric; known are {', '.join(METRICS)}")
    return {}


METRICS = ("psnr", "ssim", "lpips")
SIZE_OF_HEADS = "every node has a density head of one hidden layer and a colour head of two, as in the paper"
AS_PHOTOGRAPHED = "colours must agree between photos of a place, and crops would move the principal point"
WHOLE_BATCH = "a step takes train.batch_size rays; train.accumulate says in how many parts"
CAPS = "train.node_memory_mb caps the nodes in training on a worker, data.reservoir_mb its tiles"
IN_RUN = "checkpoints and logs lie in the run directory that --output-dir names"
BY_RAY = "Ray starts the workers, numbers them and gives them their devices"

# In the order in which keys win over others that set the same.
FOREIGN_KEYS: dict[str, ForeignKey] = {
    "experiment.description": _sets("tracking.description"),
    "experiment.version": _as("tracking.version", str),
    "experiment.tags": _as("tracking.labels", _names),
    "model.octree_config.max_depth": _sets("octree.num_levels"),
    "model.octree_config.min_node_size": _sets("octree.min_node_size", reason="in half sides of the root cube"),
    "model.octree_config.subdivision_threshold": _sets(
        "octree.subdivision_threshold", reason="error of the rays that ask for finer nodes, over that of all rays"
    ),
    "model.octree_config.pruning_threshold": _sets(
        "octree.pruning_threshold", reason="light that a leaf answers, over what a mean node does"
    ),
    "model.network_config.position_encoding.type": _only("hash", "every node has a hash grid"),
    "model.network_config.position_encoding.num_levels": _sets("field.num_levels"),
    "model.network_config.position_encoding.features_per_level": _sets("field.features_per_level"),
    "model.network_config.position_encoding.log2_hashmap_size": _sets("field.log2_table_size"),
    "model.network_config.position_encoding.finest_resolution": _sets("field.max_res"),
    "model.network_config.position_encoding.coarsest_resolution": _sets("field.base_res"),
    "model.network_config.mlp_config.num_layers": _none(SIZE_OF_HEADS),
    "model.network_config.mlp_config.hidden_dim": _sets(
        "field.hidden_density", "field.hidden_color", reason=f"{SIZE_OF_HEADS}; the default is 64"
    ),
    "model.network_config.mlp_config.output_dim": _only(4, "a density and three colours, from two heads"),
    "model.network_config.mlp_config.activation": _only(
        "relu", "the heads' hidden layers, with a slope of 0.01 below zero"
    ),
    "model.network_config.mlp_config.use_bias": _only(False, "the heads have no biases, as in tinycudann"),
    "model.network_config.direction_encoding.type": _only("spherical_harmonics", "directions are encoded so"),
    "model.network_config.direction_encoding.num_levels": _only(4, "heads are given 16 harmonics of a direction"),
    "model.rendering_config.num_samples_coarse": _none(
        "samples lie where space is not known to be empty; sampler.samples is their mean, sampler.kind=tree with "
        "sampler.tree_samples takes rounds of fixed numbers"
    ),
    "model.rendering_config.num_samples_fine": _none("as num_samples_coarse: see sampler.samples"),
    "model.rendering_config.use_hierarchical_sampling": _none(
        "occupancy grids find where to sample; sampler.kind=tree takes samples in rounds"
    ),
    "model.rendering_config.white_background": _only(False, "a field of its own shows what is beyond the root cube"),
    "dataset.data_root": _none("--data-root names the photos"),
    "dataset.scene_name": _none("the run directory that --output-dir names is called after the scene"),
    "dataset.format": _sets("scene.format"),
    "dataset.image_extension": _none("the sparse model names the photos, whatever their extension"),
    "dataset.image_config.max_image_size": _sets("scene.max_side"),
    "dataset.image_config.downsample_factor": _none(
        "scene.max_side limits the size of photos, and the pyramid below it holds all factors of two"
    ),
    "dataset.image_config.center_crop": _none(f"photos are used whole: {AS_PHOTOGRAPHED}"),
    "dataset.image_config.normalize": _only(True, "colours are from 0 to 1"),
    "trainer.num_epochs": _sets("train.epochs", reason="passes over the pixels of all pyramid levels"),
    "trainer.rays_batch_size": _sets("train.batch_size", reason="over all workers"),
    "dataset.ray_sampling.batch_size": _sets("train.batch_size", reason="over all workers"),
    "dataset.ray_sampling.max_batch_rays": _none(WHOLE_BATCH),
    "dataset.ray_sampling.use_random_sampling": _only(True, "pixels are drawn at random"),
    "dataset.ray_sampling.importance_sampling": _none(
        "pixels are drawn by pyramid level (data.level_boost), samples where space is occupied"
    ),
    "dataset.augmentation.use_color_jitter": _none(AS_PHOTOGRAPHED),
    "dataset.augmentation.color_jitter_strength": _none(AS_PHOTOGRAPHED),
    "dataset.augmentation.use_random_crop": _none(f"rays are drawn one by one; {AS_PHOTOGRAPHED}"),
    "dataset.augmentation.crop_ratio": _none(f"rays are drawn one by one; {AS_PHOTOGRAPHED}"),
    "trainer.lr_init": _sets("train.lr_init"),
    "trainer.lr_final": ForeignKey(lambda value: {"train.lr_final": value, "train.schedule": "exponential"}),
    "trainer.lr_decay_start": _sets("train.lr_decay_start", reason="in steps"),
    "trainer.lr_decay_steps": _sets("train.lr_decay_steps", reason="in steps"),
    "optimization.lr_scheduler.type": _as(
        "train.schedule", lambda value: "step", "a factor gamma every step_size steps is train.schedule=step"
    ),
    "optimization.lr_scheduler.gamma": ForeignKey(
        lambda value: {"train.schedule": "step", "train.lr_gamma": value}, "the factor of train.schedule=step"
    ),
    "optimization.lr_scheduler.step_size": ForeignKey(
        lambda value: {"train.schedule": "step", "train.lr_every": value}, "in steps, of train.schedule=step"
    ),
    "trainer.weight_decay": _sets("train.weight_decay", reason="of the heads alone"),
    "trainer.max_batch_rays": _none(WHOLE_BATCH),
    "trainer.accumulate_grad_batches": _sets("train.accumulate", reason="parts of a step of train.batch_size rays"),
    "trainer.gradient_clip_val": _sets("train.grad_clip"),
    "trainer.lambda_rgb": _sets("loss.lambda_rgb"),
    "trainer.lambda_depth": _sets("loss.lambda_depth", reason="of distances in footprints; the default is 0.003"),
    "trainer.lambda_sparsity": _sets("loss.lambda_sparsity", reason="of 1 - exp(-density * resolution)"),
    "trainer.lambda_consistency": _sets("loss.lambda_consistency", reason="between parents and children"),
    "trainer.lambda_regularization": _sets("loss.lambda_regularization", reason="of the distortion loss"),
    "trainer.octree_update_freq": _sets("octree.update_every", reason="in steps"),
    "trainer.octree_prune_freq": _sets("octree.prune_every", reason="in steps"),
    "trainer.adaptive_sampling": _none(
        "samples follow the occupancy grids, which are learned (sampler.kind=occupancy)"
    ),
    "trainer.distributed": _none(f"train.num_workers, or --workers, says how many train; {BY_RAY}"),
    "trainer.local_rank": _none(BY_RAY),
    "trainer.world_size": _sets("train.num_workers"),
    "trainer.shared_upper_levels": _sets("train.shared_upper_levels"),
    "trainer.log_dir": _none(IN_RUN),
    "trainer.ckpt_dir": _none(IN_RUN),
    "trainer.save_freq": _sets("train.save_every", reason="in steps"),
    "trainer.eval_freq": _sets("train.eval_every", reason="in steps"),
    "validation.eval_freq": _sets("train.eval_every", reason="in steps"),
    "trainer.log_freq": _sets("train.log_every", reason="in steps"),
    "trainer.vis_freq": _sets("train.picture_every", reason="in steps"),
    "trainer.use_wandb": _sets("tracking.enabled", reason="MLflow records runs"),
    "trainer.project_name": _sets("tracking.experiment"),
    "trainer.experiment_name": _as("tracking.run_name", _text_or_none),
    "experiment.name": _as("tracking.run_name", _text_or_none),
    "trainer.mixed_precision": _as("train.precision", _precision, "float16 with a loss scale on a GPU"),
    "optimization.mixed_precision.enabled": _as("train.precision", _precision, "float16 with a loss scale on a GPU"),
    "optimization.mixed_precision.loss_scale": _only("dynamic", "the scale of float16 follows its overflows"),
    "trainer.memory_threshold_gb": _none(
        "monitor.host_memory and monitor.device_memory tell of shares of the memory that are in use"
    ),
    "trainer.chunk_size": _as(
        "eval.chunk_samples", lambda value: round(1024 * _number(value)), "rays of at most 1024 candidate samples"
    ),
    "trainer.debug": _sets("debug.enabled"),
    "trainer.profiler": _sets("train.profiler"),
    "validation.val_images": _as(
        "scene.val_images", _names, "those that the scene has; if it has none, val_split counts"
    ),
    "validation.val_split": _as("scene.val_every", _every, "one photo in so many of those that are not test"),
    "validation.num_val_rays": _sets("train.val_rays"),
    "validation.metrics": ForeignKey(
        _metrics, "all of them are always scored; LPIPS needs the weights that eval.lpips_backbone names"
    ),
    "validation.render_validation_images": _as(
        "eval.sheet_photos", lambda value: 4 if value else 0, "test photos on the sheet of the evaluation"
    ),
    "optimization.optimizer.type": _only("adam", "with moments of their own for every node"),
    "optimization.optimizer.betas": ForeignKey(_betas),
    "optimization.optimizer.eps": _sets("train.eps"),
    "optimization.gradient_clipping.enabled": ForeignKey(
        lambda value: {} if value else {"train.grad_clip": 0.0}, "train.grad_clip is the largest norm; 0 clips nothing"
    ),
    "optimization.gradient_clipping.max_norm": _sets("train.grad_clip"),
    "optimization.gradient_clipping.norm_type": _only(2, "the joint gradient has one length"),
    "hardware.gpu_ids": _none(f"train.gpus_per_worker asks for GPUs; {BY_RAY}"),
    "hardware.num_workers": _none("tiles are streamed by Ray Data; train.num_workers are ranks that train"),
    "hardware.pin_memory": _none("pixels are drawn from a reservoir in the worker's own memory"),
    "hardware.memory_limit_gb": _none(CAPS),
    "hardware.cache_size_gb": _none("--memory-budget of eval, render and view caps the nodes that they keep"),
    "hardware.cudnn_deterministic": _sets("train.deterministic"),
    "hardware.cudnn_benchmark": _none("nothing here calls cuDNN"),
}

FOREIGN_SECTIONS = {key.split(".")[0] for key in FOREIGN_KEYS}
_SECTIONS = {key[:place] for key in FOREIGN_KEYS for place, sign in enumerate(key) if sign == "."}  # and those in them


def translate(values: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[Outcome]]:
    """Nested ``values`` in which keys of ours take the place of foreign ones, and what became of each of these.

    Keys of ours in ``values`` win over what foreign ones set.  Raises :class:`InputError` naming ``source`` for a
    foreign key whose value has no form that can be used.
    """
    ours, foreign = _split(values, source)
    set_by: dict[str, tuple[str, Any]] = {key: (key, value) for key, value in _leaves(ours)}
    found: dict[str, Outcome] = {}
    for key in (key for key in FOREIGN_KEYS if key in foreign):
        value = foreign[key]
        try:
            found[key] = _outcome(key, value, set_by)
        except (ValueError, TypeError, IndexError) as error:
            raise InputError(f"In {source}, the value {value!r} of {key!r} cannot be used: {error}.") from error
    for key, (by, value) in set_by.items():
        if by != key:
            _put(ours, key, value)
    return ours, [found[key] for key in foreign]


def _outcome(key: str, value: Any, set_by: dict[str, tuple[str, Any]]) -> Outcome:
    """What becomes of ``key``; what it sets goes into ``set_by``: key of ours -> who set it, and the value."""
    entry = FOREIGN_KEYS[key]
    because = f" ({entry.reason})" if entry.reason else ""
    if entry.changes is None and entry.only is None:
        return Outcome(key, value, "none", f"has no effect: {entry.reason}")
    if entry.changes is None:
        same = str(value).lower() == str(entry.only).lower()
        text = f"is so: {entry.reason}" if same else f"has no effect: only {entry.only} can be had ({entry.reason})"
        return Outcome(key, value, "same" if same else "none", text)
    changes = entry.changes(value)
    winners = {mine: set_by.setdefault(mine, (key, new)) for mine, new in changes.items()}
    lost = [(mine, by, kept) for mine, (by, kept) in winners.items() if by != key]
    if lost:
        mine, by, kept = lost[0]
        over = "the same" if _equal(kept, changes[mine]) else f"{_text(kept)}, and {_text(changes[mine])} is dropped"
        return Outcome(key, value, "loses", f"sets {mine} like {by}, which wins with {over}{because}")
    if not changes:
        return Outcome(key, value, "same", f"is so{because}")
    return Outcome(key, value, "sets", " and ".join(f"{mine}={_text(new)}" for mine, new in changes.items()) + because)


def _text(value: Any) -> str:
    """A value as it would stand in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _equal(one: Any, other: Any) -> bool:
    """Whether two values mean the same, one of which YAML may have read as text."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return one == other


def _split(values: Mapping[str, Any], source: str, prefix: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested values without foreign keys, and the foreign ones by their dotted keys; a foreign section may be empty."""
    ours: dict[str, Any] = {}
    foreign: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in FOREIGN_KEYS:
            foreign[key] = value
        elif key in _SECTIONS and (value is None or value == {}):
            continue
        elif key in _SECTIONS and not isinstance(value, Mapping):
            raise InputError(f"In {source}, {key!r} is a section of keys, but a {type(value).__name__} was found.")
        elif isinstance(value, Mapping):
            below, more = _split(value, source, f"{key}.")
            foreign |= more
            if below or not (more or key in _SECTIONS):
                ours[name] = below
        else:
            ours[name] = value
    return ours, foreign


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value
