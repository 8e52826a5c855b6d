"""A camera that moves through a model larger than what may be held."""

import torch

from benchmarks import growth
from benchmarks.growth import City
from benchmarks.street_drive import UntrainedNodes, drive
from benchmarks.street_grid import StreetGrid, drive_views
from inf_nerf.config import Config, load_config
from inf_nerf.octree.build import build_octree
from inf_nerf.octree.topology import BACKGROUND_KEY, ROOT_KEY

CITY = City.of(3, 1.0)


def small_nodes() -> Config:
    """Nodes of 4 KiB tables, in the city's resolution."""
    small = ["field.log2_table_size=8", "field.num_levels=2", "sampler.occupancy_res=4", f"sampler.near={CITY.near}"]
    return load_config(growth.LAPTOP, small)


def test_a_small_budget_is_kept_by_evicting_and_a_large_one_reads_every_node_once() -> None:
    config, cameras = small_nodes(), CITY.cameras(drive_views(3, 25.0))
    tree = build_octree(*CITY.points(), CITY.octree, config.field.max_res)
    size = UntrainedNodes(config).nbytes(ROOT_KEY)
    whole = drive(config, tree, cameras, 2 * size * tree.num_nodes)
    assert whole.evicted == 0 and whole.parts == 1
    assert whole.read_mb == whole.peak_mb > 20 * size / 2**20
    budget = 16 * size
    tight = drive(config, tree, cameras, budget)
    assert tight.peak_mb * 2**20 <= budget
    assert tight.evicted > 0 and tight.parts > 1 and tight.read_mb > whole.read_mb


def test_untrained_nodes_have_the_bytes_that_they_say() -> None:
    nodes = UntrainedNodes(small_nodes())
    values = nodes.read(ROOT_KEY)
    assert sum(value.numel() * value.element_size() for value in values.values()) == nodes.nbytes(ROOT_KEY)
    assert set(values) - set(nodes.read(BACKGROUND_KEY)) == {"occupied"}
    values["table"].zero_()
    assert bool(nodes.read(8)["table"].any())


def test_a_drive_stays_in_its_street() -> None:
    poses = drive_views(5, 12.0)
    eye = poses[:, :, 3]
    assert torch.allclose((eye[1:] - eye[:-1]).norm(dim=1), torch.tensor(12.0, dtype=torch.float64))
    straight = StreetGrid(400.0, 400.0).distance(eye[:1], (eye[-1:] - eye[:1]) / 48.0)
    assert float(straight) > 48.0
