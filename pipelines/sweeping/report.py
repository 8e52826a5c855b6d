"""What a sweep found: a table, results as JSON and CSV, the best configuration as a file for `train`, and plots.

All of it is made from the journal, so it can be made again at any time.  Letters: K swept keys, N trials.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from pipelines.sweeping import plots
from pipelines.sweeping.journal import Journal, Trial, name_of
from pipelines.sweeping.space import with_values
from pipelines.sweeping.sweep_file import Sweep

FILE_WIDTH = 140  # columns of a table that goes into a file
RESULTS_FILE, CSV_FILE, BEST_FILE, PLOTS_DIR = "results.json", "results.csv", "best.yaml", "plots"


def write(sweep: Sweep, journal: Journal, sweep_dir: Path) -> list[Path]:
    """Write all files into the sweep's directory, print the table; returns the files.

    Raises :class:`InputError` where no trial came to a score.
    """
    trials = ranked(journal.trials.values())
    winner = best(trials)
    if winner is None:
        reason = next((trial.reason for trial in trials if trial.reason), "it ended without a word")
        raise InputError(f"No trial in {sweep_dir} came to a score; the first says: {reason}")
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    console.print(table(trials, winner))
    files = [sweep_dir / name for name in (RESULTS_FILE, CSV_FILE, BEST_FILE)]
    write_atomic(files[0], json.dumps(results(sweep, trials, winner), indent=1, allow_nan=False) + "\n")
    write_atomic(files[1], as_csv(trials))
    write_atomic(files[2], best_config(sweep, winner))
    files += plots.write(sweep, trials, winner, sweep_dir / PLOTS_DIR)
    lines = [
        f"Best: trial {name_of(winner.number)} with {winner.score:.2f} dB on the val photos "
        f"({described(winner.values)}).",
        f"  {files[2]}   train with it: inf-nerf train --config {files[2]} --output-dir RUN --data-root PHOTOS",
        f"  {sweep_dir / 'trials' / name_of(winner.number)}   its run: inf-nerf eval and render take it as any other",
        *(f"  {file}" for file in files[3:]),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return files


def ranked(trials: Any) -> list[Trial]:
    """Best first: by val PSNR, trials without one last."""
    return sorted(trials, key=lambda trial: (-_score(trial), trial.number))


def best(trials: Sequence[Trial]) -> Trial | None:
    """The best of those that used their budget; where none did, of all that have a score."""
    scored = [trial for trial in ranked(trials) if _score(trial) > -math.inf and trial.state != "failed"]
    return next((trial for trial in scored if trial.state == "finished"), next(iter(scored), None))


def results(sweep: Sweep, trials: Sequence[Trial], winner: Trial) -> dict[str, Any]:
    """The content of ``results.json``: every trial with its reports, best first."""
    return {
        "metric": sweep.settings.metric,
        "searcher": sweep.settings.searcher,
        "best": winner.number,
        "trials": [
            {
                "trial": trial.number,
                "values": trial.values,
                "state": trial.state,
                "reason": trial.reason,
                "val_psnr": _finite(trial.score),
                "run_dir": f"trials/{name_of(trial.number)}",
                "reports": [{name: _finite(value) for name, value in vars(each).items()} for each in trial.reports],
            }
            for trial in trials
        ],
    }


def as_csv(trials: Sequence[Trial]) -> str:
    """A line for each trial, best first."""
    keys = list(trials[0].values)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *keys, "val_psnr", "progress", "step", "seconds", "state", "reason"])
    for trial in trials:
        last = trial.reports[-1] if trial.reports else None
        figures = [last.val_psnr, last.progress, last.step, last.seconds] if last is not None else [""] * 4
        writer.writerow([trial.number, *trial.values.values(), *figures, trial.state, trial.reason or ""])
    return text.getvalue()


def best_config(sweep: Sweep, winner: Trial) -> str:
    """The configuration of the sweep with the best values, as a file for `inf-nerf train --config`."""
    head = (
        f"# Trial {name_of(winner.number)} of a sweep, {winner.score:.2f} dB on its val photos after "
        f"{winner.step} steps: {described(winner.values)}\n"
    )
    return head + with_values(sweep.config, winner.values, "the best trial").to_yaml()


def table(trials: Sequence[Trial], winner: Trial) -> Table:
    """One row for each trial, best first; a failed one says why."""
    keys = list(trials[0].values)
    result = Table(title="val PSNR of all trials")
    result.add_column("trial", justify="right")
    for key in short_names(keys).values():
        result.add_column(key.replace("_", "\n"), justify="right", overflow="fold")
    for name in ("val\nPSNR", "budget", "seconds"):
        result.add_column(name, justify="right")
    result.add_column("", overflow="fold")
    for trial in trials:
        last = trial.reports[-1] if trial.reports else None
        figures = (f"{last.val_psnr:.2f}", f"{last.progress:.0%}", f"{last.seconds:.0f}") if last else ("", "", "")
        how = {"finished": "", "stopped": "stopped early"}.get(trial.state, trial.reason or trial.state)
        result.add_row(
            name_of(trial.number),
            *(_text(trial.values[key]) for key in keys),
            *figures,
            "best" if trial is winner else how,
            style="bold" if trial is winner else "dim" if trial.state != "finished" else None,
        )
    return result


def described(values: Mapping[str, Any]) -> str:
    """Values in one line."""
    names = short_names(list(values))
    return ", ".join(f"{names[key]}={_text(value)}" for key, value in values.items())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key without its section, unless two would then be the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def _score(trial: Trial) -> float:
    return trial.score if trial.score is not None and math.isfinite(trial.score) else -math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
