"""What an evaluation found, for the screen, as CSV, and against another run's."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from inf_nerf.errors import InputError

COLUMNS: tuple[str, ...] = ("protocol", "colours", "part", "psnr", "ssim", "lpips", "share")
NAMES = ("psnr", "ssim", "lpips")


def table(result: dict[str, Any]) -> Table:
    """The scores by pyramid level and distance, for the screen."""
    right = result.get("right_half")
    protocols = [result, right] if right else [result]
    with_lpips = result["lpips"] is not None
    names = "PSNR in dB / SSIM / LPIPS" if with_lpips else "PSNR in dB / SSIM"
    shown = Table(title=f"Held-out photos ({names})", title_justify="left")
    shown.add_column("pyramid level")
    shown.add_column("size", justify="right")
    shown.add_column("plain", justify="right")
    if right:
        shown.add_column("right half", justify="right")
    for index, level in enumerate(result["levels"]):
        cells = [str(level["level"]), f"{level['width']} x {level['height']}", _scores(level)]
        if right:
            cells.append(_scores(right["levels"][index]) if index < len(right["levels"]) else "")
        shown.add_row(*cells)
    shown.add_section()
    shown.add_row("mean", "", *(_scores(scores) for scores in protocols))
    shown.add_row("mean, colour-corrected", "", *(_scores(scores["colour_corrected"]) for scores in protocols))
    shown.add_row("level 0, colour-corrected", "", *(_scores(scores["colour_corrected"], "0") for scores in protocols))
    shown.add_row("level 0, floor: mean colour", "", *(f"{scores['psnr0_floor']:.2f}" for scores in protocols))
    if result["distance_bands"]:
        shown.add_section()
    for band in result["distance_bands"]:
        reach = f"level 0, {band['from']:g} to {band['to']:g} away"
        shown.add_row(reach, f"{100 * band['share']:.1f} % of surfaces", _scores(band))
    shown.caption = _caption(result)
    shown.caption_justify = "left"
    return shown


def _caption(result: dict[str, Any]) -> str:
    shares = ", ".join(f"{level}: {100 * share:.1f} %" for level, share in result["level_share"].items())
    nodes, size = (_mean(result["images"], name) for name in ("nodes_touched", "bytes_touched"))
    lines = [
        f"{result['num_nodes']} nodes, {result['model_bytes'] / 1e6:.1f} MB; "
        f"a level-0 view touches {nodes:.1f} nodes, {size / 1e6:.1f} MB.",
        f"Share of the pictures answered by each octree level - {shares}",
    ]
    if (depth := result["depth"])["observations"]:
        lines.append(
            f"Depth at {depth['observations']:,} sparse points of these photos: off by {100 * depth['median']:.2f} % "
            f"of the distance ({depth['median_px']:.1f} px) in the median, {100 * depth['p90']:.1f} % at the 90th "
            "percentile."
        )
    if memory := result.get("memory"):
        lines.append(
            f"At most {memory['peak_bytes'] / 1e6:.1f} MB of nodes were held, of {memory['budget_bytes'] / 1e6:.1f} "
            f"MB allowed; {memory['bytes_read'] / 1e6:.1f} MB were read."
        )
    if reason := result.get("lpips_missing"):
        lines.append(f"No LPIPS: {reason}.")
    return "\n".join(lines)


def as_csv(result: dict[str, Any]) -> str:
    """A row for each protocol, colours (as rendered or corrected) and part: mean, level, photo, distance band, seam."""
    out = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for protocol, scores in (("plain", result), ("right_half", result.get("right_half"))):
        for colours, part, values in _rows(scores) if scores else ():
            known = {name: values[name] for name in (*NAMES, "share") if values.get(name) is not None}
            writer.writerow({"protocol": protocol, "colours": colours, "part": part} | known)
    return out.getvalue()


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for colours, scores in (("rendered", result), ("corrected", result["colour_corrected"])):
        yield colours, "mean", scores
        for level in scores["levels"]:
            yield colours, f"level {level['level']}", level
    for image in result["images"]:
        yield "rendered", f"photo {image['name']}", image
        yield "corrected", f"photo {image['name']}", {"psnr": image["psnr_corrected"]}
    for band in result.get("distance_bands", ()):
        reach = f"distance {band['from']:g} to {band['to']:g}"
        yield "rendered", reach, band
        yield "corrected", reach, {"psnr": band["psnr_corrected"], "share": band["share"]}
    for place, values in result.get("seams", {}).items():
        if isinstance(values, dict):
            yield "corrected", f"seams {place}", values


def differences(result: dict[str, Any], baseline: dict[str, Any]) -> Table:
    """What ``result`` has more than ``baseline``; :class:`InputError` where they scored other photos or sizes."""
    photos, others = ([image["name"] for image in each["images"]] for each in (result, baseline))
    if photos != others:
        missing = sorted(set(photos) ^ set(others))
        raise InputError(
            f"The baseline was scored on other photos ({len(others)}, not {len(photos)}; for example {missing[0]} is "
            "in one alone); give both runs the same scene.test_list."
            if missing
            else "The baseline was scored on the same photos in another order; prepare both runs from the same folder."
        )
    sizes, other_sizes = ([(row["width"], row["height"]) for row in each["levels"]] for each in (result, baseline))
    if sizes != other_sizes:
        raise InputError(
            f"The baseline was scored at {_sizes(other_sizes)} pixels, this run at {_sizes(sizes)}; give both the same "
            "scene.max_side and scene.pyramid_levels."
        )
    shown = Table(title="Against the baseline", title_justify="left")
    shown.add_column("level 0 unless named")
    for name in ("this run", "baseline", "difference"):
        shown.add_column(name, justify="right")
    theirs = {(colours, part): values for colours, part, values in _rows(baseline)}
    for colours, part, mine in _rows(result):
        for name in NAMES:
            value, other = mine.get(name), theirs.get((colours, part), {}).get(name)
            if value is not None and other is not None:
                digits = 2 if name == "psnr" else 3
                label = f"{part}, {name}" + (" corrected" if colours == "corrected" else "")
                shown.add_row(label, f"{value:.{digits}f}", f"{other:.{digits}f}", f"{value - other:+.{digits}f}")
    return shown


def _sizes(sizes: list[tuple[int, int]]) -> str:
    width, height = sizes[0]
    return f"{width} x {height} ({len(sizes)} levels)"


def _scores(scores: dict[str, Any], level: str = "") -> str:
    lpips = scores[f"lpips{level}"]
    shown = f"{scores['psnr' + level]:.2f} / {scores['ssim' + level]:.3f}"
    return shown if lpips is None else f"{shown} / {lpips:.3f}"


def _mean(images: list[dict[str, Any]], key: str) -> float:
    return sum(image[key] for image in images) / len(images)
