"""What the Ray engine refuses before a cluster does anything."""

from __future__ import annotations

import sys
from functools import lru_cache

import pytest
from test_probe_cli import run as run_command

from extract import ray_engine
from extract.ray_pool import connected
from grounding.errors import BadInput


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_SEEN", 0.0)
    with ray_engine._beacon(tmp_path / "x") as beacon:
        ray_engine._look_for(beacon)
        with pytest.raises(BadInput, match=r"is not the same folder on .*; accepted: a path that all workers share"):
            ray_engine._look_for(beacon.with_name("other"))
    assert not (tmp_path / "x").exists()


def test_without_ray_the_error_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["extract", "--ckpt", "x", "--benchmark", "mini-game", "--out", tmp_path / "x", "--engine", "ray"]
    code, _, err = run_command(monkeypatch, capsys, *words)
    assert code == 2
    assert err == "Error: engine 'ray' needs the package ray: pip install 'phrase-grounding-probe[cluster]'\n"


def test_an_address_is_checked_before_ray_is_started():
    with pytest.raises(BadInput, match="address 'nowhere' is unknown; accepted: auto, local, HOST:PORT"):
        connected("nowhere").__enter__()


@pytest.mark.slow
def test_without_a_cluster_on_this_machine_auto_is_refused(monkeypatch, tmp_path):
    from ray._private import services

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # no cluster of this machine is known there
    monkeypatch.setattr(services, "find_gcs_addresses", lru_cache(set))  # and none of another test is seen
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(BadInput, match="address 'auto': no Ray cluster answers there"):
        connected("auto").__enter__()


@pytest.mark.slow
@pytest.mark.parametrize(("given", "environment"), [("127.0.0.1:1", ""), ("auto", "127.0.0.1:1")])
def test_an_address_where_nobody_answers_is_refused(monkeypatch, given, environment):
    monkeypatch.setenv("RAY_ADDRESS", environment)
    with pytest.raises(BadInput, match=r"address '127\.0\.0\.1:1': no Ray cluster answers there"):
        connected(given).__enter__()
