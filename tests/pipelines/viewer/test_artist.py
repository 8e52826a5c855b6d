"""One artist serves several visitors: coarse pictures first, all refined, none held up by another's trouble."""

import shutil
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import pytest
import torch

from inf_nerf.render.poses import look_at
from inf_nerf.train.opened import StoredCheckpoint
from inf_nerf.view.followed import FollowedRun
from inf_nerf.view.pictures import Drawn, Look, View
from inf_nerf.view.refinement import Job
from pipelines.viewer import artist as module
from pipelines.viewer.artist import Artist
from tests.view.trained_run import SAVES, trained_run


class Audience:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.jobs: list[Job[View]] = []
        self.steps: list[int] = []  # of the checkpoints that the pictures are of
        self.sentences: list[tuple[Hashable, str]] = []
        self.opened: list[int] = []
        self.held: list[int] = []  # bytes of nodes after each picture

    def drawn(self, job: Job[View], picture: Drawn, checkpoint: StoredCheckpoint) -> None:
        assert picture.picture.shape[:2] == (job.view.height // job.divisor, job.view.width // job.divisor)
        self.held.append(checkpoint.model.cache.figures.peak_bytes)
        self.steps.append(checkpoint.step)
        self.jobs.append(job)

    def failed(self, client: Hashable, sentence: str) -> None:
        self.sentences.append((client, sentence))

    def advanced(self, checkpoint: StoredCheckpoint) -> None:
        self.opened.append(checkpoint.step)

    def finest(self, client: Hashable) -> int | None:
        return min((job.divisor for job in self.jobs if job.client == client), default=None)


def view(x: float = 0.0, width: int = 256, height: int = 128) -> View:
    return View(torch.from_numpy(look_at((x, -0.9, 0.9), (0.0, 0.0, 0.1))).float(), width, height, 60.0, Look())


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120  # the machine may be busy
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("artist") / "run")


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    shutil.copytree(trained, tmp_path / "run")
    yield tmp_path / "run"
    assert not any(thread.name == "artist" for thread in threading.enumerate())


def test_everybody_gets_a_coarse_picture_before_anybody_a_whole_one(run_dir: Path) -> None:
    audience = Audience()
    artist = Artist(FollowedRun(run_dir, "100%"), audience)
    for client in "abc":
        artist.look(client, view(0.1 * ord(client)))
    with artist:
        wait_for(lambda: all(audience.finest(client) == 1 for client in "abc"))
    first = {client: next(i for i, job in enumerate(audience.jobs) if job.client == client) for client in "abc"}
    whole = [i for i, job in enumerate(audience.jobs) if job.divisor == 1 and not job.is_first]
    assert max(first.values()) < min(whole)


def test_one_who_keeps_moving_does_not_keep_another_from_a_whole_picture(run_dir: Path) -> None:
    audience = Audience()
    with Artist(FollowedRun(run_dir, "100%"), audience) as artist:
        artist.look("rests", view())
        moves = 0
        while audience.finest("rests") != 1:
            moves += 1
            artist.look("moves", view(0.001 * moves))
            time.sleep(0.005)
            assert moves < 20_000
        assert sum(job.client == "moves" for job in audience.jobs) > 1


def test_one_who_left_gets_nothing_more(run_dir: Path) -> None:
    audience = Audience()
    with Artist(FollowedRun(run_dir, "100%"), audience) as artist:
        artist.look("a", view(width=2048, height=1024))
        wait_for(lambda: audience.jobs)
        artist.leave("a")
        time.sleep(0.3)
        count = len(audience.jobs)
        time.sleep(0.3)
        assert len(audience.jobs) == count and audience.finest("a") != 1


def test_new_checkpoint_is_shown_to_one_who_rests(run_dir: Path, tmp_path: Path) -> None:
    shutil.move(run_dir / "checkpoints" / SAVES[2], tmp_path / SAVES[2])
    audience = Audience()
    with Artist(FollowedRun(run_dir, "100%"), audience) as artist:
        artist.look("a", view())
        wait_for(lambda: audience.finest("a") == 1)
        shutil.move(tmp_path / SAVES[2], run_dir / "checkpoints" / SAVES[2])
        wait_for(lambda: 12 in audience.steps)
    assert audience.opened == [12]


def test_damaged_nodes_are_said_once_and_other_views_go_on(run_dir: Path) -> None:
    for name in SAVES:
        for file in (run_dir / "checkpoints" / name / "nodes").iterdir():
            if file.name not in ("r.safetensors", "bg.safetensors"):
                file.write_bytes(b"damaged")
    audience = Audience()
    far = View(torch.from_numpy(look_at((0.0, -60.0, 60.0), (0.0, 0.0, 0.1))).float(), 128, 128, 20.0, Look())
    with Artist(FollowedRun(run_dir, "100%"), audience) as artist:
        artist.look("near", view())
        wait_for(lambda: audience.sentences)
        artist.look("far", far)
        wait_for(lambda: audience.finest("far") == 1)
    assert [client for client, _ in audience.sentences] == ["near"]
    assert "is damaged" in audience.sentences[0][1]


def test_fault_of_one_view_is_no_end_of_the_others(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audience = Audience()

    def draw(checkpoint: StoredCheckpoint, wanted: View, *arguments: object, **options: object) -> Drawn:
        if wanted.width == 64:
            raise RuntimeError("a fault")
        return original(checkpoint, wanted, *arguments, **options)  # pyright: ignore[reportArgumentType]

    original = module.draw
    monkeypatch.setattr(module, "draw", draw)
    with Artist(FollowedRun(run_dir, "100%"), audience) as artist:
        artist.look("bad", view(width=64))
        wait_for(lambda: audience.sentences)
        artist.look("good", view())
        wait_for(lambda: audience.finest("good") == 1)
    assert [client for client, _ in audience.sentences] == ["bad"]


def test_budget_is_kept_while_flying_and_can_be_changed(run_dir: Path) -> None:
    audience = Audience()
    run = FollowedRun(run_dir, "40%")
    budget = run.checkpoint.model.cache.budget
    with Artist(run, audience) as artist:
        for step in range(12):
            artist.look("a", view(-0.6 + 0.1 * step))
            count = len(audience.jobs)
            wait_for(lambda count=count: len(audience.jobs) > count)
        assert max(audience.held) <= budget
        artist.set_budget("1B", "a")
        wait_for(lambda: audience.sentences)
        assert "does not hold" in audience.sentences[0][1]
        before = len(audience.opened)
        artist.set_budget("80%", "a")
        wait_for(lambda: len(audience.opened) > before)
        assert run.checkpoint.model.cache.budget > budget
