"""The sampler of an experiment config, by family."""

from typing import Any

import numpy as np

from elt_jax.samplers import diffusion, masked

_FAMILIES = {'diffusion': diffusion, 'masked': masked}


def build_sampler(config: Any, model: Any) -> Any:
  """A callable (params, key, labels, loops, guidance, interval, index, ...).

  See `DiffusionSampler` and `MaskedSampler`; to be jitted by the caller.
  """
  return _FAMILIES[config.model.family].build_sampler(config, model)


def guided_steps(config: Any, scale: float) -> np.ndarray:
  """bool [K]: the sampling steps that run the unconditional pass too."""
  times, scales = _FAMILIES[config.model.family].guidance_scales(config, scale)
  low, high = np.float32(
    [config.sample.guidance_low, config.sample.guidance_high]
  )
  return (low <= times) & (times <= high) & (scales != 1)
