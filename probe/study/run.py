"""Running a study: every cell step by step, each step done once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from extract.from_checkpoint import extract_checkpoint
from extract.reader import Run
from extract.share import Share
from grounding.benchmarks import open_benchmark
from grounding.errors import BadInput, RunFailed
from grounding.evaluate_checkpoint import evaluate_checkpoint
from grounding.finetune.run import finetune
from grounding.finetune.start import starting_model
from grounding.finetune.trainer import DEFAULT_LOGGERS, Machine
from probe.interventions.intervene import intervene
from probe.study.config import Cell, StudyConfig
from probe.study.folder import CELLS, CHECKPOINT, INTERVENTIONS, is_evaluated, is_swept, is_whole, open_folder
from probe.sweep import sweep

Progress = Callable[[int, int | None, str], None]


class TimeIsUp(RunFailed):
    """The minutes that were given are over; what is complete is kept."""


def run_study(
    config: StudyConfig,
    out: Path | str,
    *,
    root: Path | str | None = None,
    device: str = "cpu",
    workers: int = 0,
    loggers: Sequence[str] = DEFAULT_LOGGERS,
    share: Share | None = None,
    engine: str = "local",
    address: str = "auto",
    num_workers: int | None = None,
    minutes: float | None = None,
    progress: Progress | None = None,
    failed: dict[str, str] | None = None,
) -> list[Cell]:
    """Run what is left of a study in the folder ``out``; returns the cells that are still not whole.

    Each cell fine-tunes, evaluates, extracts, sweeps and intervenes in a folder of its own, and goes on where it
    stopped. root: files of the benchmark. device: with engine ``ray`` also ``auto``. workers: processes that prepare
    the batches of a cell. loggers: of training, some of csv, tensorboard and wandb. share: of the cells, for one of
    several processes (Slurm, torchrun); engine ``ray``: on a cluster that all see the folder, num_workers cells at a
    time, by default as many as there is room for. minutes: after them nothing new is begun, and training stops after a
    step that is kept. failed: takes the reason of each cell that cannot go on, by name, and the others do; without it,
    the first such cell ends the study.
    Raises BadInput for a folder of another study, naming what differs, and for a benchmark or a model to begin with
    that cannot be opened.
    """
    out, cells = Path(out), config.cells()
    if minutes is not None and not minutes >= 0:
        raise BadInput(f"minutes {minutes} cannot be; accepted: 0 or more")
    machine = Machine("auto" if engine == "ray" else device, 1, 1, workers, tuple(loggers))
    mine = [cells[place] for place in (share or Share()).of(len(cells))]
    left = [cell for cell in mine if not is_whole(out, cell, config)]
    untrained = [cell for cell in left if not (out / CELLS / cell.name / CHECKPOINT).exists()]
    _check_sources(untrained, root)
    if engine != "ray":  # whose nodes have devices of their own
        for cell in untrained:
            machine.check_precision(cell.settings.precision)
    open_folder(out, config)
    options: dict[str, Any] = {"root": None if root is None else str(root), "device": device}
    options |= {"workers": workers, "loggers": tuple(loggers)}
    if minutes is not None:
        options["deadline"] = time.time() + 60 * minutes
    if engine == "ray":
        _on_ray(left, config, out, address, num_workers, options, failed)
    else:
        for number, cell in enumerate(left):
            try:
                with _told_of(cell, failed):
                    run_cell(cell, config, out, progress=_of_cell(progress, cell, number, len(left)), **options)
            except TimeIsUp:
                break
    return [cell for cell in cells if not is_whole(out, cell, config)]


def run_cell(
    cell: Cell,
    config: StudyConfig,
    out: Path,
    *,
    root: str | None = None,
    device: str = "cpu",
    workers: int = 0,
    loggers: Sequence[str] = DEFAULT_LOGGERS,
    deadline: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Do the steps of a cell that are not done yet. Raises TimeIsUp at the deadline (seconds since the epoch)."""
    folder = out / CELLS / cell.name
    settings = cell.settings if root is None else replace(cell.settings, root=root)

    def tell(done: int, total: int | None, doing: str) -> None:
        if deadline is not None and time.time() > deadline:
            raise TimeIsUp(f"the minutes are over while {cell.name} was {doing or 'training'}")
        if progress is not None:
            progress(done, total, doing)

    ckpt = folder / "ckpt"
    if not (folder / CHECKPOINT).exists():
        finetune(settings, ckpt, device=device, workers=workers, loggers=loggers, progress=tell)
    source: dict[str, Any] = {
        **{"root": settings.root, "options": settings.benchmark_options, "data_seed": settings.data_seed},
        **{"device": device, "skip_bad": settings.skip_bad},
    }
    if not is_evaluated(folder):
        given = {"split": "dev", **config.evaluate}
        _whole(
            folder / "evaluation",
            lambda place: evaluate_checkpoint(
                ckpt, settings.benchmark, out=place, progress=lambda d, t: tell(d, t, "evaluating"), **given, **source
            ),
        )
    if config.extract is not None:
        _probed(cell, config, folder, ckpt, source, tell)
    if config.intervene is not None and not (folder / INTERVENTIONS).is_dir():
        given = {"split": "dev", **config.intervene, "seed": cell.seed}
        if given.get("method", "erase") == "erase":
            given["run"] = folder / "run"
        source.pop("skip_bad")
        _whole(
            folder / INTERVENTIONS,
            lambda place: intervene(
                ckpt, settings.benchmark, out=place, progress=lambda d, t: tell(d, t, "intervening"), **given, **source
            ),
        )


def _probed(
    cell: Cell, config: StudyConfig, folder: Path, ckpt: Path, source: Mapping[str, Any], tell: Progress
) -> None:
    """The cell's run and its sweep, where they are not there."""
    assert config.extract is not None
    if is_swept(folder) and (folder / "run").is_dir():
        return
    views = None if config.extract.get("views") is None else tuple(config.extract["views"])
    given = {"split": "dev", **config.extract, "views": views}
    extract_checkpoint(
        ckpt,
        cell.settings.benchmark,
        out=folder / "run",
        progress=lambda d, t: tell(d, t, "extracting"),
        **given,
        **source,
    )
    if not is_swept(folder):
        run = Run.open(folder / "run")
        chosen = {**config.sweep, "seeds": (cell.seed,)}
        _whole(
            folder / "sweep",
            lambda place: sweep(run, out=place, progress=lambda d, t: tell(d, t, "probing"), **chosen),
        )


def _whole(folder: Path, make: Callable[[Path], Any]) -> None:
    """Make a folder under another name first: it is there only when all of it is."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    make(unfinished)
    unfinished.rename(folder)


def _of_cell(progress: Progress | None, cell: Cell, number: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, doing: progress(done, total, f"{number + 1}/{count} {cell.name}: {doing}")


def _check_sources(cells: list[Cell], root: Path | str | None) -> None:
    """Raise BadInput where what cells train on has no first example, or what they start from cannot be made."""
    for settings in {cell.start: cell.settings for cell in cells}.values():
        place = settings.root if root is None else root
        source = open_benchmark(settings.benchmark, place, settings.data_seed, **settings.benchmark_options)
        source.load(settings.train_split, 1, skip_bad=True)
        starting_model(settings)


@contextmanager
def _told_of(cell: Cell, failed: dict[str, str] | None) -> Iterator[None]:
    """Name the cell in what ends it; with ``failed``, keep that there instead of raising it."""
    try:
        yield
    except TimeIsUp:
        raise
    except (BadInput, RunFailed) as error:
        if failed is None:
            kind = BadInput if isinstance(error, BadInput) else RunFailed
            raise kind(f"cell {cell.name}: {error}") from error
        failed[cell.name] = str(error)


def _on_ray(
    cells: list[Cell],
    config: StudyConfig,
    out: Path,
    address: str,
    num_workers: int | None,
    options: Mapping[str, Any],
    failed: dict[str, str] | None,
) -> None:
    """One task a cell; a cell whose worker dies is begun again, where its last step ended, and fails at the fourth."""
    from extract.ray_pool import capacity, connected, device_and_gpus, short_reason

    with connected(address, None):
        import ray
        from ray.exceptions import RayError, RayTaskError

        device, gpus = device_and_gpus(options["device"], None)
        cpus, told = 1 + options["workers"], {**options, "device": device}
        capacity(cpus, gpus)  # told where no node has room for a cell
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(run_cell)
        waiting = list(cells)
        running: dict[Any, Cell] = {}
        while waiting or running:
            while waiting and len(running) < (num_workers or len(cells)):
                cell = waiting.pop(0)
                running[task.remote(cell, config, out.resolve(), **told)] = cell
            (ended,), _ = ray.wait(list(running))
            with suppress(TimeIsUp), _told_of(running.pop(ended), failed):
                try:
                    ray.get(ended)
                except RayTaskError as error:
                    raise error.cause from None
                except RayError as error:
                    raise RunFailed(f"its worker was lost: {short_reason(error)}") from None
