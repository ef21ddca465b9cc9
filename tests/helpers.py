"""What several tests build: a tiny model, a batch, a whole training stack."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elt_jax import mesh as mesh_lib
from elt_jax import optim, sharding, train_state
from elt_jax.config import sample_shape
from elt_jax.models.elt import build_model
from elt_jax.objectives.diffusion import build_objective
from elt_jax.train_step import build_train_step

ONE_DEVICE = {'data': 1, 'fsdp': 1, 'tensor': 1}


def make_inputs(config, batch=3):
  """(x, t, labels) of a model."""
  x = jax.random.normal(jax.random.key(7), (batch, *sample_shape(config)))
  t = jnp.linspace(0.1, 0.9, batch)
  return x, t, jnp.arange(batch) % config.data.num_classes


def init(config):
  """(model, unboxed parameters, inputs)."""
  model, inputs = build_model(config), make_inputs(config)
  params = jax.jit(model.init)(jax.random.key(0), *inputs)
  return model, nn.unbox(params), inputs


def noisy(params, scale=0.05):
  """Parameters away from the zero initialisation of gates and head."""
  rng = np.random.default_rng(3)
  noise = lambda x: np.float32(scale) * rng.standard_normal(x.shape, np.float32)
  return jax.tree.map(lambda x: x + noise(x), params)


def apply(model, params, inputs, **loops):
  """`model.apply`, compiled: ints stay static, arrays are traced."""
  return jax.jit(lambda p, i: model.apply(p, *i, **loops))(params, inputs)


def make_batch(config, size=16, seed=0):
  """uint8 noise, labels that take turns, and places in the batch."""
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (size, *sample_shape(config)), np.uint8),
    'label': np.arange(size, dtype=np.int32) % config.data.num_classes,
    'index': np.arange(size, dtype=np.int32),
  }


def make_objective(config, size=8):
  """(objective, noisy parameters, batch)."""
  model, params, _ = init(config)
  objective = build_objective(config, model)
  return objective, noisy(params), make_batch(config, size)


def loss_at(objective, params, batch, step, key=None):
  """(loss, metrics) at a step, compiled."""
  key = jax.random.key(11) if key is None else key
  return jax.jit(objective.loss)(params, batch, key, jnp.int32(step))


class Stack:
  """Mesh, shardings, state maker and train step of a config."""

  def __init__(self, config, shape=None):
    shape = shape or ONE_DEVICE
    count = int(np.prod(list(shape.values())))
    self.mesh = mesh_lib.build_mesh(shape, jax.devices()[:count])
    self.model = build_model(config, self.mesh)
    self.optimizer = optim.build_optimizer(config)
    self.abstract, self.specs = train_state.state_specs(
      config, self.model, self.optimizer, self.mesh
    )
    self.shardings = sharding.to_shardings(self.specs, self.mesh)
    self.like = sharding.with_shardings(self.abstract, self.shardings)
    self.config = config

  def create(self):
    return train_state.create_state(
      self.config, self.model, self.optimizer, self.shardings
    )

  def step(self):
    objective = build_objective(self.config, self.model)
    return build_train_step(
      self.config, objective, self.optimizer, self.mesh, self.shardings
    )
