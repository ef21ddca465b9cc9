"""What a training run carries from step to step, created already sharded."""

from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import optax

from elt_jax import sharding
from elt_jax.config import sample_shape
from elt_jax.models.elt import ELT


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


def random_stream(seed: int, use: str) -> jax.Array:
  """The key of one use of a seed: 'init', 'train' or 'sample'."""
  number = ('init', 'train', 'sample').index(use)
  return jax.random.fold_in(jax.random.key(seed), number)


def _example_inputs(config: Any) -> tuple[jax.Array, ...]:
  """Zero inputs of the model's shapes, for `init`."""
  shape = (1, *sample_shape(config))
  return jnp.zeros(shape), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)


def _init(config: Any, model: ELT, optimizer: optax.GradientTransformation):
  def init(key: jax.Array) -> TrainState:
    params = nn.unbox(model.init(key, *_example_inputs(config)))
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
      ema=jax.tree.map(jnp.copy, params),
    )

  return init


def param_specs(config: Any, model: ELT, mesh: Mesh) -> tuple[Any, Any]:
  """(abstract parameters, their PartitionSpecs), nothing allocated."""
  init = lambda key: model.init(key, *_example_inputs(config))
  boxed = jax.eval_shape(init, jax.random.key(0))
  return nn.unbox(boxed), sharding.param_specs(boxed, mesh)


def state_specs(
  config: Any, model: ELT, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
  """(abstract state, PartitionSpecs of the state), nothing allocated."""
  init = _init(config, model, optimizer)
  abstract = jax.eval_shape(init, jax.random.key(0))
  params, specs = param_specs(config, model, mesh)
  opt_specs = sharding.like_params(abstract.opt_state, params, specs)
  return abstract, TrainState(P(), specs, opt_specs, specs)


def create_state(
  config: Any,
  model: ELT,
  optimizer: optax.GradientTransformation,
  shardings: TrainState,
) -> TrainState:
  """The state at step 0; each device makes only its own shards."""
  init = jax.jit(_init(config, model, optimizer), out_shardings=shardings)
  return init(random_stream(config.train.seed, 'init'))
