"""The objective of an experiment config, by family."""

from typing import Any

from elt_jax.objectives import diffusion, masked, tokenizer


def build_objective(config: Any, model: Any) -> Any:
  """What `train_step` calls: `loss(params, batch, key, step)`."""
  family = {'diffusion': diffusion, 'masked': masked, 'tokenizer': tokenizer}
  return family[config.model.family].build_objective(config, model)
