"""A real browser at the viewer of a trained demo: what it shows, how soon, and within which memory.

INF_NERF_VIEW_RUN names another run, INF_NERF_SCREENSHOTS a folder in which the pictures stay.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

pytest.importorskip("viser", minversion="1.0")

from inf_nerf.render.path_files import path_from_json
from inf_nerf.scene.scene import Scene
from inf_nerf.view.followed import FollowedRun
from inf_nerf.view.pictures import MODES
from pipelines.viewer.server import Visitors, viewer
from pipelines.viewer.visitor import Visitor
from tests.chromium import Chromium, chromium_or_skip
from tests.view.trained_run import SAVES, trained_run

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

BUDGET = 32_000_000  # bytes
SOON = 2.0  # seconds from the connection to the first picture
CENTRE = (500, 400)  # of the scene in the window; the panel lies right of it


# the demo of fewer and smaller photos, trained shortly in one process, and with tables of which BUDGET holds a part
CITY = "CityParameters(blocks=3, photos=30, size=240)"
SHORT = (
    *("field.log2_table_size=15", "train.num_workers=0", "train.batch_size=2048", "train.steps=150"),
    *("train.max_seconds=null", "eval.right_half=false", "render.frames=2", "tracking.enabled=false"),
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("INF_NERF_VIEW_RUN"):
        return Path(named)
    folder = tmp_path_factory.mktemp("browser")
    program = (
        "import sys; from pathlib import Path; from pipelines import demo; "
        f"from inf_nerf.scene.city.folder import CityParameters; sys.exit(demo.run(Path('demo'), sys.argv[1:], {CITY}))"
    )
    paths = {"PYTHONPATH": str(Path(__file__).parents[3])}
    made = subprocess.run(
        [sys.executable, "-c", program, *SHORT], cwd=folder, env=os.environ | paths, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder / "demo"


class Viewing:
    """The viewer, how to reach it, and when it sent what."""

    def __init__(self, run: FollowedRun, visitors: Visitors, url: str) -> None:
        self.run, self.visitors, self.url = run, visitors, url
        self.sent: list[tuple[float, int, int]] = []  # time, client, divisor

    @property
    def only(self) -> Visitor:
        (visitor,) = self.visitors.all()
        return visitor

    def finest(self, since: int = 0) -> int:
        return min((divisor for _, _, divisor in self.sent[since:]), default=99)


@pytest.fixture
def viewing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Viewing]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = FollowedRun(run_dir, f"{BUDGET}B")
    with viewer(run, Scene.load(run_dir), run_dir, "127.0.0.1", port) as visitors:
        found = Viewing(run, visitors, f"http://127.0.0.1:{port}")
        drawn = visitors.drawn

        def note(job: Any, *arguments: Any) -> None:
            drawn(job, *arguments)
            found.sent.append((time.time(), job.client, job.divisor))

        monkeypatch.setattr(visitors, "drawn", note)
        yield found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(chromium_or_skip(), tmp_path / "profile") as opened:
        yield opened


@pytest.fixture
def shot(browser: Chromium, tmp_path: Path) -> Callable[[str], np.ndarray]:
    """Takes a picture of the page; the scene's part of it [h, w, 3]."""
    folder = Path(os.environ.get("INF_NERF_SCREENSHOTS", tmp_path))

    def take(name: str) -> np.ndarray:
        browser.listen(1.0)  # software draws slowly
        with Image.open(browser.screenshot(folder / f"{name}.png")) as image:
            return np.asarray(image.convert("RGB")).astype(int)[:, :880]

    return take


def page_text(browser: Chromium) -> str:
    """What can be read on the page; nothing while it is being opened."""
    return browser.run("document.body?.innerText ?? ''")


def arrive(browser: Chromium, viewing: Viewing) -> None:
    """Open the page and wait for the whole picture, a small one."""
    known = {id(visitor) for visitor in viewing.visitors.all()}
    browser.open(viewing.url)
    browser.wait_for(lambda: len(viewing.sent) > 0 and len(viewing.visitors.all()) > len(known))
    for visitor in viewing.visitors.all():
        visitor.panel.side.value = "384"
    before = len(viewing.sent)
    browser.wait_for(lambda: viewing.finest(before) == 1)


def test_first_picture_comes_soon_and_gets_finer(
    browser: Chromium, viewing: Viewing, shot: Callable[[str], np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "websockets.server")
    arrive(browser, viewing)
    connected = next(record.created for record in caplog.records if record.getMessage() == "connection open")
    assert viewing.sent[0][0] - connected < SOON
    assert viewing.sent[0][2] > 1
    assert shot("viewer")[100:700].std() > 10
    assert browser.errors == []


def test_mouse_moves_the_camera_and_modes_and_cubes_show(
    browser: Chromium, viewing: Viewing, shot: Callable[[str], np.ndarray]
) -> None:
    arrive(browser, viewing)
    pictures = {"start": shot("start")}
    before, pose = len(viewing.sent), viewing.only._pose()
    browser.drag(CENTRE, (CENTRE[0] + 160, CENTRE[1] + 30))
    browser.wait_for(lambda: viewing.finest(before) == 1)
    assert float((viewing.only._pose() - pose).abs().max()) > 0.05
    pictures["moved"] = shot("moved")
    for mode in MODES[1:]:
        before = len(viewing.sent)
        viewing.only.panel.mode.value = mode
        browser.wait_for(lambda before=before: viewing.finest(before) == 1)
        pictures[mode] = shot(mode)
    panel = viewing.only.panel
    controls: list[tuple[str, Any, Any]] = [
        ("colour", panel.mode, MODES[0]),
        ("cubes", panel.wireframe, "all levels"),
        ("level_cubes", panel.mode, "level"),
        ("cameras", panel.cameras, True),
        ("points", panel.points, True),
        ("cropped", panel.crop, True),
    ]
    for name, control, value in controls:
        before = len(viewing.sent)
        if name == "cropped":
            for bound in panel.bounds[:2]:
                bound.value = (-0.4, 0.4)
        control.value = value
        browser.wait_for(lambda before=before: viewing.finest(before) == 1)
        pictures[name] = shot(name)
    names = list(pictures)
    for one, other in pairwise(names):
        changed = (np.abs(pictures[one] - pictures[other]).max(axis=2) > 30).sum()
        assert changed > 100, (one, other, changed)
    assert browser.errors == []


def test_click_names_the_node(browser: Chromium, viewing: Viewing, shot: Callable[[str], np.ndarray]) -> None:
    arrive(browser, viewing)
    browser.click(*CENTRE)
    browser.wait_for(lambda: "sparse points" in viewing.only.panel._node.content)
    browser.wait_for(lambda: page_text(browser).count("sparse points") >= 1)
    text = viewing.only.panel._node.content
    assert all(f"| {name} |" in text for name in ("key", "level", "gsd", "bytes", "samples", "in memory"))
    shot("node_details")


def test_budget_holds_in_a_flight(browser: Chromium, viewing: Viewing, shot: Callable[[str], np.ndarray]) -> None:
    assert viewing.run.checkpoint.model_bytes > BUDGET
    arrive(browser, viewing)
    process = psutil.Process()
    memory = []
    for turn in range(12):
        before = len(viewing.sent)
        browser.drag(CENTRE, (CENTRE[0] + (120 if turn % 3 else -200), CENTRE[1] + 20 * (turn % 2)), steps=4)
        browser.call(
            "Input.dispatchMouseEvent", type="mouseWheel", x=500, y=400, deltaX=0, deltaY=-120 if turn < 7 else 200
        )
        browser.wait_for(lambda before=before: viewing.finest(before) <= 2)
        assert viewing.run.checkpoint.model.cache.resident_bytes <= BUDGET
        memory.append(process.memory_info().rss)
    cache = viewing.run.checkpoint.model.cache
    assert cache.figures.peak_bytes <= BUDGET and cache.figures.evicted > 0
    assert max(memory[3:]) - memory[2] < 150e6  # nothing piles up outside the budget either
    shot("flight")
    assert browser.errors == []


def test_slow_browser_does_not_hold_up_another(browser: Chromium, viewing: Viewing, tmp_path: Path) -> None:
    with Chromium(chromium_or_skip(), tmp_path / "slow") as slow:
        arrive(slow, viewing)
        (sleeper,) = viewing.visitors.all()
        processes = slow.processes()
        for process in processes:
            process.suspend()
        try:
            arrive(browser, viewing)
            (other,) = (visitor for visitor in viewing.visitors.all() if visitor is not sleeper)
            client = other._client.client_id
            resident = psutil.Process().memory_info().rss
            for turn in range(25):  # more pictures than its connection takes
                sleeper.panel.octaves.value = 0.25 * (turn % 3)
                before = len(viewing.sent)
                browser.drag(CENTRE, (CENTRE[0] + 40 - 80 * (turn % 2), CENTRE[1]), steps=2)
                browser.wait_for(lambda before=before: any(who == client for _, who, _ in viewing.sent[before:]))
            assert psutil.Process().memory_info().rss - resident < 150e6
        finally:
            for process in processes:
                process.resume()


def test_new_checkpoint_appears_by_itself(browser: Chromium, tmp_path: Path) -> None:
    copy = trained_run(tmp_path / "run")
    shutil.move(copy / "checkpoints" / SAVES[2], tmp_path / SAVES[2])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = FollowedRun(copy, f"{BUDGET}B")
    with viewer(run, Scene.load(copy), copy, "127.0.0.1", port) as visitors:
        browser.open(f"http://127.0.0.1:{port}")
        browser.wait_for(lambda: "step 8" in page_text(browser))
        shutil.move(tmp_path / SAVES[2], copy / "checkpoints" / SAVES[2])
        browser.wait_for(lambda: "step 12" in page_text(browser))
        shutil.rmtree(copy / "checkpoints" / SAVES[2] / "nodes")  # what is open loses its files
        shutil.move(copy / "checkpoints" / SAVES[2], copy / "checkpoints" / "gone")
        visitors.all()[0].panel.octaves.value = 1.0
        browser.wait_for(lambda: "step 8" in page_text(browser))


def test_path_is_laid_out_and_saved(browser: Chromium, viewing: Viewing, run_dir: Path) -> None:
    arrive(browser, viewing)
    visitor, start = viewing.only, viewing.only._pose()
    visitor.editor._add()
    browser.drag(CENTRE, (CENTRE[0] + 200, CENTRE[1]))
    browser.wait_for(lambda: float((visitor._pose() - start).abs().max()) > 0.05)
    visitor.editor._add()
    visitor.editor._name.value = "laid_out"
    visitor.editor._frames.value = 7
    visitor.editor._save()
    file = run_dir / "paths/laid_out.json"
    path = path_from_json(file, Scene.load(run_dir))
    assert len(path) == 7
    np.testing.assert_allclose(path.cameras.cam_to_world[0], start, atol=1e-4)
    file.unlink()
    visitor.editor._name.value = "../out"
    visitor.editor._save()
    assert not (run_dir / "out.json").exists()
