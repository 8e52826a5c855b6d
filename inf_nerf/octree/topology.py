"""The tree as flat arrays.

Letters: N nodes, Q samples.  Frame: the scene frame, in which the root is the cube [-1, 1]^3.  A node is named by its
locational code: the root is 1, and a child is ``8 * parent + octant`` with ``octant = 4 * (x >= cx) + 2 * (y >= cy) +
(z >= cz)``.  Codes grow with the level, so nodes sorted by code are in breadth-first order.  What is stored, sent or
cached is named by this key; the index of a node only has a meaning inside one :class:`Octree`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

ABSENT = -1  # no such child: nothing that fine was captured there
FOREIGN = -2  # the child exists in the complete tree, but this tree was restricted without it
ROOT_KEY = 1
BACKGROUND_KEY = 0  # the field outside the root cube; a shared pseudo-node that is in no Octree
MAX_LEVELS = 20  # keys take 1 + 3 * level bits of an int64
BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1
POINTS_AT_ONCE = 1 << 20  # whose keys are computed together, which bounds memory


def key_level(key: int) -> int:
    """Level of a node's key; the root has level 0.  ValueError if ``key`` is not the key of a node."""
    bits = key.bit_length() - 1
    if key < 1 or bits % 3 or bits // 3 >= MAX_LEVELS:
        raise ValueError(f"{key} is not the key of an octree node")
    return bits // 3


def key_levels(keys: Tensor) -> Tensor:
    """Level [N] of nodes' keys [N]; ValueError if one of them is not the key of a node."""
    first = 8 ** torch.arange(MAX_LEVELS)  # keys of a level are 8 ** level and as many after it
    level = (torch.searchsorted(first, keys, right=True) - 1).clamp_(min=0)
    wrong = (keys < 1) | (keys >= 2 * first[level])
    if bool(wrong.any()):
        raise ValueError(f"{int(keys[wrong][0])} is not the key of an octree node")
    return level


def key_name(key: int) -> str:
    """``bg`` for the background, else ``r`` followed by one octal digit per level, for example ``r07``."""
    if key == BACKGROUND_KEY:
        return "bg"
    level = key_level(key)
    return "r" + f"{key:o}"[1:] if level else "r"


def key_of(name: str) -> int:
    """The key that :func:`key_name` names so; ValueError for what is not the name of a node."""
    if name == "bg":
        return BACKGROUND_KEY
    digits = name[1:]
    if name[:1] != "r" or not set(digits) <= set("01234567") or len(digits) >= MAX_LEVELS:
        raise ValueError(f"{name!r} is not the name of an octree node")
    return int("1" + digits, 8)


def is_below(keys: Tensor, ancestor: int) -> Tensor:
    """Whether nodes (int64 keys of any shape) are ``ancestor`` or lie below it, bool; the background never does."""
    span = keys.clone()
    while bool((longer := span >= 8 * ancestor).any()):
        span = torch.where(longer, span >> 3, span)
    return span == ancestor


def octant(xyz: Tensor, centre: Tensor) -> Tensor:
    """Octant of points [Q, 3] about ``centre`` ([3] or [Q, 3]) as int64 [Q]; a point on a cutting plane is above it."""
    above = (xyz >= centre).to(torch.int64)  # [Q, 3]
    return above[:, 0] * 4 + above[:, 1] * 2 + above[:, 2]


def keys_at(xyz: Tensor, level: int) -> Tensor:
    """Key [Q] int64 of the cube of ``level`` in which each point [Q, 3] of the root cube lies.

    The octants of all levels are the bits of the point's cell in the grid of that level; cells are powers of two, so
    they are exactly those that :func:`octant` finds on the way down.
    """
    half_grid = 2.0 ** (level - 1)  # cells from the centre of the root cube to its side
    keys = torch.empty(len(xyz), dtype=torch.int64, device=xyz.device)
    for part, into in zip(xyz.split(POINTS_AT_ONCE), keys.split(POINTS_AT_ONCE), strict=True):
        cell = part.t().clone(memory_format=torch.contiguous_format).clamp_(-1, BELOW_ONE)  # [3, q]
        x, y, z = cell.mul_(half_grid).floor_().add_(half_grid).to(torch.int64)
        into.fill_(ROOT_KEY)
        for bit in range(level - 1, -1, -1):
            for axis in (x, y, z):
                into.mul_(2).add_((axis >> bit).bitwise_and_(1))
    return keys


@dataclass(frozen=True, eq=False)
class Octree:
    """A tree of cubes, root first, then level by level in order of the keys."""

    keys: Tensor  # [N] int64, ascending
    children: Tensor  # [N, 8] int64: index, ABSENT or FOREIGN
    parent: Tensor  # [N] int64: index, -1 for the root
    level: Tensor  # [N] int64
    centre: Tensor  # [N, 3] float32
    half: Tensor  # [N] float32, half of the side; 1 for the root
    gsd: Tensor  # [N] float32, footprint from which on the node answers; halves with every level
    num_points: Tensor  # [N] int64, sparse points of the cube that are finer than the parent's gsd

    def __post_init__(self) -> None:
        count = len(self.keys)
        for field in fields(self):
            shape = {"children": (count, 8), "centre": (count, 3)}.get(field.name, (count,))
            found = tuple(getattr(self, field.name).shape)
            if found != shape:
                raise ValueError(f"Octree.{field.name} has shape {found}, expected {shape}")

    @staticmethod
    def from_keys(keys: Tensor, num_points: Tensor, root_gsd: float) -> "Octree":
        """The tree of the nodes ``keys`` [N], which must hold the root and the parent of every other node.

        ``num_points`` [N] is in the order of ``keys``; ``root_gsd`` is in scene units.  ValueError for keys that are
        no tree.
        """
        keys, order = torch.sort(keys.to(torch.int64))
        if len(keys) == 0 or int(keys[0]) != ROOT_KEY or bool((keys[1:] == keys[:-1]).any()):
            raise ValueError("the keys of an octree must hold the root once, and every node once")
        level = key_levels(keys)
        parent = torch.searchsorted(keys, keys >> 3)
        if not torch.equal(keys[parent[1:]], keys[1:] >> 3):
            raise ValueError("the keys of an octree must hold the parent of every node")
        parent[0] = -1
        children = torch.full((len(keys), 8), ABSENT, dtype=torch.int64)
        children[parent[1:], keys[1:] & 7] = torch.arange(1, len(keys))
        half = torch.pow(2.0, -level.to(torch.float32))
        centre = torch.zeros(len(keys), 3)
        bits = torch.tensor([2, 1, 0])
        for depth in range(1, int(level[-1]) + 1):  # the octant at `depth` moves the centre by half a side
            deep = level >= depth
            code = keys[deep] >> (3 * (level[deep] - depth))
            side = ((code[:, None] >> bits) & 1).to(torch.float32) * 2 - 1  # [n, 3] of -1 or 1
            centre[deep] += side * 2.0**-depth
        gsd = torch.tensor(root_gsd, dtype=torch.float32) * half
        return Octree(keys, children, parent, level, centre, half, gsd, num_points.to(torch.int64)[order])

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return len(self.keys)

    @property
    def num_levels(self) -> int:
        """Deepest level + 1."""
        return int(self.level[-1]) + 1

    @property
    def identity(self) -> str:
        """Hash of the nodes, of what was cut away, and of the resolution; equal for equal trees on any machine."""
        digest = hashlib.sha256()
        for tensor in (self.keys, self.children, self.gsd):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def descent(self) -> tuple[Tensor, Tensor]:
        """The routing rule as a table: ``step`` [3 * N * 16] int32 and ``answer`` [3 * N] int64.

        State n says "at node n", N + n "node n answers since its child is absent", 2 N + n "node n stands in for a
        foreign child".  ``step[16 * state + 8 * finer + octant]`` is the next state, ``answer[state]`` its node.
        """
        count = self.num_nodes
        state = torch.arange(3 * count, dtype=torch.int32, device=self.keys.device)
        step = state[:, None, None].repeat(1, 2, 8)  # a sample that is not finer, or that has an answer, stays
        stay = torch.where(self.children == FOREIGN, 2 * count, count) + state[:count, None]
        step[:count, 1] = torch.where(self.children >= 0, self.children, stay).to(torch.int32)
        return step.flatten(), (state % count).to(torch.int64)

    def to(self, device: torch.device | str) -> "Octree":
        """The same tree with its arrays on ``device``."""
        return Octree(*(getattr(self, field.name).to(device) for field in fields(self)))

    def index_of(self, keys: Tensor) -> Tensor:
        """Index of each key (any shape) in this tree, -1 where it is not a node of it."""
        place = torch.searchsorted(self.keys, keys).clamp_(max=self.num_nodes - 1)
        return torch.where(self.keys[place] == keys, place, -1)

    def subtree_keys(self, key: int) -> frozenset[int]:
        """Keys of the node ``key`` and of all nodes below it; empty if this tree does not hold it."""
        depth = self.level - key_level(key)
        inside = (depth >= 0) & (self.keys >> (3 * depth.clamp(min=0)) == key)
        return frozenset(self.keys[inside].tolist())

    def to_local(self, xyz: Tensor, node: Tensor) -> Tensor:
        """Positions [Q, 3] in the cubes of their nodes [Q], as [Q, 3] in [0, 1]; positions outside are clamped."""
        return (xyz - self.centre[node]).div_(2 * self.half[node, None]).add_(0.5).clamp_(0, 1)

    def restrict(self, keys: Iterable[int]) -> "Octree":
        """This tree without the nodes that are not in ``keys``; their places in kept parents become FOREIGN.

        ``keys`` may hold BACKGROUND_KEY, which is ignored.  ValueError if a kept node is not in this tree, or if its
        parent is not kept.
        """
        wanted = torch.tensor(sorted(set(keys) - {BACKGROUND_KEY}), dtype=torch.int64, device=self.keys.device)
        kept = self.index_of(wanted)
        if bool((kept < 0).any()):
            raise ValueError(f"key {int(wanted[kept < 0][0])} is not a node of this octree")
        if len(kept) == 0 or int(kept[0]) != 0:
            raise ValueError("a restricted octree must keep the root and the parent of every node that it keeps")

        def place(node: Tensor) -> Tensor:
            """Where kept nodes are now; the cost is that of what is kept, however large this tree is."""
            found = torch.searchsorted(kept, node).clamp_(max=len(kept) - 1)
            return torch.where(kept[found] == node, found, FOREIGN)

        old = self.parent[kept]
        parent = torch.where(old >= 0, place(old), -1)
        if bool((parent[1:] < 0).any()):
            raise ValueError("a restricted octree must keep the root and the parent of every node that it keeps")
        old = self.children[kept]
        children = torch.where(old >= 0, place(old), old)
        return Octree(
            self.keys[kept],
            children,
            parent,
            self.level[kept],
            self.centre[kept],
            self.half[kept],
            self.gsd[kept],
            self.num_points[kept],
        )

    def state(self) -> dict[str, Tensor]:
        """What :meth:`from_state` needs, fit for safetensors."""
        return {
            "keys": self.keys.cpu(),
            "num_points": self.num_points.cpu(),
            "foreign": (self.children == FOREIGN).to(torch.uint8).cpu(),
            "root_gsd": self.gsd[:1].clone().cpu(),
        }

    @staticmethod
    def from_state(state: Mapping[str, Tensor]) -> "Octree":
        """Rebuild a tree from :meth:`state`; ValueError if it is not the state of one."""
        tree = Octree.from_keys(state["keys"], state["num_points"], float(state["root_gsd"][0]))
        foreign = state["foreign"].bool()
        if foreign.shape != tree.children.shape or bool((tree.children[foreign] >= 0).any()):
            raise ValueError("the octree's array 'foreign' does not fit its keys")
        tree.children[foreign] = FOREIGN
        return tree
