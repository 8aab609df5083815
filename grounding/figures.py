"""The figures of an evaluation, each as a statistic of resampled images: what is resampled, and how it is averaged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from grounding.metrics.boxes import PROTOCOLS, hits
from grounding.metrics.intervals import Statistic
from grounding.metrics.joint import CORRELATIONS, correlation_statistic, undefined
from grounding.metrics.partial import explained, partial_statistic
from grounding.metrics.sensitivity import SETTING
from grounding.metrics.tasks import SDR_THRESHOLDS, nested_weights

COVARIATES = ("phrases", "words", "region_size")
_MEANS = {"mean_iou": "iou", "mean_iou_any": "iou_any", "mean_iou_merged": "iou_merged"}


def task_statistics(examples: pd.DataFrame) -> dict[str, Statistic]:
    """Of the examples that have a task, if any was answered. See ``Evaluation.summary`` for the names."""
    if not examples["answered"].any():
        return {}
    examples = examples[examples["has_task"]]
    figures = _game_statistics if (examples["task"] == "game").all() else _distance_statistics
    return figures(examples)


def _game_statistics(examples: pd.DataFrame) -> dict[str, Statistic]:
    correct = examples["correct"].to_numpy(float)
    found = {"accuracy": Statistic.mean(correct, examples["group_image"])}
    nesting = [f"group_{name}" for name in ("annotation", "tangram")]
    if all(name in examples and (examples[name] != "").all() for name in nesting):
        annotations, tangrams = (examples[name].to_numpy() for name in nesting)
        found["accuracy_nested"] = Statistic.mean(correct, tangrams, nested_weights(annotations, tangrams))
    return found


def _distance_statistics(examples: pd.DataFrame) -> dict[str, Statistic]:
    parts = {"": examples}
    if examples["propagated"].any():
        parts |= {"_main": examples[~examples["propagated"]], "_propagated": examples[examples["propagated"]]}
    found = {}
    for part, rows in parts.items():
        distances, images = rows["distance"], rows["group_image"]
        if (known := rows["answered"]).any():
            found[f"mean_distance{part}"] = Statistic.mean(distances[known], images[known])
        for limit in SDR_THRESHOLDS:
            found[f"accuracy@{limit}px{part}"] = Statistic.mean(distances < limit, images)
    worst = examples["distance"].fillna(np.inf).groupby(examples["caption_id"]).max()
    for limit in SDR_THRESHOLDS:
        found[f"consistency@{limit}px"] = Statistic.mean(worst < limit, worst.index.to_numpy())
    return found


def grounding_statistics(
    examples: pd.DataFrame, phrases: pd.DataFrame, sensitivity: pd.DataFrame
) -> dict[str, Statistic]:
    """Over phrases, of the images they are in. See ``Evaluation.summary`` for the names."""
    image_of = dict(zip(examples["id"], examples["group_image"], strict=True))
    images = phrases["example"].map(image_of)
    found = {name: Statistic.mean(phrases[column], images) for name, column in _MEANS.items()}
    for protocol in PROTOCOLS:
        iou = phrases[_MEANS[figure_name("mean_iou", protocol)]]
        found[f"{figure_name('recall', protocol)}@1"] = Statistic.mean(reached(iou), images)
    ranked = sensitivity[~sensitivity["boxes"].isin(("", "1"))]
    for (protocol, boxes), rows in ranked.groupby(["protocol", "boxes"], sort=False):
        name = f"{figure_name('recall', str(protocol))}@{boxes}"
        found[name] = Statistic.mean(reached(rows["iou"]), rows["example"].map(image_of))
    precise = phrases["average_precision"].notna()
    if precise.any():
        found["average_precision"] = Statistic.mean(phrases["average_precision"][precise], images[precise])
    return found | {"pointing": Statistic.mean(phrases["pointing"], images)}


def reached(ious: pd.Series | np.ndarray) -> np.ndarray:
    """Whether each IoU ``[P]`` is at least one half, bool ``[P]``."""
    return hits(torch.tensor(np.asarray(ious, dtype=np.float64))).numpy()


def figure_name(figure: str, protocol: str) -> str:
    """The name of a figure under a protocol; ``all`` is the one that goes without saying."""
    return figure if protocol == "all" else f"{figure}_{protocol}"


def linked_examples(examples: pd.DataFrame) -> pd.DataFrame:
    """The examples that task and grounding are both known of."""
    return examples[(examples["phrases"] > 0) & examples["answered"]]


def task_columns(examples: pd.DataFrame) -> dict[str, np.ndarray]:
    """The task column ``[E]`` that each kind of correlation takes."""
    score, success = (examples[name].to_numpy(np.float64) for name in ("score", "correct"))
    return {kind: success if kind == "point_biserial" else score for kind in CORRELATIONS}


def covariates_of(examples: pd.DataFrame) -> np.ndarray:
    """What partial correlations are given, ``[E, 3]``: phrases, words of the caption, size of the regions."""
    return examples[list(COVARIATES)].to_numpy(np.float64)


def joint_statistics(examples: pd.DataFrame) -> dict[str, Statistic]:
    """The correlations of task and mean IoU that are defined."""
    examples = linked_examples(examples)
    grounding, images = examples["mean_iou"].to_numpy(np.float64), examples["group_image"].to_numpy()
    found = {
        kind: correlation_statistic(kind, task, grounding, images)
        for kind, task in task_columns(examples).items()
        if undefined(kind, task, grounding) is None
    }
    task, covariates = examples["score"].to_numpy(np.float64), covariates_of(examples)
    if "pearson" in found and explained(task, grounding, covariates) is None:
        found["pearson_partial"] = partial_statistic(task, grounding, covariates, images)
    return found


def groundings_by_setting(examples: pd.DataFrame, sensitivity: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Each example's grounding under every setting: the S settings, and means over its phrases ``[E, S]``.

    Settings: columns grounding (mean_iou, recall), protocol, boxes, threshold.
    """
    kept = sensitivity[sensitivity["example"].isin(set(examples["id"]))]
    numbers = kept.groupby(list(SETTING), sort=False, dropna=False).ngroup().to_numpy()
    rows = kept["example"].map({name: row for row, name in enumerate(examples["id"])}).to_numpy(np.int64)
    settings = kept[list(SETTING)].drop_duplicates()
    count = np.zeros((len(examples), len(settings)))
    np.add.at(count, (rows, numbers), 1.0)
    iou = kept["iou"].to_numpy(np.float64)
    tables, columns = [], []
    for name, values in (("mean_iou", iou), ("recall", reached(iou))):
        total = np.zeros_like(count)
        np.add.at(total, (rows, numbers), values)
        columns.append(total / count)
        tables.append(settings.assign(grounding=name))
    return pd.concat(tables, ignore_index=True)[["grounding", *SETTING]], np.concatenate(columns, 1)
