"""Where results can be written, told before anything is computed."""

from __future__ import annotations

import pytest

from grounding.errors import BadInput
from grounding.folders import check_file, check_folder, make_folder, read_note, refuse_another


def test_a_folder_is_made_where_one_can_be(tmp_path):
    check_folder(None)
    check_folder(tmp_path / "new" / "inner")
    assert not (tmp_path / "new").exists()
    assert make_folder(tmp_path / "new" / "inner").is_dir()
    assert make_folder(tmp_path / "new" / "inner").is_dir()


@pytest.mark.parametrize("check", [check_folder, make_folder])
def test_a_file_in_the_way_is_named(tmp_path, check):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match=r"^out '.*file' is not a folder; accepted: one, or a path that is free for it$"):
        check(tmp_path / "file")
    with pytest.raises(BadInput, match=r"^out '.*inner' is not a folder: '.*file' is a file; accepted: "):
        check(tmp_path / "file" / "more" / "inner")


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(BadInput, match=f"new' cannot be written: no permission in '{tmp_path}'"):
        check_folder(tmp_path / "new")


def test_a_file_is_written_where_no_folder_is(tmp_path):
    (tmp_path / "file").write_text("mine")
    check_file(None)
    check_file(tmp_path / "file")
    check_file(tmp_path / "new" / "file")
    with pytest.raises(BadInput, match=r"^export '.*' is a folder; accepted: a file$"):
        check_file(tmp_path, "export")
    with pytest.raises(BadInput, match=r"^folder of export '.*file' is not a folder; "):
        check_file(tmp_path / "file" / "inner", "export")


def test_results_of_something_else_are_told_with_both_values():
    here = {"checkpoint": "abc", "benchmark": {"seed": 0}, "split": "dev", "limit": None}
    refuse_another("out", "another run", here, dict(here))
    with pytest.raises(BadInput, match=r"^out 'out' holds another run: benchmark.seed is 1 there and 0 here; choose "):
        refuse_another("out", "another run", here | {"benchmark": {"seed": 1}}, here)
    with pytest.raises(BadInput, match=r"checkpoint is 'abc' .*; split is 'dev' .*; limit is None .* \(and 1 more\); "):
        refuse_another("out", "another run", here | {"more": 1}, {"benchmark": {"seed": 0}, "split": "a", "limit": 2})


def test_what_results_are_of_is_read_from_the_file_beside_them(tmp_path):
    note = tmp_path / "summary.json"
    assert read_note(note, "of", "an evaluation") is None
    note.write_text('{"of": {"split": "dev"}}')
    assert read_note(note, "of", "an evaluation") == {"split": "dev"}
    for broken in ('{"figures": 1}', '{"of"', '{"of": "dev"}', "[]", "\udcff".encode("utf-8", "surrogateescape")):
        note.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
        with pytest.raises(
            BadInput, match=r"^.*summary.json does not describe an evaluation; accepted: another folder$"
        ):
            read_note(note, "of", "an evaluation")
