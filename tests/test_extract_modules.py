"""Modules by path: found, laid out as they are or said to be, stored as a plain hook sees them, refused when unsure."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hf_generative_models import tiny as written
from hf_models import tiny
from small_models import game, single_image, small_mdetr, small_vilt
from unadapted import SIDE, WIDTH, read_pairs, research_model

from extract.module_patterns import ModulePattern
from extract.modules import module_sites
from extract.reader import Run
from extract.run import extract
from grounding.errors import BadInput
from probe.sweep import sweep

GAMES = [game(name, images, target, SIDE, seed) for seed, (name, images, target) in enumerate(
    [("a", 3, 1), ("b", 3, 2), ("c", 3, 0)]
)]  # fmt: skip
MIXED = [*GAMES, single_image("d")]


def stored(model, modules, examples, out, **options) -> Run:
    """A run of modules, in batches of two."""
    options = {"views": ["phrase", "region", "tokens"], "dtype": "float32", "batch_size": 2} | options
    return extract(model, examples, out, identity={"test": 1}, modules=modules, **options)


@torch.inference_mode()
def hooked(model, path, examples, pick=lambda output: output):
    """What the module at ``path`` gives for examples in one pass, and their batch."""
    seen, batch = [], model.preprocess(examples)
    handle = model.get_submodule(path).register_forward_hook(lambda module, inputs, output: seen.append(pick(output)))
    try:
        model(batch)
    finally:
        handle.remove()
    assert len(seen) == 1
    return seen[0], batch


def sites_of(model, *modules, examples=MIXED):
    """The sites of all patterns."""
    return [site for found in module_sites(model, modules, examples).values() for site in found]


def problem(model, *modules, examples=MIXED) -> str:
    """The one line that they are refused with."""
    with pytest.raises(BadInput) as refused:
        module_sites(model, modules, examples)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "path", "picks", "meaning"),
    [
        ("a.b", "a.b", (), None),
        ("a.*.c=text", "a.*.c", (), "text"),
        ("a[0][last_hidden_state]=1+image", "a", ("0", "last_hidden_state"), "1+image"),
        (" a['x'] ", "a", ("x",), None),
    ],
)
def test_patterns_are_read(text, path, picks, meaning):
    assert ModulePattern.parse(text) == ModulePattern(path, picks, meaning)


@pytest.mark.parametrize("text", ["", "=text", "a[", "a[0]b", "a=", "a=b=c", "a/b"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(BadInput, match="accepted: PATH"):
        ModulePattern.parse(text)


def test_modules_of_a_model_with_an_adapter_are_laid_out_like_its_sites(tmp_path):
    model, path = small_vilt(), "transformer.blocks.1.mlp"
    run = stored(model, ["transformer.blocks.*.mlp"], GAMES, tmp_path / "run")
    assert [(s.name, s.stage, s.layer, s.streams) for s in run.sites] == [
        (f"transformer.blocks.{k}.mlp", "transformer.blocks.*.mlp", k, ("text", "image")) for k in range(2)
    ]
    states, batch = hooked(model, path, GAMES[:1])
    layout = model.sites()[0].layout(batch)
    words = [states[0, layout.text][mask].mean(0).numpy() for mask in batch.phrase_tokens]
    np.testing.assert_allclose(run.read(path, "phrase", rows=[0, 1]), words, atol=1e-6)
    tokens = torch.cat([states[0, layout.text][batch.text_mask[0]], states[0, layout.image]])
    np.testing.assert_allclose(run.tokens(path, 0), tokens.numpy(), atol=1e-6)


def test_regions_of_a_module_are_those_of_its_own_states(tmp_path):
    model = small_vilt()
    run = stored(model, ["transformer.norm=norm"], GAMES, tmp_path / "module", sites=["norm"])
    np.testing.assert_array_equal(run.read("transformer.norm", "region"), run.read("norm", "region"))
    np.testing.assert_array_equal(run.read("transformer.norm", "phrase"), run.read("norm", "phrase"))


def test_modules_of_mdetr_bring_the_partners_of_the_sites_that_they_are_like():
    root = "mdetr.transformer"
    found = sites_of(
        small_mdetr(), f"{root}.text_encoder.encoder.layer.*.output", f"{root}.encoder.layers.*.linear1",
        f"{root}.decoder.layers.*.linear2",
    )  # fmt: skip
    assert [(s.streams, s.width, s.phrase_partner, s.region_partner) for s in found] == [
        *[(("text",), 16, None, "backbone")] * 2,
        *[(("text", "image"), 32, None, None)] * 2,
        *[(("query",), 24, "encoder.1", None)] * 3,
    ]


def test_modules_of_an_adapter_over_transformers_run_one_image_at_a_time():
    model = tiny("clip")
    text, image, vision = sites_of(
        model, "text_model.encoder.layers.0.mlp", "vision_model.encoder.layers.1.mlp",
        "vision_model.encoder.layers.1.layer_norm1=1+image",
    )  # fmt: skip
    known = {site.name: site for site in model.sites()}
    assert (text.streams, text.region_partner) == (("text",), known["text.0"].region_partner)
    assert (image.streams, image.phrase_partner) == (("image",), known["vision.0"].phrase_partner)
    assert (vision.streams, vision.phrase_partner) == (("image",), "text_model.encoder.layers.0.mlp")
    states, _ = hooked(model, image.module_path, GAMES[:2])
    assert image.to_tokens(states).shape == (2, 3 * 16, 24)
    torch.testing.assert_close(image.to_tokens(states)[1, 16:32], states[4, 1:])
    torch.testing.assert_close(vision.to_tokens(states), image.to_tokens(states))


def test_modules_of_models_whose_images_have_their_own_numbers_of_tokens():
    model = written("qwen3_vl")
    path = "model.language_model.layers.1.mlp"
    assert [site.streams for site in sites_of(model, path)] == [("text", "image")]
    assert [site.streams for site in sites_of(model, f"{path}=tokens", examples=[GAMES[0], MIXED[-1]])] == [()]
    assert "3 images whose tokens have no known places" in problem(model, f"{path}=text+image")


def test_parts_are_taken_apart_in_their_order(tmp_path):
    model = research_model()
    run = stored(model, ["joint.*=1+image+text", "joint.1[1]=1+image+text"], MIXED, tmp_path / "run")
    assert [(site.name, site.width) for site in run.sites] == [
        ("joint.0", WIDTH),
        ("joint.1", WIDTH),
        ("joint.1[1]", WIDTH // 2),
    ]
    for example in MIXED:
        row = list(run.examples["id"]).index(example.id)
        states, batch = hooked(model, "network.joint.1", [example], lambda output: output[0])
        text = states[example.target_index, 17:]
        plain = torch.cat([text[batch.text_mask[0]], states[:, 1:17].flatten(0, 1)])
        np.testing.assert_allclose(run.tokens("joint.1", row), plain.numpy(), atol=1e-5)
        np.testing.assert_allclose(run.tokens("joint.1[1]", row), plain[:, : WIDTH // 2].numpy(), atol=1e-5)
        chosen = run.phrases["example"].to_numpy() == row
        words = [text[mask].mean(0).numpy() for mask in batch.phrase_tokens]
        np.testing.assert_allclose(run.read("joint.1", "phrase", chosen.nonzero()[0]), words, atol=1e-5)


def test_maps_of_patches_and_tokens_that_come_first_are_put_in_order():
    model = research_model()
    patches, first = sites_of(model, "patches", "first=1+image+text")
    seen, _ = hooked(model, "network.patches", GAMES[:1])
    torch.testing.assert_close(patches.to_tokens(seen)[0, 16 + 6], seen[1, :, 1, 2])
    states, _ = hooked(model, "network.first", GAMES[:1])
    assert states.shape == (17 + 12, 3, WIDTH)
    torch.testing.assert_close(first.to_tokens(states)[0, 12 + 32], states[1, 2])


def test_text_and_image_alone_are_paired_so_that_a_sweep_can_ask():
    words, patches, joint = sites_of(research_model(), "words", "patches", "joint.0=1+image+text")
    assert (words.region_partner, patches.phrase_partner) == ("patches", "words")
    assert (joint.phrase_partner, joint.region_partner) == (None, None)
    (alone,) = sites_of(research_model(), "words")
    assert alone.region_partner is None


def test_tokens_without_a_meaning_are_all_kept_in_order(tmp_path):
    model = research_model()
    run = stored(model, ["summary=tokens", "first=tokens"], GAMES, tmp_path / "run", views=None, batch_size=1)
    assert [(site.streams, site.views) for site in run.sites] == [((), ("tokens",))] * 2
    summary, _ = hooked(model, "network.summary", GAMES[:1])
    np.testing.assert_allclose(run.tokens("summary", 0), summary.numpy(), atol=1e-5)
    first, _ = hooked(model, "network.first", GAMES[:1])
    np.testing.assert_allclose(run.tokens("first", 0), first.transpose(0, 1).flatten(0, 1).numpy(), atol=1e-5)
    assert run.phrases["iou"].isna().all()


def test_games_of_several_sizes_have_no_tokens_in_one_table(tmp_path):
    with pytest.raises(BadInput, match="unequal numbers of candidates"):
        stored(research_model(), ["summary=tokens"], MIXED[2:], tmp_path / "run", views=["tokens"])


def test_a_run_of_modules_is_swept(tmp_path):
    examples = [game(str(seed), 2, seed % 2, SIDE, seed) for seed in range(12)]
    run = stored(research_model(), ["words", "patches", "joint.*=1+image+text"], examples, tmp_path / "run", views=None)
    table = sweep(run, probes=["linear"], controls=(), folds=3)
    assert list(table["site"].unique()) == ["words", "patches", "joint.0", "joint.1"]
    assert table["value"].notna().all()


def test_a_sweep_says_which_tokens_are_missing(tmp_path):
    run = stored(research_model(), ["words"], GAMES, tmp_path / "run", views=None)
    with pytest.raises(BadInput, match="hold text, has phrase and region rows"):
        sweep(run, probes=["linear"], controls=())


def test_a_run_is_resumed_and_added_to_with_the_same_meanings(tmp_path):
    model, out = research_model(), tmp_path / "run"
    stored(model, ["joint.*=1+image+text"], GAMES, out, views=["phrase"], shard_size=2)
    assert [s.name for s in stored(model, ["joint.*=1+image+text"], GAMES, out, views=["phrase"], shard_size=2).sites]
    run = stored(model, ["words"], GAMES, out, views=["phrase"], shard_size=2, add=True)
    assert [site.name for site in run.sites] == ["joint.0", "joint.1", "words"]
    run = stored(model, (), GAMES, out, views=["tokens"], shard_size=2, add=True)
    assert {site.views for site in run.sites} == {("phrase", "tokens")}
    with pytest.raises(BadInput, match=r"'joint.0=text\+1\+image' names 'joint.0', as 'joint.\*=1\+image\+text' does"):
        stored(model, ["joint.0=text+1+image"], GAMES, out, views=["tokens"], shard_size=2, add=True)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("joint.*.liner", "matches none of the .* modules; close ones: joint.\\*.linear"),
        ("joint.*", "unknown; .*=SITE.*=1\\+image, =text\\+image.*=tokens"),
        ("joint.*", "gives \\[3, 29, 32\\] for 1 captions of 12 tokens, 3 images of 16 tokens each"),
        ("joint.*", "=text\\+1\\+image or =1\\+image\\+text would fit"),
        ("joint.*=2+image", "gives \\[3, 29, 32\\] .* which is not '2\\+image'"),
        ("joint", "\\(ModuleList\\) ran 0 times in one forward pass; accepted: once"),
        ("idle", "ran 0 times"),
        ("looped", "ran 2 times in one forward pass; accepted: once"),
        ("named", "gives dict \\(\\[count\\] int, \\[hidden\\] \\[3, 29, 32\\].*name the part, as in PATH\\[hidden\\]"),
        ("named[nothing]", "has no \\[nothing\\]"),
        ("joint.0[2]", "gives tuple .* has no \\[2\\]"),
        ("named[places]", "int64 numbers; accepted: real ones"),
        ("named[count]", "gives int; name the part"),
        ("words=image", "which is not 'image'"),
        ("words=pictures", "meaning 'pictures' is unknown; accepted: tokens; text, image"),
        ("words=text+text", "is unknown"),
        ("summary", "what its tokens mean is unknown"),
    ],
)
def test_what_is_not_certain_is_refused(module, said):
    assert re.search(said, problem(research_model(), module))


def test_a_length_that_may_be_text_or_image_must_be_told():
    def sixteen(images, captions):
        given = read_pairs(images, captions)
        more = torch.zeros(len(captions), 16 - given.offsets.shape[1], dtype=torch.long)
        tokens = torch.cat([given.arguments["tokens"], more], dim=1)
        offsets = torch.cat([given.offsets, more[..., None].expand(-1, -1, 2)], dim=1)
        return type(given)({**given.arguments, "tokens": tokens}, offsets, tokens != 0, given.grid)

    model = research_model(preprocess=sixteen)
    assert "may mean several things; add =text or =image or =tokens" in problem(model, "words")
    assert [site.streams for site in sites_of(model, "words=text")] == [("text",)]


def test_unknown_sites_and_shapes_of_others_are_told():
    said = problem(small_vilt(), "transformer.blocks.0.mlp=blocks.0")
    assert "meaning 'blocks.0' is unknown" in said
    assert "embedding, block.0, block.1, norm" in said
    assert "which is not 'norm'" in problem(small_vilt(), "text_embeddings=norm")
    assert "which is a site already; use --sites" in problem(named_like_a_site(), "norm")


def named_like_a_site():
    """A model with a module that is called as one of its sites is."""
    model = small_vilt()
    model.add_module("norm", torch.nn.Identity())
    return model


def test_a_module_of_which_nothing_is_kept_is_refused(tmp_path):
    with pytest.raises(BadInput, match="'summary' offers none of the views asked for; accepted: tokens"):
        stored(research_model(), ["words", "summary=tokens"], GAMES, tmp_path / "run", views=["phrase"])


def test_a_model_without_sites_asks_for_modules(tmp_path):
    with pytest.raises(BadInput, match="no sites of its own; name modules of it with --module"):
        stored(research_model(), (), GAMES, tmp_path / "run")


def test_a_layout_that_fails_in_a_later_batch_stops_the_run(tmp_path):
    model = research_model()
    site = sites_of(model, "joint.0=1+image+text")[0]
    states, _ = hooked(model, "network.joint.0", GAMES[:1])
    with pytest.raises(BadInput, match=r"module 'joint.0' is not 1\+image\+text in this batch: 28 tokens are not 29"):
        site.to_tokens((states[0][:, 1:], None))


def test_hooks_are_gone_afterwards():
    model = research_model()
    sites_of(model, "joint.*=1+image+text")
    problem(model, "looped")
    assert not any(module._forward_hooks for module in model.modules())
