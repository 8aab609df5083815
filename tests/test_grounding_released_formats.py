"""Every published layout opens with the right weights, and the sizes that its shapes tell."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from released_files import (
    AVERAGED,
    plain_mdetr,
    released_mdetr,
    released_vilt,
    state,
    write_hugging_face,
    write_mdetr,
    write_study,
    write_tokenizers,
    write_vilt,
)
from safetensors.torch import save_file
from small_models import game, single_image, small_mdetr
from transformers import ViltConfig, ViltForMaskedLM, ViltModel

from grounding.checkpoint import convert_checkpoint, inspect_checkpoint, load_checkpoint, open_stored
from grounding.errors import BadInput

EXAMPLES = [game(images=2), single_image(height=64, width=96)]
HF = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 300,
    "image_size": 96, "patch_size": 32, "max_position_embeddings": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The two models, every file of theirs, and tokenizers."""
    folder = tmp_path_factory.mktemp("released")
    vilt, mdetr = released_vilt(), released_mdetr()
    torch.save(state(vilt), folder / "vilt.pt")
    torch.save({f"module.{n}": t for n, t in plain_mdetr(state(mdetr)).items()}, folder / "mdetr.pt")
    save_file({n: t.clone() for n, t in state(mdetr).items()}, folder / "mdetr.safetensors")
    return {
        "vilt-aligner": vilt,
        "mdetr": mdetr,
        "study-vilt": write_study(folder / "aligner.ckpt", vilt),
        "study-mdetr": write_study(folder / "wrapper.ckpt", mdetr),
        "mdetr-original": write_mdetr(folder / "mdetr.pth", mdetr),
        "vilt-original": write_vilt(folder / "vilt.ckpt", vilt),
        "vilt-state": folder / "vilt.pt",
        "mdetr-state": folder / "mdetr.pt",
        "mdetr-safetensors": folder / "mdetr.safetensors",
        "tokenizers": write_tokenizers(folder),
    }


def opened(files: dict[str, Any], name: str, model: str, **options: Any) -> Any:
    """A file of those, loaded with the tokenizer of its model."""
    return load_checkpoint(files[name], model=model, tokenizer=files["tokenizers"][model], **options)


def equal(found: Any, expected: Any, factor: float = 1.0) -> None:
    """The same weights, times ``factor``."""
    ours = found.model.state_dict()
    for name, tensor in expected.state_dict().items():
        if not name.endswith("position_ids") and name not in found.report.missing and name in ours:
            assert torch.equal(ours[name], tensor * factor), name


@pytest.mark.parametrize(
    ("name", "model", "kind", "default"),
    [
        ("study-vilt", "vilt-aligner", "Lightning checkpoint", "ema"),
        ("study-mdetr", "mdetr", "Lightning checkpoint", "ema"),
        ("mdetr-original", "mdetr", "MDETR checkpoint", "ema"),
        ("vilt-original", "vilt-aligner", "Lightning checkpoint", "only"),
        ("vilt-state", "vilt-aligner", "state dict", "only"),
        ("mdetr-state", "mdetr", "state dict", "only"),
        ("mdetr-safetensors", "mdetr", "safetensors state dict", "only"),
    ],
)
def test_every_layout_opens_with_its_weights_and_sizes(files, name, model, kind, default):
    loaded = opened(files, name, model)
    assert (loaded.format, loaded.chosen) == (kind, default)
    equal(loaded, files[model], AVERAGED if default == "ema" else 1.0)
    wanted = dict(vars(files[model].config))
    found = dict(vars(loaded.model.config))
    for left_open in ("dropout", "candidate_size", "multiple", "task_query"):  # shapes do not tell them
        wanted.pop(left_open, None), found.pop(left_open, None)
    assert found == wanted
    names = set(loaded.model.state_dict()) - {"text_embeddings.position_ids"}
    assert set(loaded.report.loaded) | set(loaded.report.missing) == names
    with torch.inference_mode():
        output = loaded.model(loaded.model.preprocess(EXAMPLES))
    assert all(value.isfinite().all() for value in vars(output).values())


@pytest.mark.parametrize(("name", "model"), [("study-vilt", "vilt-aligner"), ("mdetr-original", "mdetr")])
def test_raw_weights_are_had_by_asking_and_change_the_content(files, name, model):
    ema, raw = opened(files, name, model), opened(files, name, model, weights="raw")
    equal(raw, files[model])
    assert raw.chosen == "raw"
    assert raw.report.ignored["EMA weights"] == "another set of weights; raw was chosen"
    assert ema.report.ignored["raw weights"] == "another set of weights; ema was chosen"
    assert ema.content != raw.content
    assert opened(files, name, model, weights="ema").content == ema.content


def test_what_is_not_needed_is_ignored_for_a_reason(files):
    report = opened(files, "study-mdetr", "mdetr").report
    reasons = dict(report.ignored)
    assert reasons["criterion.empty_weight"] == "belongs to the loss"
    numbers = "mdetr.transformer.text_encoder.embeddings.position_ids"
    assert reasons[numbers] == "the numbers 0, 1, 2, ..., which the model makes itself"
    assert reasons["optimizer_states"] == "state of training, not a weight"
    assert not report.renamed
    assert not report.missing
    ignored = opened(files, "vilt-original", "vilt-aligner").report.ignored
    assert ignored["mlm_score.decoder.weight"] == ignored["itm_score.fc.bias"]
    assert ignored["mlm_score.bias"] == "head of pre-training, after everything that is used here"


def test_mdetr_without_the_study_keeps_its_own_forward_pass(files):
    """The study's query would be attended to by the others: it is not there unless asked for."""
    loaded = opened(files, "mdetr-original", "mdetr", weights="raw")
    assert not loaded.model.config.task_query
    assert loaded.report.renamed["mdetr.query_embed.weight"] == "query_embed.weight"
    batch = loaded.model.preprocess(EXAMPLES)
    core, shapes = loaded.model.mdetr, []
    handle = core.transformer.decoder.layers[0].register_forward_hook(lambda m, i, out: shapes.append(out.shape))
    with torch.inference_mode():
        output = loaded.model(batch)
    handle.remove()
    assert shapes[0][1] == loaded.model.config.queries
    images = ((batch.images - loaded.model.image_mean) / loaded.model.image_std).masked_fill(
        ~batch.pixel_mask[:, None], 0.0
    )
    with torch.inference_mode():
        memory, positions, bias = core.encode(images, batch.pixel_mask, batch.input_ids, batch.text_mask)
        hidden = core.transformer.decode(core.query_embed.weight, memory, positions, bias)
        assert torch.equal(output.token_logits, core.class_embed(hidden))
        assert torch.equal(output.boxes_cxcywh, core.bbox_embed(hidden).sigmoid())
    scores = output.token_logits[-1].softmax(-1)
    for b in range(len(batch)):
        tokens = batch.caption_tokens[b].nonzero()[:, 0]
        best = scores[b][:, tokens].amax(1).argmax()
        assert torch.equal(output.task_point[b], output.boxes_cxcywh[-1, b, best, :2])
    assert all(0 <= p.answer[0] <= 1 for p in loaded.model.predict(batch, output) if isinstance(p.answer, tuple))


def test_the_studys_query_can_be_added_as_the_study_began(files):
    added = opened(files, "mdetr-original", "mdetr", weights="raw", config={"task_query": True})
    assert set(added.report.missing) == {"sdr_embed.weight"} | {
        f"sdr_head.layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")
    }
    assert "copy of the box head" in added.report.missing["sdr_head.layers.0.weight"]
    assert torch.equal(added.model.sdr_head.layers[1].weight, files["mdetr"].mdetr.bbox_embed.layers[1].weight)
    again = opened(files, "mdetr-original", "mdetr", weights="raw", config={"task_query": True})
    assert torch.equal(again.model.sdr_embed.weight, added.model.sdr_embed.weight)


def test_a_fresh_aligner_head_is_the_same_every_time_and_leaves_the_generator_alone(files):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (opened(files, "vilt-original", "vilt-aligner") for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.model.sdr_head._head[0].weight, second.model.sdr_head._head[0].weight)
    assert set(first.report.missing) == {n for n in first.model.state_dict() if n.startswith("sdr_head.")}
    assert "fine-tune" in first.report.missing["sdr_head._head.0.weight"]


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kind", [ViltModel, ViltForMaskedLM])
@torch.inference_mode()
def test_hugging_face_vilt_gives_the_same_states(tmp_path, file, kind):
    """With the norms' epsilon of the original in both; text states do not depend on Hugging Face's patch order."""
    torch.manual_seed(0)
    config = ViltConfig(**HF)
    theirs = kind(config).eval()
    core = theirs if kind is ViltModel else theirs.vilt
    for name, module in core.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-12 if "text_embeddings" in name else 1e-6
    folder = write_hugging_face(tmp_path / "hf", theirs.state_dict(), config.to_dict(), file)
    loaded = load_checkpoint(folder)
    assert loaded.format == "Hugging Face ViLT"
    assert loaded.model.config.heads == 4  # from config.json: 64 channels a head would be 2
    joined = loaded.report.renamed["transformer.blocks.0.attn.qkv.weight"]
    assert [part.split(".")[-2] for part in joined.split(" + ")] == ["query", "key", "value"]
    batch = loaded.model.preprocess([single_image(height=64, width=96)])
    images = batch.images.float() / 127.5 - 1
    ours = loaded.model.encode(images, batch.pixel_mask, batch.input_ids, batch.text_mask, batch.valid)
    expected = core(
        input_ids=batch.input_ids,
        attention_mask=batch.text_mask.long(),
        pixel_values=images,
        pixel_mask=batch.pixel_mask.long(),
    ).last_hidden_state
    tokens = batch.input_ids.shape[1]
    torch.testing.assert_close(ours[:, : tokens + 1], expected[:, : tokens + 1], atol=2e-5, rtol=1e-4)
    patches, shuffled = ours[0, tokens + 1 :], expected[0, tokens + 1 :]
    nearest = torch.cdist(patches, shuffled).min(1)
    assert nearest.values.max() < 1e-3
    assert sorted(nearest.indices.tolist()) == list(range(len(patches)))


def test_a_hugging_face_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    message = f"{tmp_path} is a Hugging Face folder with model_type 'gpt2'; accepted: .*vilt"
    with pytest.raises(BadInput, match=message):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vilt"}))
    with pytest.raises(BadInput, match=r"has no weights; accepted: model\.safetensors, .*, pytorch_model\.bin"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vilt", "hidden_act": "relu"}))
    with pytest.raises(BadInput, match="hidden_act 'relu' is not supported; accepted: 'gelu'"):
        load_checkpoint(tmp_path)


def test_config_has_the_last_word_on_sizes(files):
    config = open_stored(files["vilt-original"], config={"heads": 4, "max_text": 12, "candidate_size": 96}).config
    assert (config.heads, config.max_text, config.candidate_size) == (4, 12, 96)


def test_positions_are_cut_where_that_is_exact_and_never_stretched(files):
    whole = opened(files, "vilt-original", "vilt-aligner")
    short = opened(files, "vilt-original", "vilt-aligner", config={"max_text": 16})
    name = "text_embeddings.position_embeddings.weight"
    assert f"{name}[16:20]" in short.report.ignored
    assert torch.equal(short.model.state_dict()[name], whole.model.state_dict()[name][:16])
    assert short.model.text_embeddings.position_ids.shape == (1, 16)
    caption = EXAMPLES[0]
    with torch.inference_mode():
        a, b = (loaded.model(loaded.model.preprocess([caption])) for loaded in (whole, short))
    torch.testing.assert_close(a.log_phrases, b.log_phrases, atol=1e-5, rtol=1e-4)
    with pytest.raises(BadInput, match=rf"{name} is \[20, 128\], not \[40, 128\]"):
        opened(files, "vilt-original", "vilt-aligner", config={"max_text": 40})


def test_heads_that_shapes_do_not_tell_are_asked_for(tmp_path):
    model = small_mdetr(backbone="resnet18", pad_id=1)  # text width 16
    torch.save(plain_mdetr(state(model)), tmp_path / "narrow.pth")
    with pytest.raises(BadInput, match=r"do not tell text_heads of width 16, .* give --config text_heads=NUMBER"):
        open_stored(tmp_path / "narrow.pth")
    config = open_stored(tmp_path / "narrow.pth", config={"text_heads": 4, "heads": 2}).config
    assert (config.text_heads, config.heads) == (4, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position_embedding": "learned"}, "position_embedding 'learned'; accepted: sine, v2"),
        ({"pass_pos_and_query": False}, "pass_pos_and_query False; accepted: True"),
        ({"text_encoder_type": "bert-base"}, "text_encoder_type 'bert-base'; accepted: roberta-base"),
    ],
)
def test_options_of_mdetr_that_leave_no_trace_in_weights_are_checked(files, tmp_path, arguments, message):
    path = write_mdetr(tmp_path / "other.pth", files["mdetr"], **arguments)
    with pytest.raises(BadInput, match=message):
        open_stored(path)


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("mdetr", "qa_embed.weight", "queries of question answering take part in its decoder"),
        ("vilt-aligner", "detection_head._head.0.weight", "phrases have a heatmap head of their own"),
        ("vilt-aligner", "contrastive_head.fc.weight", "games are answered by a contrastive head"),
        ("vilt-aligner", "surprise.weight", "unexpected surprise.weight"),
    ],
)
def test_weights_with_another_part_in_the_computation_are_refused(files, tmp_path, model, name, message):
    torch.save({**state(files[model]), name: torch.zeros(2)}, tmp_path / "more.pth")
    with pytest.raises(BadInput, match=message):
        inspect_checkpoint(tmp_path / "more.pth")


def test_a_mask_heads_mdetr_is_the_mdetr_inside(files, tmp_path):
    tensors = {f"detr.{name}": tensor for name, tensor in plain_mdetr(state(files["mdetr"])).items()}
    torch.save({**tensors, "mask_head.lay1.weight": torch.zeros(2)}, tmp_path / "masks.pth")
    inspection = inspect_checkpoint(tmp_path / "masks.pth")
    assert inspection.report.ignored["mask_head.lay1.weight"] == "segmentation head, after the boxes"
    assert inspection.report.renamed["mdetr.class_embed.bias"] == "detr.class_embed.bias"


@pytest.mark.parametrize("name", ["study-vilt", "mdetr-original"])
def test_conversion_gives_our_folder_with_the_same_answers(files, tmp_path, name):
    model = "mdetr" if name == "mdetr-original" else "vilt-aligner"
    loaded = convert_checkpoint(files[name], tmp_path / "out", files["tokenizers"][model])
    converted = load_checkpoint(tmp_path / "out")
    assert converted.format == "checkpoint folder"
    assert converted.info["converted"] == {
        "file": files[name].name,
        "format": loaded.format,
        "weights": "ema",
        "content": loaded.content,
        "missing": [],
    }
    with torch.inference_mode():
        before, after = (m.model(m.model.preprocess(EXAMPLES)) for m in (loaded, converted))
    for field, value in vars(before).items():
        assert torch.equal(value, getattr(after, field)), field
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_conversion_never_writes_over_anything_or_half(files, tmp_path, monkeypatch):
    tokenizer = files["tokenizers"]["vilt-aligner"]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="there' exists; accepted: a new folder, or an empty one"):
        convert_checkpoint(files["study-vilt"], tmp_path / "there", tokenizer)
    (tmp_path / "empty").mkdir()
    convert_checkpoint(files["study-vilt"], tmp_path / "empty", tokenizer)
    assert load_checkpoint(tmp_path / "empty").model.config.depth == 2

    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("grounding.models.text.CaptionTokenizer.save", full)
    with pytest.raises(OSError, match="No space left"):
        convert_checkpoint(files["study-vilt"], tmp_path / "half", tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "there"]


@pytest.mark.parametrize(("name", "needed"), [("study-vilt", "bert-base-uncased"), ("mdetr-state", "roberta-base")])
def test_the_tokenizer_that_is_needed_is_named(files, name, needed):
    with pytest.raises(BadInput, match=f"give the one it was trained with, {needed}, with --tokenizer"):
        load_checkpoint(files[name])


def test_a_file_may_be_replaced_while_its_model_is_in_use(files, tmp_path):
    """Weights stay mapped from the file that was opened."""
    path = tmp_path / "copy.pt"
    path.write_bytes(files["vilt-state"].read_bytes())
    loaded = load_checkpoint(path, tokenizer=files["tokenizers"]["vilt-aligner"])
    (tmp_path / "other.pt").write_bytes(b"0" * path.stat().st_size)
    (tmp_path / "other.pt").replace(path)
    assert not path.read_bytes().strip(b"0")
    equal(loaded, files["vilt-aligner"])


def test_what_is_written_to_mapped_weights_stays_in_memory(files):
    before = files["vilt-state"].read_bytes()
    loaded = load_checkpoint(files["vilt-state"], tokenizer=files["tokenizers"]["vilt-aligner"])
    with torch.no_grad():
        loaded.model.transformer.norm.weight.zero_()
    assert not loaded.model.transformer.norm.weight.any()
    assert files["vilt-state"].read_bytes() == before


def test_weights_that_share_memory_in_the_file_are_not_tied(files, tmp_path):
    """The study's shared head stores one set of tensors under two names; so does a copied box head."""
    tensors = state(files["mdetr"])
    for name in list(tensors):
        if name.startswith("sdr_head."):
            tensors[name] = tensors[name.replace("sdr_head.", "mdetr.bbox_embed.")]
    torch.save(tensors, tmp_path / "shared.pt")
    added = {"name": "mdetr-original", "model": "mdetr", "config": {"task_query": True}}
    shared = load_checkpoint(tmp_path / "shared.pt", tokenizer=files["tokenizers"]["mdetr"])
    for model in (shared.model, opened(files, **added).model):
        task, box = model.sdr_head.layers[0].weight, model.mdetr.bbox_embed.layers[0].weight
        assert torch.equal(task, box)
        assert task.data_ptr() != box.data_ptr()


def test_half_precision_becomes_single(files, tmp_path):
    halves = {name: t.half() for name, t in state(files["vilt-aligner"]).items() if "ids" not in name}
    torch.save(halves, tmp_path / "half.pt")
    loaded = load_checkpoint(tmp_path / "half.pt", tokenizer=files["tokenizers"]["vilt-aligner"])
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
