"""Which candidate of a reference game is chosen for which: confusion by place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import seaborn
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import confusion_matrix

from grounding.errors import BadInput
from visualize.curves import new_chart
from visualize.style import FAINT, heat_colours, styled

if TYPE_CHECKING:
    import pandas as pd


def choices(examples: pd.DataFrame) -> np.ndarray:
    """How often candidate ``c`` was chosen where ``t`` was the target: int64 ``[N, N]``, rows by target.

    examples: the run's table. N: the most candidates of any answered game.
    """
    game = (examples["task"] == "game") & (examples["answer_index"] >= 0)
    table = examples[game]
    most = int(table["n_images"].max()) if len(table) else 0
    if not most:
        return np.zeros((0, 0), dtype=np.int64)
    return confusion_matrix(table["target_index"], table["answer_index"], labels=range(most))


@styled
def draw_choices(counts: np.ndarray) -> Figure:
    """Confusion of candidates by their place in the game, and how often each place is the target and is chosen.

    counts: int ``[N, N]`` of ``choices``. A model that knows the place of nothing chooses each place as often as it is
    the target. Raises BadInput if there is no answer.
    """
    if not counts.sum():
        raise BadInput("no game was answered: there are no choices to draw")
    places = np.arange(len(counts))
    figure = new_chart(0.42 * len(counts) + 4.6, max(0.36 * len(counts) + 1.5, 3.2))
    left, right = figure.subplots(1, 2, width_ratios=(0.42 * len(counts) + 0.6, 2.8))
    labels = np.where(counts > 0, counts.astype(str), "")
    seaborn.heatmap(
        counts, ax=left, cmap=heat_colours(), vmin=0, annot=labels, fmt="", annot_kws={"size": 8}, cbar=False,
        linewidths=0.6, linecolor="white",
    )  # fmt: skip
    left.tick_params(length=0)
    left.tick_params(axis="y", rotation=0)
    left.set(xlabel="candidate chosen", ylabel="target")
    left.set_title("Games, by target and choice", weight="normal")
    share = counts / counts.sum()
    right.barh(places - 0.19, share.sum(1), 0.36, color=FAINT, label="is the target")
    right.barh(places + 0.19, share.sum(0), 0.36, color="#d17a00", hatch="///", edgecolor="white", label="is chosen")
    right.set_yticks(places, places)
    right.invert_yaxis()
    right.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.set(ylabel="candidate", xlabel="share of games")
    right.set_title("Is a place preferred?", weight="normal")
    right.grid(axis="x")
    right.set_axisbelow(True)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    solved = int(np.trace(counts))
    figure.suptitle(f"Candidates confused: {solved} of {counts.sum()} games solved", x=0.01, ha="left", weight="bold")
    return figure
