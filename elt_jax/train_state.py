"""What a training run carries from step to step, created already sharded.

A model here is anything with `example_inputs()` and `init(key, *inputs)`: a
looped transformer or a tokenizer.
"""

from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import optax

from elt_jax import sharding
from elt_jax.keys import random_stream


@struct.dataclass
class TrainState:
  """All the numbers of a run; randomness is folded from (seed, step).

  Attributes:
    step: int32 scalar, steps done.
    params: float32 parameters, a nested dict.
    opt_state: optax state.
    ema: exponential moving average of `params`: what is sampled.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any


def _init(model: Any, optimizer: optax.GradientTransformation):
  def init(key: jax.Array) -> TrainState:
    params = nn.unbox(model.init(key, *model.example_inputs()))
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
      ema=jax.tree.map(jnp.copy, params),
    )

  return init


def param_specs(model: Any, mesh: Mesh) -> tuple[Any, Any]:
  """(abstract parameters, their PartitionSpecs), nothing allocated."""
  init = lambda key: model.init(key, *model.example_inputs())
  boxed = jax.eval_shape(init, jax.random.key(0))
  return nn.unbox(boxed), sharding.param_specs(boxed, mesh)


def state_specs(
  model: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
  """(abstract state, PartitionSpecs of the state), nothing allocated."""
  abstract = jax.eval_shape(_init(model, optimizer), jax.random.key(0))
  params, specs = param_specs(model, mesh)
  opt_specs = sharding.like_params(abstract.opt_state, params, specs)
  return abstract, TrainState(P(), specs, opt_specs, specs)


def create_state(
  seed: int,
  model: Any,
  optimizer: optax.GradientTransformation,
  shardings: TrainState,
) -> TrainState:
  """The state at step 0; each device makes only its own shards."""
  init = jax.jit(_init(model, optimizer), out_shardings=shardings)
  return init(random_stream(seed, 'init'))
