"""What the help says of benchmarks and models is what they have; what options are read as."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
from small_models import small_mdetr, small_vilt
from test_probe_cli import run

from grounding.benchmarks import BENCHMARKS, benchmark_class, benchmark_options
from probe.cli.extract import SITES
from probe.cli.options import OPTIONS, SPLITS, first_few, parse_list, progress_bar, show
from probe.settings import CONTROLS


def listed(text: str) -> dict[str, list[str]]:
    """``a, b and c: x (y, z), w; d: none`` as a mapping, without what is in brackets."""
    entries = (entry.split(": ") for entry in re.sub(r" \([^)]*\)", "", text).split("; "))
    return {name: words.split(", ") for names, words in entries for name in re.split(", | and ", names)}


def test_the_help_has_every_option_and_split_of_every_benchmark():
    assert listed(OPTIONS) == {name: list(benchmark_options(name)) or ["none"] for name in BENCHMARKS}
    assert listed(SPLITS) == {name: list(benchmark_class(name).splits) for name in BENCHMARKS}


def test_the_help_has_the_sites_of_every_model():
    for model in (small_vilt(), small_mdetr(pre_norm=True)):
        names = dict.fromkeys(re.sub(r"\d+", "K", site.name) for site in model.sites())
        assert list(names) == [name.removesuffix(" where pre_norm is on") for name in listed(SITES)[model.config.model]]


def test_the_help_of_sweep_has_every_control(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "sweep", "--help")
    assert all(name in out for name in (*CONTROLS, "all", "none"))


def test_lists_may_come_in_parts_and_blanks_in_them_do_not_matter():
    assert parse_list(["phrase, region ", "tokens"]) == ["phrase", "region", "tokens"]
    assert parse_list([]) is parse_list(None) is None


def strict_json(text: str) -> Any:
    """The value of a JSON text that has no NaN and no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_null_in_json(capsys):
    cells = [{"low": float("nan"), "high": np.float64("inf")}, (1.5, -math.inf)]
    show({"cells": cells, "text": "NaN", "n": 3}, True, "")
    assert strict_json(capsys.readouterr().out) == {
        "cells": [{"low": None, "high": None}, [1.5, None]], "text": "NaN", "n": 3
    }  # fmt: skip


def test_the_progress_bar_is_silent_off_terminals(capsys):
    with progress_bar("waiting") as progress:
        progress(1, None, "reading")
        progress(2, 3)
    assert capsys.readouterr() == ("", "")


def test_long_lists_are_cut_and_say_so():
    assert first_few(["a", "b"]) == ["a", "b"]
    assert first_few(list("abc"), most=3) == ["a", "b", "c"]
    assert first_few(list("abcde"), most=3) == ["a", "b", "c", "and 2 more (--json lists all)"]
