"""Who trains what: the upper nodes are shared by all ranks, each subtree below them belongs to one rank.

Letters: W ranks, N nodes, S subtrees that are dealt whole.  The shared nodes are a frontier, not a level: a subtree
too heavy for one rank is cut, its root becomes shared and its children are dealt.  A partition depends on the tree, the
load of its nodes and W alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.octree.topology import BACKGROUND_KEY, ROOT_KEY, Octree, is_below, key_level, key_name, key_of

# what a rank may reach, in parts of 1/W of the whole, so that its subtrees are neighbours and few are cut
SLACK = 1.15  # of the load
NODES_SLACK = 1.2  # of the nodes that are not shared: each of 4 ranks holds at most 30 % of them
GAIN = 0.01  # of these limits, by which a cut must relieve the fullest rank to be worth one more shared node
PATIENCE = 4  # rounds of cuts that are tried before one helps
LOAD_UNITS = 1 << 40  # the whole load in whole numbers, whose sums are the same in any order
SHARED = -1  # the owner of a node that all ranks train


@dataclass(frozen=True)
class Partition:
    """A disjoint cover of a tree's nodes and the background."""

    shared: frozenset[int]  # keys, BACKGROUND_KEY among them
    owned: tuple[frozenset[int], ...]  # keys of each rank; may be empty
    roots: tuple[tuple[int, ...], ...]  # keys of the roots of each rank's subtrees, ascending
    _owners: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)  # root keys ascending, their ranks

    def __post_init__(self) -> None:
        pairs = sorted((key, rank) for rank, roots in enumerate(self.roots) for key in roots)
        table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        object.__setattr__(self, "_owners", (table[:, 0].contiguous(), table[:, 1].contiguous()))

    @property
    def num_ranks(self) -> int:
        """Number of ranks W."""
        return len(self.owned)

    @property
    def subtrees(self) -> dict[int, int]:
        """The rank of every owned subtree, by the key of its root."""
        return {key: rank for rank, roots in enumerate(self.roots) for key in roots}

    def octree(self, octree: Octree, rank: int) -> Octree:
        """The part of ``octree`` that ``rank`` trains: the shared nodes and its own; the rest is FOREIGN."""
        return octree.restrict(self.shared | self.owned[rank])

    def over(self, prepared: Octree, tree: Octree) -> "Partition":
        """This partition of ``prepared`` for the complete ``tree`` that became of it: a node belongs to whom it
        belonged, and one that was added to whoever trains its parent."""
        owner = dict.fromkeys(self.shared, SHARED)
        owner |= {key: rank for rank, keys in enumerate(self.owned) for key in keys}
        known = set(prepared.keys.tolist())
        held: dict[int, int] = {BACKGROUND_KEY: SHARED}
        for key in tree.keys.tolist():  # parents first
            whose = owner.get(key) if key in known else held.get(key >> 3)
            if whose is not None:  # else it is beyond the branch that is trained
                held[key] = whose
        owned = [frozenset(key for key, rank in held.items() if rank == each) for each in range(self.num_ranks)]
        roots = [tuple(key for key in mine if key in held) for mine in self.roots]
        return Partition(frozenset(key for key, rank in held.items() if rank == SHARED), tuple(owned), tuple(roots))

    def owners_of(self, keys: Tensor) -> Tensor:
        """Rank that owns each node (int64 keys of any shape), SHARED (-1) for shared nodes and the background.

        A node that the partition does not know belongs to the owner of its nearest known ancestor.
        """
        roots, ranks = self._owners
        owner = torch.full_like(keys, SHARED)
        if len(roots) == 0:
            return owner
        ancestor = keys.clone()
        while bool((ancestor > ROOT_KEY).any()):
            place = torch.searchsorted(roots, ancestor).clamp_(max=len(roots) - 1)
            owner = torch.where(roots[place] == ancestor, ranks[place], owner)
            ancestor >>= 3
        return owner


def make_partition(octree: Octree, num_ranks: int, shared_upper_levels: int, load: Tensor | None = None) -> Partition:
    """Deal the subtrees below the shared nodes to ``num_ranks`` ranks, the heaviest first.

    At least the first ``shared_upper_levels`` levels are shared.  ``load`` [N] is the work that each node makes, in any
    unit (:func:`inf_nerf.octree.load.node_load`); None: the number of sparse points that end in it.  A rank shall get
    at most SLACK / W of the load and NODES_SLACK / W of the nodes that are not shared.  While one gets more, its
    heaviest subtree that has children is cut one level deeper, as far as that helps or gives work to a rank that has
    none: every rank holds every shared node, and its gradients travel in each step.  The load of shared nodes is
    nobody's here, since their tiles can go to whoever has the least to do.

    A subtree goes to the rank of its nearest neighbour that stays within these limits, else to the emptiest: rays that
    cross from one rank's nodes to another's train neither well.  Ties go to the smaller key and the smaller rank.
    """
    if num_ranks < 1 or shared_upper_levels < 1:
        raise ValueError(
            f"a partition needs at least 1 rank and 1 shared level, not {num_ranks} and {shared_upper_levels}"
        )
    sizes, children = _subtree_sizes(octree, load), octree.children.numpy()
    dealt = _deal(octree, sizes, np.flatnonzero(octree.level.numpy() == shared_upper_levels), num_ranks)
    best, cut, cut_of_best, rounds = dealt, list[int](), 0, 0
    while best.fullest > 1 and rounds < PATIENCE:
        can_cut = (children[dealt.roots] >= 0).any(1)
        heavy = np.flatnonzero(can_cut & (dealt.alone > 1))
        if len(heavy) == 0:  # none is too heavy alone: the heaviest of the fullest rank
            mine = np.flatnonzero(can_cut & (dealt.rank == np.argmax(dealt.full)))
            if len(mine) == 0:
                break
            heavy = mine[[np.argmax(dealt.alone[mine])]]
        cut += dealt.roots[heavy].tolist()
        below = children[dealt.roots[heavy]]
        roots = np.sort(np.concatenate((np.delete(dealt.roots, heavy), below[below >= 0])))
        dealt, rounds = _deal(octree, sizes, roots, num_ranks), rounds + 1
        helps = dealt.fullest < best.fullest - GAIN * (len(cut) - cut_of_best)
        if helps or dealt.num_idle < best.num_idle:  # a rank without work is worth any number of shared nodes
            best, cut_of_best, rounds = dealt, len(cut), 0
    keys = octree.keys
    shared = {BACKGROUND_KEY, *keys[octree.level < shared_upper_levels].tolist()}
    shared.update(keys[torch.tensor(cut[:cut_of_best], dtype=torch.int64)].tolist())
    roots = [keys[torch.from_numpy(best.roots[best.rank == rank])].tolist() for rank in range(num_ranks)]
    owned = tuple(frozenset[int]().union(*(octree.subtree_keys(key) for key in mine)) for mine in roots)
    return Partition(frozenset(shared), owned, tuple(map(tuple, roots)))


def branch(octree: Octree, name: str, num_parts: int, shared_upper_levels: int) -> tuple[Octree, int, int]:
    """What :func:`make_partition` is given so that only the subtree of the node ``name`` is trained.

    The tree is that subtree and the path to it from the root, whose nodes answer for the rest.  The path is shared, and
    the subtree's own root as well where several parts divide it.  Raises :class:`InputError` for a name of no node of
    the tree.
    """
    try:
        key = key_of(name)
        if key == BACKGROUND_KEY:
            raise ValueError
    except ValueError:
        raise InputError(
            f"train.subtree is {name!r}, which names no node; a name is r and one digit from 0 to 7 for each level "
            "below the root, for example r05."
        ) from None
    path = [key >> 3 * up for up in range(key_level(key) + 1)]  # upwards
    known = set(octree.keys.tolist())
    if key not in known:
        nearest = next(above for above in path if above in known)
        raise InputError(
            f"The tree has no node {name}; the nearest one above it is {key_name(nearest)}, and its levels go down to "
            f"{octree.num_levels - 1}."
        )
    levels = max(1, shared_upper_levels, key_level(key) + (num_parts > 1))
    return octree.restrict({*path, *octree.subtree_keys(key)}), num_parts, levels


def subtrees_after(octree: Octree, before: Mapping[int, int], name: str, now: Mapping[int, int]) -> dict[int, int]:
    """Who trained each subtree of a tree of which the branch of the node ``name`` was trained again.

    ``before`` is the part that trained each subtree, by the key of its root, and ``now`` that of those in the branch.
    Their parts count on from the others: nothing beyond the branch was at hand when it was trained, so its borders are
    seams whoever trained their other side.  A subtree that held the branch falls into what is left around it.
    """
    root, known = key_of(name), set(octree.keys.tolist())
    path = [root >> 3 * up for up in range(key_level(root) + 1)]  # upwards
    others = {key: part for key, part in before.items() if not bool(is_below(torch.tensor(key), root))}
    held = next((up for up, key in enumerate(path) if key in others), 0)
    if held:
        part = others.pop(path[held])
        around = {above << 3 | octant for above in path[1 : held + 1] for octant in range(8)} - set(path)
        others |= dict.fromkeys(around & known, part)
    first = 1 + max(others.values(), default=-1)
    return dict(sorted((others | {key: first + part for key, part in now.items()}).items()))


@dataclass(frozen=True)
class _Dealt:
    """Subtrees in the order of their keys, and who gets them; fullness 1 is the limit of a rank."""

    roots: NDArray[np.int64]  # [S] node indices
    rank: NDArray[np.int64]  # [S]
    alone: NDArray[np.float64]  # [S] how full a rank is of this subtree alone
    full: NDArray[np.float64]  # [W]

    @property
    def fullest(self) -> float:
        return float(self.full.max())

    @property
    def num_idle(self) -> int:
        """Ranks without a subtree."""
        return int((self.full == 0).sum())


def _subtree_sizes(octree: Octree, load: Tensor | None) -> NDArray[np.int64]:
    """Load (in LOAD_UNITS of the whole) and nodes [N, 2] of each node and all below it."""
    parent, level = octree.parent.numpy(), octree.level.numpy()
    if load is None:
        load = octree.num_points.double()
        load = load - torch.zeros_like(load).index_add_(0, octree.parent[1:], load[1:])
    work = load.double().clamp(min=0).numpy()
    units = np.rint(work / (work.sum() or 1.0) * LOAD_UNITS).astype(np.int64)
    sizes = np.stack((units, np.ones_like(units)), axis=1)
    for depth in range(octree.num_levels - 1, 0, -1):
        nodes = np.flatnonzero(level == depth)
        np.add.at(sizes, parent[nodes], sizes[nodes])
    return sizes


def _deal(octree: Octree, sizes: NDArray[np.int64], roots: NDArray[np.int64], num_ranks: int) -> _Dealt:
    """Deal subtrees (node indices ``roots`` [S], ascending): to neighbours unless only the emptiest rank will do."""
    whole = np.array([sizes[0, 0], sizes[roots, 1].sum()])  # shared nodes have a load too
    fullness = sizes[roots] * num_ranks / (np.maximum(whole, 1) * (SLACK, NODES_SLACK))  # [S, 2]
    centre = octree.centre.numpy()[roots]
    order = np.lexsort((roots, -fullness.max(1, initial=0)))
    ways: list[_Dealt] = []
    for to_neighbours in (True, False):
        full, count = np.zeros((num_ranks, 2)), np.zeros(num_ranks, np.int64)
        rank = np.empty(len(roots), np.int64)
        for place, piece in enumerate(order):
            after = (full + fullness[piece]).max(1)  # [W]
            light = np.flatnonzero((count > 0) & (after <= 1))
            # while every rank that has none yet needs one of those that are left, neighbours have to wait
            if to_neighbours and len(light) and len(order) - place > (count == 0).sum():
                dealt = order[:place]
                near = np.full(num_ranks, np.inf)
                np.minimum.at(near, rank[dealt], np.square(centre[dealt] - centre[piece]).sum(1))
                chosen = light[np.lexsort((light, after[light], near[light]))[0]]
            else:
                chosen = np.lexsort((count, after))[0]
            rank[piece] = chosen
            full[chosen] += fullness[piece]
            count[chosen] += 1
        ways.append(_Dealt(roots, rank, fullness.max(1, initial=0), full.max(1)))
        if ways[0].fullest <= 1:
            break
    return min(ways, key=lambda way: way.fullest)
