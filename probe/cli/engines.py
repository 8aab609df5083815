"""Which engine makes a run: the options of ``probe extract`` for many processes and many machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypedDict

import typer

from grounding.devices import choose_device
from grounding.errors import BadInput, unknown_choice

ENGINES = ("local", "processes", "ray")

EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="local: this process (or its share, below); processes: --num-workers on this machine; ray: on a cluster.",
    ),
]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--num-workers",
        help="Workers of the run. Engine local takes it and --shard-index from torchrun or Slurm if not given.",
    ),
]
ShardIndex = Annotated[
    int | None,
    typer.Option("--shard-index", help="Engine local: this process makes shards I, I + N, ... of N --num-workers."),
]
Address = Annotated[
    str | None, typer.Option("--address", help="Engine ray: auto (default), local or HOST:PORT of the head node.")
]
GpusPerWorker = Annotated[
    float | None, typer.Option("--gpus-per-worker", help="Engine ray: may be a part of one; default 1 if there is any.")
]
CpusPerWorker = Annotated[
    int | None, typer.Option("--cpus-per-worker", help="Engine ray: cores and threads of each; default 1.")
]


class Engine(TypedDict):
    """The engine options as they are given."""

    engine: str
    num_workers: int | None
    shard_index: int | None
    address: str | None
    gpus_per_worker: float | None
    cpus_per_worker: int | None


def run_engine(
    prepare: Callable[..., Any],
    arguments: Mapping[str, Any],
    options: Engine,
    progress: Callable[[int, int], None],
) -> tuple[Any, str]:
    """Make a run, or this process's share of it; returns it opened (None while shards are missing), and what is left.

    prepare, arguments: a function that gets a run ready; device is auto, cpu, cuda or cuda:N. Raises BadInput for
    options that do not go together.
    """
    engine, given = options["engine"], {name for name, value in options.items() if value is not None}
    if engine not in ENGINES:
        raise unknown_choice("engine", engine, ENGINES)
    strange = (
        given
        & {
            "local": {"address", "gpus_per_worker", "cpus_per_worker"},
            "processes": {"address", "gpus_per_worker", "cpus_per_worker", "shard_index"},
            "ray": {"shard_index"},
        }[engine]
    )
    if strange:
        raise BadInput(f"--{min(strange).replace('_', '-')} does not go with --engine {engine}")
    if engine == "ray":
        return _run_on_ray(prepare, arguments, options, progress), ""
    arguments = {**arguments, "device": choose_device(arguments["device"])}
    if engine == "local":
        return _run_share(prepare, arguments, options, progress)
    from extract.processes import run_processes

    if options["num_workers"] is None:
        raise BadInput("--engine processes needs --num-workers")
    return run_processes(prepare, arguments, options["num_workers"], progress=progress), ""


def _run_on_ray(
    prepare: Callable[..., Any], arguments: Mapping[str, Any], options: Engine, progress: Callable[[int, int], None]
) -> Any:
    from extract.ray_engine import run_on_ray

    return run_on_ray(
        prepare,
        arguments,
        address=options["address"] or "auto",
        num_workers=options["num_workers"],
        cpus_per_worker=1 if options["cpus_per_worker"] is None else options["cpus_per_worker"],
        gpus_per_worker=options["gpus_per_worker"],
        progress=progress,
    )


def _run_share(
    prepare: Callable[..., Any], arguments: Mapping[str, Any], options: Engine, progress: Callable[[int, int], None]
) -> tuple[Any, str]:
    import torch

    from extract.reader import Run
    from extract.share import choose_share

    share = choose_share(options["shard_index"], options["num_workers"])
    share.check_batch_size(arguments.get("batch_size", 1))
    device = share.device(arguments["device"], torch.cuda.device_count())
    extraction = prepare(**{**arguments, "device": device}, progress=progress)
    left = extraction.run_share(share)
    if not left:
        return Run.open(extraction.out), ""
    own = len(share.of(extraction.shards))
    return None, (
        f"{extraction.out}: worker {share.index} of {share.workers} is done with its {own} of {extraction.shards} "
        f"shards; {len(left)} are left to others"
    )
