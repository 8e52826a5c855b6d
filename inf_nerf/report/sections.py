"""The parts of a report, each from the facts alone; one that has nothing to show says so.

Every number on the page comes from a file of the run; nothing is typed in here.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from inf_nerf.config import Config
from inf_nerf.render.images import Crop
from inf_nerf.render.stored_model import block_bundles
from inf_nerf.render.working_set import Bundles, working_set
from inf_nerf.report.charts import Axis, Line, bar_chart, line_chart, number
from inf_nerf.report.facts import Facts
from inf_nerf.report.maps import GroundMap, coverage_map, gsd_map
from inf_nerf.report.page import cards, figure, figures, missing, paragraph, picture, table

NO_METRICS = "There is no metrics.jsonl in the run: it was not trained yet."
NO_EVALUATION = "There is no eval.json in the run: inf-nerf eval makes it."
NO_CHECKPOINT = "The run holds no complete checkpoint yet."
STEP = Axis("step")
VIEWS = 4  # test photos whose nodes are counted on smaller trees
DATA_ROWS = {
    "format": "format",
    "photos": "photos",
    "cameras": "cameras",
    "distorted_cameras": "cameras with distortion",
    "masks": "masks",
    "train": "photos to learn from",
    "val": "photos that checkpoints are scored on",
    "test": "photos held out",
    "points_read": "sparse points read",
    "points_in_cube": "sparse points in the cube",
    "observations": "observations of them",
    "level0_width": "width of the finest pyramid level, px",
    "level0_height": "height of the finest pyramid level, px",
    "cube_side": "side of the root cube, units of the input",
}


def summary(facts: Facts) -> str:
    """The figures that people ask for first."""
    evaluation, checkpoint = facts.evaluation or {}, facts.checkpoint
    entries: list[tuple[str, str]] = []
    if "psnr0" in evaluation:
        entries.append(("PSNR, full size, dB", f"{evaluation['psnr0']:.2f}"))
        corrected = evaluation.get("colour_corrected", {}).get("psnr0")
        if corrected is not None:
            entries.append(("colour-corrected, dB", f"{corrected:.2f}"))
        entries.append(("SSIM, full size", f"{evaluation['ssim0']:.3f}"))
    if checkpoint is not None:
        entries += [
            ("steps", f"{checkpoint.step:,}"),
            ("nodes", f"{checkpoint.octree.num_nodes:,}"),
            ("MB of model", f"{checkpoint.model_bytes / 1e6:,.1f}"),
        ]
    if (seconds := facts.last("seconds")) is not None:
        entries.append(("training time", duration(seconds)))
    entries.append(("photos", f"{len(facts.scene.photos):,}"))
    return cards(entries)


def config_differences(facts: Facts) -> str:
    """Keys that are not at their defaults."""
    defaults = Config().flat()
    rows = [
        (key, _plain(defaults.get(key)), _plain(value))
        for key, value in facts.config.flat().items()
        if value != defaults.get(key)
    ]
    if not rows:
        return paragraph("All keys are at their defaults.")
    return table(("key", "default", "this run"), rows)


def data(facts: Facts) -> str:
    """What was captured, and where it was seen how often and how finely."""
    report = facts.scene.report
    rows = [(text, _plain(report[key])) for key, text in DATA_ROWS.items() if key in report]
    parts = [table(("what was read", ""), rows)]
    for title, found, unit in (
        ("Coverage", coverage_map(facts.scene), "photos that saw a point, median of each cell"),
        ("Ground sampling distance", gsd_map(facts.scene), "finest pixel on a point, units of the input"),
    ):
        if found is None:
            parts.append(missing(f"{title}: the sparse points say nothing about it."))
        else:
            parts.append(figure(picture(found.picture, title, 400), _range(found, unit), title))
    return figures(parts)


def octree(facts: Facts) -> str:
    """How space is divided."""
    if facts.checkpoint is None:
        return missing(NO_CHECKPOINT)
    tree, size = facts.checkpoint.octree, facts.checkpoint.node_bytes
    shares = (facts.evaluation or {}).get("level_share", {})
    rows = []
    for level in range(tree.num_levels):
        of_level = torch.nonzero(tree.level == level).squeeze(1)
        rows.append(
            (
                str(level),
                f"{len(of_level):,}",
                f"{int(tree.num_points[of_level].sum()):,}",
                number(float(tree.gsd[of_level[0]]) / facts.scene.frame.scale),
                f"{int(size[of_level].sum()) / 1e6:.2f}",
                f"{100 * shares[str(level)]:.1f} %" if str(level) in shares else "–",
            )
        )
    head = ("level", "nodes", "sparse points", "gsd, units of the input", "MB", "share of the pictures")
    chart = line_chart(
        [
            Line(
                "",
                list(range(tree.num_levels)),
                [int((tree.level == level).sum()) for level in range(tree.num_levels)],
                True,
            )
        ],
        Axis("octree level"),
        Axis("nodes", from_zero=True),
    )
    parts = [table(head, rows), figure(chart, "Nodes of each level")]
    if "background" in shares:
        parts.append(paragraph(f"The background beyond the cube answers {100 * shares['background']:.1f} %."))
    return figures(parts)


def curves(facts: Facts) -> str:
    """How training went."""
    if not facts.rows:
        return missing(NO_METRICS)
    losses = sorted({key for row in facts.rows for key in row if key.startswith("loss_")})
    wanted = (
        ("Loss terms", [("loss", "all"), *((key, key[5:]) for key in losses)], Axis("loss", logarithmic=True)),
        ("PSNR of training rays", [("psnr", "")], Axis("dB")),
        ("Learning rate", [("lr", "")], Axis("rate", logarithmic=True)),
        ("Throughput", [("rays_per_second", "")], Axis("rays/s", from_zero=True)),
        ("Samples of a ray", [("samples_per_ray", "")], Axis("samples", from_zero=True)),
        ("Memory of the first worker", [("memory_mb", "")], Axis("MB", from_zero=True)),
    )
    parts = []
    for title, keys, axis in wanted:
        chart = line_chart([Line(name, *facts.series(key)) for key, name in keys], STEP, axis)
        parts.append(figure(chart, "", title) if chart else missing(f"{title}: metrics.jsonl has no numbers of it."))
    shares = sorted({level for row in facts.rows for level in row.get("level_share", {})})
    lines = []
    for level in shares:
        found = [(row["step"], row["level_share"][level]) for row in facts.rows if level in row.get("level_share", {})]
        lines.append(Line(f"level {level}", [step for step, _ in found], [share for _, share in found]))
    if chart := line_chart(lines, STEP, Axis("share of the light", from_zero=True)):
        parts.append(figure(chart, "", "Levels that answer in training"))
    return figures(parts)


def scores(facts: Facts) -> str:
    """Held-out photos: by pyramid level, by photo, by distance, and depth."""
    evaluation = facts.evaluation
    if evaluation is None:
        return missing(NO_EVALUATION)
    parts = [_by_level(evaluation), _level_chart(evaluation)]
    images = evaluation.get("images", [])
    parts.append(
        figure(
            bar_chart([image["name"] for image in images], [image["psnr"] for image in images], "PSNR, dB",
                      mark=evaluation.get("psnr0_floor")),
            "Each held-out photo at full size; the dashed line is one constant colour.",
            "Photos",
        )
    )  # fmt: skip
    bands = evaluation.get("distance_bands")
    if bands:
        rows = [
            (f"{number(band['from'])} to {number(band['to'])}", f"{100 * band['share']:.1f} %",
             *(_score(band.get(key), key) for key in ("psnr", "ssim", "lpips")))
            for band in bands
        ]  # fmt: skip
        head = ("distance, half sides of the cube", "of the pixels", "PSNR", "SSIM", "LPIPS")
        parts.append(figure(table(head, rows), "", "Near and far"))
    depth = evaluation.get("depth")
    if depth and depth.get("observations"):
        rows = [
            ("observations of sparse points", f"{depth['observations']:,}"),
            ("median error, part of the distance", f"{100 * depth['median']:.2f} %"),
            ("90th percentile", f"{100 * depth['p90']:.2f} %"),
            ("median error, pixels", number(depth["median_px"])),
        ]
        parts.append(figure(table(("depth", ""), rows), "", "Depth at sparse points"))
    text = figures(parts)
    if "lpips_missing" in evaluation:
        text += paragraph(f"LPIPS: {evaluation['lpips_missing']}")
    return text


def seams(facts: Facts) -> str:
    """Whether errors gather where subtrees meet."""
    if facts.evaluation is None:
        return missing(NO_EVALUATION)
    found = facts.evaluation.get("seams") or {}
    names = {"interior": "inside a subtree", "near": "near a border", "between_ranks": "between two workers' subtrees"}
    rows = [
        (text, f"{found[key]['psnr']:.2f}", f"{100 * found[key]['share']:.1f} %")
        for key, text in names.items()
        if key in found
    ]
    if not rows:
        return missing("No pixel of the held-out photos could be placed in the tree.")
    return table(("where", "PSNR, dB", "of the pixels"), rows)


def touched(facts: Facts) -> str:
    """How many nodes a picture asks, on this tree and on the trees that end at coarser levels."""
    if facts.checkpoint is None:
        return missing(NO_CHECKPOINT)
    parts = []
    views = facts.scene.test[:VIEWS] or facts.scene.train[:VIEWS]
    tree, near = facts.checkpoint.octree, facts.config.sampler.near
    cut = [tree.restrict(tree.keys[tree.level <= level].tolist()) for level in range(tree.num_levels)]
    seen = [_bundles(facts, view) for view in views]
    # the background is one more
    counts = [statistics.fmean(len(working_set(part, rays, near=near)) + 1 for rays in seen) for part in cut]
    lines = [Line("can be asked, by the tree alone", [part.num_nodes for part in cut], counts, True)]
    evaluation = facts.evaluation or {}
    if images := evaluation.get("images", []):
        nodes = [image["nodes_touched"] for image in images]
        lines.append(Line("were asked by held-out photos", [evaluation["num_nodes"]] * len(nodes), nodes, True))
        size = statistics.fmean(image["bytes_touched"] for image in images)
        parts.append(
            paragraph(
                f"A held-out photo asked {statistics.fmean(nodes):.1f} of {evaluation['num_nodes']:,} nodes on "
                f"average, {size / 1e6:.1f} of {evaluation['model_bytes'] / 1e6:.1f} MB."
            )
        )
    chart = line_chart(lines, Axis("nodes of the tree", logarithmic=True), Axis("nodes of a picture", from_zero=True))
    caption = f"Full-size views of {len(views)} photos on this tree and on what it would be with fewer levels."
    return figures([figure(chart, caption)]) + "".join(parts)


def environment(facts: Facts, here: Mapping[str, str]) -> str:
    """Where the training came from, and what made this page (``here``)."""
    rows = sorted(facts.origin.items())
    if facts.checkpoint is not None:
        manifest = facts.checkpoint.manifest
        rows += [("workers of the last save", str(manifest["num_workers"])), ("checkpoint", manifest["digest"][:16])]
        rows.append(("training is complete", "yes" if manifest["complete"] else "no"))
    text = table(("training", ""), rows) if rows else missing("The run does not say where it was trained.")
    return text + "<p></p>" + table(("this page was made with", ""), list(here.items()))


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _by_level(evaluation: Mapping[str, Any]) -> str:
    right = evaluation.get("right_half", {}).get("levels", [])
    rows = []
    for index, level in enumerate(evaluation["levels"]):
        half = right[index] if index < len(right) else {}
        rows.append(
            (str(level["level"]), f"{level['width']} x {level['height']}",
             *(_score(level.get(key), key) for key in ("psnr", "ssim", "lpips")),
             *(_score(half.get(key), key) for key in ("psnr", "ssim")))
        )  # fmt: skip
    head = ("pyramid level", "size", "PSNR", "SSIM", "LPIPS", "right half: PSNR", "SSIM")
    return figure(table(head, rows), "Held-out photos, whole and after fitting their light on the left half.", "Levels")


def _level_chart(evaluation: Mapping[str, Any]) -> str:
    lines = [
        Line(name, [level["level"] for level in levels], [level["psnr"] for level in levels], True)
        for name, levels in (
            ("plain", evaluation["levels"]),
            ("right half", evaluation.get("right_half", {}).get("levels", [])),
        )
    ]
    return figure(line_chart(lines, Axis("pyramid level"), Axis("PSNR, dB")), "")


def _bundles(facts: Facts, view: int) -> Bundles:
    """The rays of a full-size picture, by blocks of it."""
    cameras = facts.scene.cameras
    crop = Crop(0, 0, *cameras.level_size(view, 0))
    return block_bundles(cameras, view, 0, crop, facts.config.octree.footprint_px)


def _range(found: GroundMap, unit: str) -> str:
    low, median, high = number(found.low), number(found.median), number(found.high)
    return f"{unit}: dark {low}, bright {high}; median of all points {median}. Black dots: cameras."


def _score(value: float | None, key: str) -> str:
    return "–" if value is None else f"{value:.2f}" if key == "psnr" else f"{value:.3f}"


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int | float):
        return number(value)
    return (
        ", ".join(_plain(part) for part in value)
        if isinstance(value, Sequence) and not isinstance(value, str)
        else str(value)
    )
