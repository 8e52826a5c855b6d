"""From a data root to a run directory: scene, octree and image tiles.

    data root --load_scene--> Scene --build_octree--> Octree
        photos --Ray Data, one task a photo--> tiles/<photo>.parquet --> tiles/summary.json (written last)

A run that is prepared like another one, on more photos of its scene, has the frame, the octree and the split of that,
so that it can go on from its checkpoints.

Test photos are decoded like the others, so that a damaged one is found before a training and not after it, but they get
no tiles.
Every file is written whole or not at all, so an interrupted run is continued by the same command; tile files that fit
are kept.  What the tiles depend on is hashed into an identity that every tile file carries.  The files of the data root
are told by size and time: what changed is cut again, or refused once the run is complete.  On a cluster the data root
and the run directory must lie on storage that all nodes share.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import ray.data
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.tiles import TileCounts, cut_photo, read_counts, tile_file, tile_identity, write_tiles
from inf_nerf.octree.topology import Octree
from inf_nerf.render.parallel import available_cores
from inf_nerf.scene.photos import read_mask, read_photo
from inf_nerf.scene.scene import Scene, load_scene
from inf_nerf.scene.sources import changed_files, stamp_files
from inf_nerf.train.evaluation import require_test_photos
from pipelines.ray_session import on_cluster, session_cpus, start_ray

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
RUN_FILE, CONFIG_FILE, OCTREE_FILE, SUMMARY_FILE = "run.json", "config.yaml", "octree.safetensors", "tiles/summary.json"
SOURCES_FILE = "sources.json"  # `Stamps` of the files that the run was prepared from
# config keys that shape what is prepared
TILE_KEYS = ("scene.", "octree.num_levels", "octree.min_points", "octree.footprint_px", "octree.res_upsample")
TILE_KEYS += ("field.max_res", "data.tile_size")


@dataclass(frozen=True)
class Prepared:
    """A complete prepared run directory."""

    config: Config
    scene: Scene
    octree: Octree
    identity: str  # of the tiles
    mean_colour: tuple[float, float, float]  # over the training photos' unmasked pixels of level 0, in [0, 1]
    num_tiles: int
    ancestors: tuple[str, ...] = ()  # identities of the runs that it was prepared like, whose models it can go on with


def run(config: Config, data_root: Path, run_dir: Path, like: Path | None = None) -> None:
    """Prepare ``run_dir`` for training on the photos in ``data_root``; says so and returns if that is done already.

    ``like`` names a prepared run of which these are more photos.  Raises :class:`InputError` for data that cannot be
    used and for a run directory that was prepared with another configuration, other data, or another format version.
    """
    data_root, run_dir, like = data_root.resolve(), run_dir.resolve(), None if like is None else like.resolve()
    if like == run_dir:
        raise InputError(f"--like {like} is the run to be prepared itself; choose another --output-dir.")
    console = Console(stderr=True, soft_wrap=True)
    if (run_dir / RUN_FILE).is_file():
        like = _refuse_other_run(config, data_root, run_dir, like)
        if (prepared := _complete(run_dir)) is not None:
            _refuse_changed_files(data_root, run_dir)
            console.print(f"{run_dir} is already prepared: {prepared.num_tiles} tiles; nothing to do.")
            return
    known = None if like is None else _known(config, like)
    scene = load_scene(data_root, config.scene, None if known is None else known.scene)
    require_test_photos(scene)  # a training ends with their evaluation
    if known is None:
        octree = build_octree(scene.points.xyz, scene.points.footprint, config.octree, config.field.max_res)
    else:
        octree = known.octree
        console.print(_what_is_new(known.scene, scene, like))
    identity = tile_identity(scene, octree, config)
    if scene.report["missing_frames"]:
        console.print(f"{scene.report['missing_frames']} photos of the model are not in {data_root} and are left out")
    per_level = octree.level.bincount().tolist()
    console.print(
        f"{len(scene.photos)} photos ({len(scene.train)} train, {len(scene.val)} val, {len(scene.test)} test), "
        f"{len(scene.points)} points, octree of {octree.num_nodes} nodes ({' + '.join(map(str, per_level))})"
    )
    (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
    scene.save(run_dir)
    write_atomic(run_dir / OCTREE_FILE, save(octree.state()))
    write_atomic(run_dir / CONFIG_FILE, config.to_yaml())
    description = {"format_version": FORMAT_VERSION, "data_root": str(data_root), "identity": identity}
    if known is not None:
        description |= {"like": str(like), "ancestors": [known.identity, *known.ancestors]}
    write_atomic(run_dir / RUN_FILE, json.dumps(description, indent=1) + "\n")
    _forget_stale_tiles(scene, run_dir)
    counts = _cut_photos(config, scene, run_dir, identity, console)
    summary = _summary(scene, counts, identity)
    write_atomic(run_dir / SUMMARY_FILE, json.dumps(summary, indent=1) + "\n")
    console.print(f"{summary['num_tiles']} tiles, each seeing {summary['nodes_per_tile']:.1f} nodes, in {run_dir}")


def read_prepared(run_dir: Path) -> Prepared:
    """Read what :func:`run` made; raises :class:`InputError` if it is missing, unfinished, or does not fit together."""
    description = _read_run_file(run_dir)
    if not (run_dir / SUMMARY_FILE).is_file():
        raise InputError(f"The tiles in {run_dir} are not complete; run inf-nerf prepare again to finish them.")
    config, scene, octree = load_config(run_dir / CONFIG_FILE), Scene.load(run_dir), _read_octree(run_dir)
    summary = _read_json(run_dir / SUMMARY_FILE)
    identity = tile_identity(scene, octree, config)
    if not identity == description.get("identity") == summary.get("identity"):
        raise InputError(
            f"The tiles in {run_dir} were made for another scene cube, octree or tile size than the run directory "
            f"holds; run inf-nerf prepare again."
        )
    red, green, blue = summary["mean_colour"]
    ancestors = tuple(description.get("ancestors", ()))
    return Prepared(config, scene, octree, identity, (red, green, blue), summary["num_tiles"], ancestors)


def _complete(run_dir: Path) -> Prepared | None:
    """The prepared run, or None if anything is missing or does not fit and must be made again."""
    try:
        prepared = read_prepared(run_dir)
    except InputError as error:
        logger.info("preparing again: %s", error)
        return None
    photos = prepared.scene.train + prepared.scene.val
    fitting = all(read_counts(tile_file(run_dir, photo), prepared.identity) for photo in photos)
    return prepared if fitting else None


def _known(config: Config, like: Path) -> Prepared:
    """The run that another one is to be prepared like."""
    known = read_prepared(like)
    refuse_other_settings(config, like, "leave --config and --set out to take its settings")
    return known


def _what_is_new(known: Scene, scene: Scene, like: Path | None) -> str:
    before, now = ({photo.name for photo in each.photos} for each in (known, scene))
    left_out = f", {len(before - now)} of those are left out" if before - now else ""
    return f"{len(now - before)} photos are new to the {len(before)} of {like}{left_out}"


def _refuse_other_run(config: Config, data_root: Path, run_dir: Path, like: Path | None) -> Path | None:
    """Raise :class:`InputError` if a run was prepared from something else; the run that it was prepared like."""
    description = _read_run_file(run_dir)
    stored_root, stored_like = description.get("data_root"), description.get("like")
    if stored_root != str(data_root):
        raise InputError(f"{run_dir} was prepared from {stored_root}, not {data_root}; choose another --output-dir.")
    if like is not None and stored_like != str(like):
        how = f"like {stored_like}" if stored_like else "by itself"
        raise InputError(f"{run_dir} was prepared {how}, not like {like}; choose another --output-dir.")
    refuse_other_settings(config, run_dir)
    return None if stored_like is None else Path(stored_like)


def refuse_other_settings(config: Config, run_dir: Path, remedy: str = "choose another --output-dir") -> None:
    """Raise :class:`InputError` naming the first key by which ``config`` would prepare another run than this one."""
    stored, asked = load_config(run_dir / CONFIG_FILE).flat(), config.flat()
    for key, value in asked.items():
        if key.startswith(TILE_KEYS) and stored[key] != value:
            raise InputError(f"{run_dir} was prepared with {key}={stored[key]}, not {value}; {remedy}.")


def _refuse_changed_files(data_root: Path, run_dir: Path) -> None:
    changed = changed_files(data_root, _stored_stamps(run_dir))
    if changed:
        more = f" and {len(changed) - 1} more have" if len(changed) > 1 else " has"
        raise InputError(
            f"{changed[0]}{more} changed since {run_dir} was prepared; choose another --output-dir, or train without "
            f"--data-root on what was prepared."
        )


def _forget_stale_tiles(scene: Scene, run_dir: Path) -> None:
    """Delete tiles made of files that have changed, and stamp the files anew."""
    stored, now = _stored_stamps(run_dir), stamp_files(scene)
    changed = {file for file, stamp in now.items() if stored.get(file) != stamp}
    for index, photo in enumerate(scene.photos):
        if not changed.isdisjoint({*scene.sources, photo.file, photo.mask}):
            tile_file(run_dir, index).unlink(missing_ok=True)
    write_atomic(run_dir / SOURCES_FILE, json.dumps(now, indent=1) + "\n")


def _stored_stamps(run_dir: Path) -> dict[str, Any]:
    path = run_dir / SOURCES_FILE
    return _read_json(path) if path.is_file() else {}


def _cut_photos(config: Config, scene: Scene, run_dir: Path, identity: str, console: Console) -> dict[int, TileCounts]:
    """Make the missing tile files and decode the test photos; counts of every photo that has tiles."""
    with_tiles = sorted(scene.train + scene.val)
    counts: dict[int, TileCounts] = {}
    for photo in with_tiles:
        kept = read_counts(tile_file(run_dir, photo), identity)
        if kept is not None:
            counts[photo] = kept
    if counts:
        console.print(f"{len(counts)} of {len(with_tiles)} photos have their tiles already")
    missing = [photo for photo in range(len(scene.photos)) if photo not in counts]
    columns = (TextColumn("cutting photos"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(scene.photos), completed=len(counts))
        for row in _cut_by_ray(config, missing, run_dir, identity):
            if row["error"]:
                raise InputError(row["error"])
            if scene.photos[row["photo"]].split != "test":
                colour_sum = row["red"], row["green"], row["blue"]
                counts[row["photo"]] = TileCounts(row["tiles"], row["nodes"], row["pixels"], colour_sum)
            progress.advance(bar)
    return counts


def _cut_by_ray(config: Config, photos: list[int], run_dir: Path, identity: str) -> Iterator[dict[str, Any]]:
    if not photos:
        return
    start_ray(session_cpus(config))
    rows = [{"photo": photo} for photo in photos]
    cut = partial(cut_and_write, config=config, run_dir=str(run_dir), identity=identity)
    # One photo a block: results arrive one by one and a task never holds more than one decoded photo.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    # A Ray of our own declares more CPUs than there are cores.
    tasks = None if on_cluster() else available_cores()
    yield from dataset.map(cut, concurrency=tasks).iter_rows()


def cut_and_write(row: dict[str, Any], config: Config, run_dir: str, identity: str) -> dict[str, Any]:
    """Decode one photo, cut it, write its tiles (of a test photo only decode it and its mask); runs in a Ray task.

    Input that cannot be used comes back as a sentence in ``error``: an exception would reach the driver wrapped in
    Ray's own and after its retries.
    """
    photo, counts, error = row["photo"], TileCounts(0, 0, 0, (0.0, 0.0, 0.0)), ""
    try:
        scene, octree = _scene_and_octree(run_dir, identity)
        image, mask = read_photo(scene, photo), read_mask(scene, photo)
        if scene.photos[photo].split != "test":
            table, counts = cut_photo(scene, octree, photo, image, mask, config, identity)
            write_tiles(tile_file(Path(run_dir), photo), table)
    except InputError as problem:
        error = str(problem)
    values = asdict(counts)
    red, green, blue = values.pop("colour_sum")
    return {"photo": photo, **values, "red": red, "green": green, "blue": blue, "error": error}


@lru_cache(maxsize=1)
def _scene_and_octree(run_dir: str, identity: str) -> tuple[Scene, Octree]:
    """Read once per worker process and identity rather than sent with every task."""
    return Scene.load(Path(run_dir)), _read_octree(Path(run_dir))


def _summary(scene: Scene, counts: dict[int, TileCounts], identity: str) -> dict[str, Any]:
    num_tiles = sum(count.tiles for count in counts.values())
    pixels = sum(counts[photo].pixels for photo in scene.train)
    if pixels == 0:
        raise InputError(f"The masks of all training photos in {scene.root} hide every pixel; white pixels are used.")
    sums = [sum(counts[photo].colour_sum[channel] for photo in scene.train) for channel in range(3)]
    return {
        "identity": identity,
        "mean_colour": [value / pixels / 255 for value in sums],
        "num_tiles": num_tiles,
        "photos": len(counts),
        "nodes_per_tile": sum(count.nodes for count in counts.values()) / max(1, num_tiles),
    }


def _read_run_file(run_dir: Path) -> dict[str, Any]:
    path = run_dir / RUN_FILE
    if not path.is_file():
        raise InputError(f"{run_dir} holds no {RUN_FILE}, so it is no prepared run; run inf-nerf prepare first.")
    description = _read_json(path)
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, but this program reads version {FORMAT_VERSION}; "
            f"choose another --output-dir and run inf-nerf prepare."
        )
    return description


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); choose another --output-dir.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object; choose another --output-dir.")
    return content


def _read_octree(run_dir: Path) -> Octree:
    path = run_dir / OCTREE_FILE
    try:
        return Octree.from_state(load_file(path))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"The octree in {path} cannot be read ({error}); run inf-nerf prepare again.") from error


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("prepare")
