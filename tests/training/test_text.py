"""Training on captions: the condition of each image, dropout, kept embeddings, and the same run whatever it keeps."""

import json

import pytest
import tiny_text
import torch
from processes import Ranks, train_vdm_with

from vdm_diffusers import VDM, LinearSchedule, VDMPipeline, VDMUNet2DModel
from vdm_diffusers.data import load_digits
from vdm_diffusers.data.texts import EncodedCaptions, all_captions, cache_text_embeddings, captions_of_kind
from vdm_diffusers.evaluate import main as evaluate
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.text_encoders import PromptEncoder
from vdm_diffusers.training.captions import draw_captions


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    """A folder with an encoder and its tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text") / "encoder"
    tiny_text.bert(tiny_text.DIGITS).save_pretrained(folder)
    tiny_text.tokenizer(tiny_text.DIGITS).save_pretrained(folder)
    return folder


@pytest.fixture
def options(text_encoder):
    return {
        "caption_column": "caption",
        "text_encoder_name_or_path": text_encoder,
        "max_train_steps": 4,
        "validation_steps": 4,
        "max_validation_images": 8,
        "num_samples": 4,
        "num_inference_steps": 2,
    }


def weights(folder) -> dict[str, torch.Tensor]:
    return VDM.from_pretrained(folder).state_dict()


def assert_same(first, second) -> None:
    first, second = weights(first), weights(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_each_image_gets_one_of_its_captions_and_some_get_none():
    captions = [["one", "two", "three"], ["four"]] * 10_000
    drawn = draw_captions(captions, torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0)), dropout=0.25)
    counts = {text: drawn.count(text) / 10_000 for text in ("", "one", "two", "three", "four")}
    expected = {"": 0.5, "one": 0.25, "two": 0.25, "three": 0.25, "four": 0.75}
    assert counts == pytest.approx(expected, abs=0.02)
    assert all(text in ("", *own) for text, own in zip(drawn, captions))


def test_a_run_on_captions_samples_prompts_and_says_what_captions_are_worth(train, options, tmp_path, capsys):
    folder = tmp_path / "model"
    train(output_dir=folder, **options | {"guidance_scale": 2.0})
    pipe = VDMPipeline.from_pretrained(folder)
    assert pipe("a handwritten three", num_inference_steps=2).images[0].size == (8, 8)
    metrics = json.loads((folder / "metrics.json").read_text())
    worth = metrics["worth_of_captions"]
    assert worth["per_dim"] == pytest.approx(metrics["without_captions"] - metrics["bits_per_dim"])
    assert "without captions" in capsys.readouterr().out
    assert (folder / "bits_map.png").exists()
    card = (folder / "README.md").read_text()
    assert "what the captions are worth" in card and "text-to-image" in card
    first = load_digits(caption_column="caption").validation[0]["captions"][0]
    assert f'images = pipe(prompt=["{first}"' in card


def test_the_bound_is_that_of_the_images_with_their_captions(text_encoder, tmp_path, capsys):
    torch.manual_seed(0)
    encoder = PromptEncoder(tiny_text.tokenizer(tiny_text.DIGITS), tiny_text.bert(tiny_text.DIGITS))
    unet = VDMUNet2DModel(8, 1, block_channels=8, layers_per_side=1, norm_num_groups=4, cross_attention_dim=encoder.width)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    vdm = VDM(unet, LinearSchedule(-8.0, 4.0), num_levels=17, prompt_encoder=encoder)
    vdm.save_pretrained(tmp_path / "model")
    data = load_digits(caption_column="caption")
    items = [data.validation[i] for i in range(4)]
    condition = encoder([item["captions"][0] for item in items], unet)
    images, times = torch.stack([item["images"] for item in items]), torch.rand(4)
    noise = torch.randn(2, *images.shape)
    with torch.no_grad():
        expected = vdm.eval()(images, condition, times, noise).nats
        encoded = EncodedCaptions(data.validation, encoder, unet)
        told = {name: torch.stack([encoded[i][name] for i in range(4)]) for name in encoded[0]}
        assert torch.equal(vdm(told.pop("images"), told, times, noise).nats, expected)
    arguments = ["--caption_column", "caption", "--max_images", "6", "--num_repeats", "2"]
    arguments += ["--captions", "own", "none", "others", "--output_path", str(tmp_path / "bounds.json")]
    evaluate(["--pretrained_model_name_or_path", str(tmp_path / "model"), *arguments])
    rows = json.loads((tmp_path / "bounds.json").read_text())["results"]
    by_hand = [
        variational_bound(vdm, torch.utils.data.Subset(EncodedCaptions(data.validation, encoder, unet, captions), range(6)), 2)
        for captions in (None, [""] * 297)
    ]
    assert [row["bits_per_dim"] for row in rows[:2]] == pytest.approx([bound.bits_per_dim for bound in by_hand], rel=1e-6)
    difference = rows[1]["bits_per_dim"] - rows[0]["bits_per_dim"]
    assert rows[1]["above_the_first"]["per_dim"] == pytest.approx(difference)
    with pytest.raises(SystemExit, match="The model is conditioned on text: name captions by `--caption_column`"):
        evaluate(["--pretrained_model_name_or_path", str(tmp_path / "model")])


def test_the_plan_says_what_encodes_captions(train, options, tmp_path, capsys):
    train("--dry_run", output_dir=tmp_path / "model", **options)
    assert "captions  BertModel, 6 tokens of 8 numbers" in capsys.readouterr().out


def test_captions_of_others_are_never_an_images_own():
    data = load_digits(caption_column="caption").validation
    others = captions_of_kind("others", data, seed=3)
    own = [data[i]["captions"][0] for i in range(len(data))]
    assert sorted(others) == sorted(own)
    assert sum(a == b for a, b in zip(others, own)) < 60  # equal captions of different images


def test_kept_embeddings_are_those_of_the_encoder(text_encoder, tmp_path):
    data = load_digits(caption_column="caption").train
    encoder = PromptEncoder(tiny_text.tokenizer(tiny_text.DIGITS), tiny_text.bert(tiny_text.DIGITS))
    cache_text_embeddings(encoder, data, str(tmp_path / "kept"))
    assert {*encoder.stored} == {"", *all_captions(data)}
    for text in encoder.stored:
        kept, computed = encoder.stored[text], encoder.encode(text)
        assert kept.keys() == computed.keys()
        assert all(torch.equal(tensor, kept[name]) for name, tensor in computed.items())
    other = PromptEncoder(encoder.tokenizer, encoder.text_encoder, max_sequence_length=3)
    with pytest.raises(ValueError, match="holds encodings of other captions, or by another encoder"):
        cache_text_embeddings(other, data, str(tmp_path / "kept"))


def test_a_run_is_the_same_with_kept_embeddings_and_resumed(train, options, tmp_path):
    train(output_dir=tmp_path / "whole", **options)
    train(output_dir=tmp_path / "broken", **options | {"max_train_steps": 2})
    kept = {"cache_text_embeddings": tmp_path / "kept", "resume_from_checkpoint": "latest"}
    train(output_dir=tmp_path / "broken", **options, **kept)
    assert_same(tmp_path / "whole", tmp_path / "broken")


def test_two_processes_train_the_same_with_kept_embeddings(options, tmp_path):
    for name, kept in {"computed": {}, "kept": {"cache_text_embeddings": tmp_path / "embeddings"}}.items():
        given, log = options | kept | {"output_dir": tmp_path / name}, tmp_path / f"{name}.log"
        assert Ranks(train_vdm_with, given, num_processes=2, log=log).join() == [0, 0], log.read_text()
    assert_same(tmp_path / "computed", tmp_path / "kept")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text_encoder_name_or_path": None}, "`--caption_column` needs `--text_encoder_name_or_path`"),
        ({"caption_column": None}, "`--text_encoder_name_or_path` is for models of text: name their captions by"),
        ({"text_encoder_name_or_path": "./nowhere"}, "'./nowhere' could not be loaded: .* Name a text encoder of transformers"),
        ({"max_sequence_length": 99}, "`--max_sequence_length` is 99, but BertModel can take 1 to 6 tokens"),
    ],
)
def test_options_that_contradict_are_refused(train, options, tmp_path, given, message):
    given = {name: value for name, value in (options | given).items() if value is not None}
    with pytest.raises(SystemExit, match=message):
        train(output_dir=tmp_path / "model", **given)
    assert not (tmp_path / "model").exists()


def test_a_model_of_text_is_trained_on_with_captions_alone(train, options, tmp_path):
    train(output_dir=tmp_path / "first", **options)
    more = {name: value for name, value in options.items() if name != "text_encoder_name_or_path"}
    more |= {"pretrained_model_name_or_path": tmp_path / "first"}
    train(output_dir=tmp_path / "second", **more)
    assert VDMPipeline.from_pretrained(tmp_path / "second").prompt_encoder is not None
    with pytest.raises(SystemExit, match="has its own text encoder: leave out `--max_sequence_length`"):
        train(output_dir=tmp_path / "third", max_sequence_length=4, **more)
    del more["caption_column"]
    with pytest.raises(SystemExit, match="is conditioned on text: name captions by `--caption_column`"):
        train(output_dir=tmp_path / "third", **more)
