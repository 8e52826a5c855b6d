"""What goes on around the field: routing, skipping empty space, compositing, whole views.

The scene is a slab of ground in the middle of the cube, seen from above at an angle; its octree is complete, with M
nodes on the last level, and everything outside the slab is known to be empty.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.pairing import Candidate, Case
from benchmarks.torch_loop import composite_padded, route_by_masks
from benchmarks.workload import field_config, make_workload
from inf_nerf.config import Config
from inf_nerf.octree.routing import route
from inf_nerf.octree.topology import Octree
from inf_nerf.render.compositing import along_rays, composite
from inf_nerf.render.foreground import LitSamples
from inf_nerf.render.images import RenderedImage, chunk_rays, render_image
from inf_nerf.render.model import Model
from inf_nerf.render.poses import look_at
from inf_nerf.scene.cameras import Cameras, Rays

VIEW, QUICK_VIEW = (400, 300), (80, 60)
SLAB = 0.06  # half of the ground's thickness, in half sides of the cube
EYE = (1.2, 0.9, 0.9)
DEGREES_PER_PIXEL = 0.125
LEAF_GSD = 0.004  # scene units, about the side of a pixel of the view on the ground
SHARES = 4  # training probes a node's cells in so many turns


def routing(nodes: Sequence[int], threads: Sequence[int], num_rays: int) -> Iterator[Case]:
    """Row ``routing``: the nodes of a step's samples."""
    for count in nodes:
        tree, work = complete_tree(count), make_workload(count, num_rays)
        xyz = work.xyz * 2 - 1
        footprint = float(tree.gsd[-1]) * torch.exp2(4 * torch.rand(len(xyz), generator=_generator()) - 2)
        candidates = [
            Candidate("ours", lambda tree=tree, xyz=xyz, footprint=footprint: route(tree, xyz, footprint)),
            Candidate(
                "authors' masks",
                lambda tree=tree, xyz=xyz, footprint=footprint: route_by_masks(
                    tree.children, tree.centre, tree.gsd, xyz, footprint
                ),
            ),
        ]
        for used in threads:
            yield Case("routing", count, used, candidates)


def occupancy(nodes: Sequence[int], threads: Sequence[int], num_rays: int) -> Iterator[Case]:
    """Rows ``lit_samples``, what a step's rays meet before their light ends, and ``occupancy_probe``, a quarter of one
    node's cells."""
    for count in nodes:
        model, twin = slab_model(count), slab_model(count, "torch")
        rays = view(VIEW).image_rays(0, 0)
        rays = rays[torch.randint(0, len(rays), (num_rays,), generator=_generator())]
        marches = [Candidate("ours", _trace(model, rays)), Candidate("torch twin", _trace(twin, rays))]
        probes = [Candidate("ours", _probe(model)), Candidate("torch twin", _probe(twin))]
        for used in threads:
            yield Case("lit_samples", count, used, marches)
            yield Case("occupancy_probe", count, used, probes)


def compositing(threads: Sequence[int], num_rays: int) -> Iterator[Case]:
    """Row ``compositing``: colours of a step's rays, forward and backward."""
    work = make_workload(1, num_rays)
    sigma = torch.rand(work.num_samples, generator=_generator()).mul_(20).requires_grad_()
    rgb = torch.rand(work.num_samples, 3, generator=_generator()).requires_grad_()

    def flat() -> None:
        weights, _ = composite(sigma, work.delta, work.ray, num_rays)
        _clear_and_back(along_rays(weights, rgb, work.ray, num_rays).sum(), sigma, rgb)

    def padded() -> None:
        weights = composite_padded(sigma.view(num_rays, -1), work.delta.view(num_rays, -1))
        _clear_and_back((weights[..., None] * rgb.view(num_rays, -1, 3)).sum(), sigma, rgb)

    for used in threads:
        yield Case("compositing", 1, used, [Candidate("ours", flat), Candidate("torch, padded rays", padded)])


def render(nodes: Sequence[int], threads: Sequence[int], quick: bool) -> Iterator[Case]:
    """Row ``render``: a view of the slab at full detail."""
    width, height = QUICK_VIEW if quick else VIEW
    for count in nodes:
        model, twin = slab_model(count), slab_model(count, "torch")
        cameras = view((width, height))
        for used in threads:
            candidates = [
                Candidate("ours", _rendered(model, cameras)),
                Candidate("torch twin", _rendered(twin, cameras)),
            ]
            yield Case("render", count, used, candidates)


def complete_tree(nodes: int) -> Octree:
    """An octree with ``nodes`` nodes on its last level and no gaps, which answer all of the view."""
    levels = round(math.log(nodes, 8))
    keys = torch.cat([torch.arange(8**level, 2 * 8**level) for level in range(levels + 1)])
    return Octree.from_keys(keys, torch.full((len(keys),), 100), root_gsd=LEAF_GSD * 2**levels)


def slab_model(nodes: int, backend: str = "numba") -> Model:
    """A model of the ground slab with random values; its occupancy knows where the slab is."""
    tree = complete_tree(nodes)
    field = field_config(nodes, backend).model_copy(update={"initial_density": 30.0})
    config = Config().model_copy(update={"field": field})
    model = Model(config, tree, 1, [0], torch.full((3,), 0.5), solid_ground=False)
    cells = model.occupancy.resolution
    height = (torch.arange(cells) + 0.5) / cells  # in the node, along z, the fastest axis of a grid
    z = tree.centre[:, 2, None] + (2 * height - 1) * tree.half[:, None]  # [N, G]
    solid = (z.abs() < SLAB + tree.half[:, None] / cells)[:, None].expand(-1, cells * cells, -1).reshape(len(z), -1)
    model.occupancy.density[solid] = 1e3
    model.occupancy.enabled = True
    model.occupancy.refresh()
    model.occupancy_changed()
    return model


def view(size: tuple[int, int]) -> Cameras:
    """A camera that looks down at the slab."""
    pose = torch.from_numpy(np.stack([look_at(EYE, (0.0, 0.0, 0.0))]))
    return Cameras.pinhole(pose, *size, DEGREES_PER_PIXEL * size[0])


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _trace(model: Model, rays: Rays) -> Callable[[], LitSamples]:
    return lambda: model.lit_samples(rays, None)


def _probe(model: Model) -> Callable[[], None]:
    generator = _generator()

    return lambda: model.occupancy.probe(model.field, model.octree.num_nodes - 1, 0, SHARES, generator)


def _rendered(model: Model, cameras: Cameras) -> Callable[[], RenderedImage]:
    rays_per_chunk = chunk_rays(model.config.eval.chunk_samples, model.config.sampler.max_samples)

    def run() -> RenderedImage:
        with torch.no_grad():
            workers = torch.get_num_threads()
            return render_image(model, cameras, 0, 0, rays_per_chunk=rays_per_chunk, workers=workers)

    return run


def _clear_and_back(loss: Tensor, *leaves: Tensor) -> None:
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
