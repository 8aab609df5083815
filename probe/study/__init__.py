"""A whole study: models x initialisations x fractions of the annotation x seeds, from fine-tuning to one table."""

from probe.study.config import Cell, StudyConfig, read_study
from probe.study.light import check_light, copy_light
from probe.study.results import Results, collect
from probe.study.run import run_study

__all__ = ["Cell", "Results", "StudyConfig", "check_light", "collect", "copy_light", "read_study", "run_study"]
