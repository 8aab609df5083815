"""The index of a report: what its overview and gallery need, in columns, a value an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from visualize.report.maps import view_name
from visualize.report.records import rounded

if TYPE_CHECKING:
    import numpy as np

    from visualize.report.budget import Held
    from visualize.report.records import Series
    from visualize.report.subject import Subject


class Table:
    """Columns of the gallery, filled example by example as they are written."""

    def __init__(self, runs: int):
        names = ("id", "caption", "spans", "types", "images", "thumb")
        self.columns: dict[str, list[Any]] = {name: [] for name in names}
        self.types: dict[str, int] = {}
        self.outcomes: list[dict[str, list[Any]]] = [
            {"correct": [], "score": [], "grounding": [], "answer": []} for _ in range(runs)
        ]

    def add(self, record: Mapping[str, Any], groundings: Sequence[float]) -> None:
        """Add an example: its record, and its grounding in each run."""
        images, target = record["images"], record["target"]
        about = images[target if isinstance(target, int) else 0]
        spans = [[number, *span] for number, phrase in enumerate(record["phrases"]) for span in phrase["spans"]]
        values = {
            "id": record["id"],
            "caption": record["caption"],
            "spans": spans,
            "types": [self.types.setdefault(p["type"], len(self.types)) for p in record["phrases"]],
            "images": len(images),
            "thumb": _thumbnail(about),
        }
        for name, value in values.items():
            self.columns[name].append(value)
        for outcome, found, grounding in zip(self.outcomes, record["runs"], groundings, strict=True):
            outcome["correct"].append(found["correct"])
            outcome["score"].append(found["score"])
            outcome["grounding"].append(rounded(grounding))
            wrong = isinstance(found["answer"], int) and found["answer"] != target
            outcome["answer"].append(_thumbnail(images[found["answer"]]) if wrong else None)

    def record(self) -> dict[str, Any]:
        """The columns as the pages read them."""
        return {"table": self.columns, "types": list(self.types), "outcomes": self.outcomes}


def _thumbnail(image: Mapping[str, Any]) -> list[Any] | None:
    """File, width and height; None for an image that is missing."""
    return [image["thumb"], image["width"], image["height"]] if "src" in image else None


def run_record(
    subject: Subject, series: Sequence[Series], held: Sequence[Held], left_out: Sequence[str]
) -> dict[str, Any]:
    """What the pages say of a run as a whole."""
    run, outcomes = subject.run, subject.outcomes
    source, identity = run.manifest.get("source") or {}, run.manifest.get("identity") or {}
    views = [
        {
            "view": each.view,
            "name": view_name(each.view),
            "chunk": each.chunk,
            "units": [[unit.site, unit.head] for unit in each.units],
        }
        for each in held
    ]
    return {
        "name": subject.name,
        "checkpoint": str(source.get("checkpoint") or "").replace("\\", "/").rpartition("/")[2] or None,
        "model": (identity.get("model") or {}).get("name") if isinstance(identity.get("model"), dict) else None,
        "benchmark": source.get("benchmark"),
        "split": source.get("split") or identity.get("split"),
        "identity": str(run.manifest.get("identity_hash", ""))[:12],
        "sites": [site.name for site in run.sites],
        "views": views,
        "leftOut": list(left_out),
        "series": [one.record() for one in series],
        "measure": outcomes.measure,
        "groundedAt": outcomes.threshold,
        "heatmaps": bool((subject.columns["phrases"]["heatmap_rows"] > 0).any()),
        "notes": notes_of(subject),
    }


def notes_of(subject: Subject) -> list[str]:
    """What the run does not hold, and what would add it."""
    run, table = subject.run, subject.columns["phrases"]
    held = {view for site in run.sites for view in site.views}
    path, notes = run.path, []
    if "attention" not in held:
        notes.append(f"The run holds no attention: probe extract --out {path} --add-view attention")
    if not any(view.startswith("relevance.") for view in held):
        notes.append(f"The run holds no relevance: probe extract --out {path} --add-view relevance")
    if subject.items is None:
        notes.append(f"The run has no sweep, so nothing is known of its layers: probe sweep {path}")
    if subject.probed is None:
        added = "" if "tokens" in held else f"probe extract --out {path} --add-view tokens, then "
        notes.append(f"There are no maps of probes: {added}probe report … --map probe")
    if "predicted_image_index" not in table or not (table["predicted_image_index"] >= 0).any():
        notes.append("The model says of no phrase where it is: there are no predicted boxes.")
    if dropped := run.manifest.get("dropped_phrases"):
        examples = len({example for example, _ in dropped})
        told = f"{len(dropped)} of its phrases, in {examples} of its examples"
        notes.append(f"The run leaves out {told}: their words lie beyond the model's token limit.")
    return notes


def grounding_column(subject: Subject) -> np.ndarray:
    """Grounding of every example of a run, NaN where nothing is known."""
    return subject.outcomes.table["grounding"].to_numpy(float)
