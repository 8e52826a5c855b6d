"""CesiumJS draws exported 3D Tiles in a real browser, by the page of the documentation.

INF_NERF_CESIUM names a folder with CesiumJS (``npm install cesium``, then ``node_modules/cesium/Build/Cesium``),
INF_NERF_TILES tiles to be drawn instead of those of a tiny run, INF_NERF_SCREENSHOTS where the picture stays.
"""

import os
import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from pipelines import export
from tests.chromium import Chromium, chromium_or_skip
from tests.export.trained import save_trained_run

pytestmark = [pytest.mark.slow, pytest.mark.long]

DOCUMENTATION = Path(__file__).parents[2] / "docs/exports.md"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of the page, with tiles and CesiumJS beside it."""
    cesium = Path(os.environ.get("INF_NERF_CESIUM", ""))
    if not (cesium / "Cesium.js").is_file():
        pytest.skip("no CesiumJS: INF_NERF_CESIUM names no folder with Cesium.js")
    folder = tmp_path / "site"
    (folder / "node_modules/cesium/Build").mkdir(parents=True)
    (folder / "node_modules/cesium/Build/Cesium").symlink_to(cesium.resolve())
    page = re.search(r"```html\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    assert page is not None
    (folder / "index.html").write_text(page[1])
    if tiles := os.environ.get("INF_NERF_TILES"):
        (folder / "tiles").symlink_to(Path(tiles).resolve())
    else:
        (tmp_path / "run").mkdir()
        save_trained_run(tmp_path / "run")
        export.run(tmp_path / "run", "tiles", folder / "tiles", gsd=0.03, origin=(52.8, 16.6, 80.0))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_cesium_draws_tiles_and_has_nothing_to_complain_about(site: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("INF_NERF_SCREENSHOTS", tmp_path))
    with Chromium(chromium_or_skip(), tmp_path / "profile") as browser:
        browser.open(site)

        def drawn() -> bool:
            browser.listen(1.0)
            with Image.open(browser.screenshot(folder / "cesium.png")) as picture:
                return bool(np.asarray(picture.convert("RGB")).astype(float).std() > 10)

        def complete() -> bool:
            before = len(browser.requests)
            browser.listen(5.0)  # no tile was asked for meanwhile
            return len(browser.requests) == before

        browser.wait_for(drawn)
        browser.wait_for(complete)
        assert drawn()
        assert any(address.endswith(".glb") for address in browser.requests)
        assert all(address.startswith((site, "data:", "blob:")) for address in browser.requests)
        assert browser.errors == []
