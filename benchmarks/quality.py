"""PSNR against training seconds: our runs beside the curves of the peers, as JSON and as a plot.

    python -m benchmarks.quality OUT.json --run ours=RUN_DIR [ours=RUN_DIR ...] --peer CURVE.json [CURVE.json ...]
    python -m benchmarks.quality OUT.json --checkpoints ours=RUN_DIR --peer CURVE.json

``--run`` takes the ``eval.json`` of finished runs: runs with the same label, trained for different ``max_seconds``, are
the points of one curve, each with a schedule that ends where it ends.  ``--checkpoints`` scores every checkpoint that a
run has kept (``train.keep_checkpoints``), as the peers are scored: one training on its way.  Everything is about whole
test photos at pyramid level 0 with the mean appearance, plain and after the per-photo affine colour correction; the
floor is what the mean colour of the training photos scores.  The plot is written beside OUT.json, as .svg.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.render.parallel import available_cores
from inf_nerf.scene.photos import read_mask, read_photo
from inf_nerf.train.evaluation import evaluate
from inf_nerf.train.manifest import checkpoints_dir, latest_checkpoint, read_manifest
from inf_nerf.train.opened import Checkpoint, load_checkpoint

SCORES = {"psnr": "plain", "psnr_corrected": "colour-corrected"}


@dataclass(frozen=True)
class Point:
    """What a model scores after some training; decibels."""

    seconds: float
    psnr: float
    psnr_corrected: float


@dataclass(frozen=True)
class Curve:
    """The points of one system by time, and the floor of its photos."""

    label: str
    points: tuple[Point, ...]
    floor: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect the curves, write JSON and plot, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=str(__doc__).split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--run", nargs="+", default=[], metavar="LABEL=DIR", help="finished, evaluated runs")
    parser.add_argument("--checkpoints", nargs="+", default=[], metavar="LABEL=DIR", help="runs to score on the way")
    parser.add_argument("--peer", nargs="+", type=Path, default=[], metavar="CURVE.json", help="curves of peers")
    parser.add_argument("--title", default="")
    wanted = parser.parse_args(arguments)
    try:
        curves = joined(
            [finished(*labelled(text)) for text in wanted.run]
            + [on_the_way(*labelled(text)) for text in wanted.checkpoints]
            + [peer(path) for path in wanted.peer]
        )
        same_floor(curves)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomic(wanted.out, json.dumps([asdict(curve) for curve in curves], indent=1) + "\n")
    plot(curves, wanted.out.with_suffix(".svg"), wanted.title)
    print(table(curves))
    return 0


def labelled(text: str) -> tuple[str, Path]:
    """The parts of LABEL=DIR."""
    label, separator, path = text.partition("=")
    if not separator or not label or not path:
        raise InputError(f"{text!r} is not of the form LABEL=DIR, for example ours=runs/boruszyn.")
    return label, Path(path)


def finished(label: str, run_dir: Path) -> Curve:
    """The one point of a finished run."""
    checkpoint, result = latest_checkpoint(run_dir), run_dir / "eval.json"
    if checkpoint is None or not result.is_file():
        raise InputError(
            f"{run_dir} holds no checkpoint with an eval.json; run inf-nerf train and inf-nerf eval on it."
        )
    return _curve(label, read_manifest(checkpoint)["seconds"], json.loads(result.read_text()))


def on_the_way(label: str, run_dir: Path) -> Curve:
    """All checkpoints of a run, scored now."""
    paths = sorted(path.parent for path in checkpoints_dir(run_dir).glob("*/manifest.json"))
    if not paths:
        raise InputError(f"{run_dir} holds no complete checkpoint; run inf-nerf train on it first.")
    return joined([_score(label, path) for path in paths])[0]


def peer(path: Path) -> Curve:
    """A curve that a peer has written."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        points = [Point(*(float(point[name]) for name in ("seconds", *SCORES))) for point in content["points"]]
        return Curve(content["label"], tuple(points), content["floor"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the curve of a peer ({error!r}); write it with benchmarks.peers.") from error


def joined(curves: Sequence[Curve]) -> list[Curve]:
    """Curves of the same label as one, its points in order of time."""
    result: dict[str, Curve] = {}
    for curve in curves:
        before = result[curve.label].points if curve.label in result else ()
        points = sorted((*before, *curve.points), key=lambda point: point.seconds)
        result[curve.label] = replace(curve, points=tuple(points))
    return list(result.values())


def same_floor(curves: Sequence[Curve]) -> None:
    """Raise :class:`InputError` unless all curves are about the same test photos."""
    if not curves:
        raise InputError("There is nothing to plot; name runs with --run or --checkpoints and curves with --peer.")
    first = curves[0]
    for curve in curves[1:]:
        if abs(curve.floor - first.floor) > 0.02:
            raise InputError(
                f"The floor of {curve.label!r} is {curve.floor:.2f} dB and that of {first.label!r} {first.floor:.2f} "
                "dB, so their photos or splits differ; compare runs on the same photos."
            )


def table(curves: Sequence[Curve]) -> str:
    """All points as text."""
    lines = [f"{'system':<32}{'seconds':>9}{'plain dB':>10}{'corrected dB':>14}"]
    for curve in curves:
        for point in curve.points:
            lines.append(f"{curve.label:<32}{point.seconds:>9.0f}{point.psnr:>10.2f}{point.psnr_corrected:>14.2f}")
    lines.append(f"{'constant colour (floor)':<41}{curves[0].floor:>10.2f}")
    return "\n".join(lines)


def plot(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Both scores against time, with the floor."""
    with matplotlib.rc_context({"svg.hashsalt": "inf-nerf", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        for axes, (score, name) in zip(figure.subplots(1, 2, sharey=True), SCORES.items(), strict=True):
            for curve in curves:
                minutes = [point.seconds / 60 for point in curve.points]
                axes.plot(minutes, [getattr(point, score) for point in curve.points], marker="o", label=curve.label)
            axes.axhline(curves[0].floor, color="grey", linestyle="--", label="constant colour")
            axes.set(title=f"{title} {name}".strip(), xlabel="minutes of training", xlim=(0, None))
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("PSNR of held-out photos in dB")
        figure.axes[0].legend(loc="lower right")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def score(loaded: Checkpoint) -> dict[str, Any]:
    """The evaluation of a checkpoint at pyramid level 0 in the plain protocol."""
    settings: Config = loaded.config.model_copy(
        update={
            "eval": loaded.config.eval.model_copy(update={"right_half": False}),
            "scene": loaded.config.scene.model_copy(update={"pyramid_levels": 1}),
        }
    )
    return evaluate(
        loaded,
        settings,
        lambda photo: (read_photo(loaded.scene, photo), read_mask(loaded.scene, photo)),
        workers=available_cores(),
    )


def _score(label: str, checkpoint: Path) -> Curve:
    loaded = load_checkpoint(checkpoint)
    return _curve(label, loaded.manifest["seconds"], score(loaded))


def _curve(label: str, seconds: float, result: dict[str, Any]) -> Curve:
    point = Point(seconds, result["psnr0"], result["colour_corrected"]["psnr0"])
    return Curve(label, (point,), result["psnr0_floor"])


if __name__ == "__main__":
    sys.exit(main())
