"""Publishing: what is uploaded loads back as it was, its card says what the run says, and refusals take one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from released_files import released_vilt, write_study
from small_models import small_vilt
from test_probe_cli import run

from grounding import publish
from grounding.benchmarks.miniature import MiniatureGame
from grounding.checkpoint import load_checkpoint, save_checkpoint
from grounding.errors import BadInput, RunFailed
from grounding.evaluate_checkpoint import evaluate_checkpoint
from grounding.publish import from_pretrained, push_checkpoint, push_results
from probe.study.folder import CONFIG

SETTINGS = {
    **{"model": "vilt-aligner", "benchmark": "mini-game", "root": "/users/me/data", "init": "/users/me/runs/first"},
    **{
        "task": True,
        "grounding": True,
        "grounding_fraction": 0.25,
        "budget_by": "image",
        "steps": 40,
        "tokenizer": None,
    },
}
INFO = {
    "threshold": {"value": 0.4, "split": "tune", "n": 7, "criterion": "recall"},
    "training": {
        "settings": SETTINGS, "annotations": {"phrases": 1200, "learned": 301}, "best_step": 30, "dev/accuracy": 0.6249,
    },
}  # fmt: skip
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ckpt") / "vilt"
    save_checkpoint(folder, small_vilt(max_text=60), INFO)
    return folder


@pytest.fixture(scope="module")
def evaluated(ckpt, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "dev"
    evaluate_checkpoint(ckpt, "mini-game", limit=6, out=folder)
    return folder


@pytest.fixture
def hub(monkeypatch) -> dict[str, Any]:
    """A hub that keeps what it is given."""
    kept: dict[str, Any] = {}

    class Api:
        def create_repo(self, repo_id: str, **options: Any) -> str:
            kept["created"] = (repo_id, options)
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
            kept["uploaded"] = options
            kept["files"] = {str(p.relative_to(folder_path)): p.read_bytes() for p in folder_path.rglob("*.*")}

    monkeypatch.setattr(publish, "HfApi", Api)
    monkeypatch.setattr(publish, "get_token", lambda: "a token")
    return kept


def test_what_a_dry_run_writes_loads_back_with_equal_answers(ckpt, tmp_path):
    pushed = push_checkpoint(ckpt, "owner/name", dry_run=tmp_path / "made")
    assert pushed.files == ("README.md", *FILES)
    for file in FILES:
        assert (tmp_path / "made" / file).read_bytes() == (ckpt / file).read_bytes()
    before, after = load_checkpoint(ckpt), from_pretrained(tmp_path / "made")
    assert (after.content, after.info) == (before.content, before.info)
    with pytest.raises(BadInput, match=r"revision 'main' of '.*made', which is here; accepted: with owner/name"):
        from_pretrained(tmp_path / "made", revision="main")
    games = MiniatureGame().load("dev", 2)
    with torch.inference_mode():
        one, other = (c.model(c.model.preprocess(games)) for c in (before, after))
    answers = [name for name, value in vars(one).items() if isinstance(value, torch.Tensor)]
    assert len(answers) >= 2
    for name in answers:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_the_card_is_written_from_the_run(ckpt, evaluated, tmp_path):
    push_checkpoint(ckpt, "owner/name", dry_run=tmp_path / "made", evaluation=evaluated, license="mit")
    card = ModelCard.load(tmp_path / "made" / "README.md")
    data = card.data
    assert (data.library_name, data.license, data.datasets) == ("phrase-grounding-probe", "mit", ["mini-game"])
    assert {"vilt-aligner", "phrase-grounding"} <= set(data.tags)
    figures = json.loads((evaluated / "summary.json").read_text())["figures"]
    found = {result.metric_type: result for result in data.eval_results}
    assert found["accuracy"].metric_value == pytest.approx(figures["accuracy"]["value"], abs=1e-4)
    assert (found["mean_iou"].dataset_split, found["mean_iou"].dataset_args) == ("dev", {"limit": 6})
    assert set(found) == {name for name, figure in figures.items() if figure["value"] is not None}
    text = card.text
    assert "| grounding_fraction | 0.25 |" in text
    assert "This run learned grounding from 25% of the annotated images: 301 of 1,200 phrases." in text
    assert "Kept: step 30, the best on dev (dev/accuracy 0.625)." in text
    assert "Threshold of heatmaps: 0.4, of the best recall@1 on tune." in text
    assert "| init | first |" in text
    assert "/users/me" not in text
    assert 'from_pretrained("owner/name")' in text
    told = (evaluated / "summary.md").read_text()
    assert f"\nOf {ckpt} on mini-game dev" in told
    assert told.strip().replace(str(ckpt), "vilt") in text
    about = json.loads((tmp_path / "made" / "evaluation" / "summary.json").read_text())["about"]
    assert (about["checkpoint"], about["content"]) == ("vilt", load_checkpoint(ckpt).content)
    assert not any(str(ckpt.parent).encode() in path.read_bytes() for path in (tmp_path / "made").rglob("*.*"))
    assert (tmp_path / "made" / "evaluation" / "phrases.parquet").is_file()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"grounding_fraction": 1.0, "drop_rate": 0.2, "swap_rate": 0.25, "jitter_iou": 0.7},
            "This run learned grounding from 100% of the annotated images, made worse on purpose (swap_rate 0.25: "
            "share of the phrases with the regions of another one of their caption, drop_rate 0.2: share that lost "
            "their regions, jitter_iou 0.7: overlap of every box with its true place): 301 of 1,200 phrases.",
        ),
        ({"grounding": False, "drop_rate": 0.2}, "This run learned from no grounding annotation."),
        ({"grounding_weight": 0.0}, "This run learned from no grounding annotation."),
        ({"drop_rate": 0.0, "jitter_iou": 1.0}, "from 25% of the annotated images: 301 of 1,200 phrases."),
    ],
)
def test_the_card_tells_how_the_annotations_were_spoilt(tmp_path, changes, sentence):
    training = {**INFO["training"], "settings": {**SETTINGS, **changes}}
    save_checkpoint(tmp_path / "run", small_vilt(), {**INFO, "training": training})
    push_checkpoint(tmp_path / "run", "owner/name", dry_run=tmp_path / "made")
    assert sentence in ModelCard.load(tmp_path / "made" / "README.md").text


def test_a_card_says_only_what_is_known(tmp_path):
    save_checkpoint(tmp_path / "plain", small_vilt(), {})
    push_checkpoint(tmp_path / "plain", "owner/name", dry_run=tmp_path / "made")
    card = ModelCard.load(tmp_path / "made" / "README.md")
    assert "## Training" not in card.text
    assert "## Evaluation" not in card.text
    assert "None was tuned" in card.text
    assert card.data.license is None
    assert card.data.datasets is None


def test_a_checkpoint_is_uploaded_whole(ckpt, hub):
    pushed = push_checkpoint(ckpt, "owner/name", private=True)
    assert pushed.place == "https://huggingface.co/owner/name"
    assert hub["created"] == ("owner/name", {"repo_type": "model", "private": True, "exist_ok": True})
    assert (hub["uploaded"]["repo_id"], hub["uploaded"]["repo_type"]) == ("owner/name", "model")
    assert sorted(hub["files"]) == sorted(pushed.files)
    assert hub["files"]["model.safetensors"] == (ckpt / "model.safetensors").read_bytes()


def test_a_published_checkpoint_is_loaded_by_its_name(ckpt, tmp_path, monkeypatch):
    push_checkpoint(ckpt, "owner/name", dry_run=tmp_path / "made")
    asked = []
    snapshot = lambda name, **options: asked.append((name, options["revision"])) or str(tmp_path / "made")  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert from_pretrained("owner/name").content == load_checkpoint(ckpt).content
    assert from_pretrained("owner/name", revision="v1").content == load_checkpoint(ckpt).content
    assert asked == [("owner/name", None), ("owner/name", "v1")]


def test_results_are_loaded_as_a_dataset(evaluated, tmp_path):
    pushed = push_results(evaluated, "owner/figures", dry_run=tmp_path / "made")
    assert pushed.kind == "dataset"
    assert not [file for file in pushed.files if file.endswith(".csv")]
    read = load_dataset(str(tmp_path / "made"), "phrases", split="train", cache_dir=str(tmp_path / "cache"))
    expected = pd.read_parquet(evaluated / "phrases.parquet")
    assert read.column_names == list(expected.columns)
    assert list(read["iou"]) == expected["iou"].tolist()
    card = (tmp_path / "made" / "README.md").read_text()
    assert 'load_dataset("owner/figures", "phrases", split="train")' in card
    assert "Of `vilt` on the split `dev` of `mini-game`." in card


def test_tables_of_a_study_are_published_as_they_are(tmp_path, hub):
    (tmp_path / "study").mkdir()
    pd.DataFrame({"fraction": [0.0, 1.0], "value": [0.1, 0.5]}).to_csv(tmp_path / "study" / "curves.csv", index=False)
    (tmp_path / "study" / "summary.md").write_text("# More annotation, more grounding\n")
    push_results(tmp_path / "study", "owner/study")
    assert hub["created"][1]["repo_type"] == "dataset"
    assert sorted(hub["files"]) == ["README.md", "curves.csv", "summary.md"]
    assert b"More annotation, more grounding" in hub["files"]["README.md"]
    study = {
        "models": {"vilt-aligner": {"recipe": "/users/me/own.yaml", "steps": 5}, "mdetr": {}},
        "initialisations": {"scratch": {"init": None}, "mine": {"init": "~/runs/first"}},
        **{"fractions": [0, 0.1, 1], "seeds": [0, 3], "settings": {"root": "/users/me/data"}},
    }
    (tmp_path / "study" / CONFIG).write_text(json.dumps(study))
    push_results(tmp_path / "study", "owner/study", dry_run=tmp_path / "made")
    along = json.loads((tmp_path / "made" / "study.json").read_text())
    assert along["models"] == {"vilt-aligner": {"recipe": "own.yaml", "steps": 5}, "mdetr": {}}
    assert (along["initialisations"]["mine"], along["settings"]) == ({"init": "first"}, {"root": "data"})
    card = (tmp_path / "made" / "README.md").read_text()
    for line in (
        "models: vilt-aligner, mdetr",
        "initialisations: scratch, mine",
        "fractions: 0, 0.1, 1",
        "seeds: 0, 3",
    ):
        assert f"* {line}\n" in card
    read = load_dataset(str(tmp_path / "made"), "curves", split="train", cache_dir=str(tmp_path / "cache"))
    assert list(read["value"]) == [0.1, 0.5]


@pytest.mark.parametrize("name", ["name", "a/b/c", "a b/c", "owner/", "/name", "own--er/x", ""])
def test_a_name_that_is_not_owner_and_name_is_refused(ckpt, tmp_path, name):
    with pytest.raises(BadInput, match=r"^name '.*' is not owner/name; accepted: "):
        push_checkpoint(ckpt, name, dry_run=tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_what_cannot_be_published_is_refused(ckpt, evaluated, tmp_path, monkeypatch):
    made = {"name": "owner/name", "dry_run": tmp_path / "made"}
    with pytest.raises(BadInput, match="checkpoint 'nowhere' is neither a file, a folder nor bundled"):
        push_checkpoint("nowhere", **made)
    other = tmp_path / "other"
    save_checkpoint(other, small_vilt(max_text=50), INFO)
    contents = [load_checkpoint(folder).content for folder in (ckpt, other)]
    told = "is of another checkpoint, content {}, not of 'other', content {}; accepted: what probe evaluate --ckpt"
    with pytest.raises(BadInput, match=rf"^evaluation '.*dev' {told.format(*contents)} .*other --out wrote$"):
        push_checkpoint(other, evaluation=evaluated, **made)
    with pytest.raises(BadInput, match=r"evaluation '.*ckpt.*' holds no summary.json"):
        push_checkpoint(ckpt, evaluation=ckpt, **made)
    with pytest.raises(BadInput, match=r"results '.*vilt' holds no tables; accepted: a folder of probe evaluate"):
        push_results(ckpt, **made)
    with pytest.raises(BadInput, match="results 'nowhere' is not a folder"):
        push_results("nowhere", **made)
    assert not (tmp_path / "made").exists()
    with pytest.raises(BadInput, match=r"dry-run '.*other' exists; accepted: a new folder, or an empty one"):
        push_checkpoint(ckpt, "owner/name", dry_run=other)
    monkeypatch.setattr(publish, "get_token", lambda: None)
    with pytest.raises(
        BadInput, match="no token of the Hugging Face hub; accepted: `hf auth login`, HF_TOKEN, or --dry"
    ):
        push_checkpoint(ckpt, "owner/name")


def test_a_file_of_another_format_is_to_be_converted_first(tmp_path):
    file = write_study(tmp_path / "aligner.ckpt", released_vilt())
    with pytest.raises(
        BadInput, match=r"is a Lightning checkpoint; accepted: a folder of probe finetune or probe conv"
    ):
        push_checkpoint(file, "owner/name", dry_run=tmp_path / "made")


@pytest.mark.parametrize("kind", ["no network", "refused"])
def test_a_hub_that_does_not_take_it_is_told_in_one_line(ckpt, hub, monkeypatch, kind):
    def fail(*given: Any, **options: Any) -> None:
        error = type("ConnectError", (HfHubHTTPError.__bases__[0],), {})  # of the client, which is no OSError
        raise error("Name or service not known") if kind == "no network" else OSError("403 Forbidden\nlong page")

    monkeypatch.setattr(publish.HfApi, "create_repo", fail)
    with pytest.raises(RunFailed) as failed:
        push_checkpoint(ckpt, "owner/name")
    reason = "Name or service not known" if kind == "no network" else "403 Forbidden"
    assert (
        str(failed.value) == f"owner/name: the Hugging Face hub did not take it ({reason}); --dry-run FOLDER needs none"
    )


def test_the_command(monkeypatch, capsys, ckpt, evaluated, tmp_path):
    words = ["push", ckpt, "owner/name", "--evaluation", evaluated, "--dry-run", tmp_path / "made"]
    code, out, err = run(monkeypatch, capsys, *words)
    assert code == 0, err
    assert out.splitlines()[0] == f"{tmp_path / 'made'}: model owner/name"
    assert out.splitlines()[-1] == f"Next: probe inspect {tmp_path / 'made'} --verify"
    code, out, _ = run(monkeypatch, capsys, *out.splitlines()[-1].split()[2:], "--json")
    assert (code, json.loads(out)["format"]) == (0, "checkpoint folder")
    shutil.rmtree(tmp_path / "made")
    words = ["push", evaluated, "owner/figures", "--dataset", "--dry-run", tmp_path / "made", "--json"]
    code, out, _ = run(monkeypatch, capsys, *words)
    assert (code, json.loads(out)["kind"]) == (0, "dataset")
    code, _, err = run(monkeypatch, capsys, *words, "--evaluation", evaluated)
    assert code == 2
    assert err.startswith("Error: --evaluation")
    code, _, err = run(monkeypatch, capsys, "push", ckpt, "name", "--dry-run", tmp_path / "more")
    assert (code, err.count("\n")) == (2, 1)
