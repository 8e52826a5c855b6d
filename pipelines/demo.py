"""The whole path on a small synthetic city, for a newcomer: synth, prepare, train with evaluation, render.

Everything lies in one run directory, so the same command continues what was interrupted and reuses what is there.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from inf_nerf.files import write_atomic
from inf_nerf.scene.city.folder import CityParameters
from inf_nerf.train.manifest import read_manifest
from pipelines import prepare, render, synth, train
from pipelines.compare import ui_command
from pipelines.evaluate import find_checkpoint
from pipelines.mlflow_store import tracking_uri, without_password

CONFIG = Path("configs/demo.yaml")  # in the repository
CITY = CityParameters(blocks=3, photos=60, size=320)
STAGES = ("synth", "prepare", "train and eval", "render")


@dataclass(frozen=True)
class Picture:
    """One thing the demo renders."""

    title: str
    file: str  # below the run directory
    path: str
    mode: str


PICTURES = (
    Picture("zoom from far to near", "pictures/zoom.mp4", "zoom", "colour"),
    Picture("still of the city", "pictures/city.png", "orbit", "colour"),
    Picture("octree level of each pixel", "pictures/city_level.png", "orbit", "level"),
)


def run(output_dir: Path = Path("runs/demo"), overrides: Iterable[str] = (), city: CityParameters = CITY) -> int:
    """Run or continue the demo; returns the exit code of the training.

    Raises :class:`InputError` where ``configs/demo.yaml`` is not there, as in an installation without the repository.
    """
    config = load_config(demo_config_file(), overrides)
    console = Console()
    started = time.monotonic()

    _announce(console, 0)
    photos = output_dir / "city"
    synth.run(photos, **asdict(city))
    _announce(console, 1)
    prepare.run(config, photos, output_dir)
    _announce(console, 2)
    code = train.run(config, output_dir)
    if code != 0:
        return code
    _announce(console, 3)
    for picture in PICTURES:
        _render(output_dir, picture, config, console)
    console.rule(f"done in {(time.monotonic() - started) / 60:.1f} minutes")
    console.print(closing_words(output_dir, config), highlight=False, markup=False, soft_wrap=True)
    return 0


def demo_config_file() -> Path:
    """``configs/demo.yaml`` of the repository that this module stands in, or of the working directory."""
    places = (Path(__file__).resolve().parents[1] / CONFIG, CONFIG.absolute())
    for path in places:
        if path.is_file():
            return path
    raise InputError(
        f"{places[0]} does not exist; the demo needs a clone of the repository, install it there with make install."
    )


def closing_words(run_dir: Path, config: Config) -> str:
    """Where the results are and how to look at them."""
    evaluation = json.loads((run_dir / "eval.json").read_text())
    lines = [
        f"Held-out photos: PSNR {evaluation['psnr']:.2f} dB and SSIM {evaluation['ssim']:.3f} over the pyramid, "
        f"{evaluation['psnr0']:.2f} dB at full size (one colour everywhere: {evaluation['psnr0_floor']:.2f} dB).",
        "",
        "Pictures",
        *(f"  {run_dir / picture.file}   {picture.title}" for picture in PICTURES),
        f"  {run_dir / 'pictures/eval_sheet.png'}   photo | render | error | level of held-out photos",
        "Metrics",
        f"  {run_dir / 'eval.json'}   scores per photo and pyramid level",
        f"  {run_dir / 'metrics.jsonl'}   one line per logged training step",
    ]
    if config.tracking.enabled:
        uri = without_password(tracking_uri(config))
        lines += ["MLflow", f"  {uri}", f"  {ui_command(uri)}   and open the address it prints"]
    return "\n".join(lines)


def _announce(console: Console, stage: int) -> None:
    console.rule(f"{stage + 1}/{len(STAGES)} {STAGES[stage]}")


def _render(run_dir: Path, picture: Picture, config: Config, console: Console) -> None:
    """Render one picture unless that was done from the same checkpoint with the same settings."""
    out = run_dir / picture.file
    made_from = out.with_name(f"{out.stem}_key.json")
    digest = read_manifest(find_checkpoint(run_dir))["digest"]
    key = json.dumps({"checkpoint": digest, "settings": config.digest("render", "octree")}) + "\n"
    if out.is_file() and made_from.is_file() and made_from.read_text() == key:
        console.print(f"{out} is there and used again.")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    render.run(run_dir, picture.path, out, mode=picture.mode, config=config)
    write_atomic(made_from, key)


if __name__ == "__main__":
    from pipelines.cli import run_stage

    run_stage("demo")
