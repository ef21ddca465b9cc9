"""The sampler of an experiment config, by family."""

from typing import Any

from elt_jax.samplers import diffusion, masked
from elt_jax.samplers.sampler import Sampler

_FAMILIES = {'diffusion': diffusion, 'masked': masked}


def build_sampler(config: Any, model: Any) -> Sampler:
  """A callable (params, key, labels, plan, ...), to be jitted by the caller."""
  return _FAMILIES[config.model.family].build_sampler(config, model)
