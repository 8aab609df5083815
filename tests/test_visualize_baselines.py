"""The main figures look as they did: small pictures of them, compared by root mean square.

matplotlib brings the one font that is used and draws with Agg, so that pictures differ by little from one machine to
the next. After a figure was changed on purpose and looked at: ``python tests/test_visualize_baselines.py`` writes
``tests/data/figure-*.png`` anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_gallery import make_example, make_panorama, make_run, make_sweep
from matplotlib.figure import Figure
from PIL import Image

from visualize.case import Case, gather
from visualize.curves import layer_curves, task_and_grounding
from visualize.gallery import Outcomes, draw_gallery, four_quadrants
from visualize.games import draw_choices
from visualize.grid import draw_grid
from visualize.heads import head_maps
from visualize.maps import read_layers, read_maps
from visualize.overlays import draw_example
from visualize.study import site_heat_map

FOLDER = Path(__file__).parent / "data"
DPI, COLOURS = 36, 128
TOLERANCE = 7.0  # of 255: reducing the colours of a picture takes some of it


def _case(panorama: bool = False, head: int | None = None) -> tuple[Case, list]:
    example = make_panorama(3) if panorama else make_example(5)
    run = make_run([example, example], heatmaps=True)
    case = gather(run, 1, {example.id: example})
    return case, [read_maps(run, case, head=head)]


def _grid() -> Figure:
    example = make_example(5)
    run = make_run([example])
    case = gather(run, 0, {example.id: example})
    return draw_grid(case, read_layers(run, case), "Attention, layer by layer")


def _gallery() -> Figure:
    examples = {e.id: e for e in (make_example(n) for n in range(8))}
    run = make_run(list(examples.values()))
    bands = four_quadrants(Outcomes.of(run), count=1)
    cases = {row: gather(run, row, examples) for band in bands for selection in band for row in selection.rows}
    return draw_gallery(bands, cases, Outcomes.of(run))


def _heads() -> Figure:
    value = np.linspace(0.05, 0.45, 12)
    rows = {
        "kind": "raw", "site": np.repeat(["block.0", "block.1", "block.2"], 4), "head": np.tile(list("0123"), 3),
        "scope": "canvas", "measure": "pointing", "value": value, "gain": value - 0.2,
        "p_holm": np.where(value > 0.3, 0.01, 0.5), "selected": value == value.max(),
    }  # fmt: skip
    return head_maps(pd.DataFrame(rows))


def _fractions() -> Figure:
    sites, fractions = [f"block.{n}" for n in range(4)], [0.0, 0.1, 1.0]
    rows = [{"site": s, "fraction": f, "value": 0.2 + 0.1 * n * f} for n, s in enumerate(sites) for f in fractions]
    return site_heat_map(pd.DataFrame(rows), "model: what probes read", "choice accuracy")


def _scatter() -> Figure:
    return task_and_grounding(Outcomes.of(make_run([make_example(n) for n in range(12)])))


FIGURES: dict[str, Callable[[], Figure]] = {
    "layer-curves": lambda: layer_curves(make_sweep(6)),
    "task-and-grounding": _scatter,
    "heads": _heads,
    "fractions": _fractions,
    "candidates": lambda: draw_choices(np.array([[5, 1, 0], [0, 6, 1], [3, 0, 4]])),
    "example": lambda: draw_example(*_case()),
    "panorama": lambda: draw_example(*_case(panorama=True)),
    "grid": _grid,
    "quadrants": _gallery,
}


def drawn(figure: Figure) -> np.ndarray:
    """A figure in few pixels, float ``[height, width, 3]``."""
    figure.set_dpi(DPI)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Root of the mean squared difference, of 255; of pictures of unequal sizes infinite."""
    return float(np.sqrt(((one - other) ** 2).mean())) if one.shape == other.shape else np.inf


def baseline(name: str) -> np.ndarray:
    """The picture on disk, float ``[height, width, 3]``."""
    return np.asarray(Image.open(FOLDER / f"figure-{name}.png").convert("RGB")).astype(float)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_looks_as_it_did(name):
    found = difference(drawn(FIGURES[name]()), baseline(name))
    assert found < TOLERANCE, f"{name}: differs by {found:.1f} of 255; look at it, and see this file's first lines"


def test_another_head_or_another_box_is_another_picture():
    case, _ = _case()
    seen = baseline("example")
    assert difference(drawn(draw_example(*_case(head=2))), seen) > TOLERANCE
    moved = tuple(replace(p, boxes=((0.0, 0.0, 0.9, 0.9),)) for p in case.phrases)
    assert difference(drawn(draw_example(replace(case, phrases=moved), _case()[1])), seen) > TOLERANCE
    assert difference(drawn(draw_example(replace(case, answer=case.target, correct=True))), seen) > TOLERANCE


def write_baselines() -> None:
    """Write every figure's picture, with few colours."""
    FOLDER.mkdir(exist_ok=True)
    for name, figure in FIGURES.items():
        pixels = Image.fromarray(drawn(figure()).astype(np.uint8))
        pixels.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"figure-{name}.png", optimize=True)


if __name__ == "__main__":
    sys.exit(write_baselines())
