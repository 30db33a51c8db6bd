"""The denoiser: its size, initialisation, conditioning, Fourier features, attention, precision and storage."""

import math

import pytest
import torch
from diffusers.models.embeddings import Timesteps

from vdm_diffusers.unet_vdm import Attention, AttentionOver, VDMUNet2DModel, timestep_embedding


SMALL = {"in_channels": 2, "block_channels": 8, "layers_per_side": 1, "norm_num_groups": 4, "dropout": 0.0}


def untrained(**config) -> VDMUNet2DModel:
    return VDMUNet2DModel(**{**SMALL, **config}).eval()


@torch.no_grad()
def trained(**config) -> VDMUNet2DModel:
    """A denoiser in which no weight is zero, so that every part of it has an effect."""
    model = untrained(**config)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def forward(model: VDMUNet2DModel, sample: torch.Tensor, timestep=500.0, **conditions) -> torch.Tensor:
    return model(sample, timestep, **conditions).sample


def parameter_count(
    channels: int = 3,
    width: int = 128,
    layers: int = 32,
    everywhere: bool = False,
    powers: int = 2,
    classes: int = 0,
    scalars: int = 1,
) -> int:
    """Weights and biases of the paper's network, added up layer by layer."""
    embedding = 4 * width

    def convolution(inputs, outputs, size=3):
        return size * size * inputs * outputs + outputs

    def resnet(inputs):
        shortcut = convolution(inputs, width, 1) if inputs != width else 0
        norms = 2 * inputs + 2 * width
        return norms + convolution(inputs, width) + embedding * width + convolution(width, width) + shortcut

    attention = 2 * width + 4 * (width * width + width)
    time = (width + scalars) * embedding + embedding + embedding * embedding + embedding
    down = layers * (resnet(width) + everywhere * attention)
    middle = 2 * resnet(width) + attention
    up = (layers + 1) * (resnet(2 * width) + everywhere * attention)
    ends = convolution(channels * (1 + 2 * powers), width) + 2 * width + convolution(width, channels)
    return time + classes * embedding + down + middle + up + ends


def test_default_configuration_has_the_size_of_the_official_cifar10_model():
    with torch.device("meta"):
        assert VDMUNet2DModel().num_parameters() == parameter_count() == 30_578_179


@pytest.mark.parametrize(
    "config, counted",
    [
        ({"in_channels": 1}, {"channels": 1}),
        ({"block_channels": 64, "layers_per_side": 3}, {"width": 64, "layers": 3}),
        ({"layers_per_side": 2, "attention_everywhere": True}, {"layers": 2, "everywhere": True}),
        ({"layers_per_side": 2, "attention_everywhere": True, "attention_head_dim": 32}, {"layers": 2, "everywhere": True}),
        ({"layers_per_side": 1, "fourier_powers": ()}, {"layers": 1, "powers": 0}),
        ({"layers_per_side": 1, "fourier_powers": (1, 2, 3)}, {"layers": 1, "powers": 3}),
        ({"layers_per_side": 1, "num_class_embeds": 11}, {"layers": 1, "classes": 11}),
        ({"layers_per_side": 1, "conditioning_dim": 4}, {"layers": 1, "scalars": 4}),
    ],
)
def test_other_configurations_have_the_parameters_of_their_layers(config, counted):
    with torch.device("meta"):
        assert VDMUNet2DModel(**config).num_parameters() == parameter_count(**counted)


def test_output_is_the_input_at_initialisation():
    sample = torch.randn(2, 2, 6, 6)
    assert torch.equal(forward(untrained(attention_everywhere=True), sample), sample)


def test_every_residual_branch_adds_nothing_at_initialisation_and_weights_have_unit_gain():
    model = untrained(block_channels=64, norm_num_groups=8)
    hidden, embedding = torch.randn(1, 64, 5, 5), torch.randn(1, 256)
    for stage in (*model.down, *model.mid):
        assert torch.equal(stage(hidden, embedding), hidden)
    weight = model.down[0].resnet.conv1.weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(9 * 64), rel=0.05)


def test_zero_initialised_layers_receive_gradients():
    model = untrained()
    forward(model, torch.randn(2, 2, 6, 6)).square().sum().backward()
    assert model.conv_out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(4, 4), (3, 7), (8, 2), (1, 1)])
def test_any_channels_and_any_size(channels, size):
    sample = torch.randn(2, channels, *size)
    output = forward(trained(in_channels=channels), sample)
    assert output.shape == sample.shape
    assert output.isfinite().all() and not torch.equal(output, sample)


def test_output_is_a_dataclass_or_a_tuple():
    model, sample = trained(), torch.randn(1, 2, 4, 4)
    (output,) = model(sample, 3.0, return_dict=False)
    assert torch.equal(output, model(sample, 3.0).sample)


def test_images_of_a_batch_do_not_see_each_other():
    model, sample = trained(attention_everywhere=True), torch.randn(3, 2, 4, 4)
    timestep = torch.tensor([0.5, 400.0, 1000.0])
    alone = [forward(model, image[None], t) for image, t in zip(sample, timestep)]
    torch.testing.assert_close(forward(model, sample, timestep), torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5, 17.0, 999.25])
def test_a_timestep_is_a_float_or_a_scalar_or_one_an_image(value):
    model, sample = trained(), torch.randn(3, 2, 4, 4)
    expected = forward(model, sample, torch.full((3,), value))
    for timestep in (value, torch.tensor(value), torch.tensor([value]), torch.full((3,), value, dtype=torch.float64)):
        assert torch.equal(forward(model, sample, timestep), expected)


def test_an_integer_timestep_is_the_same_number():
    model, sample = trained(), torch.randn(3, 2, 4, 4)
    for timestep in (17, torch.tensor(17), torch.full((3,), 17)):
        assert torch.equal(forward(model, sample, timestep), forward(model, sample, 17.0))


def test_fractional_timesteps_are_told_apart():
    model, sample = trained(), torch.randn(1, 2, 4, 4)
    assert (forward(model, sample, 0.5) - forward(model, sample, 0.0)).abs().max() > 1e-3
    assert (forward(model, sample, 500.5) - forward(model, sample, 500.0)).abs().max() > 1e-3


def input_of(layer: torch.nn.Module, call) -> torch.Tensor:
    """What a layer receives during a call."""
    seen = []
    with layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0])):
        call()
    return seen[0]


def test_timestep_embedding_is_sines_then_cosines_of_geometric_frequencies_and_the_conditioning():
    model, timestep, flag = trained(), torch.tensor([0.0, 3.25, 1000.0]), torch.tensor([[0.0], [1.0], [-2.0]])
    seen = input_of(model.embedding, lambda: forward(model, torch.randn(3, 2, 4, 4), timestep, conditioning=flag))
    angles = timestep.double()[:, None] * 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 3)
    expected = torch.cat([angles.sin(), angles.cos(), flag.double()], dim=1)
    torch.testing.assert_close(seen.double(), expected, rtol=0, atol=2e-4)  # angles up to 1000 in float32


@pytest.mark.parametrize("powers", [(6, 7), (0,), (-1, 2, 4)])
def test_fourier_features_are_sines_and_cosines_of_the_sample(powers):
    model, sample = trained(fourier_powers=powers), torch.randn(2, 2, 3, 4).clamp(-2, 2)
    seen = input_of(model.conv_in, lambda: forward(model, sample)).double()
    z = sample.double()
    channels = [z[:, c] for c in range(2)]
    channels += [torch.sin(2.0**n * 2 * math.pi * z[:, c]) for c in range(2) for n in powers]
    channels += [torch.cos(2.0**n * 2 * math.pi * z[:, c]) for c in range(2) for n in powers]
    tolerance = 2 * 2 * math.pi * 2.0 ** max(powers) * 2**-23  # rounding of the largest angle in float32
    torch.testing.assert_close(seen, torch.stack(channels, dim=1), rtol=0, atol=max(tolerance, 1e-6))


def test_fourier_features_of_a_bfloat16_sample_are_computed_in_float32():
    model, sample = trained().bfloat16(), torch.randn(2, 2, 3, 4).bfloat16()
    seen = input_of(model.conv_in, lambda: forward(model, sample))
    angles = torch.stack([2.0**n * 2 * math.pi * sample[:, c].double() for c in range(2) for n in (6, 7)], dim=1)
    assert seen.dtype == torch.bfloat16
    torch.testing.assert_close(seen[:, 2:].double(), torch.cat([angles.sin(), angles.cos()], 1), rtol=0, atol=2**-8)


def test_without_fourier_powers_the_network_sees_the_sample_alone():
    model, sample = trained(fourier_powers=()), torch.randn(2, 2, 4, 4)
    assert torch.equal(input_of(model.conv_in, lambda: forward(model, sample)), sample)


def test_class_labels_are_needed_by_a_class_conditional_model():
    with pytest.raises(ValueError, match="`num_class_embeds` is set.*`class_labels`"):
        forward(untrained(num_class_embeds=4), torch.randn(2, 2, 4, 4))


def test_class_labels_are_refused_by_an_unconditional_model():
    with pytest.raises(ValueError, match="`class_labels` were given.*unconditional"):
        forward(untrained(), torch.randn(2, 2, 4, 4), class_labels=torch.tensor([0, 1]))


def test_class_labels_pick_the_class_of_each_image():
    model, sample = trained(num_class_embeds=4), torch.randn(1, 2, 4, 4).expand(3, -1, -1, -1)
    one, two, again = forward(model, sample, class_labels=torch.tensor([1, 2, 1]))
    torch.testing.assert_close(one, again)
    assert (one - two).abs().max() > 1e-3


def test_conditioning_scalars_matter_and_default_to_zeros():
    model, sample = trained(conditioning_dim=2), torch.randn(2, 2, 4, 4)
    default = forward(model, sample)
    assert torch.equal(default, forward(model, sample, conditioning=torch.zeros(2, 2)))
    for scalars in ([1.0, 0.0], [0.0, 1.0]):
        changed = forward(model, sample, conditioning=torch.tensor([scalars, [0.0, 0.0]]))
        assert (changed[0] - default[0]).abs().max() > 1e-3
        torch.testing.assert_close(changed[1], default[1])


def explicit_attention(module: Attention, x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Softmax attention of one image, pixel by pixel and head by head."""
    channels, pixels = x.shape[0], x[0].numel()
    groups = x.reshape(module.norm.num_groups, -1)
    normal = (groups - groups.mean(1, keepdim=True)) / (groups.var(1, unbiased=False, keepdim=True) + module.norm.eps).sqrt()
    tokens = normal.reshape(channels, pixels) * module.norm.weight[:, None] + module.norm.bias[:, None]
    query, key, value = (p.weight @ tokens + p.bias[:, None] for p in (module.to_q, module.to_k, module.to_v))
    heads = []
    for q, k, v in zip(query.chunk(num_heads), key.chunk(num_heads), value.chunk(num_heads)):
        logits = q.T @ k / math.sqrt(channels // num_heads)
        weights = logits.exp() / logits.exp().sum(1, keepdim=True)
        heads.append(v @ weights.T)
    return x + (module.to_out.weight @ torch.cat(heads) + module.to_out.bias[:, None]).reshape(x.shape)


@pytest.mark.parametrize("head_dim, num_heads", [(8, 1), (4, 2), (2, 4)])
@torch.no_grad()
def test_attention_is_a_softmax_over_all_pixels(head_dim, num_heads):
    module = Attention(channels=8, head_dim=head_dim, groups=4, eps=1e-6).double()
    for parameter in module.parameters():
        parameter.normal_()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    expected = torch.stack([explicit_attention(module, image, num_heads) for image in x])
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_pixels_attend_to_the_tokens_of_a_text_as_in_torch():
    """`MultiheadAttention` with keys and values of another width, whose mask is true for what is left out."""
    module = AttentionOver(channels=8, width=6, head_dim=4, groups=4, eps=1e-6)
    for parameter in module.parameters():
        parameter.normal_()
    theirs = torch.nn.MultiheadAttention(8, num_heads=2, kdim=6, vdim=6, batch_first=True)
    for name, layer in (("q", module.to_q), ("k", module.to_k), ("v", module.to_v)):
        getattr(theirs, f"{name}_proj_weight").copy_(layer.weight)
    theirs.in_proj_bias.copy_(torch.cat([module.to_q.bias, module.to_k.bias, module.to_v.bias]))
    theirs.out_proj.load_state_dict(module.to_out.state_dict())
    x, tokens = torch.randn(2, 8, 3, 5), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    pixels = module.norm(x).flatten(2).transpose(1, 2)
    attended, _ = theirs(pixels, tokens, tokens, key_padding_mask=~mask)
    torch.testing.assert_close(module(x, tokens, mask), x + attended.transpose(1, 2).reshape(x.shape), rtol=1e-4, atol=1e-4)


def test_padding_of_a_text_has_no_influence():
    model, sample, text = trained(cross_attention_dim=6), torch.randn(2, 2, 4, 4), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    told = {"encoder_attention_mask": mask}
    output = forward(model, sample, encoder_hidden_states=text, **told)
    assert torch.equal(output, forward(model, sample, encoder_hidden_states=text + 9 * (1 - mask)[..., None], **told))
    other = text.clone()
    other[0, 1] += 1
    changed = (forward(model, sample, encoder_hidden_states=other, **told) != output).flatten(1).any(1)
    assert changed.tolist() == [True, False]


def test_texts_are_needed_or_refused():
    with pytest.raises(ValueError, match="conditioned on text .* give `encoder_hidden_states`"):
        forward(untrained(cross_attention_dim=6), torch.randn(1, 2, 4, 4))
    with pytest.raises(ValueError, match="takes no text"):
        forward(untrained(), torch.randn(1, 2, 4, 4), encoder_hidden_states=torch.randn(1, 3, 6))


@pytest.mark.parametrize("everywhere, expected", [(False, 1), (True, 6)])
def test_attention_is_in_the_middle_or_everywhere(everywhere, expected):
    model = untrained(layers_per_side=2, attention_everywhere=everywhere)
    assert sum(isinstance(module, Attention) for module in model.modules()) == expected


@pytest.mark.parametrize("config, num_heads", [({}, 1), ({"attention_head_dim": 2}, 4)])
def test_attention_head_dim_sets_the_number_of_heads(config, num_heads):
    module, x = trained(**config).mid[0].attention, torch.randn(1, 8, 3, 3)
    torch.testing.assert_close(module(x)[0], explicit_attention(module, x[0], num_heads))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradients(dropout):
    model, sample = trained(dropout=dropout).train(), torch.randn(2, 2, 4, 4)

    def gradients():
        model.zero_grad()
        torch.manual_seed(1)
        forward(model, sample).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    model.enable_gradient_checkpointing()
    calls = []
    with model.down[0].register_forward_pre_hook(lambda *_: calls.append(1)):
        for gradient, other in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(gradient, other)
    assert len(calls) == 2


def test_dropout_acts_in_training_mode_only():
    model, sample = trained(dropout=0.5), torch.randn(2, 2, 4, 4)
    assert torch.equal(forward(model, sample), forward(model, sample))
    model.train()
    assert (forward(model, sample) - forward(model, sample)).abs().max() > 1e-3


def test_saving_and_loading_keep_the_output(tmp_path):
    config = {"sample_size": (4, 6), "num_class_embeds": 3, "fourier_powers": (1, 3), "attention_head_dim": 4}
    model, sample = trained(**config), torch.randn(2, 2, 4, 6)
    model.save_pretrained(tmp_path)
    loaded = VDMUNet2DModel.from_pretrained(tmp_path)
    labels = torch.tensor([0, 2])
    assert torch.equal(forward(loaded, sample, class_labels=labels), forward(model, sample, class_labels=labels))
    assert not loaded.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_give_the_output_of_float32(dtype):
    model, sample = trained(fourier_powers=(0, 1)), torch.randn(2, 2, 4, 4).bfloat16().float()
    expected = forward(model, sample, torch.tensor([0.5, 900.0]))
    output = forward(model.to(dtype), sample.to(dtype), torch.tensor([0.5, 900.0]))
    assert output.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    assert (output - expected).norm() < tolerance * (expected - sample).norm()


def test_autocast_runs():
    model, sample = trained(), torch.randn(2, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        output = forward(model, sample)
    assert output.shape == sample.shape and output.isfinite().all()


@pytest.mark.parametrize(
    "config, message",
    [
        ({"out_channels": 3}, "`out_channels` is 3 and `in_channels` 2"),
        ({"block_channels": 10}, r"`block_channels` \(10\) must be a multiple of `norm_num_groups` \(4\)"),
        ({"attention_head_dim": 3}, r"`block_channels` \(8\) must be a multiple of `attention_head_dim` \(3\)"),
    ],
)
def test_impossible_configurations_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        untrained(**config)


def test_out_channels_may_be_given_if_they_are_in_channels():
    assert untrained(out_channels=2).conv_out.out_channels == 2


def test_float64_is_computed_in_float64_throughout():
    """Fourier features and time embedding too: small changes of both arguments change the output in proportion."""
    model, sample = trained(fourier_powers=(6, 7)).double(), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    timestep, direction = torch.tensor([500.0], dtype=torch.float64), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    for dz, dt in ((direction, 0.0), (0.0, 1.0)):
        changes = [
            forward(model, sample + h * dz, timestep + h * dt) - forward(model, sample - h * dz, timestep - h * dt)
            for h in (1e-8, 2e-8)
        ]
        torch.testing.assert_close(changes[1], 2 * changes[0], rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize("channels", [4, 5, 128])
def test_timesteps_are_embedded_as_in_diffusers(channels):
    timestep = torch.rand(20) * 1000
    expected = Timesteps(channels, flip_sin_to_cos=False, downscale_freq_shift=1)(timestep)
    assert torch.equal(timestep_embedding(timestep, channels), expected)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"block_channels": "8"}, TypeError, "`block_channels` is '8', but must be a whole number from 4 to 16,384"),
        ({"layers_per_side": 100_000}, ValueError, "`layers_per_side` is 100000, but must be from 0 to 1,024"),
        ({"norm_num_groups": 0}, ValueError, "`norm_num_groups` is 0"),
        ({"dropout": float("nan")}, ValueError, "`dropout` is nan, but must be from 0 to 1"),
        ({"fourier_powers": [6, 7.5]}, TypeError, r"`fourier_powers\[1\]` is 7.5"),
        ({"fourier_powers": (2000,)}, ValueError, r"`fourier_powers\[0\]` is 2000"),
        ({"sample_size": (8, 8, 8)}, TypeError, "`sample_size` is a tuple"),
        ({"sample_size": (8, 0)}, ValueError, r"`sample_size\[1\]` is 0"),
        ({"attention_everywhere": "yes"}, TypeError, "`attention_everywhere` is 'yes', but must be a bool"),
        ({"block_channels": 12_000, "layers_per_side": 50}, ValueError, "parameters or more, but"),
    ],
)
def test_configurations_of_no_denoiser_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        VDMUNet2DModel(**config)
