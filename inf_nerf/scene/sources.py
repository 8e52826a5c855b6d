"""Which files a scene was made from, and whether they have changed since: by size and time, nothing is read."""

from pathlib import Path

from inf_nerf.scene.scene import Scene

Stamps = dict[str, list[int]]  # file, relative to the data root or absolute -> size in bytes and time in ns; [] if gone


def stamp_files(scene: Scene) -> Stamps:
    """Stamps of the sparse model, the lists of the split, the photos and their masks."""
    masks = [photo.mask for photo in scene.photos if photo.mask is not None]
    files = [*scene.sources, *(photo.file for photo in scene.photos), *masks]
    return {file: _stamp(Path(scene.root) / file) for file in files}


def changed_files(root: Path, stamps: Stamps) -> list[Path]:
    """Files that are no longer as they were when they were stamped."""
    return [root / file for file, stamp in stamps.items() if _stamp(root / file) != stamp]


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [status.st_size, status.st_mtime_ns]
