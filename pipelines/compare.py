"""Stage ``compare``: runs side by side, from their directories or from MLflow."""

import json
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from pipelines.mlflow_store import open_client, reason_of, tracking_uri, without_password
from pipelines.recorded import PEAK, RATE, RecordedRun, of_directory, of_store

MISSING = "-"
RUN_ID = re.compile(r"[0-9a-f]{32}")
UI = "http://127.0.0.1:5000"  # where mlflow ui listens
LEFT_OUT = ("tracking.",)  # settings that say nothing about a training


@dataclass(frozen=True)
class Figure:
    """A number or a word that runs are compared by."""

    key: str  # of a metric or tag
    title: str
    digits: int | None = None  # None: a word
    better: int = 0  # 1: more is better, -1: less is better, 0: neither


FIGURES = (  # after those of each pyramid level
    Figure("eval/psnr", "PSNR, mean of levels", 2, 1),
    Figure("eval/colour_corrected/psnr", "PSNR corrected, mean", 2, 1),
    Figure("eval/right_half/psnr0", "PSNR right half, level 0", 2, 1),
    Figure("eval/right_half/colour_corrected/psnr0", "PSNR right half corrected, level 0", 2, 1),
    Figure("eval/ssim0", "SSIM, level 0", 4, 1),
    Figure("eval/ssim", "SSIM, mean", 4, 1),
    Figure("eval/lpips0", "LPIPS, level 0", 4, -1),
    Figure("eval/lpips", "LPIPS, mean", 4, -1),
    Figure("eval/num_nodes", "nodes", 0),
    Figure("eval/model_bytes", "model bytes", 0, -1),
    Figure("step", "steps", 0),
    Figure("seconds", "training seconds", 0, -1),
    Figure(RATE, "rays/s, median", 0, 1),
    Figure(PEAK, "memory of worker 0, peak MB", 0, -1),
    Figure("workers", "workers"),
    Figure("backend", "backend"),
)
WHERE_FROM = (Figure("git.commit", "commit"), Figure("data.hash", "data"), Figure("octree.hash", "octree"))


def run(runs: Sequence[str], uri: str | None = None, as_json: bool = False) -> dict[str, Any]:
    """Print the comparison of runs, named by directory or MLflow id, and return it as plain values.

    ``uri`` is the store of the ids.  Raises :class:`InputError` for a name that is neither, and where the store does
    not have a run.
    """
    short = [Path(name).name or name for name in runs]
    found = [_find(name, uri, label) for name, label in zip(runs, short if len(set(short)) == len(runs) else runs)]
    figures = [*_per_level(found), *FIGURES, *(figure for figure in WHERE_FROM if _differs(figure, found))]
    values = {figure.key: [_value(figure, recorded) for recorded in found] for figure in figures}
    comparison = {
        "runs": [{"name": each.name, "mlflow": each.reference} for each in found],
        "settings": _differing_settings(found),
        "figures": values,
        "best": {figure.key: _best(figure, values[figure.key]) for figure in figures if figure.better},
        "open": opening(found),
    }
    if as_json:
        print(json.dumps(comparison, indent=1))
    else:
        _show(comparison, figures)
    return comparison


def opening(runs: Iterable[RecordedRun]) -> list[dict[str, str | None]]:
    """For each MLflow store that has some of the runs, the command that serves it and the address of their comparison.

    A tracking server is served already: its command is None.
    """
    stores: dict[str, list[tuple[str, str]]] = {}
    for each in runs:
        if each.reference is not None:
            uri, experiment, run_id = each.reference
            stores.setdefault(uri, []).append((experiment, run_id))
    result: list[dict[str, str | None]] = []
    for uri, members in stores.items():
        is_server = uri.startswith(("http://", "https://"))
        ids = quote(json.dumps([run_id for _, run_id in members], separators=(",", ":")))
        experiments = quote(json.dumps(sorted({experiment for experiment, _ in members}), separators=(",", ":")))
        address = f"{uri.rstrip('/') if is_server else UI}/#/compare-runs?runs={ids}&experiments={experiments}"
        result.append({"command": None if is_server else ui_command(uri), "url": address})
    return result


def ui_command(uri: str) -> str:
    """What shows a store in the browser, with the mlflow beside this Python."""
    mlflow = Path(sys.executable).with_name("mlflow")
    if mlflow.is_relative_to(Path.cwd()):
        mlflow = mlflow.relative_to(Path.cwd())
    return f"{mlflow} ui --backend-store-uri {shlex.quote(uri)}"


def _find(name: str, uri: str | None, label: str) -> RecordedRun:
    """The run that ``name`` is, to be shown as ``label`` if it is a directory."""
    if Path(name).is_dir():
        return of_directory(Path(name), label)
    if not RUN_ID.fullmatch(name):
        raise InputError(f"{name!r} is neither a run directory that exists nor the id of an MLflow run (32 digits).")
    store = uri or tracking_uri(Config())
    if store.startswith("sqlite:///") and not Path(store.removeprefix("sqlite:///")).is_file():
        raise InputError(f"The MLflow store {store} does not exist; name the one of run {name} with --tracking-uri.")
    try:
        return of_store(open_client(store), store, name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The MLflow store {without_password(store)} cannot show run {name} ({reason_of(error)}); correct the id "
            "or --tracking-uri."
        ) from error


def _per_level(runs: Sequence[RecordedRun]) -> list[Figure]:
    """PSNR of every pyramid level that any of the runs was scored at, plain and corrected."""
    found = {key for each in runs for key in each.metrics}
    levels = sorted({int(match[1]) for key in found if (match := re.fullmatch(r"eval/level(\d+)/psnr", key))})
    plain = [Figure(f"eval/level{level}/psnr", f"PSNR, level {level}", 2, 1) for level in levels]
    corrected = [
        Figure(f"eval/colour_corrected/level{level}/psnr", f"PSNR corrected, level {level}", 2, 1) for level in levels
    ]
    return plain + corrected


def _value(figure: Figure, recorded: RecordedRun) -> float | str | None:
    if figure.digits is not None:
        return recorded.metrics.get(figure.key)
    asked = {"workers": "train.num_workers", "backend": "field.backend"}.get(figure.key, "")
    return recorded.tags.get(figure.key, recorded.params.get(asked))


def _differs(figure: Figure, runs: Sequence[RecordedRun]) -> bool:
    return len({_value(figure, each) for each in runs}) > 1


def _differing_settings(runs: Sequence[RecordedRun]) -> dict[str, list[str | None]]:
    """The config keys that are not the same in all runs, in the order of the configuration."""
    keys = dict.fromkeys([*Config().flat(), *(key for each in runs for key in each.params)])
    values = {key: [each.params.get(key) for each in runs] for key in keys if not key.startswith(LEFT_OUT)}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def _best(figure: Figure, values: Sequence[float | str | None]) -> list[int]:
    """Which runs have the best value; none where all that have one have the same."""
    known = [value for value in values if isinstance(value, int | float)]
    if len(set(known)) < 2:
        return []
    best = max(known) if figure.better > 0 else min(known)
    return [index for index, value in enumerate(values) if value == best]


def _show(comparison: dict[str, Any], figures: Sequence[Figure]) -> None:
    """Print a comparison for people; the best of a row has a star."""
    console = Console(soft_wrap=True)
    shown = Table(title="Runs (* is the best of a row)", title_justify="left")
    shown.add_column("")
    for each in comparison["runs"]:
        shown.add_column(each["name"], justify="right", overflow="fold")
    for key, row in comparison["settings"].items():
        shown.add_row(key, *(MISSING if value is None else value for value in row))
    shown.add_section()
    for figure in figures:
        row, best = comparison["figures"][figure.key], comparison["best"].get(figure.key, [])
        if any(value is not None for value in row):
            cells = [_cell(figure, value) + ("*" if index in best else "") for index, value in enumerate(row)]
            shown.add_row(figure.title, *cells)
    console.print(shown)
    if not comparison["settings"]:
        console.print("No setting differs.")
    for way in comparison["open"]:
        first = f"{way['command']}\n  and then open " if way["command"] else "Open "
        console.print(first + way["url"], markup=False, highlight=False)
    if not comparison["open"]:
        console.print("None of these runs was recorded in MLflow.")


def _cell(figure: Figure, value: float | str | None) -> str:
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:,.{figure.digits}f}"


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("compare")
