"""Evaluation scores what it says, finds the appearance of a photo, and is repeatable."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inf_nerf.config import Config
from inf_nerf.errors import InputError
from inf_nerf.scene.scene import Scene
from inf_nerf.train.appearance import fit_appearance
from inf_nerf.train.evaluation import View, evaluate, level_share, level_target, right_half, work
from inf_nerf.train.metrics import psnr
from tests.plane_scene import PlaneModel, as_checkpoint, plane_photo, plane_scene

OFFSET = torch.tensor([0.12, -0.08, 0.05])


def config(**changes: Any) -> Config:
    settings: dict[str, Any] = {"appearance_steps": 120, "appearance_rays": 128, "chunk_samples": 512 * 300} | changes
    return Config.model_validate({"scene": {"pyramid_levels": 3}, "eval": settings})


def reader(scene: Scene, offset: torch.Tensor | None = None, mask: NDArray[np.bool_] | None = None) -> Any:
    def read(photo: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        exact = plane_photo(scene, photo, offset)
        return (exact.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), mask

    return read


def test_exact_model_scores_high_on_every_level() -> None:
    scene = plane_scene(width=61, height=45)
    result = evaluate(as_checkpoint(scene, PlaneModel(6)), config(), reader(scene))
    assert [(level["level"], level["width"], level["height"]) for level in result["levels"]] == [
        (0, 61, 45),
        (1, 30, 22),
        (2, 15, 11),
    ]
    assert all(level["psnr"] > 38 and level["ssim"] > 0.95 for level in result["levels"])
    assert result["psnr0"] > 50
    assert result["psnr"] == pytest.approx(np.mean([level["psnr"] for level in result["levels"]]), abs=1e-6)
    assert result["psnr0_floor"] < 20


def test_right_half_recovers_the_exposure_that_plain_cannot_know() -> None:
    scene = plane_scene()
    result = evaluate(as_checkpoint(scene, PlaneModel(6)), config(), reader(scene, OFFSET))
    assert result["psnr0"] == pytest.approx(psnr(float(OFFSET.square().mean())), abs=0.3)
    assert result["right_half"]["psnr0"] > 38
    assert result["colour_corrected"]["psnr0"] > 38


def test_fit_finds_the_exposure_and_leaves_no_trace() -> None:
    scene, model = plane_scene(), PlaneModel(6)
    target, counted = level_target(reader(scene, OFFSET)(4)[0], None, scene.cameras, 4, 0)
    before = model.appearance.clone()
    start = torch.zeros(3)
    found = fit_appearance(model, scene.cameras, 4, target, counted, config().eval, start=start)
    torch.testing.assert_close(found, OFFSET, atol=5e-3, rtol=0)
    assert torch.equal(model.appearance, before)
    assert torch.equal(start, torch.zeros(3))
    assert not found.requires_grad
    assert sum(model.calls) == 120 * 128


def test_fit_looks_only_at_counted_pixels_of_the_left_half() -> None:
    scene, model = plane_scene(), PlaneModel(6)
    target, counted = level_target(reader(scene, OFFSET)(4)[0], None, scene.cameras, 4, 0)
    spoilt, partly = target.clone(), counted.clone()
    spoilt[:, 20:] = 0.0
    spoilt[:10] = 1.0
    partly[:10] = False
    found = fit_appearance(model, scene.cameras, 4, spoilt, partly, config().eval, start=torch.zeros(3))
    torch.testing.assert_close(found, OFFSET, atol=5e-3, rtol=0)


def test_right_half_shares_no_pixel_with_the_left() -> None:
    scene = plane_scene(width=595, height=8)
    for level in range(8):
        crop = right_half(scene.cameras, 0, level)
        assert crop is not None
        width, _ = scene.cameras.level_size(0, level)
        assert crop.left * 595 >= (595 // 2) * width
        assert (crop.left - 1) * 595 < (595 // 2) * width
        assert crop.right == width
    assert right_half(scene.cameras, 0, 9) is None


@pytest.mark.parametrize("workers", [1, 3])
def test_fields_are_frozen_while_evaluated_and_threads_change_nothing(workers: int) -> None:
    scene, model = plane_scene(), PlaneModel(6)
    before = torch.get_num_threads()
    result = evaluate(as_checkpoint(scene, model), config(), reader(scene, OFFSET), workers=workers)
    assert model.field.flags == [False, True]
    assert torch.get_num_threads() == before
    assert result == evaluate(as_checkpoint(scene, PlaneModel(6)), config(), reader(scene, OFFSET))


def test_two_evaluations_are_byte_identical_and_hold_the_documented_keys() -> None:
    scene = plane_scene()
    texts = [
        json.dumps(evaluate(as_checkpoint(scene, PlaneModel(6)), config(), reader(scene, OFFSET)), sort_keys=True)
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    result = json.loads(texts[0])
    scores = {"psnr", "ssim", "lpips", "psnr0", "ssim0", "lpips0"}
    protocol = {*scores, "psnr0_floor", "levels", "images", "colour_corrected"}
    of_model = {"num_nodes", "model_bytes", "level_share", "seams", "distance_bands", "depth", "lpips_missing"}
    assert set(result) == {*protocol, *of_model, "right_half"}
    assert set(result["right_half"]) == protocol
    assert set(result["colour_corrected"]) == {*scores, "levels"}
    assert set(result["levels"][0]) == {"level", "width", "height", "psnr", "ssim", "lpips"}
    assert set(result["colour_corrected"]["levels"][0]) == {"level", "psnr", "ssim", "lpips"}
    assert result["lpips"] is None and "eval.lpips_backbone" in result["lpips_missing"]
    image = result["images"][0]
    assert set(image) == {"name", "psnr", "ssim", "lpips", "psnr_corrected", "nodes_touched", "bytes_touched"}
    assert [entry["name"] for entry in result["images"]] == ["flight/004.png", "flight/005.png"]
    assert (result["num_nodes"], result["model_bytes"]) == (2, 147)
    assert sum(result["level_share"].values()) == pytest.approx(1, abs=1e-5)


def test_touched_nodes_and_bytes_are_those_of_the_view() -> None:
    scene, views = plane_scene(), list[View]()
    result = evaluate(
        as_checkpoint(scene, PlaneModel(6)), config(right_half=False), reader(scene), on_view=views.append
    )
    assert "right_half" not in result
    sizes = (100, 40, 7)
    for image, view in zip(result["images"], views, strict=True):
        touched = view.rendered.touched.tolist()
        assert image["nodes_touched"] == sum(touched)
        assert image["bytes_touched"] == sum(size for size, is_touched in zip(sizes, touched) if is_touched)


def test_level_share_counts_levels_and_background() -> None:
    share = level_share(torch.tensor([6.0, 3.0, 1.0]), PlaneModel(1).octree)
    assert share == pytest.approx({"0": 0.6, "1": 0.3, "background": 0.1})


def test_masked_pixels_are_not_scored() -> None:
    scene = plane_scene()
    mask = np.ones((30, 40), bool)
    mask[:, 30:] = False
    clean = reader(scene, None, mask)

    def spoilt(photo: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        pixels = clean(photo)[0].copy()
        pixels[:, 30:] = 0
        return pixels, mask

    results = [
        evaluate(as_checkpoint(scene, PlaneModel(6)), config(right_half=False), read) for read in (clean, spoilt)
    ]
    assert results[0] == results[1]


def test_all_rays_of_the_work_are_reported() -> None:
    scene, heard = plane_scene(), list[int]()
    settings = config(appearance_steps=3)
    evaluate(as_checkpoint(scene, PlaneModel(6)), settings, reader(scene), on_rays=heard.append)
    assert sum(heard) == work(scene, settings)


def test_nothing_to_score_is_refused() -> None:
    scene = plane_scene(num_test=0)
    with pytest.raises(InputError, match="no test photos"):
        evaluate(as_checkpoint(scene, PlaneModel(6)), config(), reader(scene))
    scene = plane_scene()
    with pytest.raises(InputError, match="masks leave no pixel"):
        evaluate(as_checkpoint(scene, PlaneModel(6)), config(), reader(scene, None, np.zeros((30, 40), bool)))
