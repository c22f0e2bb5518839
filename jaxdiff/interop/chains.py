"""Noise schedules as diffusers writes them in scheduler_config.json, and back."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import process
from jaxdiff.io.errors import DataError, first_line

PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}
KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
CONSISTENCY = "CMStochasticIterativeScheduler"
LATENT_CONSISTENCY = ("LCMScheduler", "TCDScheduler")  # take some of fifty steps, whatever timestep_spacing says
CHAINS = ("DDPM", "DDIM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "UniPCMultistep")
CHAINS += ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "LCM", "KDPM2Discrete", "TCD")


class Chain(NamedTuple):
    """A published noise schedule: the fields of a run's betas, what its networks predict, and how it is sampled.

    `consistency` is the least sigma of a consistency model's schedule, whose networks are told log sigma; else 0. `straight` says
    that it is no chain but rectified flow, whose networks are told its time from noise to data.
    """

    betas: Mapping[str, Any]
    prediction: str = "noise"
    spacing: str = "leading"
    steps_offset: int = 0
    clip: bool = False
    consistency: float = 0.0
    straight: bool = False

    @property
    def told(self) -> dict[str, Any]:
        """What its networks are told, by the names of options: 250 log sigma in consistency models, else the time (step)."""
        if self.straight:
            return {"told": "data_time"}
        return {"told": "log_sigma", "told_scale": 250.0} if self.consistency else {"told": "step"}

    def values(self) -> np.ndarray:
        """The betas themselves."""
        return betas(**self.betas)


def betas(
    kind: str = "linear",
    first: float = 0.0001,
    last: float = 0.02,
    num: int = 1000,
    listed: Sequence[float] = (),
    zero_terminal_snr: bool = False,
) -> np.ndarray:
    """The betas `[num]` of a chain as a run's config names it (see `app.config.Betas`)."""
    rising = {"linear": process.linear_betas, "scaled_linear": process.scaled_linear_betas}
    if kind in rising:
        plain = rising[kind](first, last, num)
    else:
        plain = process.cosine_betas(num) if kind == "cosine" else np.asarray(listed, np.float64)
    return process.zero_terminal_snr(plain) if zero_terminal_snr else plain


DDPM = Chain({"kind": "linear", "first": 0.0001, "last": 0.02, "num": 1000}, clip=True)
STABLE_DIFFUSION = Chain({"kind": "scaled_linear", "first": 0.00085, "last": 0.012, "num": 1000}, steps_offset=1)
RECTIFIED_FLOW = Chain({"kind": "linear"}, "velocity", "time", straight=True)
CONSISTENCY_MODELS = Chain({"kind": "linear"}, "edm", "karras", consistency=0.002, clip=True)


def chain(config: Mapping[str, Any], where: str) -> Chain:
    """The noise schedule of a scheduler_config.json.

    Raises:
        DataError: it is of a kind that has no betas, or none that jaxdiff knows.
    """
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise DataError(f"{where} does not say _class_name; copy or download it again")
    try:
        found = _chain(config, name, where)
        process.from_betas(found.values())
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} holds no noise schedule ({first_line(error)}); copy or download it again") from error
    return found


def _chain(config: Mapping[str, Any], name: str, where: str) -> Chain:
    if name == CONSISTENCY:
        published = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
        for setting, value in published.items():
            if config.get(setting, value) != value:
                raise DataError(
                    f"{where}: {setting} {reprlib.repr(config[setting])} is not {value}, that of the published consistency models"
                )
        return CONSISTENCY_MODELS._replace(clip=config.get("clip_denoised", True))
    if name.removesuffix("Scheduler") not in CHAINS:
        raise DataError(f"{where} is of {name}, which has no betas that jaxdiff knows; write one of {', '.join(CHAINS)}")
    kind, listed = config.get("beta_schedule", "linear"), config.get("trained_betas")
    count, offset = config.get("num_train_timesteps", 1000), config.get("steps_offset", 0)
    if type(count) is not int or type(offset) is not int or not 0 <= offset < count <= 1_000_000:
        raise DataError(f"{where}: num_train_timesteps and steps_offset must be whole numbers, the latter less")
    if kind not in KINDS and listed is None:
        raise DataError(f"{where}: beta_schedule {reprlib.repr(kind)} must be one of {', '.join(KINDS)}, or trained_betas")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise DataError(f"{where}: prediction_type {reprlib.repr(prediction)} must be one of {', '.join(PREDICTIONS)}")
    betas: dict[str, Any] = {"kind": KINDS.get(kind, "listed"), "num": count}
    betas |= {"first": config.get("beta_start", 0.0001), "last": config.get("beta_end", 0.02)}
    if listed is not None:
        betas = {"kind": "listed", "listed": tuple(map(float, listed))}
    if config.get("rescale_betas_zero_snr"):
        betas["zero_terminal_snr"] = True
    spacing = "lcm" if name in LATENT_CONSISTENCY else config.get("timestep_spacing", SPACING.get(name, "leading"))
    if spacing not in (*SPACINGS, "lcm"):
        raise DataError(f"{where}: timestep_spacing {reprlib.repr(spacing)} must be one of {', '.join(SPACINGS)}")
    clip = bool(config.get("clip_sample", name in ("DDPMScheduler", "DDIMScheduler")))
    return Chain(betas, PREDICTIONS[prediction], spacing, offset if spacing == "leading" else 0, clip)


SPACINGS = ("leading", "linspace", "trailing")  # that diffusers knows by these names
SPACING = {"EulerDiscreteScheduler": "linspace", "EulerAncestralDiscreteScheduler": "linspace", "LMSDiscreteScheduler": "linspace"}
SPACING |= {"DPMSolverMultistepScheduler": "linspace", "UniPCMultistepScheduler": "linspace", "HeunDiscreteScheduler": "linspace"}


def config_of(chain: Chain) -> dict[str, Any]:
    """The scheduler_config.json of a schedule: of DDIM, or of consistency models."""
    if chain.consistency:
        sigmas = {"sigma_min": chain.consistency, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
        return {"_class_name": CONSISTENCY, "num_train_timesteps": 40, "clip_denoised": chain.clip, **sigmas}
    b, kinds = chain.betas, {ours: theirs for theirs, ours in KINDS.items()}
    config: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.30.0",
        "clip_sample": chain.clip,
        "num_train_timesteps": len(chain.values()),
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[chain.prediction],
        "rescale_betas_zero_snr": bool(b.get("zero_terminal_snr")),
        "set_alpha_to_one": True,
        "steps_offset": chain.steps_offset,
        "timestep_spacing": chain.spacing if chain.spacing in SPACINGS else "trailing",
    }
    if b["kind"] == "listed":
        return config | {"trained_betas": list(b["listed"]), "beta_schedule": "linear"}
    return config | {"beta_schedule": kinds[b["kind"]], "beta_start": b["first"], "beta_end": b["last"], "trained_betas": None}
