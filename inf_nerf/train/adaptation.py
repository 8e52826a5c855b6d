"""The octree of a training while it adapts: what samples ask of it is summed up, nodes come and go, and all that a rank
trains with follows.

The sparse points made the tree that tiles and the partition are about; what becomes of it is the complete tree here,
which all ranks know and change alike, by what they asked together.  A node that was added belongs to whoever trains its
parent: where that is shared, all ranks add it with the same values, else its owner does and the others learn that it is
there.  A checkpoint holds the complete tree, and a training that continues from one takes it over.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from inf_nerf.config import Config
from inf_nerf.field.inherited import fit, inherit, num_points
from inf_nerf.octree.growth import OCCUPIED, Demand, demand_of, most_nodes, needless_nodes, wanted_nodes
from inf_nerf.octree.partition import Partition
from inf_nerf.octree.topology import Octree, is_below, key_of
from inf_nerf.render.model import Model, empty_density, field_keys
from inf_nerf.train.exchange import Exchange
from inf_nerf.train.loop import PROBE_SHARES, Work
from inf_nerf.train.losses import NodeLosses, Seen
from inf_nerf.train.shared_gradients import distributed

GROWTH, PRUNING = "growth", "pruning"
LATEST = 0.8  # share of the budget after which no node is added: it would have too little left to learn


class Adaptation:
    """The complete tree of a training and what samples of this rank asked of the part that it holds."""

    def __init__(self, config: Config, prepared: Octree, partition: Partition, local: Octree) -> None:
        """``partition`` is of ``prepared``, and ``local`` this rank's part of it."""
        self.tree = prepared
        self._prepared = prepared
        self._partition = partition
        octree, device = config.octree, local.keys.device
        self._every = {GROWTH: octree.update_every, PRUNING: octree.prune_every}
        self._due: list[str] = []  # what waits for gradients that are pending
        self._asked = {name: Demand.none(local.num_nodes, device) for name, every in self._every.items() if every > 0}

    @torch.no_grad()
    def watch(self, model: Model, seen: Seen, target: Tensor) -> None:
        """Sum up what the samples of a step asked, whose first rays should have the colours ``target`` [B, 3]."""
        if not self._asked or seen.lit is None:
            return
        samples, weight = seen.lit
        error = (seen.rgb[: len(target)] - target.to(seen.rgb)).square().mean(1)
        ray_weight = seen.weight[: len(target)]
        coloured = samples.ray < len(target)
        samples, weight = samples[coloured], weight[coloured] * ray_weight[samples.ray[coloured]]
        of_samples = samples.node, samples.xyz, samples.footprint, samples.foreign, weight, samples.ray
        demand = demand_of(model.octree, *of_samples, error, ray_weight)
        for asked in self._asked.values():
            asked += demand

    def adapt(self, work: Work) -> bool:
        """After a step: change the tree if it is time to, on all ranks together; whether it changed."""
        step = work.progress.step
        self._due += [name for name in self._asked if step % self._every[name] == 0 and name not in self._due]
        if not self._due or work.gradients.pending:
            return False
        config, keys = work.config.octree, set(self.tree.keys.tolist())
        needless = wanted = list[int]()
        if PRUNING in self._due and work.model.occupancy.enabled:
            needless = needless_nodes(self.tree, self._of_all(work, PRUNING), config)
        if GROWTH in self._due and work.progress.share(work.config) < LATEST:
            most = most_nodes(config, self._prepared.num_nodes)
            wanted = wanted_nodes(self.tree, self._of_all(work, GROWTH), config, most + len(needless))
        for name in self._due:
            self._asked[name] = Demand.none(work.model.octree.num_nodes, work.shared.device)
        self._due = []
        keys = keys.difference(needless)
        wanted = [key for key in wanted if key >> 3 in keys]
        if not needless and not wanted:
            return False
        kept = torch.tensor(sorted(keys.union(wanted)))
        index = self.tree.index_of(kept)
        num_points = torch.where(index >= 0, self.tree.num_points[index.clamp_min(0)], 0)
        self.become(work, Octree.from_keys(kept, num_points, float(self.tree.gsd[0])))
        for key in wanted:
            self._begin(work, key)
        work.model.occupancy.refresh()
        work.model.occupancy_changed()
        return True

    def become(self, work: Work, tree: Octree) -> None:
        """Let a rank train the nodes of the complete ``tree`` from now on.  Those that it held go on as they were;
        others hold nothing yet, and the occupancy has to be refreshed when they do."""
        config, model, before = work.config, work.model, work.model.octree
        partition = self._partition.over(self._prepared, tree)
        local = partition.octree(tree, work.part).to(before.keys.device)
        source = before.index_of(local.keys)
        model.field.change_nodes(field_keys(local))
        model.field.frozen = frozen_nodes(config, model.field.keys).to(source.device)
        model.occupancy.change_nodes(empty_density(config, local.half), source)
        model.octree = local
        shared = torch.tensor([key in partition.shared for key in model.field.keys.tolist()], device=source.device)
        work.shared, work.subtrees = shared, partition.subtrees
        work.optimiser = work.optimiser.renewed()
        work.gradients.change_nodes(shared)
        if work.exchange is not None:
            work.exchange = Exchange(model, shared[:-1], work.rank)
        num_turns = work.num_parts // work.num_ranks
        node_losses = NodeLosses.of(config, tree, local, partition, work.part, num_turns)
        work.node_losses = node_losses.without(model.field.frozen)
        work.to_probe = torch.where(source >= 0, work.to_probe[source.clamp_min(0)], PROBE_SHARES)
        here = local.index_of(before.keys)
        self._asked = {name: asked.over(here, local.num_nodes) for name, asked in self._asked.items()}
        self.tree = tree

    def state(self) -> dict[str, Tensor]:
        """What this rank's samples asked since the tree was looked at, fit for safetensors."""
        return {
            f"{name}.{part}": getattr(asked, part) for name, asked in self._asked.items() for part in ("nodes", "rays")
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on as :meth:`state` says; of a tree with as many nodes."""
        for name, asked in self._asked.items():
            if f"{name}.nodes" in state and state[f"{name}.nodes"].shape == asked.nodes.shape:
                asked.nodes.copy_(state[f"{name}.nodes"])
                asked.rays.copy_(state[f"{name}.rays"])

    def _of_all(self, work: Work, name: str) -> Demand:
        """What all ranks asked of the complete tree, the same on all of them."""
        octree, occupancy = work.model.octree, work.model.occupancy
        asked = self._asked[name]
        asked.nodes[:, OCCUPIED] = (occupancy.density > occupancy.threshold[:, None]).any(1).double()
        demand = asked.over(self.tree.index_of(octree.keys.cpu()).to(asked.nodes.device), self.tree.num_nodes)
        if distributed():
            dist.all_reduce(demand.nodes)
            dist.all_reduce(demand.rays)
        return Demand(demand.nodes.cpu(), demand.rays.cpu())

    def _begin(self, work: Work, key: int) -> None:
        """Let the node ``key``, if this rank holds it, start as what its parent is there."""
        model, optimiser, octree = work.model, work.optimiser, work.model.octree
        device = octree.keys.device
        node = int(octree.index_of(torch.tensor(key, device=device)))
        if node < 0:
            return
        parent, gsd = int(octree.parent[node]), float(octree.gsd[node])
        corner = torch.tensor([key >> 2 & 1, key >> 1 & 1, key & 1], device=device) / 2
        seed = ((work.config.train.seed * 1_000_003 + work.progress.step) * 1_000_003 + key) % 2**63
        generator = torch.Generator().manual_seed(seed)
        model.occupancy.inherit(node, parent, corner)
        xyz = model.occupancy.points_in(node, num_points(model.field.spec), generator)
        state = optimiser.state_of(parent)
        moments = inherit(model.field, node, parent, corner, gsd, xyz, state.get("table.exp_avg_sq"))
        fit(model.field, node, parent, corner, gsd, xyz, model.mean_appearance().detach(), generator)
        values = [*model.field.state_of(node).values(), *([] if moments is None else [moments])]
        if distributed() and bool(work.shared[node]):  # where sums are not the same on every device
            for each in values:
                dist.broadcast(each, 0)
        if moments is not None:
            momentum = torch.zeros_like(moments)
            optimiser.load_state(node, state | {"table.exp_avg": momentum, "table.exp_avg_sq": moments})


def frozen_nodes(config: Config, keys: Tensor) -> Tensor:
    """Nodes [M] bool of a field's ``keys`` [M] that nothing trains: those beyond ``train.subtree``."""
    if config.train.subtree is None:
        return torch.zeros(len(keys), dtype=torch.bool)
    return ~is_below(keys, key_of(config.train.subtree))
