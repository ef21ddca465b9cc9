"""One optimizer step: gradients of the objective, update, moving average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import optax

from elt_jax import optim, sharding
from elt_jax.keys import random_stream
from elt_jax.train_state import TrainState

Batch = dict[str, jax.Array]
TrainStep = Callable[
  [TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]
]


def build_train_step(
  config: Any,
  objective: Any,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  shardings: TrainState,
) -> TrainStep:
  """The jitted step (state, batch) -> (state, metrics); donates the state.

  `batch` is one of `data.pipeline`: 'image' or 'tokens', 'label' and 'index'.
  An objective may have `after_update(params, batch, key, step) -> params`, for
  changes that no gradient makes.

  Metrics are float32 scalars: 'loss', the terms of the objective,
  'grad_norm' (before clipping), 'param_norm' and 'learning_rate'.
  """
  schedule = optim.learning_rate(config)
  accumulate = config.train.accumulate_steps
  seed = config.train.seed

  def step_fn(state: TrainState, batch: Batch):
    key = random_stream(seed, 'train')

    def gradients(batch: Batch):
      (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, batch
      )
      return grads, metrics

    def loss_fn(params, batch):
      loss, metrics = objective.loss(params, batch, key, state.step)
      return loss, metrics | {'loss': loss}

    if accumulate == 1:
      grads, metrics = gradients(batch)
    else:
      grads, metrics = _mean_over_parts(gradients, batch, accumulate, mesh)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if after_update := getattr(objective, 'after_update', None):
      key = random_stream(seed, 'update')
      params = after_update(params, batch, key, state.step)
    decay = ema_decay(state.step, config.optim.ema_decay)
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    metrics |= {
      'grad_norm': optax.tree.norm(grads),
      'param_norm': optax.tree.norm(params),
      'learning_rate': schedule(state.step),
    }
    metrics = {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}
    return TrainState(state.step + 1, params, opt_state, ema), metrics

  return jax.jit(
    step_fn,
    in_shardings=(shardings, sharding.batch_sharding(mesh)),
    out_shardings=(shardings, NamedSharding(mesh, P())),
    donate_argnums=0,
  )


def build_telemetry(
  config: Any, objective: Any, mesh: Mesh, shardings: TrainState
) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:
  """Jitted (state, batch) -> what each loop does, [2 L_max] each.

  See `objectives.ilsd.loop_telemetry`. Of a batch that is trained in parts,
  one part is looked at.
  """
  seed, parts = config.train.seed, config.train.accumulate_steps

  def telemetry(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    batch = jax.tree.map(lambda x: x[::parts], batch)
    key = random_stream(seed, 'train')
    return objective.telemetry(state.params, batch, key, state.step)

  return jax.jit(
    telemetry,
    in_shardings=(shardings, sharding.batch_sharding(mesh)),
    out_shardings=NamedSharding(mesh, P()),
  )


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
  """min(decay, (1 + step) / (10 + step)): short memory at the start."""
  return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def _mean_over_parts(
  gradients: Callable[[Batch], Any], batch: Batch, parts: int, mesh: Mesh
) -> Any:
  """Mean of `gradients` over equal parts of the batch, one at a time."""

  def split(x):
    # Strided, so that each part keeps the batch's spread over the devices.
    x = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
    return sharding.constrain(x, (None, 'batch'), mesh)

  batches = jax.tree.map(split, batch)
  shapes = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], batches))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)

  def add(total, part):
    return jax.tree.map(jnp.add, total, gradients(part)), None

  total, _ = jax.lax.scan(add, zeros, batches)
  return jax.tree.map(lambda x: x / parts, total)
