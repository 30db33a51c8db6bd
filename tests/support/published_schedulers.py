"""`scheduler_config.json` of published models, as their repositories hold them, and of models that are no β-chain."""

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
THRESHOLD = {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "thresholding": False}


def ddpm(**options) -> dict:
    return LINEAR | {"_class_name": "DDPMScheduler", "trained_betas": None} | options


def ddim(**options) -> dict:
    return {"_class_name": "DDIMScheduler", "trained_betas": None} | options


def pndm(**options) -> dict:
    return SD | {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "trained_betas": None} | options


def euler(**options) -> dict:
    common = {"interpolation_type": "linear", "use_karras_sigmas": False, "clip_sample": False, "skip_prk_steps": True}
    leading = {"steps_offset": 1, "timestep_spacing": "leading", "set_alpha_to_one": False, "sample_max_value": 1.0}
    return SD | {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"} | common | leading | options


def dpm_solver(**options) -> dict:
    solver = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True}
    return {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "epsilon", **solver, **THRESHOLD} | options


CHAINS = {
    "ddpm-cifar10-32": ddpm(_diffusers_version="0.1.1", clip_sample=True, variance_type="fixed_large"),
    "ddpm-celebahq-256": ddpm(_diffusers_version="0.1.1", clip_sample=True, variance_type="fixed_small"),
    "ddpm-church-256, 0.0.4": LINEAR
    | {"_class_name": "DDPMScheduler", "_diffusers_version": "0.0.4", "clip_sample": True, "tensor_format": "pt"}
    | {"timestep_values": None, "trained_betas": None, "variance_type": "fixed_small"},
    "DDPM without a chain": {"_class_name": "DDPMScheduler", "_diffusers_version": "0.0.4", "num_train_timesteps": 1000},
    "ddpm-butterflies-128": ddpm(
        _diffusers_version="0.4.0.dev0", beta_schedule="squaredcos_cap_v2", clip_sample=True, variance_type="fixed_small"
    ),
    "ldm-celebahq-256": ddim(
        _diffusers_version="0.0.4", beta_end=0.0195, beta_schedule="scaled_linear", beta_start=0.0015, clip_sample=False,
        num_train_timesteps=1000, tensor_format="np", timestep_values=None,
    ),
    "ldm-text2im-large-256": ddim(**SD, _diffusers_version="0.0.4", clip_sample=False),
    "stable-diffusion-v1-1": pndm(_diffusers_version="0.2.2"),
    "stable-diffusion-v1-4": pndm(_diffusers_version="0.7.0.dev0", set_alpha_to_one=False, steps_offset=1, clip_sample=False),
    "stable-diffusion-v1-5": pndm(_diffusers_version="0.6.0", set_alpha_to_one=False, steps_offset=1, clip_sample=False),
    "stable-diffusion-inpainting": ddim(
        **SD, _diffusers_version="0.6.0.dev0", set_alpha_to_one=False, steps_offset=1, clip_sample=False, skip_prk_steps=True
    ),
    "stable-diffusion-2-base": pndm(
        _diffusers_version="0.8.0", clip_sample=False, prediction_type="epsilon", set_alpha_to_one=False, steps_offset=1
    ),
    "stable-diffusion-2-1": ddim(
        **SD, _diffusers_version="0.8.0", clip_sample=False, prediction_type="v_prediction", set_alpha_to_one=False,
        skip_prk_steps=True, steps_offset=1,
    ),
    "stable-diffusion-x4-upscaler": ddim(
        beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False,
        prediction_type="v_prediction", set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1,
    ),
    "stable-diffusion-xl-base-1.0": euler(_diffusers_version="0.19.0.dev0", trained_betas=None),
    "sdxl-turbo": euler(_class_name="EulerAncestralDiscreteScheduler", timestep_spacing="trailing"),
    "anything, old Euler": SD | {"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.8.0", "trained_betas": None},
    "LMS, 0.2": SD | {"_class_name": "LMSDiscreteScheduler", "_diffusers_version": "0.2.4", "trained_betas": None},
    "Heun without a chain": {"_class_name": "HeunDiscreteScheduler", "_diffusers_version": "0.10.0"},
    "zero terminal SNR": ddim(
        **SD, clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True, set_alpha_to_one=True,
        steps_offset=1, timestep_spacing="trailing",
    ),
    "IF-I-XL": ddpm(
        _diffusers_version="0.15.0.dev0", beta_schedule="squaredcos_cap_v2", clip_sample=True, clip_sample_range=1.0,
        dynamic_thresholding_ratio=0.95, prediction_type="epsilon", sample_max_value=1.5, thresholding=True,
        variance_type="learned_range",
    ),
    "IF-II-L": ddpm(
        beta_schedule="squaredcos_cap_v2", clip_sample=True, dynamic_thresholding_ratio=0.95, prediction_type="epsilon",
        sample_max_value=1.0, thresholding=True, variance_type="learned_range",
    ),
    "DiT-XL-2-256": ddim(
        **LINEAR, _diffusers_version="0.12.0.dev0", clip_sample=False, prediction_type="epsilon", set_alpha_to_one=True,
        steps_offset=0,
    ),
    "PixArt-XL-2": dpm_solver(
        **LINEAR, timestep_spacing="linspace", steps_offset=0, trained_betas=None, use_karras_sigmas=False, variance_type=None
    ),
    "kandinsky-2-1": ddim(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", num_train_timesteps=1000, clip_sample=False,
        clip_sample_range=1.0, prediction_type="epsilon", set_alpha_to_one=False, steps_offset=1, **THRESHOLD,
    ),
    "kandinsky-2-2-decoder": ddpm(
        beta_start=0.00085, beta_end=0.012, clip_sample=True, clip_sample_range=2.0, prediction_type="epsilon",
        variance_type="learned_range", **THRESHOLD,
    ),
    "kandinsky-2-1-prior": {"_class_name": "UnCLIPScheduler", "_diffusers_version": "0.17.0.dev0", "clip_sample": True}
    | {"clip_sample_range": 5.0, "num_train_timesteps": 1000, "prediction_type": "sample", "variance_type": "fixed_small_log"},
    "LCM_Dreamshaper_v7": SD
    | {"_class_name": "LCMScheduler", "clip_sample": False, "original_inference_steps": 50, "prediction_type": "epsilon"}
    | {"set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "leading", "trained_betas": None, **THRESHOLD},
    "UniPC": SD
    | {"_class_name": "UniPCMultistepScheduler", "disable_corrector": [], "predict_x0": True, "solver_p": None}
    | {"solver_order": 2, "solver_type": "bh2", "steps_offset": 1, "clip_sample": False, "trained_betas": None, **THRESHOLD},
    "DPM-Solver, single step": SD
    | {"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 2, "trained_betas": None, "variance_type": None},
    "predicts x, 0.3": ddpm(_diffusers_version="0.3.0", clip_sample=True, predict_epsilon=False),
}  # fmt: skip

NO_CHAINS = {
    "CogVideoX-2b": SD
    | {"_class_name": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    | {"clip_sample": False, "set_alpha_to_one": True, "snr_shift_scale": 3.0, "timestep_spacing": "linspace"},
    "CogVideoX without its shift": SD | {"_class_name": "CogVideoXDPMScheduler"},
    "stable-diffusion-3": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    "flow matching, converted": SD | {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "Sana": dpm_solver(**LINEAR, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
    "playground-v2.5": {"_class_name": "EDMDPMSolverMultistepScheduler", "num_train_timesteps": 1000, "sigma_data": 0.5},
    "stable-video-diffusion": euler(prediction_type="v_prediction", timestep_type="continuous", sigma_max=700.0),
    "ncsnpp-celebahq-256": {"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000, "sigma_max": 348.0},
    "Karras VE": {"_class_name": "KarrasVeScheduler", "sigma_max": 100, "sigma_min": 0.02},
    "consistency model": {"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 40, "sigma_max": 80.0},
    "wuerstchen": {"_class_name": "DDPMWuerstchenScheduler", "s": 0.008, "scaler": 1.0},
    "IPNDM": {"_class_name": "IPNDMScheduler", "num_train_timesteps": 1000, "trained_betas": None},
    "no class": {"num_train_timesteps": 1000},
}
