"""What an evaluation found, as table, CSV and difference."""

import copy
import csv
import io
from typing import Any

import pytest
from rich.console import Console

from inf_nerf.errors import InputError
from pipelines.scores import as_csv, differences, table


def scores(psnr: float, lpips: float | None = None) -> dict[str, Any]:
    return {"psnr": psnr, "ssim": 0.5, "lpips": lpips}


def protocol(psnr: float, lpips: float | None = None) -> dict[str, Any]:
    means = {**scores(psnr, lpips), **{f"{name}0": value for name, value in scores(psnr - 1, lpips).items()}}
    return {
        **means,
        "psnr0_floor": 9.0,
        "levels": [{"level": 0, "width": 40, "height": 30, **scores(psnr, lpips)}],
        "images": [
            {"name": "a, b.png", "psnr_corrected": 21.0, "nodes_touched": 2, "bytes_touched": 9, **scores(psnr, lpips)}
        ],
        "colour_corrected": {**means, "levels": [{"level": 0, **scores(psnr + 1, lpips)}]},
    }


def result(psnr: float, lpips: float | None = None) -> dict[str, Any]:
    band = {"from": 0.5, "to": 1.0, "share": 1.0, "psnr_corrected": psnr + 2, **scores(psnr, lpips)}
    return {
        **protocol(psnr, lpips),
        "num_nodes": 3,
        "model_bytes": 7,
        "level_share": {"0": 1.0},
        "distance_bands": [band],
        "depth": {"observations": 5, "median": 0.02, "median_px": 1.5, "p90": 0.3, "opaque": 1.0},
        "seams": {"width": 0.03, "near": {"psnr": 18.0, "share": 0.1}},
        "right_half": protocol(psnr, lpips),
        **({} if lpips is not None else {"lpips_missing": "no weights"}),
    }


def text(shown: Any) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def test_table_says_what_there_is_and_why_something_is_not() -> None:
    shown = text(table(result(20.0)))
    assert "0.5 to 1 away" in shown and "off by 2.00 % of the distance (1.5 px)" in shown
    assert "No LPIPS: no weights." in shown
    with_lpips = text(table(result(20.0, 0.25)))
    assert "20.00 / 0.500 / 0.250" in with_lpips and "No LPIPS" not in with_lpips


def test_csv_has_a_row_for_every_part() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(result(20.0, 0.25)))))
    found = {(row["protocol"], row["colours"], row["part"]): row for row in rows}
    assert len(found) == len(rows)
    assert found["plain", "rendered", "mean"]["psnr"] == "20.0"
    assert found["plain", "corrected", "photo a, b.png"]["psnr"] == "21.0"
    assert found["plain", "rendered", "distance 0.5 to 1"]["share"] == "1.0"
    assert found["plain", "corrected", "seams near"]["psnr"] == "18.0"
    assert found["right_half", "corrected", "level 0"]["psnr"] == "21.0"


def test_differences_name_what_changed_and_refuse_what_cannot_be_compared() -> None:
    shown = text(differences(result(21.5), result(20.0)))
    assert "mean, psnr" in shown and "+1.50" in shown
    other = copy.deepcopy(result(20.0))
    other["images"][0]["name"] = "c.png"
    with pytest.raises(InputError, match=r"scored on other photos .*scene\.test_list"):
        differences(result(20.0), other)
    other = copy.deepcopy(result(20.0))
    other["levels"][0]["width"] = 80
    with pytest.raises(InputError, match=r"at 80 x 30 \(1 levels\) pixels, this run at 40 x 30"):
        differences(result(20.0), other)
