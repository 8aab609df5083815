"""``probe report``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grounding.folders import name_of
from grounding.grounded import GROUNDED_AT
from grounding.values import counted
from probe.cli.options import MAPS, AsJson, GroundedAt, Root, progress_bar, show

if TYPE_CHECKING:
    from probe.phrase_maps import PhraseProbes
    from visualize.report.subject import Subject, Words

NAME = "report"
EPILOG = "Example: probe report runs/vilt-task runs/vilt-grounded --out report"


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of probe extract, of the same examples.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report; a report that is there is replaced.")],
    budget_mb: Annotated[
        float | None,
        typer.Option(help="Size in MB, which chooses the layers and heads that go in; default: 30 for 1,000 examples."),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help=f"Map that goes in beside the model's own, repeatable: {MAPS}. Default: all that a run holds, and "
            "probe where its sweep asked localisation.",
        ),
    ] = None,
    sweep: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a run's sweep, one for each RUN in their order; default: sweep in the run."),
    ] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="Folder of probe evaluate, shown on the overview; repeatable.")
    ] = None,
    grounded_at: GroundedAt = GROUNDED_AT,
    title: Annotated[str | None, typer.Option(help="Title of the report; default: the names of the runs.")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write runs as a folder of pages to look through, which opens from a file with no server and no network.

    Sweeps and heads are taken from the folders sweep and heads in each run, where they are.
    """
    from extract.from_checkpoint import examples_of
    from visualize.report.write import check_out, write_report

    check_out(out, budget_mb)
    words = [read_evaluation(folder) for folder in evaluation or ()]
    with progress_bar("writing", as_json) as progress:
        subjects = read_subjects(
            runs,
            sweep or (),
            maps,
            progress=lambda done, total: progress(done, total, "fitting probes"),
            grounded_at=grounded_at,
        )
        written = write_report(
            subjects,
            out,
            examples_of(subjects[0].run, root),
            budget_mb,
            words,
            title,
            lambda done, total: progress(done, total, "writing"),
            views=views_of(subjects, maps),
        )
    result = {
        "page": str(written.page), "examples": written.examples, "bytes": written.bytes,
        "missing_images": written.missing_images, "left_out": written.left_out,
    }  # fmt: skip
    lines = [f"{written.page}: {counted(written.examples, 'example')}, {written.bytes / 1e6:.1f} MB"]
    if written.missing_images:
        count = written.missing_images
        lines.append(f"{count} {'image is' if count == 1 else 'images are'} missing: the places say why")
    lines += [f"{name}, left out: {line}" for name, left_out in written.left_out.items() for line in left_out]
    show(result, as_json, "\n".join([*lines, "Open it in a browser."]))


def read_subjects(
    folders: Sequence[Path],
    sweeps: Sequence[Path] = (),
    maps: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    grounded_at: float = GROUNDED_AT,
) -> list[Subject]:
    """Runs with the sweep and the heads that lie in them, and the maps of their probes.

    sweeps: folders of the sweeps instead, one a run. maps: with ``probe`` among them probes are fitted of every run,
    without it of none; None: of the runs whose sweep asked localisation. progress: called with (sites fitted, sites in
    all). grounded_at: as in ``Subject``. Raises BadInput as ``Run.open``, ``read_sweep``, ``match_runs``, ``Subject``
    and ``fit_probes`` do, for another number of sweeps, for a run that comes twice, and for a map that is unknown or
    that no run holds.
    """
    from grounding.errors import BadInput
    from visualize.report.subject import match_runs

    if sweeps and len(sweeps) != len(folders):
        raise BadInput(f"sweep: {len(sweeps)} given for {len(folders)} runs; accepted: one for each, in their order")
    for folder in folders:
        if sum(other.resolve() == folder.resolve() for other in folders) > 1:
            raise BadInput(f"run {str(folder)!r} is given more than once; accepted: each run once")
    names = [name_of(folder) for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    places = list(sweeps) or [folder / "sweep" for folder in folders]
    subjects = [
        _subject(folder, name, place, bool(sweeps), grounded_at)
        for folder, name, place in zip(folders, names, places, strict=True)
    ]
    match_runs(subjects)  # before probes are fitted, which takes long
    views_of(subjects, maps)
    wanted = None if maps is None else "probe" in maps
    return [
        replace(subject, probed=_probes(subject, place, wanted, progress))
        for subject, place in zip(subjects, places, strict=True)
    ]


def views_of(subjects: Sequence[Subject], maps: Sequence[str] | None) -> list[str] | None:
    """The views that maps are read from. Raises BadInput for a map that is unknown, or that no run holds."""
    from visualize.maps import PROBE, kinds_of, sites_with, view_of

    for kind in maps or ():
        if kind != PROBE and not any(kind in kinds_of(subject.run) for subject in subjects):
            sites_with(subjects[0].run, kind)
    return None if maps is None else [view_of(kind) for kind in maps]


def _subject(folder: Path, name: str, swept: Path, required: bool, grounded_at: float) -> Subject:
    """swept: folder of its sweep, which must be there if ``required``."""
    from extract.reader import Run
    from probe.heads.tables import read_heads
    from probe.tables import read_items, read_measures, read_sweep
    from visualize.report.subject import Subject, Words

    run = Run.open(folder)
    sweep = read_sweep(swept, run, required)
    heads = read_heads(folder / "heads", run, required=False)
    summaries = {"What can be read off": swept, "What heads look at": folder / "heads"}
    words = [
        Words(title, (place / "summary.md").read_text(encoding="utf-8"))
        for title, place in summaries.items()
        if (place / "summary.md").is_file()
    ]
    items = None if sweep is None else read_items(swept, run)
    measures = read_measures(swept, run)
    return Subject(run, name, sweep, items, heads, measures, words, grounded_at=grounded_at)


def _probes(
    subject: Subject, swept: Path, wanted: bool | None, progress: Callable[[int, int], None] | None
) -> PhraseProbes | None:
    """Linear probes at every site, of the strengths that the sweep chose, if it asked localisation."""
    from probe.phrase_maps import fit_probes, swept_strengths
    from probe.tables import read_settings

    settings = read_settings(swept, subject.run)
    strengths = {} if subject.sweep is None else swept_strengths(subject.sweep, settings.seeds[0])
    if wanted is False or (wanted is None and not strengths):
        return None
    sites = list(strengths) or None
    return fit_probes(subject.run, sites, settings=settings, progress=progress, strengths=strengths)


def read_evaluation(folder: Path) -> Words:
    """The summary and charts of an evaluation. Raises BadInput where there is none."""
    from grounding.errors import BadInput
    from visualize.report.subject import Words

    summary = next((folder / name for name in ("summary.md", "differences.md") if (folder / name).is_file()), None)
    if summary is None:
        raise BadInput(f"evaluation {str(folder)!r} holds no summary; accepted: a folder that probe evaluate wrote")
    charts = sorted((folder / "figures").glob("*.png")) or sorted(folder.glob("*.png"))
    return Words(f"Evaluation {name_of(folder)}", summary.read_text(encoding="utf-8"), charts)
