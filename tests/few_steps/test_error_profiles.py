"""Error profiles: measured against the closed form, independent of batches and processes, saved and loaded."""

from itertools import count, islice

import pytest
import torch
from accelerate import PartialState
from gaussian_model import COVARIANCE, MEAN, GaussianDenoiser, epsilon_error
from processes import Ranks
from scipy.fft import dctn
from test_chains import along_axes, entries
from tiny_pipelines import unet, vae
from torch.utils.data import Dataset, IterableDataset

from vdm_diffusers import VDM, LinearSchedule
from vdm_diffusers.error_profiles import ErrorProfile, cosine_axes
from vdm_diffusers.few_steps import error_profile
from vdm_diffusers.timestep_maps import AffineTimesteps


GAMMAS = torch.tensor([-6.0, -2.0, 0.0, 4.0], dtype=torch.float64)


class Samples(Dataset):
    """Of the Gaussian."""

    def __init__(self, size: int):
        noise = torch.randn(size, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.x = (MEAN + noise @ torch.linalg.cholesky(COVARIANCE).T).reshape(size, 3, 1, 1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"images": self.x[index]}


def vdm() -> VDM:
    timesteps = AffineTimesteps(-6.0, 4.0)
    return VDM(GaussianDenoiser(timesteps), LinearSchedule(-6.0, 4.0), num_levels=None, timestep_map=timesteps).double()


@pytest.mark.parametrize("basis", ["isotropic", "entries", "dct", "principal"])
def test_a_profile_is_the_closed_form(basis):
    profile = error_profile(vdm(), Samples(8000), GAMMAS, basis, num_draws=16_000, batch_size=1000)
    if basis == "isotropic":
        expected = epsilon_error(GAMMAS)[:, None] / 3
    elif basis == "entries":
        expected = entries(GAMMAS).moments
    else:  # the axes that were found, or those of the transform, of the covariance of the residual
        covariances = [COVARIANCE @ torch.linalg.inv(COVARIANCE + g.exp() * torch.eye(3, dtype=torch.float64)) for g in GAMMAS]
        expected = torch.stack([(profile.axes @ covariance @ profile.axes.T).diagonal() for covariance in covariances])
    assert ((profile.moments - expected).abs() < 4.5 * profile.standard_errors).all()
    assert (profile.standard_errors < 0.06 * profile.moments).all()
    if basis == "principal":
        largest = along_axes(GAMMAS).axes[-1]
        assert (profile.axes[-1] @ largest).abs() > 0.95


def test_cosines_are_scipy_s():
    values = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = torch.from_numpy(dctn(values.numpy(), norm="ortho"))
    torch.testing.assert_close((cosine_axes((2, 3, 4)) @ values.flatten()).reshape(2, 3, 4), expected)


def test_between_gammas_the_logarithm_is_linear():
    profile = ErrorProfile(torch.tensor([0.0, 2.0]), torch.tensor([[1.0], [4.0]]), torch.zeros(2, 1))
    values = profile(torch.tensor([-1.0, 0.0, 1.0, 2.0, 5.0], dtype=torch.float64)).flatten()
    torch.testing.assert_close(values, torch.tensor([1.0, 1.0, 2.0, 4.0, 4.0], dtype=torch.float64))


def measured(**kwargs) -> ErrorProfile:
    return error_profile(vdm(), Samples(50), GAMMAS, "principal", num_draws=120, **kwargs)


def measure_together(path) -> None:
    measured(processes=PartialState(cpu=True)).save_pretrained(path / str(PartialState().process_index))


def test_batches_and_processes_do_not_matter(tmp_path):
    whole = measured(batch_size=120)
    ranks = Ranks(measure_together, tmp_path, num_processes=2, log=tmp_path / "log")
    assert ranks.join() == [0, 0], (tmp_path / "log").read_text()
    for other in (measured(batch_size=7), *(ErrorProfile.from_pretrained(tmp_path / rank) for rank in "01")):
        torch.testing.assert_close(other.moments, whole.moments, rtol=1e-10, atol=0)
        torch.testing.assert_close(other.standard_errors, whole.standard_errors, rtol=1e-6, atol=0)


@pytest.mark.parametrize("basis", ["isotropic", "principal"])
def test_a_profile_comes_back_as_it_was_saved(tmp_path, basis):
    profile = error_profile(vdm(), Samples(50), GAMMAS, basis, num_draws=100)
    profile.save_pretrained(tmp_path)
    again = ErrorProfile.from_pretrained(tmp_path)
    assert again.basis == basis and dict(again.named_buffers()).keys() == dict(profile.named_buffers()).keys()
    for name, tensor in profile.named_buffers():
        assert torch.equal(getattr(again, name), tensor)


def test_files_that_are_no_profile_are_refused(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        ErrorProfile.from_pretrained(tmp_path)
    ErrorProfile(GAMMAS, torch.ones(4, 1), torch.zeros(4, 1)).save_pretrained(tmp_path)
    (tmp_path / "error_profile.json").write_text("{}")
    with pytest.raises(ValueError, match="The error profile in .* could not be loaded: KeyError: 'basis'"):
        ErrorProfile.from_pretrained(tmp_path)
    (tmp_path / "error_profile.json").write_text('{"basis": "entries"}')
    (tmp_path / "error_profile.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="The error profile in .* could not be loaded: "):
        ErrorProfile.from_pretrained(tmp_path)


def test_what_can_not_be_measured_is_refused():
    with pytest.raises(ValueError, match="`num_draws` is 15, but 4 gammas in the basis 'principal' need 16"):
        error_profile(vdm(), Samples(5), GAMMAS, "principal", num_draws=15)
    with pytest.raises(ValueError, match="`moments` must be positive"):
        ErrorProfile(GAMMAS, torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="`axes` must be orthonormal"):
        ErrorProfile(GAMMAS, torch.ones(4, 2), torch.zeros(4, 2), "dct", torch.ones(2, 2))
    with pytest.raises(ValueError, match="`gammas` must be an increasing vector"):
        ErrorProfile(GAMMAS.flip(0), torch.ones(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="`basis` is 'wavelets'"):
        ErrorProfile(GAMMAS, torch.ones(4, 1), torch.zeros(4, 1), "wavelets")


def test_an_unknown_basis_is_refused_before_the_denoiser_is_called():
    unused = vdm()
    unused.unet.forward = lambda *args, **kwargs: pytest.fail("called")
    with pytest.raises(ValueError, match="`basis` is 'wavelets'"):
        error_profile(unused, Samples(5), GAMMAS, "wavelets", num_draws=20)


def test_a_denoiser_that_fails_is_named_by_its_gamma():
    broken = vdm()
    broken.unet.forward = lambda sample, timestep, **kwargs: (torch.full_like(sample, torch.nan),)
    with pytest.raises(FloatingPointError, match="The denoiser's output is not finite at gamma -6"):
        error_profile(broken, Samples(5), GAMMAS, num_draws=20, batch_size=1)


class Stream(IterableDataset):
    """Without end."""

    def __iter__(self):
        return ({"images": Samples(50).x[index % 50]} for index in count())


def test_of_a_stream_as_many_are_taken_as_there_are_draws():
    expected = error_profile(vdm(), list(islice(Stream(), 40)), GAMMAS, num_draws=40)
    found = error_profile(vdm(), Stream(), GAMMAS, num_draws=40)
    assert torch.equal(found.moments, expected.moments)


def test_latents_are_drawn_by_the_seed_alone():
    torch.manual_seed(0)
    model = VDM(unet(4, 4), LinearSchedule(-6.0, 4.0), vae=vae())
    images = [{"images": torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)} for _ in range(5)]
    state = torch.get_rng_state()
    found = [error_profile(model, images, GAMMAS, num_draws=24, batch_size=size, seed=1) for size in (3, 24)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found[0].moments, found[1].moments, rtol=1e-4, atol=1e-5)
    other = error_profile(model, images, GAMMAS, num_draws=24, seed=2)
    assert not torch.allclose(found[0].moments, other.moments, rtol=1e-3)
