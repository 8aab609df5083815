"""Looking through runs in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd

from grounding.benchmarks import load_source
from grounding.errors import BadInput
from grounding.folders import name_of
from grounding.grounded import GROUNDED_AT

if TYPE_CHECKING:
    from extract.reader import Run
    from grounding.examples import Example
    from visualize.explorer import Explorer
    from visualize.report import Subject, Words


def explore(
    runs: Run | Subject | Sequence[Run | Subject],
    examples: Mapping[str, Example] | None = None,
    *,
    words: Sequence[Words] = (),
    title: str | None = None,
    grounded_at: float = GROUNDED_AT,
) -> Explorer:
    """The report on one or more runs of the same examples as a widget of Jupyter, which Python drives and asks.

    runs: a ``Subject`` has a name of its own and what was computed of its run, a bare ``Run`` is called as its folder.
    examples: id -> example, for images and polygons; without them those that the first run's manifest names.
    grounded_at: of bare runs, mean IoU from which on an example counts as grounded. The rest: as in ``write_report``.
    Every map that the runs hold is there: what the page shows is read, and its images drawn, when it asks, into a
    temporary folder that goes with the widget (``close``), or with Python.
    Raises BadInput as ``write_report`` does, and without anywidget.

    >>> explorer = explore(run)  # doctest: +SKIP
    >>> explorer.show(explorer.examples.query("not correct").nlargest(10, "grounding")["id"])  # doctest: +SKIP
    """
    try:
        from visualize.explorer import Explorer
    except ModuleNotFoundError as error:
        if error.name != "anywidget":
            raise
        raise BadInput("explore needs anywidget: pip install 'phrase-grounding-probe[notebook]'") from error
    from visualize.report import Subject
    from visualize.report.live import LiveReport

    several = runs if isinstance(runs, Sequence) else [runs]
    subjects = [
        run if isinstance(run, Subject) else Subject(run, name_of(run.path), grounded_at=grounded_at) for run in several
    ]
    if examples is None:
        examples = load_source(subjects[0].run.manifest.get("source")) if subjects else {}
    folder = TemporaryDirectory(prefix="probe-explorer-")
    try:
        report = LiveReport(subjects, Path(folder.name), examples, words, title)
    except BaseException:
        folder.cleanup()
        raise
    return Explorer(folder, report, [subject.name for subject in subjects], table_of(subjects))


def table_of(subjects: Sequence[Subject]) -> pd.DataFrame:
    """Examples of all runs, in the first one's order: a row an example and run, with what is known of it.

    Columns: run, id, caption, phrases (how many), correct, score and grounding as ``Outcomes`` has them.
    """
    tables = []
    for subject in subjects:
        run, found = subject.run, subject.outcomes.table
        counts = run.phrases.groupby("example").size().reindex(run.examples.index, fill_value=0)
        about = {"run": subject.name, "caption": run.examples["caption"], "phrases": counts}
        columns = ["run", "id", "caption", "phrases", "correct", "score", "grounding"]
        tables.append(found.assign(**about)[columns])
    order = {name: place for place, name in enumerate(tables[0]["id"])}
    joined = pd.concat(tables)
    return joined.sort_values("id", key=lambda ids: ids.map(order), kind="stable").reset_index(drop=True)
