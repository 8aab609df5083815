"""The model that a run was made with, for questions that need a head of it to read what is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grounding.checkpoint import load_checkpoint
from grounding.errors import BadInput
from grounding.models.base import GroundingModel

if TYPE_CHECKING:
    from extract.reader import Run


def model_of(run: Run, question: str, kind: str) -> GroundingModel:
    """The checkpoint that the run's manifest names, loaded again on the CPU; kind: the name of its configuration.

    Raises BadInput, naming the question, for a run that names none, for another kind of model, and where the file is
    no longer what it was.
    """
    name = run.manifest["identity"].get("model", {}).get("name")
    if name != kind:
        raise BadInput(f"question {question!r} is about the model {kind}; the run {str(run.path)!r} is of {name}")
    source = run.manifest.get("source")
    if not source:
        raise BadInput(f"question {question!r} needs a run made from a checkpoint; {str(run.path)!r} names none")
    checkpoint = load_checkpoint(source["checkpoint"], **source["loading"])
    if checkpoint.content != run.manifest["identity"]["checkpoint"]:
        raise BadInput(
            f"checkpoint {source['checkpoint']!r} has changed since the run {str(run.path)!r} was made; extract again"
        )
    return checkpoint.model
