"""The command line: flags are config keys, bad input is one sentence and exit code 2, and a stage is a module too."""

import errno
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from inf_nerf.config import Config, load_config
from inf_nerf.errors import InputError
from pipelines import cli

ROOT = Path(__file__).parents[2]
STAGES = "synth prepare plan train eval render view report plot export compare analyze monitor track demo".split()
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Puts a recorder in the place of a stage's ``run``."""

    def replace(name: str, result: Any = None) -> Calls:
        calls: Calls = []

        def run(*arguments: Any, **named: Any) -> Any:
            calls.append((arguments, named))
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(f"pipelines.{name}.run", run)
        return calls

    return replace


def environment() -> dict[str, str]:
    """For a process of its own that imports this checkout from any directory."""
    return {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}


def run_program(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", *command]
    return subprocess.run(program, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def test_help_lists_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: inf-nerf {name}" in shown
    assert "--set" in shown
    assert "--log-level" in shown


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["synth", "--out"], ["eval"], ["train", "--nonsense"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err


def test_train_flags_are_config_keys(stage: Callable[..., Calls], tmp_path: Path) -> None:
    calls = stage("train", 0)
    flags = "--workers 2 --steps 30 --lr 2e-3 --batch-size 64 --project-name 1e3 --resume latest --data-root photos"
    assert cli.main(["train", "--output-dir", str(tmp_path), *flags.split()]) == 0
    expected = load_config(
        overrides=[
            "train.num_workers=2",
            "train.steps=30",
            "train.lr_init=2e-3",
            "train.batch_size=64",
            "tracking.experiment='1e3'",
        ]
    )
    ((arguments, named),) = calls
    assert arguments == (expected, tmp_path)
    assert named == {"data_root": Path("photos"), "resume": "latest"}


def test_options_of_other_trainers_are_accepted(stage: Callable[..., Calls], tmp_path: Path) -> None:
    calls = stage("train", 0)
    flags = (
        f"--data_root photos --output_dir {tmp_path} --resume latest --epochs 2.5 --batch_size 64 --lr 2e-3 "
        "--distributed --local_rank 0 --world_size 2 --debug --log_level WARNING --profiler --wandb "
        "--project_name city --experiment_name first"
    )
    assert cli.main(["train", *flags.split()]) == 0
    assert logging.getLogger("pipelines").level == logging.DEBUG
    expected = load_config(
        overrides=[
            "train.epochs=2.5",
            "train.batch_size=64",
            "train.lr_init=2e-3",
            "train.num_workers=2",
            "train.profiler=true",
            "debug.enabled=true",
            "tracking.enabled=true",
            "tracking.experiment=city",
            "tracking.run_name=first",
        ]
    )
    assert calls == [((expected, tmp_path), {"data_root": Path("photos"), "resume": "latest"})]


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ("--local_rank 1", "Ray starts and numbers the workers itself"),
        ("--distributed", "give --workers in its place"),
        ("--world_size 2 --workers 3", "give --workers alone"),
        ("--epochs 2 --steps 30", "give one of them"),
    ],
)
def test_options_of_other_trainers_that_say_nothing_here_are_answered(
    stage: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, answer: str
) -> None:
    calls = stage("train", 0)
    assert cli.main(["train", "--output-dir", str(tmp_path), *flags.split()]) == 2
    assert answer in capsys.readouterr().err
    assert not calls


def test_steps_take_the_place_of_epochs(stage: Callable[..., Calls], tmp_path: Path) -> None:
    calls = stage("train", 0)
    file = tmp_path / "some.yaml"
    file.write_text("train: {epochs: 3, steps: 5}")
    command = ["train", "--config", str(file), "--output-dir", str(tmp_path / "run")]
    cli.main(command)
    cli.main([*command, "--steps", "7"])
    assert [(call[0][0].train.epochs, call[0][0].train.steps) for call in calls] == [(3, 5), (None, 7)]


def test_overrides_are_stronger_than_flags_and_flags_than_the_file(stage: Callable[..., Calls], tmp_path: Path) -> None:
    calls = stage("train", 0)
    file = tmp_path / "some.yaml"
    file.write_text("train: {steps: 1, batch_size: 1, seed: 1}")
    command = ["train", "--config", str(file), "--output-dir", str(tmp_path / "run"), "--steps", "2"]
    cli.main([*command, "--batch-size", "2", "--set", "train.batch_size=3"])
    train = calls[0][0][0].train
    assert (train.seed, train.steps, train.batch_size) == (1, 2, 3)


def test_without_a_file_a_run_keeps_its_own_configuration(stage: Callable[..., Calls], tmp_path: Path) -> None:
    stored = load_config(overrides=["train.steps=5", "render.frames=7"])
    (tmp_path / "config.yaml").write_text(stored.to_yaml())
    trained, evaluated, rendered = stage("train", 0), stage("evaluate"), stage("render")
    cli.main(["train", "--output-dir", str(tmp_path)])
    assert trained[0][0][0] == stored
    cli.main(["eval", str(tmp_path), "--set", "eval.right_half=false"])
    assert evaluated[0][0][1] == load_config(overrides=["train.steps=5", "render.frames=7", "eval.right_half=false"])
    cli.main(["render", str(tmp_path), "--path", "orbit", "--out", "o.mp4", "--set", "render.fps=9"])
    assert rendered[0][1]["config"].render.frames == 7


def test_eval_and_render_leave_the_choice_of_settings_to_the_checkpoint(
    stage: Callable[..., Calls], tmp_path: Path
) -> None:
    evaluated, rendered = stage("evaluate"), stage("render")
    assert cli.main(["eval", str(tmp_path)]) == 0
    assert evaluated == [((tmp_path, None, None, None, None, None), {})]
    assert cli.main(["render", str(tmp_path), "--path", "zoom", "--out", "z.mp4", "--mode", "level"]) == 0
    assert rendered == [
        ((tmp_path, "zoom", Path("z.mp4")), {"mode": "level", "config": None, "memory_budget": None, "workers": None})
    ]


@pytest.mark.parametrize("code", [0, 130, 143])
def test_the_exit_code_of_a_training_is_passed_on(stage: Callable[..., Calls], tmp_path: Path, code: int) -> None:
    stage("train", code)
    assert cli.main(["train", "--output-dir", str(tmp_path)]) == code


def test_sigterm_lets_any_command_close_what_is_open(
    stage: Callable[..., Calls], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage("evaluate")
    closed: list[bool] = []

    def evaluate(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            closed.append(True)

    monkeypatch.setattr("pipelines.evaluate.run", evaluate)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["eval", str(tmp_path)]) == 143
    assert closed == [True] and signal.getsignal(signal.SIGTERM) == before


def test_bad_input_is_one_sentence_on_stderr(
    stage: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage("prepare", InputError("The folder x is empty; name another."))
    command = ["prepare", "--data-root", "x", "--output-dir", str(tmp_path)]
    assert cli.main(command) == 2
    assert capsys.readouterr().err == "error: The folder x is empty; name another.\n"
    assert cli.main([*command, "--log-level", "debug"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("error: The folder x is empty; name another.\n")


def test_bad_input_found_by_a_worker_is_the_same_sentence(
    stage: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class WorkerError(RuntimeError):
        cause: BaseException | None = None
        worker_failures: dict[int, BaseException] | None = None

    carried = WorkerError("long traceback of a task")
    carried.cause = InputError("The photo a.jpg is damaged; replace it.")
    group = WorkerError("two workers failed")
    group.worker_failures = {1: carried}
    chained = RuntimeError("in the driver")
    chained.__cause__ = group
    for error in (carried, group, chained):
        stage("prepare", error)
        assert cli.main(["prepare", "--data-root", "x", "--output-dir", str(tmp_path)]) == 2
        assert capsys.readouterr().err == "error: The photo a.jpg is damaged; replace it.\n"


def test_a_file_that_the_system_refuses_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    out = file / "run" / "city"
    assert cli.main(["synth", "--out", str(out), "--blocks", "1", "--photos", "3", "--size", "32"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {file}")
    assert shown.endswith(": Not a directory; correct the path or its permissions.\n")
    assert shown.count("\n") == 1


def test_a_full_disk_is_one_sentence_and_a_lost_connection_is_not_taken_for_a_file(
    stage: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "--data-root", "x", "--output-dir", str(tmp_path)]
    stage("prepare", OSError(errno.ENOSPC, "No space left on device"))
    assert cli.main(command) == 2
    assert capsys.readouterr().err.startswith("error: No space left on device; ")
    stage("prepare", ConnectionError("the cluster is away"))
    with pytest.raises(ConnectionError):
        cli.main(command)


def test_a_fault_of_the_program_is_not_taken_for_bad_input(stage: Callable[..., Calls], tmp_path: Path) -> None:
    stage("prepare", KeyError("no such thing"))
    with pytest.raises(KeyError):
        cli.main(["prepare", "--data-root", "x", "--output-dir", str(tmp_path)])


@pytest.mark.parametrize("name", STAGES)
def test_an_unknown_key_stops_every_stage_before_it_starts(
    stage: Callable[..., Calls], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "synth": ["--out", "x"],
        "prepare": ["--data-root", "x", "--output-dir", str(tmp_path)],
        "plan": ["--data-root", "x"],
        "train": ["--output-dir", str(tmp_path)],
        "eval": [str(tmp_path)],
        "render": [str(tmp_path), "--path", "orbit", "--out", "x.mp4"],
        "view": [str(tmp_path)],
        "report": [str(tmp_path)],
        "export": [str(tmp_path), "--to", "points", "--out", "x.ply"],
        "plot": [str(tmp_path)],
        "compare": [str(tmp_path)],
        "analyze": [str(tmp_path)],
        "monitor": [str(tmp_path)],
        "track": [str(tmp_path)],
        "demo": ["--output-dir", str(tmp_path / "demo")],
    }[name]
    calls = stage({"eval": "evaluate", "demo": "synth"}.get(name, name))
    assert cli.main([name, *arguments, "--set", "train.step=3"]) == 2
    assert "did you mean 'train.steps'?" in capsys.readouterr().err
    assert calls == []


def test_ctrl_c_outside_of_training_exits_with_130(stage: Callable[..., Calls], tmp_path: Path) -> None:
    stage("prepare", KeyboardInterrupt())
    assert cli.main(["prepare", "--data-root", "x", "--output-dir", str(tmp_path)]) == 130


def test_only_our_own_loggers_follow_the_log_level(stage: Callable[..., Calls], tmp_path: Path) -> None:
    stage("evaluate")
    cli.main(["eval", str(tmp_path), "--log-level", "DEBUG"])
    assert logging.getLogger("inf_nerf.field.backends").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("numba.core").isEnabledFor(logging.INFO)
    cli.main(["eval", str(tmp_path), "--log-level", "error"])
    assert not logging.getLogger("pipelines.train").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_a_module_with_the_same_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = cli.MODULES.get(name, name)
    cli.main([name, "--help"])
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [f"pipelines.{module}", "--help"])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module(f"pipelines.{module}", run_name="__main__")
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert f"Usage: python -m pipelines.{module} " in shown
    assert shown.partition("Example")[2] == expected.partition("Example")[2] != ""


def test_demo_says_where_everything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import demo

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    scores = {"psnr": 24.0, "ssim": 0.8, "psnr0": 22.0, "psnr0_floor": 12.0}
    run_dir = Path("runs/demo")
    run_dir.mkdir(parents=True)
    (run_dir / "eval.json").write_text(json.dumps(scores))
    words = demo.closing_words(run_dir, Config())
    for text in ("24.00 dB", "runs/demo/pictures/zoom.mp4", "runs/demo/eval.json", f"sqlite:///{tmp_path}/mlflow.db"):
        assert text in words
    assert "mlflow" not in demo.closing_words(run_dir, load_config(overrides=["tracking.enabled=false"])).lower()


def test_demo_without_the_repository_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import demo

    monkeypatch.setattr(demo, "CONFIG", Path("configs/absent.yaml"))
    with pytest.raises(InputError, match="clone"):
        demo.run(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_demo_uses_a_picture_again_only_for_the_same_checkpoint_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import demo

    rendered: list[Any] = []
    checkpoint = {"digest": "first"}

    def render(run_dir: Path, path: str, out: Path, mode: str, config: Config) -> None:
        rendered.append(config.render.width)
        out.touch()

    monkeypatch.setattr(demo.render, "run", render)
    monkeypatch.setattr(demo, "find_checkpoint", lambda run_dir: run_dir)
    monkeypatch.setattr(demo, "read_manifest", lambda path: checkpoint)
    narrow = load_config(overrides=["render.width=32"])
    for config in (Config(), Config(), narrow, narrow):
        demo._render(tmp_path, demo.PICTURES[0], config, Console())
    checkpoint["digest"] = "second"
    demo._render(tmp_path, demo.PICTURES[0], narrow, Console())
    assert rendered == [Config().render.width, 32, 32]


TINY = (
    *("scene.pyramid_levels=2", "octree.num_levels=2", "field.num_levels=4", "field.log2_table_size=10"),
    *("field.max_res=32", "field.hidden_density=16", "field.hidden_color=16", "field.appearance_dim=4"),
    *("sampler.max_samples=64", "sampler.occupancy_res=8", "data.tile_size=16", "train.batch_size=256"),
    *("train.log_every=5", "train.val_rays=64", "train.save_every=20", "train.cpus_per_worker=0.5"),
    *("eval.right_half=false", "render.width=32", "render.height=24", "render.frames=3"),
)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "city"
    made = run_program("pipelines.synth", "--out", str(folder), *"--blocks 1 --photos 12 --size 48".split())
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(load_config(overrides=TINY).to_yaml())
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_path_with_two_workers_is_recorded_in_mlflow(
    city: Path, config_file: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """synth -> prepare -> train (TorchTrainer, 2 workers) -> eval -> render, through the command line."""
    from mlflow import MlflowClient

    here = config_file.parent  # also the working directory
    shared = ["--config", str(config_file), "--output-dir", "run", "--set", "train.steps=40"]
    for command in (
        ["prepare", *shared, "--data-root", str(city)],
        ["train", *shared, "--workers", "2"],
    ):
        done = run_program("pipelines", *command, cwd=here)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    rows = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 40
    for rank in (0, 1):
        said = [json.loads(line) for line in (here / f"run/logs/rank{rank}.jsonl").read_text().splitlines()]
        assert {(line["run"], line["rank"]) for line in said} == {(rows[0]["run"], rank)}
        assert any(line["message"] == "Saved step 40." for line in said)

    reference = json.loads((here / "run" / "mlflow_run.json").read_text())
    client = MlflowClient(mlflow_uri)
    run = client.get_run(reference["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.num_workers"] == "2"
    assert set(run.data.params) == set(Config().flat())
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in losses] == [row["step"] for row in rows]
    evaluation = json.loads((here / "run" / "eval.json").read_text())
    assert run.data.metrics["eval/psnr"] == pytest.approx(evaluation["psnr"])
    assert run.data.metrics["octree/num_nodes"] >= 1
    assert Path(run.data.tags["checkpoint.path"]).is_dir()

    before = (here / "run" / "eval.json").read_bytes()
    capsys.readouterr()
    assert cli.main(["eval", "run"]) == 0
    assert (here / "run" / "eval.json").read_bytes() == before
    assert cli.main(["train", *shared, "--workers", "1"]) == 0
    assert "already trained" in capsys.readouterr().out
    assert cli.main(["train", *shared, "--lr", "2e-2"]) == 2
    assert "error: train.lr_init" in capsys.readouterr().err
    settings = (here / "run" / "config.yaml").read_bytes()
    assert cli.main(["train", *shared, "--resume", "latest", "--set", "data.tile_size=8"]) == 2
    assert "error: data.tile_size" in capsys.readouterr().err
    assert (here / "run" / "config.yaml").read_bytes() == settings
    assert client.get_metric_history(run.info.run_id, "eval/psnr")[0].step == 40
    assert cli.main(["render", "run", "--path", "orbit", "--out", "still.png"]) == 0
    assert (here / "still.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_handful_of_photos_of_which_none_is_val_is_trained(config_file: Path, mlflow_uri: str) -> None:
    here = config_file.parent
    shared = ["--config", str(config_file), "--output-dir", "run", "--set", "tracking.enabled=false"]
    for command in (
        ["synth", "--out", "few", *"--blocks 1 --photos 5 --size 48".split()],
        ["train", *shared, "--data-root", "few", "--steps", "10", "--workers", "0"],
    ):
        done = run_program("pipelines", *command, cwd=here)
        assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((here / "run" / "scene.json").read_text())["report"]["val"] == 0
    assert json.loads((here / "run" / "eval.json").read_text())["images"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_saves_and_ends_the_run_as_killed_and_the_same_command_continues_it(
    city: Path, config_file: Path, mlflow_uri: str
) -> None:
    from mlflow import MlflowClient

    here, client = config_file.parent, MlflowClient(mlflow_uri)
    run_dir = here / "run"
    metrics = run_dir / "metrics.jsonl"
    command = ["train", "--config", str(config_file), "--data-root", str(city), "--output-dir", "run"]
    command += ["--steps", "1000000", "--workers", "0", "--set", "train.save_every=1000000"]
    run_ids, saved = [], 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        size = metrics.stat().st_size if metrics.exists() else 0
        with open(here / "output.txt", "w") as output:
            training = subprocess.Popen(
                [sys.executable, "-m", "pipelines", *command], cwd=here, env=environment(), stdout=output, stderr=output
            )
        deadline = time.monotonic() + 200
        while training.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.stat().st_size > size:
                break
            time.sleep(0.2)
        training.send_signal(number)
        training.wait(120)
        shown = (here / "output.txt").read_text()
        assert training.returncode == code, shown
        assert "Traceback" not in shown
        rows = [json.loads(line) for line in metrics.read_bytes()[size:].splitlines()]
        assert rows[0]["step"] > saved
        newest = max((run_dir / "checkpoints").glob("*/manifest.json")).parent
        assert int(newest.name) >= rows[-1]["step"]
        saved = int(newest.name)
        run = client.get_run(json.loads((run_dir / "mlflow_run.json").read_text())["run_id"])
        assert run.info.status == "KILLED"
        assert run.data.tags["checkpoint.path"] == str(newest)
        run_ids.append(run.info.run_id)
    assert run_ids[0] == run_ids[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_makes_its_pictures_and_uses_them_again(tmp_path: Path) -> None:
    """The demo as it is, on a smaller city and with a smaller model."""
    overrides = [*TINY, "train.num_workers=0", "train.steps=20", "render.frames=2"]
    program = (
        "import sys; from pathlib import Path; from pipelines import demo; "
        "from inf_nerf.scene.city.folder import CityParameters; "
        "sys.exit(demo.run(Path('demo'), sys.argv[1:], CityParameters(blocks=1, photos=12, size=48)))"
    )
    command = [sys.executable, "-c", program, *overrides]
    first, second = (
        subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stdout + first.stderr
    for line in first.stdout[first.stdout.index("Pictures") :].splitlines():
        named = line.split("   ")[0].strip()
        if named.startswith("demo/"):
            assert (tmp_path / named).stat().st_size > 0, line
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("is there and used again") == 3
    assert "already trained" in second.stdout

    timed = run_program("benchmarks.trained", "demo", "--steps", "2", "--out", "timed.json", cwd=tmp_path)
    assert timed.returncode == 0, timed.stdout + timed.stderr
    found = json.loads((tmp_path / "timed.json").read_text())
    assert found["step"]["rays_per_second"] > 0 and found["operations"]
    assert [view["nodes_touched"] > 0 for view in found["views"]] == [True] * len(found["views"])
