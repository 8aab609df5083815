"""What is measured, as pure functions on arrays: how well phrases are grounded (boxes, heatmaps), how well the
task is solved, how the two go together, and how sure one can be of each figure (bootstrap over images).

Two arithmetics exist and are never mixed: ``corrected`` (the default: exact areas) and ``paper`` (the original
study's, pixel by pixel). Nothing here opens images or runs models.
"""

from grounding.metrics.boxes import HIT_IOU, PROTOCOLS, best_of, pad_boxes, ranked_ious, recall_at
from grounding.metrics.heatmaps import THRESHOLDS, Threshold, choose_threshold, pointing, region_boxes, threshold_ious
from grounding.metrics.intervals import Estimate, bootstrap_mean, bootstrap_weights
from grounding.metrics.joint import Correlation, correlate, correlations
from grounding.metrics.phrases import Measure, PhraseItem, heatmap_curves, phrase_table
from grounding.metrics.tasks import distance_accuracy, game_accuracy, mean_distance, nested_accuracy, sdr_distances

__all__ = [
    "HIT_IOU",
    "PROTOCOLS",
    "THRESHOLDS",
    "Correlation",
    "Estimate",
    "Measure",
    "PhraseItem",
    "Threshold",
    "best_of",
    "bootstrap_mean",
    "bootstrap_weights",
    "choose_threshold",
    "correlate",
    "correlations",
    "distance_accuracy",
    "game_accuracy",
    "heatmap_curves",
    "mean_distance",
    "nested_accuracy",
    "pad_boxes",
    "phrase_table",
    "pointing",
    "ranked_ious",
    "recall_at",
    "region_boxes",
    "sdr_distances",
    "threshold_ious",
]
