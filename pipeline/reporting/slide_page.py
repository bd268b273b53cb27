"""A slide to look at in a browser: its overview, sharp pieces of tissue where one zooms in, outlines of objects."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from pipeline.records.files import write_bytes, write_text

PIECES = "pieces"
"""Folder beside the page, <stem>_pieces/: a picture and the outlines of each block, loaded where one looks."""
QUALITY = 80
"""Of JPEG: to look at, not to measure on."""
HERE = Path(__file__).parent


def pieces_of(page: Path) -> Path:
    """Return the folder of a page's pieces."""
    return page.with_name(f"{page.stem}_{PIECES}")


def write_piece(page: Path, top: int, left: int, image: np.ndarray) -> None:
    """Keep a piece of tissue, (height, width, 3) uint8 RGB, to be shown where the page is zoomed in."""
    write_bytes(pieces_of(page) / f"{top}_{left}.jpg", _jpeg(image))


def write_outlines(page: Path, top: int, left: int, rings: Iterable[np.ndarray]) -> None:
    """Keep the outlines of a block, (n, 2) columns and rows each, for its piece."""
    points = [np.round(ring, 1).ravel().tolist() for ring in rings]
    file = pieces_of(page) / f"{top}_{left}.js"
    write_text(file, f'SLIDE.rings["{top}_{left}"] = {json.dumps(points, separators=(",", ":"))};\n')


def write_slide_page(
    page: Path, summary: str, size: tuple[int, int], mpp: float | None, overview: np.ndarray,
    blocks: Sequence[tuple[int, int, int, int]],
) -> None:  # fmt: skip
    """Write the page of a slide, which needs its folder of pieces beside it and nothing else.

    size: height and width in pixels of what was predicted; mpp: microns per pixel of it, None where unknown; overview:
    (height, width, 3) uint8 RGB of the whole; blocks: top, left, height and width of each piece.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    folder = quote(pieces_of(page).name)
    slide: dict[str, Any] = {
        "width": size[1], "height": size[0], "mpp": mpp, "rings": {},
        "overview": "data:image/jpeg;base64," + base64.b64encode(_jpeg(overview)).decode(),
        "blocks": [
            {"name": f"{top}_{left}", "file": f"{folder}/{top}_{left}.jpg", "top": top, "left": left,
             "outlines": f"{folder}/{top}_{left}.js", "height": height, "width": width}
            for top, left, height, width in blocks
        ],
    }  # fmt: skip
    environment = Environment(
        loader=PackageLoader("pipeline.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("slide_page.html.jinja").render(
        name=page.stem, summary=summary, slide=Markup(json.dumps(slide).replace("<", "\\u003c")),
        style=Markup((HERE / "slide_page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "slide_page.js").read_text(encoding="utf-8")),
    )  # fmt: skip
    write_text(page, html)


def _jpeg(image: np.ndarray) -> bytes:
    done, packed = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done
    return bytes(packed.tobytes())
