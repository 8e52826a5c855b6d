"""Looks into the numbers of a training every so many steps: gradients, values and activations, node by node.

    with Debugger(config.debug, file) as debugger:
        debugger.begin(step, field)  # before the field is asked
        ...                          # forward, backward, loss scale divided out
        debugger.look()

Between looks it costs a comparison; its hook on the field is gone when the block ends.  A look goes over the gradients
and values of every node that was touched, and over all features, densities and colours for numbers that are not finite;
of a few samples of some of the nodes it computes the hidden activations again, which compiled kernels keep to
themselves.  What is wrong is told once for each node and part until that was sound again, and written to ``file``.

Letters: Q samples, S looked at of a node, m nodes looked at.
"""

import json
import logging
import math
import statistics
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from inf_nerf.config import DebugConfig
from inf_nerf.field.field import Field
from inf_nerf.field.heads import LEAK, layers_of, segment_bounds
from inf_nerf.files import write_atomic
from inf_nerf.octree.topology import BACKGROUND_KEY, key_level, key_name

PARTS = ("table", "density", "colour")  # what a node's gradients and values are of
MOST_NODES = 64  # whose hidden activations one look computes again
RECENT_LOOKS = 32  # that say how large gradients usually are
FEWEST_LOOKS = 5  # before which that is not known
MOST_ANOMALIES = 1000  # kept
NAMED = 5  # nodes that one sentence names

Kind = Literal["value_anomaly", "gradient_anomaly", "gradient_explosion", "activation_anomaly"]
Stats = dict[str, float]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Anomaly:
    """Something that should not be, in one part of one node."""

    step: int
    kind: Kind
    node: str
    level: int  # of the octree; -1 for the background
    part: str
    value: float | None  # None where it is not finite
    limit: float | None


class Debugger:
    """Watches a field within a ``with`` block."""

    def __init__(self, config: DebugConfig, file: Path | None = None) -> None:
        """``file`` gets the report with every anomaly that is new, and at the end; None: nothing is written."""
        self._config = config
        self._file = file
        self._field: Field | None = None
        self._step = 0
        self._armed = False
        self._gradients: dict[tuple[int, str], Stats] = {}  # by key and part
        self._activations: dict[tuple[int, str], Stats] = {}
        self._largest: dict[str, deque[float]] = {part: deque(maxlen=RECENT_LOOKS) for part in PARTS}
        self._growth: dict[str, Stats] = {}  # how far the largest norm of a part ever was above what was usual
        self._wrong: set[tuple[Kind, int, str]] = set()  # already told and not sound since
        self._found: dict[tuple[Kind, int, str], tuple[float, float]] = {}  # in this look: value and limit
        self.anomalies: deque[Anomaly] = deque(maxlen=MOST_ANOMALIES)
        self.looks = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self.write()

    def close(self) -> None:
        """Take the hook off the field."""
        if self._field is not None:
            self._field.watch = None
            self._field = None

    def begin(self, step: int, field: Field) -> None:
        """A step begins; in every ``debug.every``-th what ``field`` computes from now on is looked at."""
        if field is not self._field:  # the first one, or one with other nodes
            if self._field is not None:
                self._field.watch = None
            field.watch, self._field = self._watch, field
        self._step, self._armed = step, step % self._config.every == 0
        self._found = {}

    @torch.no_grad()
    def look(self, anyway: bool = False, overflow: bool = False) -> int:
        """Gradients are complete and unscaled; look at them, and say how many anomalies are new.

        ``anyway``: also in a step that is not due.  ``overflow``: gradients that are not finite only mean that the loss
        scale was too large.
        """
        if self._field is None or not (self._armed or anyway):
            return 0
        self.looks += 1
        self._look_at_nodes(self._field, overflow)
        self._armed = False
        return self._tell()

    def report(self) -> dict[str, Any]:
        """Plain numbers, for JSON: every node by its name, the octree levels, and the anomalies."""
        nodes: dict[str, dict[str, Any]] = {}
        for kind, found in (("gradients", self._gradients), ("activations", self._activations)):
            for (key, part), stats in sorted(found.items()):
                node = nodes.setdefault(key_name(key), {"level": _level(key), "gradients": {}, "activations": {}})
                node[kind][part] = {name: _plain(value) for name, value in stats.items()}
        levels: dict[int, dict[str, dict[str, float]]] = {}
        for (key, part), stats in self._gradients.items():
            largest = levels.setdefault(_level(key), {}).setdefault(part, {"nodes": 0, "norm": 0.0})
            largest["nodes"] += 1
            largest["norm"] = max(largest["norm"], stats["norm"]) if math.isfinite(stats["norm"]) else largest["norm"]
        return {
            "step": self._step,
            "looks": self.looks,
            "anomalies": [asdict(anomaly) for anomaly in self.anomalies],
            "levels": {str(level): parts for level, parts in sorted(levels.items())},
            "growth": self._growth,
            "nodes": nodes,
        }

    def write(self) -> None:
        """Write the report to its file."""
        if self._file is not None:
            write_atomic(self._file, json.dumps(self.report()))

    def _look_at_nodes(self, field: Field, overflow: bool) -> None:
        """Gradients and values of the nodes that were touched."""
        rows = torch.nonzero(field.touched).squeeze(1).tolist()
        if not rows:
            return
        figures = []
        for row in rows:
            for gradient, value in zip(field.gradients_of(row), field.state_of(row).values(), strict=True):
                least, most = torch.aminmax(gradient)  # NaN where there is one
                figures += [torch.linalg.vector_norm(gradient), least, most, torch.linalg.vector_norm(value)]
        table = torch.stack(figures).view(len(rows), len(PARTS), 4).cpu().tolist()
        recent = {part: statistics.median(kept) for part, kept in self._largest.items() if len(kept) >= FEWEST_LOOKS}
        usual = {part: norm for part, norm in recent.items() if norm > 0}
        for row, parts in zip(rows, table, strict=True):
            key = int(field.keys[row])
            for index, (part, (norm, least, most, size)) in enumerate(zip(PARTS, parts, strict=True)):
                stats: Stats = {"norm": norm, "min": least, "max": most, "nan": 0, "inf": 0}
                limit = min(self._config.gradient_norm, self._config.gradient_growth * usual.get(part, math.inf))
                if not math.isfinite(norm):
                    gradient = field.gradients_of(row)[index]
                    stats["nan"], stats["inf"] = int(gradient.isnan().sum()), int(gradient.isinf().sum())
                    if not overflow:
                        self._note("gradient_anomaly", key, part)
                elif norm > limit:
                    self._note("gradient_explosion", key, part, norm, limit)
                if not math.isfinite(size):
                    self._note("value_anomaly", key, part)
                self._gradients[key, part] = stats
        for index, part in enumerate(PARTS):
            largest = max((parts[index][0] for parts in table if math.isfinite(parts[index][0])), default=None)
            if largest is None:
                continue
            if part in usual and largest / usual[part] > self._growth.get(part, {"times": 0})["times"]:
                self._growth[part] = {"times": largest / usual[part], "step": self._step, "usual": usual[part]}
            if largest <= self._config.gradient_growth * usual.get(part, math.inf):
                self._largest[part].append(largest)

    @torch.no_grad()
    def _watch(
        self, features: Tensor, node: Tensor, given: tuple[Tensor, Tensor, Tensor], sigma: Tensor, rgb: Tensor
    ) -> None:
        """What the field computed of samples that are sorted by node; ``given`` are directions, appearances, rays."""
        field = self._field
        if not self._armed or field is None or not len(node):
            return
        bounds = segment_bounds(node, field.num_nodes)
        for part, values in (("features", features), ("density", sigma[:, None]), ("colour", rgb)):
            if not bool(values.isfinite().all()):
                wrong = node[~values.isfinite().all(dim=1)].unique()
                for row in wrong.tolist():
                    own = values[bounds[row] : bounds[row + 1]]
                    key = int(field.keys[row])
                    stats = self._activations.setdefault((key, part), {})
                    stats |= {"nan": int(own.isnan().sum()), "inf": int(own.isinf().sum())}
                    self._note("activation_anomaly", key, part)
        counts = bounds.diff()
        rows = torch.nonzero(counts).squeeze(1)
        if len(rows) > MOST_NODES:  # others in the next look
            rows = rows.roll(-MOST_NODES * self.looks)[:MOST_NODES]
        place = torch.arange(self._config.samples, device=node.device) / self._config.samples
        picked = (bounds[rows, None] + (place * counts[rows, None]).long()).reshape(-1)  # [m * S]
        activations = self._activations_of(field, rows, features[picked], *given[:2], given[2][picked])
        names = list(activations)
        summaries = [_summary(values, "hidden" in part) for part, values in activations.items()]
        summary = torch.stack(summaries, dim=1).cpu()  # [m, parts, 6]
        for row, found in zip(rows.tolist(), summary.tolist(), strict=True):
            key = int(field.keys[row])
            for part, (mean, std, least, most, nan, dead) in zip(names, found, strict=True):
                stats = {"mean": mean, "std": std, "min": least, "max": most, "nan": nan, "inf": 0.0, "dead": dead}
                self._activations[key, part] = stats
                largest = max(abs(least), abs(most))
                if math.isfinite(largest) and largest > self._config.activation:
                    self._note("activation_anomaly", key, part, largest, self._config.activation)

    def _activations_of(
        self, field: Field, rows: Tensor, features: Tensor, direction: Tensor, appearance: Tensor, ray: Tensor
    ) -> dict[str, Tensor]:  # each [m, S, width]
        """What the layers of the heads of nodes ``rows`` [m] give for features [m * S, F], as float32 products."""
        shape = len(rows), self._config.samples, -1
        found = {"features": features.float().view(shape)}
        inner, out = (layer[rows] for layer in layers_of(field.density_weights.detach(), field.density_sizes))
        found["density.hidden"] = F.leaky_relu(found["features"] @ inner, LEAK)
        found["density.raw"] = found["density.hidden"] @ out
        given = field.colour_given(direction, appearance.detach()).index_select(0, ray).view(shape)
        x = torch.cat((torch.sigmoid(found["density.raw"][..., 1:]), given), dim=-1)
        *hidden, last = (layer[rows] for layer in layers_of(field.colour_weights.detach(), field.colour_sizes))
        for number, layer in enumerate(hidden, start=1):
            x = found[f"colour.hidden{number}"] = F.leaky_relu(x @ layer, LEAK)
        found["colour.raw"] = x @ last
        return found

    def _note(self, kind: Kind, key: int, part: str, value: float = math.nan, limit: float = math.nan) -> None:
        self._found[kind, key, part] = value, limit

    def _tell(self) -> int:
        """Keep what is newly wrong; forget what is sound again."""
        new = [entry for entry in self._found if entry not in self._wrong]
        self._wrong = set(self._found)
        for kind, key, part in new:
            value, limit = (_plain(number) for number in self._found[kind, key, part])
            self.anomalies.append(Anomaly(self._step, kind, key_name(key), _level(key), part, value, limit))
        for kind in dict.fromkeys(kind for kind, _, _ in new):
            names = list(dict.fromkeys(f"{key_name(key)} ({part})" for found, key, part in new if found == kind))
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            log.warning("Step %d: %s in %s%s.", self._step, kind, ", ".join(names[:NAMED]), more)
        self._found = {}
        if new:
            self.write()
        return len(new)


@torch.no_grad()
def nodes_not_finite(field: Field) -> list[str]:
    """Names of the nodes whose values are NaN or infinite; those whose gradients are, if no value is."""
    values, gradients = [], []
    for row, key in enumerate(field.keys.tolist()):
        if not all(bool(value.isfinite().all()) for value in field.state_of(row).values()):
            values.append(key_name(key))
        elif bool(field.touched[row]) and not all(bool(part.isfinite().all()) for part in field.gradients_of(row)):
            gradients.append(key_name(key))
    return values or gradients


def _summary(values: Tensor, hidden: bool) -> Tensor:
    """Of activations [m, S, width]: mean, standard deviation, least, most, number of NaN, and columns that are the same
    for all samples or, of a ``hidden`` layer, off for all of them: [m, 6]."""
    flat = values.flatten(1)
    least, most = torch.aminmax(values, dim=1)
    dead = ((most <= 0) if hidden else (least == most)).sum(1)
    parts = (flat.mean(1), flat.std(1), least.amin(1), most.amax(1), flat.isnan().sum(1), dead)
    return torch.stack([part.float() for part in parts], dim=1)


def _level(key: int) -> int:
    return -1 if key == BACKGROUND_KEY else key_level(key)


def _plain(number: float) -> float | None:
    """A number that JSON knows."""
    return number if math.isfinite(number) else None
