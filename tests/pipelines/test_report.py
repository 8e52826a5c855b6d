"""The report is one file without a request, and every figure in it comes from the run."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from inf_nerf.errors import InputError
from pipelines import evaluate, report
from pipelines.mlflow_store import RunReference
from tests.chromium import Chromium, chromium_or_skip
from tests.view.trained_run import SAVES, trained_run


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = trained_run(tmp_path_factory.mktemp("report") / "run")
    evaluate.run(run_dir)
    # so short a training leaves nothing opaque, of which these would be
    content = json.loads((run_dir / "eval.json").read_text())
    content["seams"] = {name: {"psnr": 20.5, "share": 0.5} for name in ("interior", "near")} | {"width": 1 / 32}
    content["distance_bands"] = [
        {"from": 0.5, "to": 1.0, "share": 0.75, "psnr": 21.0, "psnr_corrected": 22.0, "ssim": 0.5, "lpips": None}
    ]
    (run_dir / "eval.json").write_text(json.dumps(content))
    return run_dir


@pytest.fixture
def run_dir(evaluated: Path, tmp_path: Path) -> Path:
    shutil.copytree(evaluated, tmp_path / "run")
    return tmp_path / "run"


class Addresses(HTMLParser):
    """Everything that a page would load or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {value}" for name, value in attrs if name in ("src", "href") and value]
        self.found += [tag] if tag in ("script", "iframe", "object") else []


def page(run_dir: Path) -> str:
    return report.run(run_dir).read_text()


def section(text: str, title: str) -> str:
    found = re.search(rf"<h2[^>]*>{title}</h2>(.*?)</section>", text, re.DOTALL)
    assert found is not None
    return found[1]


def change(file: Path, keys: tuple[Any, ...], value: Any) -> None:
    """Set a value deep in a JSON file."""
    content = json.loads(file.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(json.dumps(content))


def test_page_holds_all_that_it_shows(run_dir: Path) -> None:
    text = page(run_dir)
    loaded = [address for address in Addresses(text).found if not address.startswith("a #")]
    assert loaded and all(re.match(r"(img data:image/(png|jpeg);base64,|link data:,$)", address) for address in loaded)
    assert "url(" not in text and "@import" not in text
    assert "missing" not in text.split("</style>")[1]


@pytest.mark.parametrize(
    ("keys", "title"),
    [
        (("psnr0",), None),
        (("colour_corrected", "psnr0"), None),
        (("psnr0_floor",), "Held-out photos"),
        (("levels", 1, "psnr"), "Held-out photos"),
        (("levels", 1, "ssim"), "Held-out photos"),
        (("right_half", "levels", 0, "psnr"), "Held-out photos"),
        (("images", 0, "psnr"), "Held-out photos"),
        (("images", 0, "nodes_touched"), "Nodes of a picture"),
        (("images", 0, "bytes_touched"), "Nodes of a picture"),
        (("level_share", "1"), "Octree"),
        (("seams", "interior", "psnr"), "Seams"),
        (("distance_bands", 0, "psnr"), "Held-out photos"),
        (("depth", "median"), "Held-out photos"),
    ],
)
def test_changed_score_changes_the_page(run_dir: Path, keys: tuple[Any, ...], title: str | None) -> None:
    before = page(run_dir)
    change(run_dir / "eval.json", keys, 7.125)
    after = page(run_dir)
    if title is None:
        assert "7.12" in after.split("<nav>")[0] and "7.12" not in before.split("<nav>")[0]
    else:
        assert section(before, title) != section(after, title)


@pytest.mark.parametrize("key", ["loss", "loss_rgb", "psnr", "lr", "rays_per_second", "memory_mb", "samples_per_ray"])
def test_changed_metric_changes_its_curve(run_dir: Path, key: str) -> None:
    before = section(page(run_dir), "Training")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows[2][key] = rows[2][key] * 3 + 1
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = section(page(run_dir), "Training")
    pairs = list(zip(before.split("<figure>"), after.split("<figure>"), strict=True))
    assert sum(one != other for one, other in pairs) == 1


def test_analysis_is_of_the_rows_and_the_logs(run_dir: Path) -> None:
    before = section(page(run_dir), "Analysis")
    assert "too short" in before and "There are no logs in the run" in before
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [{**rows[0], "step": step, "psnr": 10 + 2 * step**0.5} for step in range(1, 41)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run_dir / "logs").mkdir()
    said = {"time": "2026-05-04T10:00:00.000Z", "level": "ERROR", "rank": 3, "message": "A <tile> is damaged; cut it."}
    (run_dir / "logs" / "rank3.jsonl").write_text(json.dumps(said) + "\n")
    after = section(page(run_dir), "Analysis")
    assert "still improving" in after and "expected to have" in after
    assert "A &lt;tile&gt; is damaged" in after and "Cut it." in after


def test_changed_profile_changes_the_table_and_the_timeline(run_dir: Path) -> None:
    before = section(page(run_dir), "Time")
    assert "forward/render/field" in before and "Of the latest steps" in before
    change(run_dir / "profile/rank0.json", ("sections", "backward", "own"), 7125.0)
    changed = section(page(run_dir), "Time")
    assert "7,125" in changed and "7,125" not in before
    change(run_dir / "profile/rank0.json", ("timeline", "slowest", "step"), 98765)
    assert "98765" in section(page(run_dir), "Time")


def test_workers_are_compared_where_there_are_several(run_dir: Path) -> None:
    change(run_dir / "profile/rank0.json", ("num_ranks",), 2)
    other = json.loads((run_dir / "profile/rank0.json").read_text()) | {"rank": 1}
    (run_dir / "profile/rank1.json").write_text(json.dumps(other))
    (run_dir / "profile/rank2.json").write_text("of a run with more workers")
    assert "worker 1" in section(page(run_dir), "Time") and "worker 2" not in section(page(run_dir), "Time")


def test_configuration_lists_differences_alone(run_dir: Path) -> None:
    found = section(page(run_dir), "Configuration")
    rows = re.findall(r"<tr><td>([^<]*)</td><td[^>]*>([^<]*)</td><td[^>]*>([^<]*)</td>", found)
    assert ("train.steps", "200,000", "12") in rows
    assert "loss.lambda_rgb" not in found  # at its default
    assert all(default != here for _, default, here in rows)


def test_octree_and_data_are_those_of_the_run(run_dir: Path) -> None:
    before = page(run_dir)
    change(run_dir / "scene.json", ("report",), {"points_read": 4321})
    after = page(run_dir)
    assert "4,321" in section(after, "Data") and section(before, "Data") != section(after, "Data")
    names = list((run_dir / "checkpoints" / SAVES[-1] / "nodes").iterdir())
    counts = re.findall(r"<tr><td class=n>\d</td><td class=n>(\d+)</td>", section(after, "Octree"))
    assert sum(map(int, counts)) + 1 == len(names)


def test_what_is_missing_is_said_in_its_section(run_dir: Path) -> None:
    for name in ("metrics.jsonl", "eval.json", "pictures/eval_sheet.png", "profile/rank0.json"):
        (run_dir / name).unlink()
    text = page(run_dir)
    for title, said in (
        ("Training", "no metrics.jsonl"),
        ("Time", "no profile in the run"),
        ("Held-out photos", "no eval.json"),
        ("Worst photos", "no eval.json"),
        ("Sheet", "no pictures/eval_sheet.png"),
        ("Seams", "no eval.json"),
    ):
        assert said in section(text, title)
    shutil.rmtree(run_dir / "checkpoints")
    for title in ("Octree", "Nodes of a picture"):
        assert "no complete checkpoint" in section(page(run_dir), title)


def test_photos_that_moved_are_said_to_be_missing(run_dir: Path) -> None:
    change(run_dir / "scene.json", ("root",), str(run_dir / "elsewhere"))
    assert "could not be rendered" in section(page(run_dir), "Worst photos")


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run directory"):
        report.run(tmp_path)


def test_page_becomes_an_artifact_of_the_tracked_run(run_dir: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri)
    run = client.create_run(client.create_experiment("report")).info.run_id
    RunReference(mlflow_uri, "report", "1", run, "FINISHED", {"git.commit": "abc123"}).write(run_dir)
    assert "abc123" in section(page(run_dir), "Environment")
    assert [artifact.path for artifact in client.list_artifacts(run)] == [report.FILE]


def test_store_that_is_away_is_no_error(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    RunReference("http://127.0.0.1:9", "report", "1", "0", "FINISHED", {}).write(run_dir)
    assert report.run(run_dir).is_file()
    assert "The report is not in MLflow" in caplog.text


@pytest.mark.slow
def test_browser_shows_it_without_error_or_request(run_dir: Path, tmp_path: Path) -> None:
    file = report.run(run_dir)
    with Chromium(chromium_or_skip(), tmp_path / "profile") as browser:
        browser.open(file.as_uri())
        browser.wait_for(lambda: browser.run("document.readyState") == "complete")
        browser.listen(0.5)
        assert browser.errors == []
        assert [url for url in browser.requests if not url.startswith("data:")] == [file.as_uri()]
        assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert browser.run("document.querySelectorAll('svg').length") >= 8
        assert browser.run("document.documentElement.scrollWidth") <= 1280
        assert len(browser.screenshot(tmp_path / "report.png").read_bytes()) > 20_000
