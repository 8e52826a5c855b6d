"""Trained models in MLflow: a logged model per checkpoint and, if asked, a version in the model registry.

Of the versions under a name, the alias ``best`` names the one with the highest PSNR of the val photos.  Only where no
version has one, because no scene had val photos, the test photos decide (``eval_psnr0``).
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import pyfunc

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "model"  # name of the logged model: runs:/<run id>/model
BEST = "best"
SCORES = ("val_psnr", "eval_psnr0")  # tags of a version, the first one that any version has decides
HASH = "checkpoint.sha256"
UPLOADED = ("manifest.json", "shared.safetensors")  # of a checkpoint, with the nodes: what rendering reads


def send_model(client: "MlflowClient", run_id: str, model: dict[str, Any]) -> None:
    """Log the model of a checkpoint and register it; what was done before is not done again.

    ``model`` has ``checkpoint`` (path), ``sha256``, ``step``, ``with_files``, ``register`` (a name or None) and
    ``scores``.  Raises FileNotFoundError if the files to upload are gone.
    """
    model_id = _log(client, run_id, model)
    if model["register"] is not None:
        _register(client, run_id, model_id, model)


def _log(client: "MlflowClient", run_id: str, model: dict[str, Any]) -> str:
    """Id of the logged model of this checkpoint, which is made if the run has none."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    experiment_id = client.get_run(run_id).info.experiment_id
    same = client.search_logged_models([experiment_id], filter_string=f"name = '{MODEL}'")
    logged = next((m for m in same if m.source_run_id == run_id and m.tags.get(HASH) == model["sha256"]), None)
    if logged is not None and logged.status == LoggedModelStatus.READY:
        return logged.model_id
    files = Path(model["checkpoint"])
    if model["with_files"] and not files.is_dir():
        raise FileNotFoundError(f"{files} is gone")
    if logged is None:
        tags = {HASH: model["sha256"], "checkpoint.path": model["checkpoint"]}
        logged = client.create_logged_model(experiment_id, name=MODEL, source_run_id=run_id, tags=tags)
    with tempfile.TemporaryDirectory() as temporary:
        inside = pyfunc.save(Path(temporary) / MODEL, model["checkpoint"], model["sha256"])
        client.log_model_artifacts(logged.model_id, f"{temporary}/{MODEL}")
    if model["with_files"]:
        for name in UPLOADED:
            client.log_model_artifact(logged.model_id, str(files / name), inside)
        client.log_model_artifacts(logged.model_id, str(files / "nodes"), f"{inside}/nodes")
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, model["step"])])
    return logged.model_id


def _register(client: "MlflowClient", run_id: str, model_id: str, model: dict[str, Any]) -> None:
    from mlflow.exceptions import MlflowException

    name = model["register"]
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = list(client.search_model_versions(f"name = '{name}'", max_results=10_000))
    if not any(version.run_id == run_id and version.tags.get(HASH) == model["sha256"] for version in versions):
        tags = {HASH: model["sha256"], "step": str(model["step"])}
        tags |= {score: str(value) for score, value in model["scores"].items() if value is not None}
        versions.append(client.create_model_version(name, f"models:/{model_id}", run_id, tags=tags, model_id=model_id))
    for score in SCORES:
        scored = [version for version in versions if score in version.tags]
        if scored:
            best = max(scored, key=lambda version: (float(version.tags[score]), int(version.version)))
            client.set_registered_model_alias(name, BEST, str(best.version))
            return
