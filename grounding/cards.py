"""Cards (``README.md``) of what is published on the Hugging Face hub, written from the run itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from grounding.checkpoint import Checkpoint
from grounding.evaluation_text import threshold_told
from grounding.finetune.annotation_quality import AnnotationQuality
from grounding.metrics.heatmaps import Threshold

LIBRARY = "phrase-grounding-probe"
TAGS = ("phrase-grounding", "vision-and-language", "interpretability", LIBRARY)
TEMPLATES = Path(__file__).parent / "templates"
SPOILT = {
    "swap_rate": "share of the phrases with the regions of another one of their caption",
    "drop_rate": "share that lost their regions",
    "jitter_iou": "overlap of every box with its true place",
}
VARIED = ("models", "initialisations", "fractions", "seeds")  # what a study runs every combination of
_PRIVATE = ("root", "tokenizer")  # settings that name folders of whoever trained


def model_card(
    name: str,
    checkpoint: Checkpoint,
    summary: Mapping[str, Any] | None = None,
    told: str = "",
    license: str | None = None,
) -> str:
    """The card of a checkpoint, with metadata that the hub reads (https://huggingface.co/docs/hub/model-cards).

    name: ``owner/name``. summary, told: ``summary.json`` and ``summary.md`` of an evaluation of this checkpoint.
    """
    training = checkpoint.info.get("training") or {}
    settings = _told(training.get("settings") or {})
    config = checkpoint.model.config
    results = _results(summary) if summary else None
    data = ModelCardData(
        library_name=LIBRARY,
        license=license,
        tags=[config.model, *TAGS],
        datasets=[settings["benchmark"]] if settings else None,
        metrics=[result.metric_type for result in results] if results else None,
        eval_results=results,
        model_name=name.partition("/")[2] if results else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / "model_card.md"),
        name=name,
        title=name.partition("/")[2],
        model=config.model,
        parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        content=checkpoint.content,
        settings=settings,
        annotated=_annotated(training),
        steps=_steps(training),
        threshold=_threshold(checkpoint),
        about=summary["about"] if summary else {},
        evaluation=told.strip(),
    )
    return str(card)


def results_card(
    name: str,
    files: Sequence[str],
    about: Mapping[str, Any],
    summary: str,
    license: str | None = None,
    study: Mapping[str, Any] | None = None,
) -> str:
    """The card of tables: each of ``files`` is a configuration that ``datasets.load_dataset`` takes by its stem.

    about: what an evaluation is of. study: the ``study.json`` of a study.
    """
    tables = {Path(file).stem: file for file in files}
    data = DatasetCardData(
        license=license,
        tags=list(TAGS),
        configs=[{"config_name": table, "data_files": file} for table, file in tables.items()],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATES / "results_card.md"),
        name=name,
        title=name.partition("/")[2],
        tables=list(tables),
        about=about,
        study={part: ", ".join(map(str, study[part])) for part in VARIED if part in study} if study else {},
        summary=summary.strip(),
    )
    return str(card)


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that say something; of the checkpoint that training started from, the name without its folders."""
    told = {key: value for key, value in settings.items() if key not in _PRIVATE and value not in (None, {}, [])}
    return told | ({"init": Path(told["init"]).name} if "init" in told else {})


def _threshold(checkpoint: Checkpoint) -> str:
    stored = checkpoint.info.get("threshold")
    if stored is None and checkpoint.model.predicts == "heatmap":
        return "None was tuned: evaluations need `--threshold` or `--tune-split`."
    return threshold_told(Threshold(**stored) if stored else None)


def _results(summary: Mapping[str, Any]) -> list[EvalResult]:
    """Every figure that is defined, as the hub's model index has them."""
    about = summary["about"]
    benchmark, split = about["benchmark"], about["split"]
    return [
        EvalResult(
            task_type="visual-grounding",
            dataset_type=benchmark,
            dataset_name=benchmark,
            dataset_split=split,
            dataset_args={"limit": about["limit"]} if about["limit"] else None,
            metric_type=figure,
            metric_value=round(found["value"], 4),
        )
        for figure, found in summary["figures"].items()
        if found["value"] is not None
    ]


def _annotated(training: Mapping[str, Any]) -> str:
    """The annotation budget, and how the annotations were spoilt, in a sentence."""
    settings, counts = training.get("settings") or {}, training.get("annotations")
    if not settings.get("grounding", True) or settings.get("grounding_weight") == 0:
        return "This run learned from no grounding annotation."
    share = f"{settings.get('grounding_fraction', 1.0):.0%} of the annotated {settings.get('budget_by', 'phrase')}s"
    spoilt = _spoilt(settings)
    told = f"{share}, made worse on purpose ({spoilt})" if spoilt else share
    if counts is None:
        return f"This run learned grounding from {told}."
    return f"This run learned grounding from {told}: {counts['learned']:,} of {counts['phrases']:,} phrases."


def _spoilt(settings: Mapping[str, Any]) -> str:
    """The options that made annotations worse, with what they did; empty where they are as they came."""
    as_they_came = asdict(AnnotationQuality())
    given = {name: settings.get(name, value) for name, value in as_they_came.items()}
    return ", ".join(f"{name} {given[name]:g}: {SPOILT[name]}" for name in SPOILT if given[name] != as_they_came[name])


def _steps(training: Mapping[str, Any]) -> str:
    """The step that was kept, and its figures of dev, in a sentence."""
    figures = {name: value for name, value in training.items() if name.startswith("dev/") and value is not None}
    if "best_step" not in training or not figures:
        return ""
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    return f"Kept: step {training['best_step']:,}, the best on dev ({told})."
