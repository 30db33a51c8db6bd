"""Names of classes: in calls, in what is saved, and never mixed up."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline, DiTTransformer2DModel, UNet2DModel
from tiny_pipelines import transformer, vae

from vdm_diffusers import VDM, LinearSchedule, VDMPipeline, VDMScheduler, VDMUNet2DModel
from vdm_diffusers.class_names import captions, check_same_classes, labels_by_name


NAMES = ["dog", "flower", "7", 'sea|horse "日"']


def denoiser(num_class_embeds: int | None) -> VDMUNet2DModel:
    settings = {"block_channels": 8, "layers_per_side": 1, "norm_num_groups": 4, "fourier_powers": ()}
    return VDMUNet2DModel(8, 1, num_class_embeds=num_class_embeds, **settings)


def named_pipeline(names: list[str] | None = NAMES, num_class_embeds: int | None = 5) -> VDMPipeline:
    unet = denoiser(num_class_embeds)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pipe = VDM(unet, LinearSchedule(), class_names=names).to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images_of(pipe: VDMPipeline, *args, **kwargs) -> torch.Tensor:
    kwargs = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 2, "output_type": "pt"} | kwargs
    return pipe(*args, **kwargs).images


@pytest.mark.parametrize(
    ("named", "labels"),
    [
        (["flower", "dog"], [1, 0]),
        (["flower", 3, np.int64(0)], [1, 3, 0]),
        (["7", 4], [2, 4]),  # a string is a name; the last label is the null class
        ("flower", [1]),
        (1, [1]),
        (np.array(["dog", "7"]), [0, 2]),
        (NAMES, [0, 1, 2, 3]),
    ],
)
def test_names_stand_for_labels(named, labels):
    pipe = named_pipeline()
    expected = images_of(pipe, class_labels=torch.tensor(labels), guidance_scale=2.0)
    assert torch.equal(images_of(pipe, class_labels=named, guidance_scale=2.0), expected)


def test_one_name_is_for_all_images():
    pipe = named_pipeline()
    expected = images_of(pipe, class_labels=[1, 1, 1])
    assert torch.equal(images_of(pipe, 3, class_labels="flower"), expected)
    assert torch.equal(images_of(pipe, 3, class_labels=1), expected)
    latents = torch.randn(2, 1, 8, 8)
    pair = images_of(pipe, class_labels="flower", latents=latents), images_of(pipe, class_labels=[1, 1], latents=latents)
    assert torch.equal(*pair)
    with pytest.raises(ValueError, match="contradictory"):
        images_of(pipe, 3, class_labels=["flower"])


@pytest.mark.parametrize("labels", [["flower", "dog"], ("7", 1), "flower"])
def test_likelihoods_and_codes_take_names_too(monkeypatch, labels):
    """What integrates the flow gets the numbers."""
    pipe, images, given = named_pipeline(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), []

    def note(*arguments, **kwargs):
        given.append(next(argument for argument in arguments[2:] if isinstance(argument, dict))["class_labels"].tolist())
        raise StopIteration

    for name in ("log_likelihood", "integrate"):
        monkeypatch.setattr(f"vdm_diffusers.pipeline_vdm.{name}", note)
    for method, argument in ((pipe.log_likelihood, images), (pipe.encode, images), (pipe.decode, torch.zeros(2, 1, 8, 8))):
        with pytest.raises(StopIteration):
            method(argument, labels)
    assert given == [{"flower": [1, 1]}.get(labels) if isinstance(labels, str) else pipe.get_label_ids(labels)] * 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("Flower", "has 'Flower', which names no class, or several: did you mean 'flower'."),
        (["xyz"], "the names are '7', 'dog', 'flower', 'sea|horse"),
        (["3"], "has '3', which names no class"),
        ([1.5], "must be integers or names of classes, but are 1.5"),
        ([None], "must be integers or names of classes, but are None"),
        ([5], "must be from 0 to 4"),
    ],
)
def test_what_names_no_class_is_refused(labels, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        images_of(named_pipeline(), class_labels=labels)


def test_models_without_names_or_classes_take_no_names():
    with pytest.raises(ValueError, match="has the name 'dog', but this model has no names of classes: give integers"):
        images_of(named_pipeline(None), class_labels=["dog"])
    with pytest.raises(ValueError, match="this denoiser is unconditional"):
        images_of(named_pipeline(None, None), class_labels="dog")


def test_names_are_saved_with_a_model(tmp_path):
    names = [f"{i} of\nmany, `ünïcode`" for i in range(11)]  # more than ten, which JSON sorts as strings
    vdm = VDM(denoiser(12), LinearSchedule(), class_names=names)
    vdm.save_pretrained(tmp_path)
    assert VDM.from_pretrained(tmp_path).class_names == names
    for pipe in (VDMPipeline.from_pretrained(tmp_path), DiffusionPipeline.from_pretrained(tmp_path)):
        assert pipe.get_label_ids(names) == list(range(11)) and pipe.get_label_ids(names[3]) == [3]
        assert VDMPipeline(**pipe.components, id2label=pipe.config.id2label).labels == pipe.labels


def test_labels_are_those_of_dit():
    """With synonyms between commas; but a name of two classes means neither here, and there the latter."""
    id2label = {0: "tench, Tinca tinca", 1: "crane", 2: "goldfish", 3: "crane", 4: "carp,"}
    theirs = DiTPipeline(transformer(DiTTransformer2DModel), vae(), VDMScheduler(), id2label=id2label)
    ours = labels_by_name(id2label)
    assert theirs.labels.items() - ours.items() == {("crane", 3), ("", 4)}
    assert ours.keys() - theirs.labels.keys() == {"tench, Tinca tinca", "carp,"}


@pytest.mark.parametrize(
    ("num_class_embeds", "id2label", "message"),
    [
        (None, {0: "dog"}, "the denoiser is unconditional"),
        (3, {2: "none"}, "`id2label` names the class 2, but the labels of this model run from 0 to 1"),
        (3, {"dog": 0}, "`id2label` must map the label of each class to its name"),
        (3, {0: 1}, "`id2label` must map the label of each class to its name"),
    ],
)
def test_names_of_other_classes_are_refused(num_class_embeds, id2label, message):
    unet = denoiser(num_class_embeds)
    with pytest.raises(ValueError, match=message):
        VDMPipeline(unet, VDMScheduler(), id2label=id2label)


@pytest.mark.parametrize(
    "unet",
    [
        denoiser(3),
        UNet2DModel(8, 1, 1, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, num_class_embeds=3),
        DiTTransformer2DModel(2, 8, num_layers=1, num_embeds_ada_norm=2),
    ],
    ids=lambda unet: type(unet).__name__,
)
def test_a_model_has_one_name_for_each_class(unet):
    assert VDM(unet, LinearSchedule(), class_names=["a", "b"]).to_pipeline().labels == {"a": 0, "b": 1}
    with pytest.raises(ValueError, match="`class_names` are 3, but the denoiser has 2 classes"):
        VDM(unet, LinearSchedule(), class_names=["a", "b", "none"])


def test_a_name_may_be_missing(tmp_path):
    pipe = named_pipeline(None)
    VDMPipeline(pipe.unet, pipe.scheduler, id2label={2: "cat"}).save_pretrained(tmp_path)
    assert VDM.from_pipeline(VDMPipeline.from_pretrained(tmp_path)).class_names == ["", "", "cat", ""]


def test_only_names_that_both_have_are_compared():
    for theirs, names in ((None, ["a"]), (["a"], None), (["a", "b"], ["a", ""])):
        check_same_classes(theirs, names, "data", "the model")
    with pytest.raises(ValueError, match="The class 1 is 'c' in data, but 'b' in the model: labels would be mixed up"):
        check_same_classes(["a", "c", "b"], ["a", "b", "c"], "data", "the model")


def test_captions_are_one_line():
    assert captions(["dog", "1", "a\n b", ""], 4) == ["0 dog", "1", "2 a b", "3"]
    assert captions(None, 2) == ["0", "1"]
