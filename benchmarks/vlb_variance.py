"""Variance of the bound's estimate under several noise schedules between the same end points, for one trained denoiser.

    python benchmarks/vlb_variance.py --pretrained_model_name_or_path vdm-digits
    python benchmarks/vlb_variance.py --pretrained_model_name_or_path vdm-mnist --train_data_dir PATH --max_images 500

With `e = ½ ||eps - eps_hat||²`, one image and time give the estimate `L = γ'(t) e`. So `E[L²] = ∫ γ'(t) E[e²|γ] dγ` for any
schedule, which is least where `γ'(t) ∝ E[e²|γ]^-½`: there it is `(∫ E[e²|γ]^½ dγ)²`. One measurement of the moments of `e` over
a grid of gammas gives the variance under every schedule, and the optimum. Drawing times confirms it, i.i.d. and stratified.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vdm_diffusers import VDM, BetaLinearSchedule, CosineSchedule, LinearSchedule, NoiseSchedule, gaussian
from vdm_diffusers.data import load_images
from vdm_diffusers.units import LOG_2
from vdm_diffusers.vdm import stratified_times


@dataclass
class Profile:
    """First and second moment of `e`, in bits/dim per unit of gamma, over a grid of gammas."""

    gamma: np.ndarray
    mean: np.ndarray
    square: np.ndarray

    def integral(self, values: np.ndarray) -> float:
        return float(np.trapezoid(values, self.gamma))

    def bound(self) -> float:
        """The diffusion term, in bits/dim."""
        return self.integral(self.mean)

    def optimum(self) -> float:
        """The least variance that any schedule between the end points has."""
        return self.integral(np.sqrt(self.square)) ** 2 - self.bound() ** 2

    def optimal_times(self) -> np.ndarray:
        """The times at which the optimal schedule passes the grid."""
        density = np.sqrt(self.square)
        steps = np.diff(self.gamma) * (density[1:] + density[:-1]) / 2
        return np.concatenate([[0], steps.cumsum()]) / steps.sum()

    def variance(self, schedule: NoiseSchedule) -> float:
        """The variance of the estimate under a schedule, with i.i.d. times."""
        t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        gamma, slope = (value.detach().numpy() for value in schedule.with_derivative(t))
        square = np.exp(np.interp(gamma, self.gamma, np.log(self.square)))
        return float(np.trapezoid(slope**2 * square, t.numpy())) - self.bound() ** 2


@torch.no_grad()
def squared_error(vdm: VDM, images: Tensor, gamma: Tensor, generator: torch.Generator) -> Tensor:
    """`½ ||eps - eps_hat||²` in bits/dim, `(B,)`: the loss per unit of gamma."""
    x = vdm.scale(images)
    eps = torch.randn(x.shape, generator=generator)
    output = vdm.denoise(gaussian.diffuse(x, eps, gamma), gamma)
    error = gaussian.target(vdm.prediction_type, x, eps, gamma) - output
    scale = gaussian.epsilon_error_scale(vdm.prediction_type, gamma)
    return 0.5 * scale**2 * error.square().flatten(1).sum(1) / (x[0].numel() * LOG_2)


def measure(vdm: VDM, images: Tensor, num_gammas: int, repeats: int, seed: int) -> Profile:
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(*vdm.noise_schedule.chain(1).tolist(), num_gammas)
    moments = []
    for gamma in grid:
        batches = images.repeat(repeats, 1, 1, 1).split(128)
        errors = torch.cat([squared_error(vdm, batch, gamma.expand(len(batch)), generator) for batch in batches]).double()
        moments.append((errors.mean().item(), errors.square().mean().item()))
    return Profile(grid.double().numpy(), *np.array(moments).T)


@torch.no_grad()
def drawn(
    vdm: VDM, schedule: NoiseSchedule, images: Tensor, batch_size: int, num_batches: int, seed: int
) -> tuple[float, float]:
    """Variance of an estimate with i.i.d. times, and `batch_size` times that of a mean over stratified ones."""
    generator = torch.Generator().manual_seed(seed)
    single, means = [], []
    for _ in range(num_batches):
        batch = images[torch.randint(len(images), (batch_size,), generator=generator)]
        for times, kept in (
            (torch.rand(batch_size, generator=generator), single),
            (stratified_times(torch.rand((), generator=generator), batch_size), means),
        ):
            gamma, slope = schedule.with_derivative(times)
            kept.append(slope * squared_error(vdm, batch, gamma, generator))
    return torch.cat(single).var().item(), batch_size * torch.stack(means).mean(1).var().item()


def draw_figure(profile: Profile, schedules: dict[str, NoiseSchedule], path: Path) -> None:
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    for name, schedule in schedules.items():
        left.plot(t, schedule(t).detach(), label=name)
    left.plot(profile.optimal_times(), profile.gamma, "k:", label="optimum")
    left.set(xlabel="t", ylabel=r"$\gamma(t)$")
    left.legend()
    right.semilogy(profile.gamma, profile.mean, label="mean")
    right.semilogy(profile.gamma, np.sqrt(profile.square), label="root mean square")
    right.set(xlabel=r"$\gamma$", ylabel="bits/dim per unit of γ")
    right.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pretrained_model_name_or_path", default="vdm-digits", help="A saved VDM.")
    parser.add_argument("--train_data_dir", help="The folder of its images; without one, the digits.")
    parser.add_argument("--max_images", type=int, default=297, help="Held-out images to use.")
    parser.add_argument("--num_gammas", type=int, default=65, help="Points of the grid.")
    parser.add_argument("--repeats", type=int, default=8, help="Noises an image and gamma.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images of a batch of stratified times.")
    parser.add_argument("--num_batches", type=int, default=100, help="Batches of drawn times.")
    parser.add_argument("--seed", type=int, default=0, help="Of everything random.")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"), help="For the JSON and the figure.")
    options = parser.parse_args()

    vdm = VDM.from_pretrained(options.pretrained_model_name_or_path).eval()
    validation = load_images(train_data_dir=options.train_data_dir).validation
    images = torch.stack([validation[i]["images"] for i in range(min(len(validation), options.max_images))])
    ends = vdm.noise_schedule.chain(1).tolist()
    schedules = {
        "learned": vdm.noise_schedule,
        "log-SNR linear": LinearSchedule(*ends),
        "cosine": CosineSchedule(*ends),
        "β-linear": BetaLinearSchedule(*ends),
    }
    profile = measure(vdm, images, options.num_gammas, options.repeats, options.seed)
    optimum = profile.optimum()
    print(f"diffusion term {profile.bound():.4f} bits/dim; variances in (bits/dim)²\n")
    print("| schedule | variance | / optimum | drawn, i.i.d. | drawn, stratified |\n| --- | --- | --- | --- | --- |")
    print(f"| optimum | {optimum:.4f} | 1 | | |")
    results = {"optimum": {"variance": optimum}}
    for name, schedule in schedules.items():
        variance = profile.variance(schedule)
        iid, stratified = drawn(vdm, schedule, images, options.batch_size, options.num_batches, options.seed)
        results[name] = {"variance": variance, "drawn": iid, "drawn_stratified": stratified}
        print(f"| {name} | {variance:.4f} | {variance / optimum:.3f} | {iid:.4f} | {stratified:.4f} |")
    name = Path(options.pretrained_model_name_or_path).name
    options.output_dir.mkdir(parents=True, exist_ok=True)
    draw_figure(profile, schedules, options.output_dir / f"vlb_variance_{name}.png")
    (options.output_dir / f"vlb_variance_{name}.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
