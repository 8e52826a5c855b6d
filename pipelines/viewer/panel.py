"""The controls of one visitor and the texts beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import viser

from inf_nerf.octree.topology import key_name
from inf_nerf.render.colourmap import level_colour
from inf_nerf.train.opened import StoredCheckpoint
from inf_nerf.view.pictures import MODES, Answered, Look

SIDES = (384, 512, 768, 1024, 1536)  # longest side of a whole picture, px
OFF, ALL_LEVELS = "off", "all levels"
MEAN = "mean of all photos"
MANUAL = "Drag to turn, scroll to come nearer, right-drag to shift; click a surface to see which node answers there."


@dataclass(frozen=True)
class Figures:
    """What the last picture took."""

    width: int
    height: int
    seconds: float
    per_second: float  # pictures in the last seconds
    touched: int  # nodes


class Panel:
    """All controls; ``on_look`` hears of changes to the picture, ``on_overlays`` of those to what is drawn in it."""

    def __init__(
        self,
        client: viser.ClientHandle,
        num_levels: int,
        budget: int,  # bytes
        photos: Sequence[str],
        *,
        on_look: Callable[[], None],
        on_overlays: Callable[[], None],
        on_budget: Callable[[str], None],
    ) -> None:
        gui = client.gui
        self._photos = list(photos)
        levels = [f"level {level}" for level in range(num_levels)]
        gui.add_markdown(MANUAL)
        self.mode = gui.add_dropdown("Show", MODES, initial_value=MODES[0])
        self._legend = gui.add_html("")
        self.octaves = gui.add_slider(
            "Coarser by", -1.0, 4.0, 0.25, 0.0, hint="Octaves of level of detail; below 0 nodes finer than the pixels."
        )
        self.side = gui.add_dropdown(
            "Sharpness", [str(side) for side in SIDES], initial_value="768", hint="Longest side of the picture, px."
        )
        self.photo = gui.add_dropdown("Appearance", [MEAN, *self._photos], hint="Light and exposure of a photo.")
        with gui.add_folder("Overlays"):
            self.wireframe = gui.add_dropdown("Octree", [OFF, ALL_LEVELS, *levels])
            self.cameras = gui.add_checkbox("Cameras and photos", False)
            self.points = gui.add_checkbox("Sparse points", False)
            self.hides = gui.add_checkbox("Surfaces hide what is behind", True)
        with gui.add_folder("Crop box", expand_by_default=False):
            self.crop = gui.add_checkbox("Show only what is inside", False)
            self.bounds = [gui.add_multi_slider(axis, -1.0, 1.0, 0.01, (-1.0, 1.0), min_range=0.01) for axis in "xyz"]
        with gui.add_folder("Node"):
            self._node = gui.add_markdown("Click a surface.")
        with gui.add_folder("Statistics"):
            self._figures = gui.add_markdown("")
            self.budget = gui.add_number(
                "Budget in MB", max(1, budget // 10**6), min=1, step=1, hint="Of nodes held, for everybody."
            )
            apply = gui.add_button("Set budget")
        for control in (self.mode, self.octaves, self.side, self.photo):
            control.on_update(lambda _: on_look())
        for control in (self.wireframe, self.cameras, self.points, self.hides, self.crop, *self.bounds):
            control.on_update(lambda _: on_overlays())
        self.mode.on_update(lambda _: self._show_legend(num_levels))
        apply.on_click(lambda _: on_budget(f"{self.budget.value:.0f}MB"))

    @property
    def look(self) -> Look:
        """How the visitor wants to see the scene."""
        chosen = self.photo.value
        photo = None if chosen == MEAN else self._photos.index(chosen)
        return Look(self.mode.value, float(self.octaves.value), photo, self.box)

    @property
    def box(self) -> Any:
        """Opposite corners of the crop box; None while all is shown."""
        if not self.crop.value:
            return None
        low, high = zip(*(bound.value for bound in self.bounds), strict=True)
        return low, high

    @property
    def wireframe_level(self) -> int | None:
        """The level whose cubes are wanted; None for all of them."""
        return None if self.wireframe.value == ALL_LEVELS else int(self.wireframe.value.split()[1])

    def choose_photo(self, name: str) -> None:
        """Use the appearance of a photo."""
        self.photo.value = name

    def show_budget(self, budget: int) -> None:
        """The budget in bytes that holds now."""
        self.budget.value = max(1, budget // 10**6)

    def show_figures(self, figures: Figures, checkpoint: StoredCheckpoint) -> None:
        """What the last picture took, and what is in memory."""
        cache = checkpoint.model.cache
        self._figures.content = (
            f"{figures.width} x {figures.height} in {figures.seconds:.2f} s, {figures.per_second:.1f} pictures/s  \n"
            f"{figures.touched} of {checkpoint.octree.num_nodes + 1} nodes touched  \n"
            f"{cache.resident_bytes / 1e6:.1f} MB of nodes held, at most {cache.figures.peak_bytes / 1e6:.1f} of "
            f"{cache.budget / 1e6:.1f} MB  \n"
            f"{cache.bytes_read / 1e6:.1f} MB read of a model of {checkpoint.model_bytes / 1e6:.1f} MB  \n"
            f"step {checkpoint.step:,}"
        )

    def show_node(self, found: Answered | None, checkpoint: StoredCheckpoint, share: float) -> None:
        """Details of the node that a click found; ``share`` of the last picture is what it answered."""
        self._node.content = "There is nothing." if found is None else node_details(found, checkpoint, share)

    def _show_legend(self, num_levels: int) -> None:
        swatches = [
            f'<span style="background:rgb({",".join(str(round(255 * part)) for part in level_colour(level))});'
            f'padding:0 .5em;margin-right:.3em;color:#fff">{level}</span>'
            for level in range(num_levels)
        ]
        self._legend.content = (
            f'<div style="font-size:.8em;padding:0 1em">Level {"".join(swatches)}</div>'
            if self.mode.value == "level"
            else ""
        )


def node_details(found: Answered, checkpoint: StoredCheckpoint, share: float) -> str:
    """What is known of a node, as Markdown; lengths in the units of the input."""
    octree, node = checkpoint.octree, found.node
    key = int(octree.keys[node])
    unit = 1 / checkpoint.scene.frame.scale
    x, y, z = checkpoint.scene.frame.to_world(found.point)
    parent = int(octree.parent[node])
    above = f", below `{key_name(int(octree.keys[parent]))}`" if parent >= 0 else ""
    trained = [part for root, part in checkpoint.subtrees.items() if key in octree.subtree_keys(root)]
    rows = (
        ("key", f"`{key_name(key)}` ({key})"),
        ("level", f"{int(octree.level[node])}{above}"),
        ("side", f"{2 * float(octree.half[node]) * unit:.4g}"),
        ("gsd", f"{float(octree.gsd[node]) * unit:.3g}; the pixel there {found.footprint * unit:.3g}"),
        ("bytes", f"{int(checkpoint.node_bytes[node]):,}"),
        ("samples", f"{int(octree.num_points[node]):,} sparse points; {100 * share:.1f} % of the last picture"),
        ("in memory", "yes" if checkpoint.model.cache.holds(key) else "no"),
        ("trained by", f"part {trained[0]}" if trained else "all, shared"),
        ("point", f"{x:.6g}, {y:.6g}, {z:.6g}"),
    )
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
