"""Who trains what: the upper nodes are shared by all ranks, each subtree below them belongs to one rank.

Letters: W ranks.  The shared nodes are a frontier, not a level: a subtree that is too heavy for one rank is cut, its
root becomes shared and its children are dealt.  A partition depends on the tree and W alone, so every process can make
it.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from inf_nerf.errors import InputError
from inf_nerf.octree.topology import BACKGROUND_KEY, ROOT_KEY, Octree, key_level, key_name, key_of

SLACK = 1.15  # load that a rank may reach, in parts of 1/W, so that its subtrees are neighbours
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


def make_partition(octree: Octree, num_ranks: int, shared_upper_levels: int) -> Partition:
    """Deal the subtrees below the shared nodes to ``num_ranks`` ranks, the heaviest first.

    At least the first ``shared_upper_levels`` levels are shared.  The weight of a subtree is the number of sparse
    points that reach its root.  One that is heavier than 1/W of all subtrees together is cut one level deeper, while it
    has children.  A subtree goes to the lightest rank, or to one with neighbours of it that stays below SLACK / W of
    the whole: rays that cross from one rank's nodes to another's train neither well.  Ties go to the smaller key and
    the smaller rank.
    """
    if num_ranks < 1 or shared_upper_levels < 1:
        raise ValueError(
            f"a partition needs at least 1 rank and 1 shared level, not {num_ranks} and {shared_upper_levels}"
        )
    waiting = torch.nonzero(octree.level == shared_upper_levels).flatten().tolist()
    share = Fraction(sum(int(octree.num_points[node]) for node in waiting), num_ranks)
    cut: set[int] = set()
    subtrees: list[tuple[int, int]] = []  # (-weight, key) of the subtrees that are dealt whole
    while waiting:
        node = waiting.pop()
        children = [child for child in octree.children[node].tolist() if child >= 0]
        weight, key = int(octree.num_points[node]), int(octree.keys[node])
        if weight > share and children:
            cut.add(key)
            waiting += children
        else:
            subtrees.append((-weight, key))
    loads = [0] * num_ranks
    roots: list[list[int]] = [[] for _ in range(num_ranks)]
    centre = dict(zip(octree.keys.tolist(), octree.centre.tolist(), strict=True))
    for place, (negative, key) in enumerate(sorted(subtrees)):
        weight, empty = -negative, [rank for rank in range(num_ranks) if not roots[rank]]
        light = [rank for rank in range(num_ranks) if roots[rank] and loads[rank] + weight <= SLACK * share]
        near = {rank: min(math.dist(centre[key], centre[other]) for other in roots[rank]) for rank in light}
        if near and len(subtrees) - place > len(empty):  # else every rank that has none yet needs one
            rank = min(light, key=lambda rank: (near[rank], loads[rank], rank))
        else:
            rank = min(range(num_ranks), key=lambda rank: (loads[rank], len(roots[rank]), rank))
        loads[rank] += weight
        roots[rank].append(key)
    upper = octree.keys[octree.level < shared_upper_levels].tolist()
    owned = tuple(frozenset[int]().union(*(octree.subtree_keys(key) for key in keys)) for keys in roots)
    return Partition(frozenset({BACKGROUND_KEY, *upper, *cut}), owned, tuple(tuple(sorted(keys)) for keys in roots))


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
