"""Splits of a benchmark, read and checked for a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from grounding.benchmarks import Benchmark
from grounding.errors import BadInput
from grounding.examples import Example
from grounding.finetune.data import check_all
from grounding.finetune.progress import Progress
from grounding.models.inputs import Preprocessor


@dataclass
class Reader:
    """Reads and checks, and tells how far it is.

    workers: processes that check. With ``skip_bad``, ``skipped`` has the reason for every example left out, by id;
    without, the first broken one raises BadInput, as does a split of which nothing is left. ``dropped_phrases`` has
    (example id, phrase id) of those that a caption's tokens do not hold, which are not learned from.
    """

    benchmark: Benchmark
    skip_bad: bool
    workers: int
    progress: Progress
    skipped: dict[str, str] = field(default_factory=dict)
    dropped_phrases: list[tuple[str, str]] = field(default_factory=list)

    def read(self, split: str, limit: int | None) -> Sequence[Example]:
        """The first ``limit`` examples of a split, or all."""
        doing = f"reading {split}"
        self.progress(0, limit, doing)
        examples = self.benchmark.load(split, limit, self.skip_bad, lambda done: self.progress(done, limit, doing))
        self.skipped |= {item.id: item.reason for item in self.benchmark.skipped}
        self.benchmark.require(examples, split)
        return examples

    def usable(self, examples: Sequence[Example], preprocessor: Preprocessor) -> list[Example]:
        """Those examples of one split that the model can take."""
        split, total = examples[0].split, len(examples)
        usable, dropped = check_all(
            examples,
            preprocessor,
            self.workers,
            self.skipped if self.skip_bad else None,
            lambda done: self.progress(done, total, f"checking {split}"),
        )
        if not usable:
            raise BadInput(f"split {split!r} has nothing to offer: all {len(self.skipped)} examples were skipped")
        self.dropped_phrases += dropped
        return usable
