"""One condition for every denoiser: each use of a model hands it on unread, and guidance and dropout know its null."""

from functools import partial
from operator import itemgetter

import pytest
import torch
from cases import CONDITIONS
from tiny_pipelines import TEXT_AND_SIZES, conditional_unet, pixart, unet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_with_path

from vdm_diffusers import VDM, LinearSchedule, VDMPipeline, VDMScheduler
from vdm_diffusers.conditioning import Condition, drop
from vdm_diffusers.denoisers import check_denoiser
from vdm_diffusers.likelihood import variational_bound
from vdm_diffusers.likelihood.ddpm_bound import DDPM, ddpm_bound
from vdm_diffusers.likelihood.ode_likelihood import ode_likelihood
from vdm_diffusers.memory import activation_bytes
from vdm_diffusers.scheduling.beta_chains import chain_gammas


IMAGES = torch.randint(0, 16, (3, 4, 8, 8), generator=torch.Generator().manual_seed(0))


class Told(nn.Module):
    """A denoiser that is always told the same, each image its own by the place in the batch."""

    def __init__(self, denoiser: nn.Module, condition: Condition):
        super().__init__()
        self.denoiser, self.condition, self.config = denoiser, condition, denoiser.config
        self.dtype, self.device = denoiser.dtype, denoiser.device

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return self.denoiser(sample, timestep=timestep, return_dict=return_dict, **self.condition)


@pytest.fixture(params=CONDITIONS.values(), ids=CONDITIONS.keys())
def models(request: pytest.FixtureRequest) -> tuple[VDM, VDM, Condition]:
    """A model and a condition, and the model that is told this one without being asked."""
    denoiser, condition = request.param[0](), request.param[1](len(IMAGES))
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.1)
    make = {"noise_schedule": LinearSchedule(-6.0, 4.0), "num_levels": 16}
    return VDM(denoiser, **make).eval(), VDM(Told(denoiser, condition), **make).eval(), condition


def items(condition: Condition) -> list[dict[str, Tensor]]:
    return [{"images": image} | tree_map(itemgetter(i), condition) for i, image in enumerate(IMAGES)]


def loss(vdm: VDM, condition: Condition) -> Tensor:
    return vdm(IMAGES, condition, generator=torch.Generator().manual_seed(0)).nats


def bound(vdm: VDM, condition: Condition) -> list[float]:
    return [variational_bound(vdm, items(condition), num_repeats=2).per_dim]


def bound_of_ddpm(vdm: VDM, condition: Condition) -> list[float]:
    ddpm = DDPM(vdm.unet, chain_gammas(torch.linspace(0.99, 0.05, 8)), num_levels=16)
    return [ddpm_bound(ddpm, items(condition), num_indices=2).per_dim]


def likelihood(vdm: VDM, condition: Condition) -> list[float]:
    return [ode_likelihood(vdm, items(condition), tolerance=1.0).per_dim]


def samples(vdm: VDM, condition: Condition) -> Tensor:
    pipe = VDMPipeline(vdm.unet, vdm.to_scheduler(), num_levels=16)
    pipe.set_progress_bar_config(disable=True)
    sampled = pipe(3, num_inference_steps=2, output_type="latent", eta=0.0, condition=condition, latents=IMAGES / 8 - 1).images
    options = {"tolerance": 1.0, "condition": condition}
    encoded, decoded = pipe.encode(IMAGES, **options), pipe.decode(IMAGES / 8 - 1, output_type="pt", **options)
    nats = pipe.log_likelihood(IMAGES, generator=torch.Generator().manual_seed(0), **options)
    return torch.cat([part.flatten() for part in (sampled, encoded, decoded, nats)])


@pytest.mark.parametrize("use", [loss, bound, bound_of_ddpm, likelihood, samples], ids=lambda use: use.__name__)
def test_a_condition_reaches_the_denoiser_unread(use, models):
    vdm, told, condition = models
    with torch.no_grad():
        measured, expected = use(vdm, condition), use(told, {})
        other = use(vdm, tree_map(lambda rows: rows.flip(0), condition))
    torch.testing.assert_close(measured, expected, rtol=0, atol=0)
    assert list(other) != list(expected)


STAYS = ("encoder_attention_mask", "time_ids", "resolution", "aspect_ratio")


def nothing(path: tuple, rows: Tensor) -> Tensor:
    """Of a class the last, of a vector or a text zeros."""
    name = path[-1].key
    return rows if name in STAYS else torch.full_like(rows, 3 if name == "class_labels" else 0)


def test_guidance_extrapolates_from_the_null_condition(models):
    vdm, _, condition = models
    pipe, latents = vdm.to_pipeline(), torch.randn(3, 4, 8, 8)
    pipe.set_progress_bar_config(disable=True)
    kwargs = {"latents": latents, "num_inference_steps": 1, "eta": 0.0, "output_type": "latent"}
    guided = pipe(condition=condition, guidance_scale=2.5, **kwargs).images
    zeros = tree_map_with_path(nothing, condition)
    with torch.no_grad():
        t = pipe.scheduler.timesteps[0]
        told, not_told = (
            pipe.unet(latents, timestep=t.expand(3), return_dict=False, **given)[0][:, :4] for given in (condition, zeros)
        )
    pipe.scheduler.set_timesteps(1)
    expected = pipe.scheduler.step(not_told + 2.5 * (told - not_told), t, latents, eta=0.0).prev_sample
    torch.testing.assert_close(guided, expected)


def test_a_share_of_the_samples_is_told_nothing(models):
    vdm, _, condition = models
    many = tree_map(lambda rows: rows[:1].repeat_interleave(1000, 0), condition)
    dropped = drop(many, 0.3, vdm.unet)
    told, null, found = map(tree_leaves, (many, tree_map_with_path(nothing, many), dropped))
    which = [(rows == nulls).reshape(1000, -1).all(1) for rows, nulls in zip(found, null)]
    changed = [not torch.equal(rows, nulls) for rows, nulls in zip(told, null)]
    assert any(changed) and 0.2 < which[changed.index(True)].float().mean() < 0.4
    for i in range(len(told)):
        assert torch.equal(which[i], which[changed.index(True)]) if changed[i] else which[i].all()
        assert torch.equal(found[i][~which[i]], told[i][~which[i]])
    assert drop({}, 0.3, vdm.unet) == {}


def test_any_denoiser_can_be_tried_without_numbers(models):
    vdm, _, condition = models
    check_denoiser(vdm.unet, (4, 8, 8))
    assert activation_bytes(vdm.unet, 2) > 0


def test_a_compiled_denoiser_takes_what_it_wraps(models):
    vdm, _, condition = models
    expected = loss(vdm, condition)
    vdm.unet = torch.compile(vdm.unet, backend="eager")
    torch.testing.assert_close(loss(vdm, condition), expected)


@pytest.mark.parametrize(
    ("make", "condition", "error", "message"),
    [
        (conditional_unet, {}, ValueError, "UNet2DConditionModel needs `encoder_hidden_states`: give it in `condition`"),
        (conditional_unet, {"text": torch.zeros(2, 3, 8)}, ValueError, "UNet2DConditionModel needs"),
        (unet, {"text": torch.zeros(2, 3)}, ValueError, "UNet2DModel takes no `text`: leave it out"),
        (conditional_unet, {"encoder_hidden_states": "a dog"}, TypeError, "`encoder_hidden_states` are a str, but must be a"),
        (conditional_unet, {"encoder_hidden_states": torch.zeros(1, 3, 8)}, ValueError, "must have 2 rows, one an image"),
        (pixart, {}, ValueError, "PixArtTransformer2DModel needs `encoder_hidden_states`"),
        (
            partial(conditional_unet, **TEXT_AND_SIZES),
            {"encoder_hidden_states": torch.zeros(2, 3, 8)},
            ValueError,
            "UNet2DConditionModel needs `added_cond_kwargs`",
        ),
        (
            partial(conditional_unet, **TEXT_AND_SIZES),
            {"encoder_hidden_states": torch.zeros(2, 3, 8), "added_cond_kwargs": {"time_ids": torch.zeros(1, 6)}},
            ValueError,
            r"`time_ids` have the shape \(1, 6\), but must have 2 rows",
        ),
    ],
)
def test_conditions_of_another_denoiser_are_refused(make, condition, error, message):
    denoiser = make()
    with pytest.raises(error, match=message):
        VDM(denoiser, LinearSchedule())(torch.zeros(2, denoiser.config.in_channels, 8, 8, dtype=torch.uint8), condition)
    with pytest.raises((error, ValueError), match=f"{message}|number of images is contradictory"):
        VDMPipeline(denoiser, VDMScheduler())(2, condition=condition)
