"""Stage 1 and its use in stage 2, with a small CLIP of open_clip's with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dpm_edge.errors import DataError
from dpm_edge.train import prompts
from dpm_edge.train.config import override
from dpm_edge.train.loop import fit
from dpm_edge.train.run import prepare

WIDTH = 32


@pytest.fixture(scope="module")
def clip():
    library = prompts.open_clip()
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2}
    return library.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()


@pytest.fixture(scope="module")
def tokens():
    return prompts.open_clip().tokenize([prompts.TEMPLATE])


def test_the_template_has_its_learned_tokens_where_we_say(tokens):
    x = prompts.open_clip().tokenize(["X"])[0, 1]
    assert (tokens[0] == x).nonzero().flatten().tolist() == [5, 6, 7, 8]


def test_with_the_words_own_tokens_a_prompt_is_open_clips_encoding(clip, tokens):
    ours = prompts.Prompts(clip, tokens, 2)
    with torch.no_grad():
        ours.learned[:] = clip.token_embedding(tokens[0, 5:9])
        torch.testing.assert_close(ours(torch.tensor([1])), clip.encode_text(tokens))


def test_contrast_is_the_mean_over_positives():
    draw = torch.Generator().manual_seed(0)
    a, b, labels = torch.randn(4, 3, generator=draw), torch.randn(4, 3, generator=draw), torch.tensor([0, 0, 1, 2])
    log_p = (a @ b.T).log_softmax(1)
    wanted = -(0.5 * (log_p[0, 0] + log_p[0, 1]) + 0.5 * (log_p[1, 0] + log_p[1, 1]) + log_p[2, 2] + log_p[3, 3]) / 4
    torch.testing.assert_close(prompts.contrast(a, b, labels), wanted)


def test_learned_texts_come_near_their_own_peoples_pictures_and_clip_stays_still(clip, tokens):
    draw = torch.Generator().manual_seed(1)
    centres = 2 * F.normalize(torch.randn(5, 16, generator=draw), dim=1)
    labels = torch.arange(40) % 5
    features = centres[labels] + 0.1 * torch.randn(40, 16, generator=draw)
    before = {name: p.clone() for name, p in clip.named_parameters()}
    torch.manual_seed(0)
    learner = prompts.Prompts(clip, tokens, 5)
    texts = prompts.learn_prompts(learner, features, labels, epochs=25, batch=20, lr=3e-2, seed=0)
    assert (F.normalize(centres, dim=1) @ F.normalize(texts, dim=1).T).argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert all(torch.equal(p, before[name]) for name, p in clip.named_parameters())


def step_lines(run: Path) -> list[str]:
    return [line for line in (run / "log.jsonl").read_text().splitlines() if '"kind": "step"' in line]


@pytest.mark.parametrize("form", ["relations", "projected"])
def test_stage_two_uses_the_texts_and_the_anchor_fades(market, small, tmp_path, form):
    people = torch.arange(1, 25)
    prompts.save_texts(tmp_path / "texts.safetensors", torch.randn(24, 16), people)
    words = [
        f"loss.texts={tmp_path / 'texts.safetensors'}",
        "loss.i2t=1",
        "loss.anchor=1",
        "loss.anchor_epochs=0.5",
        f"loss.anchor_form={form}",
        "transfer.probability=0",
    ]
    fit(prepare(override(small, words), market, tmp_path / "run", quiet=True))
    steps = step_lines(tmp_path / "run")
    assert '"anchor"' in steps[0] and '"i2t"' in steps[0]
    assert '"anchor"' not in steps[-1] and '"i2t"' in steps[-1]


def test_texts_of_other_people_are_refused(market, small, tmp_path):
    prompts.save_texts(tmp_path / "texts.safetensors", torch.randn(3, 16), torch.arange(3))
    config = override(small, [f"loss.texts={tmp_path / 'texts.safetensors'}", "loss.i2t=1", "transfer.probability=0"])
    with pytest.raises(DataError, match="texts of 3 people"):
        prepare(config, market, tmp_path / "run", quiet=True)


def test_joint_features_are_clips_image_features(clip, tmp_path):
    """Our backbone with the small CLIP's weights gives open_clip's own image features on the same grid."""
    from dpm_edge.model.clip_weights import load_clip
    from dpm_edge.model.network import DPM
    from dpm_edge.spec import ModelSpec, Preprocessing
    from dpm_edge.train.data import Pictures, to_input

    pre = Preprocessing(height=64, width=64)
    spec = ModelSpec(name="c", width=32, heads=2, layers=1, mask_blocks=(1,), joint_dim=16, preprocessing=pre)
    library = prompts.open_clip()
    vision = {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 1}
    large = library.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    save_file({k: v.contiguous() for k, v in large.state_dict().items()}, tmp_path / "clip.safetensors")
    net = DPM(spec)
    load_clip(net.backbone, tmp_path / "clip.safetensors")
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    pictures = Pictures(pixels, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), ["a", "b", "c"])
    with torch.no_grad():
        wanted = large.encode_image(to_input(pixels, pre))
    torch.testing.assert_close(prompts.joint_features(net, pictures), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["relations", "projected"])
def test_both_stages_run_on_a_clip_file_with_random_weights(market, tmp_path, monkeypatch, form):
    """Stage 1 by its command, stage 2 as a training run: a small CLIP of open_clip's in the file, nothing made up."""
    from types import SimpleNamespace

    from safetensors.torch import load_file
    from toy_world import SMALL

    from dpm_edge.train.recipes import recipe

    library = prompts.open_clip()
    vision = {"image_size": 64, "layers": 4, "width": 48, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 1}

    def create_model(name, pretrained=None):
        made = library.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
        if pretrained:
            made.load_state_dict(load_file(pretrained))
        return made

    torch.manual_seed(0)
    file, texts = tmp_path / "clip.safetensors", tmp_path / "texts.safetensors"
    save_file({k: v.contiguous() for k, v in create_model("small").state_dict().items()}, file)
    ours = SimpleNamespace(create_model=create_model, get_tokenizer=library.get_tokenizer)
    monkeypatch.setattr(prompts, "open_clip", lambda: ours)
    words = [*SMALL, f"model.clip={file}", "transfer.probability=0"]
    asked = ["market_tiny", *words, "--data", str(market), "--out", str(texts), "--epochs", "1"]
    assert prompts.main(asked) == 0
    learned = prompts.load_texts(texts, torch.arange(1, 25))
    assert learned.shape == (24, 16) and learned.isfinite().all() and len(learned.unique(dim=0)) == 24
    second = [f"loss.texts={texts}", "loss.i2t=1", "loss.anchor=1", "loss.anchor_epochs=0.9"]
    config = override(recipe("market_tiny"), [*words, *second, f"loss.anchor_form={form}"])
    run = prepare(config, market, tmp_path / "run", quiet=True)
    assert torch.equal(run.net.backbone.conv1.weight, load_file(file)["visual.conv1.weight"])
    before = run.net.prototypes.detach().clone()
    fit(run)
    assert not torch.equal(run.net.prototypes, before)
    steps = step_lines(tmp_path / "run")
    assert '"anchor"' in steps[0] and '"i2t"' in steps[0]
