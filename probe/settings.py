"""What a sweep depends on besides its runs, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from grounding.errors import BadInput, unknown_choice
from probe.scores import RESAMPLES

PROBES = ("linear", "mlp")
BASELINES = ("concatenation", "phrase-only", "region-only", "majority")
CONTROLS = ("labels", "position-only", "random-model", *BASELINES)
# All that cost no forward pass of a model. phrase-only and majority cannot choose at all: they are for other scores.
MEASURES = ("description-length", "usable-information", "learning-curve", "frontier")
DEFAULT_CONTROLS = ("labels", "position-only", "concatenation", "region-only")


@dataclass(frozen=True)
class SweepSettings:
    """Plain values, stored beside the tables that they led to.

    questions: names of ``probe.questions.QUESTIONS``. sites: names or ``stage.*``; None for all that a question can be
    asked of. measures: of ``probe.measures``, taken besides. group: what is never split apart (image, caption,
    annotation, tangram). folds: a fold is test, one validation. iou: overlap that makes a region, or a query's box, the
    phrase's. linear_strengths, mlp_strengths: tried on the validation split. rank: of the bilinear form; None learns it
    in full up to 256 x 256 and with rank 32 above.
    """

    questions: tuple[str, ...] = ("alignment",)
    probes: tuple[str, ...] = PROBES
    controls: tuple[str, ...] = DEFAULT_CONTROLS
    sites: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    measures: tuple[str, ...] = ()
    group: str = "image"
    folds: int = 5
    iou: float = 0.5
    linear_strengths: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
    mlp_strengths: tuple[float, ...] = (10.0, 3.0, 1.0)
    rank: int | None = None
    resamples: int = RESAMPLES
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, values, accepted in (
            ("probe", self.probes, PROBES),
            ("control", self.controls, CONTROLS),
            ("measure", self.measures, MEASURES),
        ):
            for value in values:
                if value not in accepted:
                    raise unknown_choice(name, value, accepted)
        for name in ("questions", "probes", "controls", "seeds", "measures"):
            values = getattr(self, name)
            if len(set(values)) < len(values):  # rows would count twice, and the spread over seeds would be too small
                raise BadInput(f"{name} {values} name one twice; accepted: each once")
        if not self.questions:
            raise BadInput("questions (); accepted: at least one")
        if not self.probes or not self.seeds:
            raise BadInput(f"probes {self.probes} and seeds {self.seeds}; accepted: at least one of each")
        if min(self.seeds) < 0:
            raise BadInput(f"seed {min(self.seeds)} is too small; accepted: 0 or more")
