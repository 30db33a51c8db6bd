"""Every noise schedule: its end points, monotonicity, derivative, dtypes, storage; and each curve against its textbook."""

import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import FIXED, LEARNED, LEARNED_PINNED, SCHEDULES
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from tiny_pipelines import unet

from vdm_diffusers import VDM, VDMScheduler, gaussian
from vdm_diffusers.noise_schedules import (
    NOISE_SCHEDULES,
    BetaLinearSchedule,
    CosineSchedule,
    LearnedChainSchedule,
    LearnedLinearSchedule,
    LearnedMonotoneSchedule,
    LearnedUnpinnedSchedule,
    LinearSchedule,
    NoiseSchedule,
    SigmoidSchedule,
    TableSchedule,
)


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
learned = pytest.mark.parametrize("name", LEARNED)
learned_pinned = pytest.mark.parametrize("name", LEARNED_PINNED)


def times(num: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Midpoints of `num` intervals of [0, 1]; for 200, none is a knot of a schedule of the list."""
    return (torch.arange(num, dtype=dtype) + 0.5) / num


def derivative(function, at: torch.Tensor, step: float) -> torch.Tensor:
    """Central finite difference."""
    return (function(at + step) - function(at - step)) / (2 * step)


@torch.no_grad()
def randomised(schedule, scale: float = 1.0):
    """Other parameters, end points included, drawn from the global seed."""
    for name, parameter in schedule.named_parameters():
        noise = torch.randn_like(parameter)
        parameter.add_(noise.clamp(-3, 3) if name.startswith("gamma_") else scale * noise)
    return schedule


def test_the_list_has_every_schedule_of_the_package():
    own = {schedule for schedule in NOISE_SCHEDULES.values() if schedule.__module__.startswith("vdm_diffusers.")}
    assert {type(make()) for make in SCHEDULES.values()} == own


@dtypes
def test_end_points_are_the_configured_ones(schedule, dtype):
    ends = schedule(torch.tensor([0.0, 1.0], dtype=dtype))
    expected = torch.tensor([schedule.gamma_min, schedule.gamma_max], dtype=torch.float64)
    tolerance = 1e-4 if isinstance(schedule, LearnedUnpinnedSchedule) else 1e-6
    torch.testing.assert_close(ends.double(), expected, rtol=0, atol=tolerance)
    assert (schedule.gamma_min, schedule.gamma_max) == (-13.3, 5.0)


@dtypes
def test_gamma_increases_strictly(schedule, dtype):
    assert (schedule(torch.linspace(0, 1, 2001, dtype=dtype)).diff() > 0).all()


def test_derivative_is_positive_and_the_finite_difference(schedule):
    t = times(200)
    gamma, slope = schedule.with_derivative(t)
    torch.testing.assert_close(gamma, schedule(t), rtol=0, atol=0)
    assert (slope > 0).all()
    torch.testing.assert_close(slope, derivative(schedule, t, 1e-6), rtol=1e-6, atol=1e-7)


def test_float32_values_and_derivatives_are_those_of_float64(schedule):
    t = torch.linspace(0, 1, 501)
    gamma, slope = schedule.with_derivative(t)
    exact_gamma, exact_slope = schedule.with_derivative(t.double())
    torch.testing.assert_close(gamma.double(), exact_gamma, rtol=0, atol=1e-5)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "dtype, expected",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_gamma_is_float32_at_least(schedule, dtype, expected):
    t = torch.linspace(0, 1, 9, dtype=dtype)
    for value, exact in zip((schedule(t), *schedule.with_derivative(t)), (schedule(t.to(expected)),) * 2):
        assert value.dtype == expected
        torch.testing.assert_close(value, exact, rtol=0, atol=0)
    assert schedule.with_derivative(t)[1].dtype == expected


def test_autocast_changes_nothing(schedule):
    t = torch.linspace(0, 1, 101)
    gamma, slope = schedule.with_derivative(t)
    with torch.autocast("cpu", torch.bfloat16):
        values = schedule(t), *schedule.with_derivative(t), schedule(t.bfloat16())
    for value, expected in zip(values, (gamma, gamma, slope, schedule(t.bfloat16().float()))):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def to_half(schedule, tmp_path):
    return schedule.to(torch.bfloat16)


def half(schedule, tmp_path):
    return schedule.half()


def in_a_half_precision_model(schedule, tmp_path):
    return torch.nn.Sequential(schedule).to("cpu", torch.float16)[0]


def loaded_in_half(schedule, tmp_path):
    schedule.save_pretrained(tmp_path)
    return NoiseSchedule.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)


def loaded_in_half_by_its_class(schedule, tmp_path):
    schedule.save_pretrained(tmp_path)
    return type(schedule).from_pretrained(tmp_path, dtype=torch.float16)


@pytest.mark.parametrize(
    "convert", [to_half, half, in_a_half_precision_model, loaded_in_half, loaded_in_half_by_its_class], ids=lambda f: f.__name__
)
def test_half_precision_changes_nothing(schedule, convert, tmp_path):
    t = torch.linspace(0, 1, 101)
    gamma, slope = (value.detach() for value in randomised(schedule).with_derivative(t))
    halved = convert(schedule, tmp_path / "half")
    assert type(halved) is type(schedule)
    for value, expected in zip((halved(t), *halved.with_derivative(t)), (gamma, gamma, slope)):
        assert torch.equal(value, expected)
    halved.save_pretrained(tmp_path / "again")
    assert torch.equal(type(schedule).from_pretrained(tmp_path / "again")(t), gamma)


class SquareRootNetwork(NoiseSchedule):
    """A user's own, of layers that autocast computes in half precision, and infinitely steep at t = 0."""

    @register_to_config
    def __init__(self, gamma_min: float = -10.0, gamma_max: float = 5.0):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.layer.weight, 1 / 3)

    def forward(self, t):
        return self.gamma_min + 3 * (self.gamma_max - self.gamma_min) * self.layer(t[..., None].sqrt())[..., 0]


def test_a_schedule_of_one_s_own_is_computed_in_full_precision_too():
    schedule, t = SquareRootNetwork(), torch.linspace(0.01, 1, 50)
    expected = -10 + 15 * t.bfloat16().double().sqrt()
    with torch.autocast("cpu", torch.bfloat16):
        for gamma in (schedule(t.bfloat16()), schedule.with_derivative(t.bfloat16())[0], schedule.bfloat16()(t.bfloat16())):
            torch.testing.assert_close(gamma.double(), expected, rtol=0, atol=1e-5)


def test_a_schedule_of_one_s_own_is_found_by_its_name_and_only_where_it_is_defined(tmp_path):
    SquareRootNetwork(-9.0).save_pretrained(tmp_path)
    loaded = NoiseSchedule.from_pretrained(tmp_path)
    assert type(loaded) is SquareRootNetwork and loaded.gamma_min == -9.0
    script = "import sys; from vdm_diffusers import NoiseSchedule; NoiseSchedule.from_pretrained(sys.argv[1])"
    process = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    message = process.stderr.splitlines()[-1]
    assert "it is a SquareRootNetwork, which is none of LinearSchedule" in message and "import the module" in message


class ParameterlessLine(NoiseSchedule):
    """A user's own without a parameter, a buffer or a registered configuration."""

    def __init__(self, gamma_min: float = -8.0, gamma_max: float = 4.0):
        super().__init__()

    def forward(self, t):
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t


class NamesakePower(LearnedLinearSchedule):
    """A user's own whose parameter and buffer are called as the options that they come from."""

    @register_to_config
    def __init__(self, power: float = 2.0, floor: float = 0.1):
        super().__init__(-9.0, 3.0)
        self.power = torch.nn.Parameter(torch.tensor(power))
        self.register_buffer("floor", torch.tensor(floor))

    def curve(self, t):
        return t**self.power + self.floor * t


class ConstructedBend(LinearSchedule):
    """A user's own with an argument that no decorator registers."""

    def __init__(self, bend: float = 1.0, gamma_min: float = -9.0):
        super().__init__(gamma_min)
        self.square = bend

    def curve(self, t):
        return t + self.square * t**2


class AnonymousLine(NoiseSchedule):
    """A user's own that doesn't say where it starts."""

    def forward(self, t):
        return 12 * t - 8


@pytest.mark.parametrize("make", [ParameterlessLine, lambda: NamesakePower(3.0), lambda: ConstructedBend(3.0)])
def test_a_schedule_of_one_s_own_is_trained_copied_and_saved_however_it_is_written(make, tmp_path):
    schedule, t = make(), torch.linspace(0, 1, 11)
    vdm = VDM(unet(1, 1), schedule)
    vdm(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).objective.mean().backward()
    vdm.save_pretrained(tmp_path)
    for other in (VDM.from_pretrained(tmp_path).noise_schedule, copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert type(other) is type(schedule) and torch.equal(other(t), schedule(t))


def test_a_schedule_that_does_not_say_its_end_points_is_refused():
    with pytest.raises(ValueError, match="AnonymousLine does not say its `gamma_min`: give its constructor an argument"):
        VDMScheduler.from_noise_schedule(AnonymousLine())


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, np.float16])
def test_schedules_of_numbers_of_numpy_are_saved(number, tmp_path):
    LinearSchedule(number(-8), number(4)).save_pretrained(tmp_path)
    assert LinearSchedule.from_pretrained(tmp_path).gamma_min == -8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64])
def test_tables_may_be_tensors(dtype):
    assert TableSchedule(torch.tensor([-8, 1, 4], dtype=dtype)).config.gammas == [-8, 1, 4]


def test_names_of_schedules_are_unique():
    def define(name: str, **attributes) -> type:
        return type(name, (LinearSchedule,), {"__module__": "notebook"} | attributes)

    with pytest.raises(ValueError, match="a noise schedule CosineSchedule already, vdm_diffusers.noise_schedules"):
        define("CosineSchedule")
    define("Again")
    again = define("Again")
    assert NOISE_SCHEDULES["Again"] is again
    with pytest.raises(ValueError, match="a noise schedule Again already, notebook.Again"):
        define("Again", __module__="another")
    del NOISE_SCHEDULES["Again"]
    assert not {"NoiseSchedule", "PinnedSchedule", "TruncatedSchedule"} & set(NOISE_SCHEDULES)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)])
def test_gamma_has_the_shape_of_t(schedule, shape):
    t = torch.rand(shape)
    gamma, slope = schedule.with_derivative(t)
    assert gamma.shape == slope.shape == shape
    torch.testing.assert_close(gamma.flatten(), schedule(t.flatten()))


def test_saving_and_loading_keep_the_curve_exactly(schedule, tmp_path):
    randomised(schedule).save_pretrained(tmp_path)
    loaded = type(schedule).from_pretrained(tmp_path)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.equal(loaded(t), schedule(t))
    assert (loaded.gamma_min, loaded.gamma_max) == (schedule.gamma_min, schedule.gamma_max)


@pytest.mark.parametrize("num_steps", [1, 2, 1000])
def test_alphas_multiply_to_the_ratio_of_the_ends(schedule, num_steps):
    alphas = schedule.alphas(num_steps)
    alpha_bar_0, alpha_bar_1 = torch.sigmoid(-schedule(torch.tensor([0.0, 1.0], dtype=torch.float64)))
    assert alphas.shape == (num_steps,) and alphas.dtype == torch.float64
    torch.testing.assert_close(alphas.prod(), alpha_bar_1 / alpha_bar_0, rtol=1e-12, atol=0)


def test_alphas_are_the_one_step_transitions_of_the_chain(schedule):
    gamma = schedule(torch.arange(101, dtype=torch.float64) / 100)
    alpha_ts, beta = gaussian.transition(gamma[:-1], gamma[1:])
    torch.testing.assert_close(schedule.chain(100), gamma, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.alphas(100), alpha_ts**2, rtol=1e-12, atol=0)
    torch.testing.assert_close(1 - schedule.alphas(100), beta, rtol=0, atol=1e-12)


def test_a_table_of_the_schedule_is_the_schedule(schedule):
    knots, gammas = randomised(schedule).table()
    table = TableSchedule(gammas.tolist(), knots.tolist())
    t = torch.cat([times(5000), torch.logspace(-8, -3, 101, dtype=torch.float64)])
    torch.testing.assert_close(table(t), schedule(t), rtol=0, atol=1e-4)
    torch.testing.assert_close(table(knots), gammas, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_intervals", [1, 10, 1000])
def test_knots_of_a_table_are_dense_in_time_and_in_gamma(schedule, num_intervals):
    knots, gammas = schedule.table(num_intervals)
    assert knots.dtype == gammas.dtype == torch.float64 and len(knots) == len(gammas) == num_intervals + 1
    assert knots[0] == 0 and knots[-1] == 1
    for jumps in (knots.diff(), gammas.diff() / (gammas[-1] - gammas[0])):
        assert (jumps > 0).all() and (jumps <= 2 / num_intervals + 1e-12).all()


def test_making_a_table_leaves_the_schedule_as_it_was(schedule):
    dtype, t = schedule.dtype, torch.linspace(0, 1, 11)
    before = schedule(t)
    schedule.table(10)
    assert schedule.dtype == dtype
    assert torch.equal(schedule(t), before)


def textbook(gamma_at, u_range: tuple[float, float], gamma_min: float, gamma_max: float, t: np.ndarray) -> np.ndarray:
    """The piece of a curve between two gammas, traversed at constant speed: its ends by root finding."""
    u_0, u_1 = (brentq(lambda u, end=end: gamma_at(u) - end, *u_range, xtol=1e-15) for end in (gamma_min, gamma_max))
    return gamma_at(u_0 + t * (u_1 - u_0))


def log_odds_of_noise(alpha_sq):
    return np.log((1 - alpha_sq) / alpha_sq)


ENDS = (-13.25, 5.0)
"""Exact in float32; `1 - alpha²`, which the textbook formulas have, keeps ten digits between them."""


def assert_curve(schedule, gamma_at, u_range=(1e-9, 1 - 1e-9)) -> None:
    t = np.linspace(0, 1, 201)
    expected = textbook(gamma_at, u_range, *ENDS, t)
    np.testing.assert_allclose(schedule(torch.from_numpy(t)), expected, rtol=0, atol=1e-8)


def test_linear_schedule_is_linear():
    t = torch.rand(50, dtype=torch.float64)
    torch.testing.assert_close(LinearSchedule(*ENDS)(t), -13.25 + 18.25 * t, rtol=0, atol=1e-12)


def test_cosine_schedule_has_a_cosine_for_alpha():
    assert_curve(CosineSchedule(*ENDS), lambda u: 2 * np.log(np.sin(np.pi * u / 2) / np.cos(np.pi * u / 2)))
    gamma = CosineSchedule(*ENDS)(torch.linspace(0, 1, 101, dtype=torch.float64))
    u = 2 / math.pi * torch.atan2(gaussian.sigma(gamma), gaussian.alpha(gamma))
    torch.testing.assert_close(u.diff(), (u[-1] - u[0]).expand(100) / 100, rtol=1e-9, atol=0)


@pytest.mark.parametrize("start, end, tau", [(-3.0, 3.0, 1.0), (-3.0, 3.0, 0.9), (0.0, 3.0, 0.7), (-3.0, 1.0, 1.5)])
def test_sigmoid_schedule_is_the_one_of_jabri(start, end, tau):
    def sigmoid(x):
        return 1 / (1 + np.exp(-x / tau))

    def gamma_at(u):
        return log_odds_of_noise((sigmoid(end) - sigmoid(start + u * (end - start))) / (sigmoid(end) - sigmoid(start)))

    assert_curve(SigmoidSchedule(*ENDS, start, end, tau), gamma_at)


@pytest.mark.parametrize("beta_start, beta_end", [(1e-4, 0.02), (8.5e-4, 0.012)])
def test_beta_linear_schedule_is_the_integral_of_a_linear_beta(beta_start, beta_end):
    def gamma_at(u):
        return log_odds_of_noise(np.exp(-1000 * (beta_start * u + (beta_end - beta_start) * u**2 / 2)))

    assert_curve(BetaLinearSchedule(*ENDS, beta_start, beta_end), gamma_at)


@pytest.mark.parametrize("num_steps", [1000, 10_000, 100_000])
def test_beta_linear_schedule_is_the_limit_of_ddpm_of_diffusers(num_steps):
    """Beta of step i is read at i - 1, not over the step: of the integral up to step 1 that is all but 1 + 99.5 / T.

    Elsewhere sums are nearer to integrals; `-log(1 - beta) - beta`, of which the chain has the sum, is 67 / T in the end.
    """
    ddpm = DDPMScheduler(num_steps, beta_start=0.1 / num_steps, beta_end=20 / num_steps, beta_schedule="linear")
    chain = -torch.expm1(torch.log1p(-ddpm.betas.double()).cumsum(0))
    chain = torch.log(chain) - torch.log1p(-chain)
    first = math.log(math.expm1((0.1 + 9.95 / num_steps) / num_steps))
    schedule = BetaLinearSchedule(first, math.log(math.expm1(10.05)))
    error = schedule(torch.linspace(0, 1, num_steps, dtype=torch.float64)) - chain
    assert error.abs().max() < 100 / num_steps


@pytest.mark.parametrize("name", FIXED)
def test_fixed_schedules_reach_far_in_float32(name):
    gamma = SCHEDULES[name](gamma_min=-20.0, gamma_max=20.0)(torch.linspace(0, 1, 1001))
    assert gamma.isfinite().all() and (gamma.diff() > 0).all()


def test_table_schedule_is_the_pchip_interpolant_of_scipy_inside():
    knots = [0.0, 0.05, 0.3, 0.4, 0.75, 0.9, 1.0]
    gammas = [-10.0, -7.0, -6.5, -1.0, 0.5, 4.0, 5.0]
    t = np.linspace(0.05, 0.9, 301)
    expected = PchipInterpolator(knots, gammas)
    gamma, slope = TableSchedule(gammas, knots).with_derivative(torch.from_numpy(t))
    np.testing.assert_allclose(gamma, expected(t), rtol=0, atol=1e-12)
    np.testing.assert_allclose(slope, expected(t, 1), rtol=1e-10)


def test_table_schedule_reproduces_a_parabola_at_its_ends():
    knots = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    gamma, slope = TableSchedule((knots + knots**2 / 4).tolist(), knots.tolist()).with_derivative(knots[[0, -1]])
    torch.testing.assert_close(gamma, torch.tensor([0.0, 1.25], dtype=torch.float64))
    torch.testing.assert_close(slope, torch.tensor([1.0, 1.5], dtype=torch.float64))


def test_table_schedule_of_two_gammas_is_linear():
    t = torch.rand(50, dtype=torch.float64)
    torch.testing.assert_close(TableSchedule([-13.3, 5.0])(t), -13.3 + 18.3 * t, rtol=0, atol=1e-12)


def test_table_schedule_defaults_to_equidistant_times():
    t, gammas = times(200), [-9.0, -2.0, 1.0, 1.5, 8.0]
    assert torch.equal(TableSchedule(gammas)(t), TableSchedule(gammas, [0.0, 0.25, 0.5, 0.75, 1.0])(t))


steps = st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 5.0)), min_size=1, max_size=12)


@given(steps=steps)
def test_any_table_is_interpolated_increasingly_and_smoothly(steps):
    steps = torch.tensor(steps, dtype=torch.float64)
    knots, gammas = torch.cat([torch.zeros(1, 2, dtype=torch.float64), steps.cumsum(0)]).T
    knots = knots / knots[-1]
    schedule = TableSchedule(gammas.tolist(), knots.tolist())
    torch.testing.assert_close(schedule(knots), gammas, rtol=1e-12, atol=1e-12)
    assert (schedule.with_derivative(torch.linspace(0, 1, 501, dtype=torch.float64))[1] > 0).all()
    inner = knots[1:-1]
    before, after = (schedule.with_derivative(inner + side)[1] for side in (-1e-12, 1e-12))
    torch.testing.assert_close(before, after, rtol=1e-5, atol=0)


@learned
@given(scale=st.floats(0.0, 10.0), seed=st.integers(0, 2**16))
def test_any_parameters_keep_a_learned_schedule_increasing(name, scale, seed):
    torch.manual_seed(seed)
    schedule = randomised(SCHEDULES[name]().double(), scale)
    gamma, slope = schedule.with_derivative(torch.linspace(0, 1, 501, dtype=torch.float64))
    assert (gamma.diff() > 0).all() and (slope > 0).all()


@learned
@torch.no_grad()
def test_a_learned_schedule_increases_whatever_the_sign_of_each_parameter(name):
    schedule = SCHEDULES[name]().double()
    inner = {name: parameter for name, parameter in schedule.named_parameters() if not name.startswith("gamma_")}
    for negative in inner:
        for other, parameter in inner.items():
            parameter.fill_(-5.0 if other == negative else 5.0)
        assert (schedule.with_derivative(times(200))[1] > 0).all(), negative


@learned_pinned
@given(scale=st.floats(0.0, 10.0), seed=st.integers(0, 2**16))
def test_any_parameters_keep_a_pinned_schedule_between_its_learned_ends(name, scale, seed):
    torch.manual_seed(seed)
    schedule = randomised(SCHEDULES[name]().double(), scale)
    gamma = schedule(torch.linspace(0, 1, 5, dtype=torch.float64))
    assert gamma[0] == schedule.gamma_0 and gamma[-1] == schedule.gamma_1


@pytest.mark.parametrize("logit", [0.0, 5.0, 10.0, 30.0])
def test_a_long_learned_chain_increases_in_float32_however_uneven(logit):
    schedule = LearnedChainSchedule(num_steps=1000)
    schedule.logits.data[0] = logit
    _, slope = schedule.with_derivative(times(5000, torch.float32))
    assert (slope > 0).all()


@learned_pinned
@pytest.mark.parametrize("end, expected", [(0.0, (1.0, 0.0)), (1.0, (0.0, 1.0))])
def test_an_end_point_depends_on_its_own_parameter_alone(name, end, expected):
    schedule = randomised(SCHEDULES[name]().double())
    schedule(torch.tensor(end, dtype=torch.float64)).backward()
    gradients = {name: parameter.grad for name, parameter in schedule.named_parameters()}
    assert (gradients.pop("gamma_0"), gradients.pop("gamma_1")) == expected
    for gradient in gradients.values():
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@learned
@pytest.mark.parametrize(
    "read",
    [lambda schedule: schedule(times(20)), lambda schedule: schedule.with_derivative(times(20))[1], lambda s: s.alphas(20)],
    ids=["gamma", "derivative", "alphas"],
)
def test_gradients_of_the_parameters_are_finite_differences(name, read):
    schedule = randomised(SCHEDULES[name]().double())
    weights = torch.randn(20, dtype=torch.float64)
    parameters = list(schedule.parameters())
    gradients = torch.autograd.grad((weights * read(schedule)).sum(), parameters, allow_unused=True, materialize_grads=True)
    for parameter, gradient in zip(parameters, gradients):
        direction, start = torch.randn_like(parameter), parameter.detach().clone()

        def moved(step, parameter=parameter, start=start, direction=direction):
            with torch.no_grad():
                parameter.copy_(start + step * direction)
                return (weights * read(schedule)).sum()

        expected = derivative(moved, torch.zeros((), dtype=torch.float64), 1e-6)
        moved(0.0)
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-8)


@learned
def test_gradient_descent_fits_a_learned_schedule_to_a_curve(name):
    """What is linear comes to the line of least squares, everything else nearer to the curve than any line."""
    schedule, t = SCHEDULES[name](), torch.linspace(0, 1, 65)
    curve = CosineSchedule(-10.0, 3.0)(t)
    _, (line_error, *_), *_ = np.polyfit(t.numpy(), curve.numpy(), 1, full=True)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        error = (schedule(t) - curve).square().sum()
        error.backward()
        optimizer.step()
    if name == "LearnedLinearSchedule":
        assert error.item() == pytest.approx(line_error, rel=1e-2)
    else:
        assert error.item() < line_error / 2


def test_learned_linear_schedule_starts_and_stays_linear():
    schedule, t = randomised(LearnedLinearSchedule().double()), times(50)
    torch.testing.assert_close(schedule(t), (schedule.gamma_0 + (schedule.gamma_1 - schedule.gamma_0) * t).detach())


def test_learned_monotone_schedule_starts_nearly_linear():
    t = times(200)
    torch.testing.assert_close(LearnedMonotoneSchedule()(t), LinearSchedule()(t).double(), rtol=0, atol=0.07 * 18.3)


def test_learned_chain_schedule_has_its_logits_for_steps():
    schedule = LearnedChainSchedule(num_steps=4, gamma_min=-10.0, gamma_max=6.0).double()
    schedule.logits.data = torch.tensor([1.0, 3.0, 4.0, 2.0], dtype=torch.float64).log()
    steps = (1 - 1e-4) * torch.tensor([0.1, 0.3, 0.4, 0.2], dtype=torch.float64) + 1e-4 / 4
    torch.testing.assert_close(schedule.chain(4).diff(), 16 * steps, rtol=1e-12, atol=0)


def test_learned_unpinned_schedule_is_the_monotone_network_of_the_authors():
    schedule, t = randomised(LearnedUnpinnedSchedule(num_features=5).double()), times(50)
    rate, shift, weight = (parameter.detach() for parameter in (schedule.rate, schedule.shift, schedule.weight))
    expected = schedule.intercept.item() + abs(schedule.slope.item()) * t
    for k in range(5):
        hidden = 2 * (torch.sigmoid(rate[k].abs() * 2 * (t - 0.5) + shift[k]) - 0.5)
        expected = expected + weight[k].abs() * hidden / 5
    torch.testing.assert_close(schedule(t).detach(), expected, rtol=1e-12, atol=1e-12)


def test_learned_unpinned_schedule_without_features_is_a_line():
    t = times(50)
    torch.testing.assert_close(LearnedUnpinnedSchedule(num_features=0)(t), LinearSchedule()(t), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 50])
def test_learned_chain_schedule_starts_linear(num_steps):
    t = times(200)
    torch.testing.assert_close(LearnedChainSchedule(num_steps)(t), LinearSchedule()(t), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*FIXED, *LEARNED])
@pytest.mark.parametrize("ends", [(1.0, 1.0), (5.0, -13.3), (-math.inf, 5.0), (-13.3, math.inf), (math.nan, 5.0)])
def test_end_points_that_do_not_rise_are_refused(name, ends):
    with pytest.raises(ValueError, match="`gamma_min`.*`gamma_max`"):
        SCHEDULES[name](gamma_min=ends[0], gamma_max=ends[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"gammas": [1.0]}, "at least two"),
        ({"gammas": [[0.0, 1.0], [2.0, 3.0]]}, "must be a list of numbers"),
        ({"gammas": "abc"}, "`gammas` is 'abc', but it must be a list of numbers"),
        ({"gammas": [0, None]}, "`gammas` is .* must be a list of numbers"),
        ({"gammas": [0, 1], "times": {"a": 1}}, "`times` is .* must be a list of numbers"),
        ({"gammas": [0.0, 1.0], "times": [0.0, 0.5, 1.0]}, "as many times"),
        ({"gammas": [0.0, 2.0, 1.0]}, "strictly increasing"),
        ({"gammas": [0.0, 1.0, 1.0]}, "strictly increasing"),
        ({"gammas": [0.0, math.nan, 1.0]}, "finite"),
        ({"gammas": [0.0, 1.0, math.inf]}, "finite"),
        ({"gammas": [-800.0, 5.0]}, "must be from -160 to 160"),
        ({"gammas": [0.0, 1.0], "times": [0.0, 0.9]}, "from 0"),
        ({"gammas": [0.0, 1.0], "times": [0.1, 1.0]}, "from 0"),
        ({"gammas": [0.0, 1.0, 2.0, 3.0], "times": [0.0, 0.6, 0.5, 1.0]}, "from 0"),
        ({"gammas": [0.0, 1.0, 2.0, 3.0], "times": [0.0, 0.5, 0.5, 1.0]}, "from 0"),
        ({"gammas": [0.0, 1.0, 2.0], "times": [0.0, math.nan, 1.0]}, "from 0"),
    ],
)
def test_tables_that_do_not_rise_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TableSchedule(**arguments)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LearnedChainSchedule(num_steps=0), "`num_steps`"),
        (lambda: BetaLinearSchedule(beta_start=0.02, beta_end=1e-4), "`beta_start`"),
        (lambda: BetaLinearSchedule(beta_start=0.0), "`beta_start`"),
        (lambda: SigmoidSchedule(start=3.0, end=-3.0), "`start`"),
        (lambda: SigmoidSchedule(tau=0.0), "`tau`"),
        (lambda: SigmoidSchedule(start=-100.0, end=100.0), "reaches no further than float64 can tell"),
        (lambda: SigmoidSchedule(tau=1e-300), "less than 200 `tau`"),
        (lambda: CosineSchedule(-1000.0, 1000.0), "`gamma_min` is -1000.0 .* from -80 to 80"),
        (lambda: LinearSchedule(1.0, 1.0 + 1e-9), "`gamma_min`"),
        (lambda: LearnedMonotoneSchedule(num_features=10**9), "`num_features` is 1000000000, but must be from 1 to 1,048,576"),
    ],
)
def test_parameters_without_a_curve_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LinearSchedule("-13.3"), "`gamma_min` is '-13.3', but must be a number"),
        (lambda: CosineSchedule(gamma_max=None), "`gamma_max` is None, but must be a number"),
        (lambda: SigmoidSchedule(tau=True), "`tau` is True, but must be a number"),
        (lambda: LearnedMonotoneSchedule(num_features=8.0), "`num_features` is 8.0, but must be a whole number from 1"),
        (lambda: LearnedChainSchedule(), "missing a required argument: 'num_steps'"),
    ],
)
def test_parameters_of_another_type_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()
