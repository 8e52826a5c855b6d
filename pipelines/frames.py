"""The frames of a camera path in their order: rendered in this process, or by Ray workers that take turns.

A frame depends on the checkpoint, the path and the memory budget alone, so both give the same pixels.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.places import Place
from inf_nerf.render.budget import budget_bytes
from inf_nerf.render.camera_path import CameraPath
from inf_nerf.render.images import RenderedImage, chunk_rays, render_image
from inf_nerf.render.parallel import available_cores
from inf_nerf.render.stored_model import StoredModel
from inf_nerf.train.opened import Checkpoint, StoredCheckpoint, load_checkpoint, open_checkpoint
from pipelines.evaluate import memory_figures
from pipelines.ray_session import on_cluster, start_ray

WAITING = 2  # frames of each worker that are being rendered or wait to be taken


def open_to_render(path: Place, memory_budget: str | None) -> Checkpoint | StoredCheckpoint:
    """The checkpoint with all of its nodes, or holding no more than a budget of them."""
    if memory_budget is None:
        return load_checkpoint(path)
    opened = open_checkpoint(path)
    return opened.within(budget_bytes(memory_budget, opened.model_bytes))


def render_frame(
    checkpoint: Checkpoint | StoredCheckpoint,
    path: CameraPath,
    frame: int,
    settings: Config,
    threads: int | None = None,
) -> RenderedImage:
    """One frame of a path as pictures and videos show it, on ``threads`` or as many as there are cores."""
    return render_image(
        checkpoint.model,
        path.cameras,
        frame,
        0,
        appearance=path.appearance(frame, checkpoint.appearance, checkpoint.scene.train),
        rays_per_chunk=chunk_rays(settings.eval.chunk_samples, settings.sampler.max_samples),
        lod_blend=settings.render.lod_blend,
        workers=threads or available_cores(),
    )


class Frames:
    """Renders the frames ``first``, ``first + every``, ... in this process."""

    def __init__(
        self,
        checkpoint: Checkpoint | StoredCheckpoint,
        path: CameraPath,
        settings: Config,
        num_frames: int,
        every: int = 1,
        threads: int | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._path = path
        self._settings = settings
        self._num_frames = num_frames
        self._every = every
        self._threads = threads

    def frame(self, frame: int) -> RenderedImage:
        """One of the frames; what the next one needs is read meanwhile."""
        model, after = self._checkpoint.model, frame + self._every
        if isinstance(model, StoredModel) and after < self._num_frames:
            model.expect(self._path.cameras, after, 0, self._settings.render.lod_blend)
        return render_frame(self._checkpoint, self._path, frame, self._settings, self._threads)

    def memory(self) -> dict[str, int] | None:
        """What it took to stay within the budget, once all is rendered; None without one."""
        return memory_figures(self._checkpoint) if isinstance(self._checkpoint, StoredCheckpoint) else None

    def __iter__(self) -> Iterator[RenderedImage]:
        return map(self.frame, range(self._num_frames))


class RayFrames:
    """Renders frames on Ray workers, each of which opens the checkpoint and takes every so many-th frame."""

    def __init__(
        self,
        checkpoint: Place,
        memory_budget: str | None,
        path: CameraPath,
        settings: Config,
        num_frames: int,
        workers: int,
    ) -> None:
        """Raises :class:`InputError` for more workers than this machine holds."""
        start_ray()
        held = int(ray.cluster_resources().get("CPU", 0))
        if workers > held and not on_cluster():
            raise InputError(f"{workers} workers need more than the {held} CPUs of this machine; lower --workers.")
        threads = None if on_cluster() else max(1, available_cores() // workers)
        actor: Any = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_Worker)
        arguments = ray.put((checkpoint, memory_budget, path, settings, num_frames, workers, threads))
        self._actors = [actor.remote(arguments) for _ in range(min(workers, num_frames))]
        self._num_frames = num_frames

    def memory(self) -> dict[str, int] | None:
        """As of :meth:`Frames.memory`, of all workers together; the peak is that of the largest."""
        each = [found for found in ray.get([actor.memory.remote() for actor in self._actors]) if found is not None]
        if not each:
            return None
        largest = ("budget_bytes", "peak_bytes")
        return {key: (max if key in largest else sum)(found[key] for found in each) for key in each[0]}

    def __iter__(self) -> Iterator[RenderedImage]:
        waiting: deque[Any] = deque()
        for frame in range(self._num_frames):
            if len(waiting) == WAITING * len(self._actors):
                yield _taken(waiting.popleft())
            waiting.append(self._actors[frame % len(self._actors)].frame.remote(frame))
        while waiting:
            yield _taken(waiting.popleft())


class _Worker:
    """What a Ray worker does."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        checkpoint, memory_budget, path, settings, num_frames, workers, threads = arguments
        opened = open_to_render(checkpoint, memory_budget)
        self._frames = Frames(opened, path, settings, num_frames, workers, threads)

    def frame(self, frame: int) -> RenderedImage:
        return self._frames.frame(frame)

    def memory(self) -> dict[str, int] | None:
        return self._frames.memory()


def _taken(result: Any) -> RenderedImage:
    """A finished frame; an error that the user can put right arrives as it was raised."""
    try:
        return ray.get(result)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from error
        raise
