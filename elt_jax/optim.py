"""AdamW with warm-up, a named schedule, kernel-only decay and clipping."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def learning_rate(config: Any) -> optax.Schedule:
  """step -> learning rate: linear warm-up from 0, then the named schedule.

  'cosine' and 'linear' reach 0 at train.num_steps; 'rsqrt' falls as
  sqrt(warmup / step).
  """
  o, num_steps = config.optim, config.train.num_steps
  peak, warmup = o.learning_rate, o.warmup_steps
  rest = max(num_steps - warmup, 1)
  after = {
    'constant': optax.constant_schedule(peak),
    'cosine': optax.cosine_decay_schedule(peak, rest),
    'linear': optax.linear_schedule(peak, 0.0, rest),
    # Joined schedules are evaluated before their start too.
    'rsqrt': lambda step: (
      peak * (1 + jnp.maximum(step, 0) / max(warmup, 1)) ** -0.5
    ),
  }[o.schedule]
  if not warmup:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(0.0, peak, warmup), after], [warmup]
  )


def decay_mask(params: Any) -> Any:
  """True for kernels: biases, norms and embedding tables do not decay."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def build_optimizer(config: Any) -> optax.GradientTransformation:
  """The gradient transformation of an experiment config.

  A tokenizer's critic has an optimizer of its own: the same but for its
  learning rate, and clipped by its own norm.
  """
  schedule = learning_rate(config)
  if config.model.family != 'tokenizer':
    return _adamw(config, schedule)
  ratio = config.tokenizer.discriminator_learning_rate
  scaled = lambda step: ratio * schedule(step)
  part = lambda name: 'critic' if name == 'discriminator' else 'generator'
  return optax.partition(
    {
      'generator': _adamw(config, schedule),
      'critic': _adamw(config, scaled),
    },
    lambda params: {name: part(name) for name in params},
  )


def _adamw(
  config: Any, schedule: optax.Schedule
) -> optax.GradientTransformation:
  o = config.optim
  clip = [optax.clip_by_global_norm(o.clip_norm)] if o.clip_norm else []
  return optax.chain(
    *clip,
    optax.adamw(
      schedule,
      b1=o.b1,
      b2=o.b2,
      eps=o.eps,
      weight_decay=o.weight_decay,
      mask=decay_mask,
    ),
  )
