"""The writer thread: in order, bounded, and silent after its first error."""

from __future__ import annotations

import threading

import pytest
import torch

from extract.background import Background


def fail() -> None:
    raise OSError("disk full")


def test_calls_run_in_order_and_wait_in_a_short_queue():
    seen, waiting = [], []
    gate = threading.Event()
    with Background(limit=2) as writer:
        writer.submit(gate.wait)
        writer.submit(seen.append, 1)
        blocked = threading.Thread(target=lambda: (writer.submit(seen.append, 2), waiting.append("through")))
        blocked.start()
        blocked.join(timeout=0.2)
        assert not waiting
        gate.set()
        blocked.join(timeout=5)
        writer.drain()
    assert seen == [1, 2]


def test_nothing_is_called_after_an_error_which_reaches_the_caller():
    seen = []
    with Background(limit=5) as writer:
        writer.submit(fail)
        writer.submit(seen.append, "commit")
        with pytest.raises(OSError, match="disk full"):
            writer.drain()
        writer.submit(seen.append, "more")
        writer.drain()
    assert seen == []


@pytest.mark.parametrize(("error", "made"), [(ValueError, True), (KeyboardInterrupt, False)])
def test_calls_that_wait_are_made_after_an_error_of_the_block_but_not_after_ctrl_c(error, made):
    seen, gate = [], threading.Event()

    def interrupted() -> None:
        with Background() as writer:
            shut_down = writer._executor.shutdown

            def opened(wait: bool = True, *, cancel_futures: bool = False) -> None:
                shut_down(wait=False, cancel_futures=cancel_futures)
                gate.set()  # only now: what was not cancelled is made
                shut_down(wait=wait)

            writer._executor.shutdown = opened
            writer.submit(gate.wait)
            writer.submit(seen.append, "the last of a shard")
            raise error

    with pytest.raises(error):
        interrupted()
    assert bool(seen) == made


def test_the_thread_computes_alone_and_leaves_the_callers_threads():
    before, inside = torch.get_num_threads(), []
    with Background() as writer:
        writer.submit(lambda: inside.append(torch.get_num_threads()))
        writer.drain()
    assert inside == [1]
    assert torch.get_num_threads() == before
