"""The radiance fields of all nodes: hash grid -> density head -> (density, geometry) -> colour head -> colour.

Everything is stacked over the M nodes (the octree's, then the background), and a sample carries the index of its node.
Samples arrive sorted by node.  The leaves keep one gradient buffer for ever, which backward adds to in place; `touched`
says which nodes' slices of it mean anything, so that an untouched node has no gradient at all.
"""

import copy
import hashlib
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from inf_nerf.config import FieldConfig
from inf_nerf.errors import InputError
from inf_nerf.field.backends import resolve_backend
from inf_nerf.field.hash_grid import GridSpec
from inf_nerf.field.heads import (
    num_weights,
    packed_mlp,
    packed_mlp_reference,
    segment_bounds,
    spherical_harmonics,
    trunc_exp,
)

NUM_HARMONICS = 16
PADDED_TO = 16  # the colour head's input is filled up with ones to a multiple of it, as tinycudann does
TABLE_INIT = 1e-4

# features [Q, L * F], node [Q], then directions [R, 3], appearances [R, A] and rays [Q], density [Q], colour [Q, 3]
Watch = Callable[[Tensor, Tensor, tuple[Tensor, Tensor, Tensor], Tensor, Tensor], None]


def grid_spec(config: FieldConfig) -> GridSpec:
    """The hash grid of every node."""
    return GridSpec(
        config.num_levels, config.features_per_level, config.log2_table_size, config.base_res, config.max_res
    )


def head_sizes(config: FieldConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layer widths of the density head and of the colour head."""
    given = config.geo_features + NUM_HARMONICS + config.appearance_dim
    colour = (given + -given % PADDED_TO, config.hidden_color, config.hidden_color, 3)
    return (grid_spec(config).num_features, config.hidden_density, 1 + config.geo_features), colour


def node_parameters(config: FieldConfig) -> int:
    """Numbers that are trained in one node."""
    spec, (density, colour) = grid_spec(config), head_sizes(config)
    return spec.num_entries * spec.features_per_level + num_weights(density) + num_weights(colour)


class Field:
    """Hash grids and heads of M nodes; float32.

    ``tables`` [M, P, F], ``density_weights`` [M, Wd] and ``colour_weights`` [M, Wc] are leaves whose ``.grad`` always
    exists, but for a field that only answers.  ``touched`` [M] bool marks the nodes that were evaluated with gradients
    since ``clear_gradients``; those of ``frozen`` [M] bool never count as touched, so nothing trains them.
    """

    def __init__(self, config: FieldConfig, keys: Tensor, seed: int | None, device: str | torch.device = "cpu") -> None:
        """``keys`` [M] int64; a node's initial values depend on ``seed`` and its key alone.

        Without a seed the field only answers: it holds no gradients, and its values are zero until they are loaded.
        """
        self.config = config
        self.keys = keys.cpu()
        self.encoder = resolve_backend(config.backend, device)
        self.spec = grid_spec(config)
        self.density_sizes, self.colour_sizes = head_sizes(config)
        self._padding = self.colour_sizes[0] - config.geo_features - NUM_HARMONICS - config.appearance_dim
        self.density_bias = math.log(config.initial_density)

        num_nodes, trains = len(keys), seed is not None
        self.tables = _leaf((num_nodes, self.spec.num_entries, self.spec.features_per_level), device, trains)
        self.density_weights = _leaf((num_nodes, num_weights(self.density_sizes)), device, trains)
        self.colour_weights = _leaf((num_nodes, num_weights(self.colour_sizes)), device, trains)
        self.touched = torch.zeros(num_nodes, dtype=torch.bool, device=device)
        self.frozen = torch.zeros(num_nodes, dtype=torch.bool, device=device)
        self._leaves = {"table": self.tables, "density": self.density_weights, "colour": self.colour_weights}
        self._parameters: dict[int, dict[str, nn.Parameter]] = {}
        self._mlp = packed_mlp_reference if self.encoder.name == "torch" else packed_mlp
        self._fused = self.encoder.name == "numba"
        self.watch: Watch | None = None  # is shown all that :meth:`radiance_of` computes
        if seed is not None:
            for index, key in enumerate(self.keys.tolist()):
                self.load_state(index, self._initial(seed, key))

    def first(self, keys: Tensor) -> "Field":
        """The values of the first nodes as those of the nodes ``keys`` [m], in the same storage; it only answers."""
        part = copy.copy(self)
        part.keys = keys.cpu()
        part._leaves = {name: leaf.detach()[: len(keys)] for name, leaf in self._leaves.items()}
        part.tables, part.density_weights, part.colour_weights = part._leaves.values()
        part.touched, part.frozen, part._parameters = self.touched[: len(keys)], self.frozen[: len(keys)], {}
        return part

    def change_nodes(self, keys: Tensor) -> None:
        """Hold the nodes ``keys`` [M'] from now on, without gradients.  Nodes that were held keep their values, those
        of others are zero until they are loaded; what :meth:`parameters_of` gave before belongs to nobody."""
        before, device = {key: index for index, key in enumerate(self.keys.tolist())}, self.frozen.device
        kept = [(index, before[key]) for index, key in enumerate(keys.tolist()) if key in before]
        now, then = torch.tensor(kept, dtype=torch.int64, device=device).view(-1, 2).unbind(1)
        for name, leaf in self._leaves.items():
            leaf.grad = None  # room for the new values
            changed = leaf.new_zeros((len(keys), *leaf.shape[1:])).requires_grad_(leaf.requires_grad)
            changed.data[now] = leaf.detach()[then]
            if leaf.requires_grad:
                changed.grad = torch.zeros_like(changed)
            self._leaves[name] = changed
        self.tables, self.density_weights, self.colour_weights = self._leaves.values()
        frozen = self.frozen.new_zeros(len(keys))
        frozen[now] = self.frozen[then]
        self.frozen, self.touched = frozen, torch.zeros_like(frozen)
        self.keys, self._parameters = keys.cpu(), {}

    @property
    def num_nodes(self) -> int:
        """M, with the background."""
        return len(self.keys)

    @property
    def num_parameters(self) -> int:
        """Numbers trained, of all nodes."""
        return sum(leaf.numel() for leaf in self._leaves.values())

    @property
    def node_bytes(self) -> int:
        """Bytes of the values of one node."""
        return sum(leaf.shape[1:].numel() * leaf.element_size() for leaf in self._leaves.values())

    def values(self) -> list[Tensor]:
        """The values of all nodes, one tensor [M, ...] for each kind; the storage itself."""
        return [leaf.detach() for leaf in self._leaves.values()]

    @torch.no_grad()
    def features(self, xyz: Tensor, node: Tensor) -> Tensor:
        """Features [Q, L * F] of positions [Q, 3] in nodes [Q], for :meth:`density` to start from; no gradients."""
        return self.encoder(self.spec, self.tables, xyz, node)

    def compute_heads_in(self, precision: torch.dtype) -> None:
        """Products and activations of the heads get this precision from now on; values and gradients stay float32."""
        self._mlp = partial(packed_mlp, precision=precision)
        self._fused = False

    def density(
        self,
        xyz: Tensor,  # [Q, 3] in the node's own [0, 1]
        node: Tensor,  # [Q] int64, ascending
        features: Tensor | None = None,  # [Q, L * F] of the same positions, if they are at hand
    ) -> tuple[Tensor, Tensor]:  # [Q], [Q, G]
        """Density per unit of scene length, and the geometry features that the colour is computed from."""
        return self._density_of(self.encoder(self.spec, self.tables, xyz, node, features), self._bounds(node))

    def radiance(
        self,
        xyz: Tensor,  # [Q, 3] in the node's own [0, 1]
        node: Tensor,  # [Q] int64, ascending
        direction: Tensor,  # [R, 3] unit, of rays
        appearance: Tensor,  # [R, A]
        ray: Tensor,  # [Q] int64
        features: Tensor | None = None,  # [Q, L * F] of the same positions, if they are at hand
    ) -> tuple[Tensor, Tensor]:  # [Q], [Q, 3]
        """Density per unit of scene length, and sRGB-encoded colour in [0, 1] seen along the rays' directions."""
        features = self.encoder(self.spec, self.tables, xyz, node, features)
        return self.radiance_of(features, node, direction, appearance, ray)

    def radiance_of(
        self, features: Tensor, node: Tensor, direction: Tensor, appearance: Tensor, ray: Tensor
    ) -> tuple[Tensor, Tensor]:
        """:meth:`radiance` from the features [Q, L * F]: the heads alone."""
        bounds = self._bounds(node)
        if self._fused:
            from inf_nerf.field import numba_heads

            weights = (self.density_weights, self.colour_weights, self.density_sizes, self.colour_sizes)
            given = self.colour_given(direction, appearance)
            sigma, rgb = numba_heads.radiance(
                features, given, node, ray, *weights, self.density_bias, self.config.appearance_dim
            )
        else:
            sigma, geo = self._density_of(features, bounds)
            rgb = self._colour_of(geo, direction, appearance, ray, bounds)
        if self.watch is not None:
            self.watch(features, node, (direction, appearance, ray), sigma, rgb)
        return sigma, rgb

    def colour(
        self,
        geo: Tensor,  # [Q, G] from density
        direction: Tensor,  # [R, 3] unit, of rays
        appearance: Tensor,  # [R, A]
        node: Tensor,  # [Q] int64, ascending
        ray: Tensor,  # [Q] int64
    ) -> Tensor:  # [Q, 3]
        """sRGB-encoded colour in [0, 1] seen along ``direction``."""
        return self._colour_of(geo, direction, appearance, ray, self._bounds(node))

    def colour_given(self, direction: Tensor, appearance: Tensor) -> Tensor:
        """What the colour head is given beside geometry [R, C - G]: appearance [R, A], harmonics of directions [R, 3]
        and ones."""
        ones = appearance.new_ones(1, self._padding).expand(len(appearance), -1)
        return torch.cat([appearance, spherical_harmonics(direction.detach()), ones], dim=-1)

    def _density_of(self, features: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
        raw = self._mlp(self.density_weights, features, bounds, self.density_sizes)  # [Q, 1 + G]
        return trunc_exp(raw[:, 0] + self.density_bias), raw[:, 1:]

    def _colour_of(self, geo: Tensor, direction: Tensor, appearance: Tensor, ray: Tensor, bounds: Tensor) -> Tensor:
        given = self.colour_given(direction, appearance).index_select(0, ray)
        # Unbounded geometry features led to NaN after long trainings in the authors' code; hence the sigmoid.
        given = torch.cat([torch.sigmoid(geo), given], dim=-1)
        return torch.sigmoid(self._mlp(self.colour_weights, given, bounds, self.colour_sizes))

    def requires_grad_(self, flag: bool) -> "Field":
        """Train (True) or freeze (False) every node; a frozen field passes gradients on but collects none."""
        for leaf in self._leaves.values():
            leaf.requires_grad_(flag)
        return self

    def parameters_of(self, index: int) -> dict[str, nn.Parameter]:
        """One node's ``table`` [P, F], ``density`` [Wd], ``colour`` [Wc]: sharing storage, the same objects always."""
        if index not in self._parameters:
            self._parameters[index] = {name: nn.Parameter(leaf.detach()[index]) for name, leaf in self._leaves.items()}
        return self._parameters[index]

    def expose_gradients(self, nodes: Tensor | None = None) -> None:
        """Give the parameters of touched nodes, or of those among ``nodes`` [M] bool, their gradients (views of the
        buffers) and the others none."""
        exposed = self.touched if nodes is None else self.touched & nodes
        for index, touched in enumerate(exposed.tolist()):
            for name, parameter in self.parameters_of(index).items():
                gradient = self._leaves[name].grad
                parameter.grad = gradient[index] if touched and gradient is not None else None

    def gradients_of(self, index: int) -> list[Tensor]:
        """Views of one node's gradient buffers."""
        return [leaf.grad[index] for leaf in self._leaves.values() if leaf.grad is not None]

    def clear_gradients(self, nodes: Tensor | None = None) -> None:
        """Zero what touched nodes (those among ``nodes`` [M] bool) collected and mark them untouched."""
        cleared = self.touched if nodes is None else self.touched & nodes
        for index in cleared.nonzero().flatten().tolist():
            for gradient in self.gradients_of(index):
                gradient.zero_()
        self.touched &= ~cleared

    def state_of(self, index: int) -> dict[str, Tensor]:
        """One node's values (views): ``table`` [P, F], ``density`` [Wd], ``colour`` [Wc]."""
        return {name: leaf.detach()[index] for name, leaf in self._leaves.items()}

    def load_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Overwrite one node's values; raises :class:`InputError` when they belong to other field settings."""
        for name, target in self.state_of(index).items():
            found = state.get(name)
            if found is None or found.shape != target.shape:
                shape = "nothing" if found is None else f"shape {tuple(found.shape)}"
                raise InputError(
                    f"The values of node {int(self.keys[index])} hold {shape} for {name!r} where "
                    f"{tuple(target.shape)} is expected; use the field settings of the run that they were saved by."
                )
            target.copy_(found)

    def _bounds(self, node: Tensor) -> Tensor:
        if bool((node[1:] < node[:-1]).any()):
            raise ValueError("samples must be sorted by node; sort them by their node index before asking the field")
        bounds = segment_bounds(node, self.num_nodes)  # [M + 1]
        if torch.is_grad_enabled() and self.tables.requires_grad:
            self.touched |= (bounds[1:] > bounds[:-1]) & ~self.frozen
        return bounds

    def _initial(self, seed: int, key: int) -> dict[str, Tensor]:
        digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        table = torch.empty(self.spec.num_entries, self.spec.features_per_level)
        return {
            "table": table.uniform_(-TABLE_INIT, TABLE_INIT, generator=generator),
            "density": _initial_head(self.density_sizes, generator),
            "colour": _initial_head(self.colour_sizes, generator),
        }


def _leaf(shape: tuple[int, ...], device: str | torch.device, trains: bool) -> Tensor:
    leaf = torch.zeros(shape, device=device, requires_grad=trains)
    if trains:
        leaf.grad = torch.zeros(shape, device=device)
    return leaf


def _initial_head(sizes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights [W], each layer Xavier uniform as in tinycudann: within sqrt(6 / (in + out))."""
    layers = []
    for wide, out in pairwise(sizes):
        limit = math.sqrt(6 / (wide + out))
        layers.append(torch.empty(wide * out).uniform_(-limit, limit, generator=generator))
    return torch.cat(layers)
