"""What several tests build: a tiny model, a batch, a whole training stack."""

import functools
import zlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elt_jax import mesh as mesh_lib
from elt_jax import optim, sharding, train_state
from elt_jax.config import sample_shape
from elt_jax.evals import c3d, i3d_network, inception_network
from elt_jax.models import build_model
from elt_jax.objectives import build_objective
from elt_jax.tokenizers.vqgan import token_grid
from elt_jax.train_step import build_train_step

ONE_DEVICE = {'data': 1, 'fsdp': 1, 'tensor': 1}


def damage(directory):
  """Cuts every data file of a step in half, as a full disk would."""
  cut = 0
  for file in directory.rglob('*'):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
      cut += 1
  assert cut


def make_inputs(config, batch=3):
  """(x, t, labels) of a model."""
  rng = np.random.default_rng(7)
  x = rng.standard_normal((batch, *sample_shape(config)), np.float32)
  t = np.linspace(0.1, 0.9, batch, dtype=np.float32)
  return x, t, np.arange(batch, dtype=np.int32) % config.data.num_classes


def abstract_params(config):
  """Shapes and dtypes of the unboxed parameters, nothing compiled."""
  model = build_model(config)
  init = functools.partial(model.init, jax.random.key(0))
  return nn.unbox(jax.eval_shape(init, *make_inputs(config)))


@functools.cache
def initial(model):
  """Unboxed parameters; models are values, and equal ones share them."""
  init = jax.jit(model.init)
  return nn.unbox(init(jax.random.key(0), *model.example_inputs()))


def init(config):
  """(model, unboxed parameters, inputs)."""
  model, inputs = build_model(config), make_inputs(config)
  # The arrays are shared, the dicts are new.
  params = jax.tree.map(lambda x: x, initial(model))
  return model, params, inputs


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


def objective_of(config):
  return build_objective(config, build_model(config))


def make_objective(config, size=8):
  """(objective, noisy parameters, batch)."""
  _, params, _ = init(config)
  return objective_of(config), noisy(params), make_batch(config, size)


@functools.cache
def _compiled_loss(objective):
  return jax.jit(objective.loss)


def loss_at(objective, params, batch, step, key=None):
  """(loss, metrics) at a step, compiled."""
  key = jax.random.key(11) if key is None else key
  return _compiled_loss(objective)(params, batch, key, jnp.int32(step))


class Stack:
  """Mesh, shardings, state maker and train step of a config."""

  def __init__(self, config, shape=None):
    shape = shape or ONE_DEVICE
    count = int(np.prod(list(shape.values())))
    self.mesh = mesh_lib.build_mesh(shape, jax.devices()[:count])
    self.model = build_model(config, self.mesh)
    self.optimizer = optim.build_optimizer(config)
    self.abstract, self.specs = train_state.state_specs(
      self.model, self.optimizer, self.mesh
    )
    self.shardings = sharding.to_shardings(self.specs, self.mesh)
    self.like = sharding.with_shardings(self.abstract, self.shardings)
    self.config = config

  def create(self):
    return train_state.create_state(
      self.config.train.seed, self.model, self.optimizer, self.shardings
    )

  def step(self):
    objective = build_objective(self.config, self.model)
    return build_train_step(
      self.config, objective, self.optimizer, self.mesh, self.shardings
    )


def masked_config(config):
  """`config` as a masked model over 4 x 4 tokens of 16 codes, 4 classes."""
  c = config.copy_and_resolve_references()
  c.model.family, c.data.image_size = 'masked', 16
  c.data.source = 'tokens:nowhere'
  c.tokenizer.update(
    {
      'filters': 8,
      'channel_multipliers': (1, 1, 2),
      'num_res_blocks': 1,
      'norm_groups': 4,
      'codebook_size': 16,
      'embedding_dim': 4,
    }
  )
  c.sample.method = 'confidence'
  return c


def make_tokens(config, size=8, seed=0):
  """Uniform codes, labels that take turns, and places in the batch."""
  rng = np.random.default_rng(seed)
  grid = token_grid(config)
  codes = config.tokenizer.codebook_size
  return {
    'tokens': rng.integers(0, codes, (size, *grid)).astype(np.int32),
    'label': np.arange(size, dtype=np.int32) % config.data.num_classes,
    'index': np.arange(size, dtype=np.int32),
  }


def init_masked(config):
  """(model, unboxed parameters, away from their initialisation)."""
  model = build_model(config)
  return model, noisy(initial(model), 0.3)


def seeded_weights(shapes):
  """Arrays of these (name, shape)s, seeded by their names."""
  found = {}
  for name, shape in shapes:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith('.bn.running_var') or name.endswith('.bn.weight'):
      value = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
      value = rng.normal(0, 0.1, shape)
    else:  # Outputs as large as inputs, after a ReLU.
      value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    found[name] = value.astype(np.float32)
  return found


def inception_weights():
  """Of FID's Inception."""
  return seeded_weights(inception_network.shapes())


def i3d_weights():
  """Of FVD's I3D."""
  return seeded_weights(i3d_network.shapes())


def c3d_weights():
  """Of the C3D of IS, and the mean of clips."""
  found = seeded_weights(c3d.shapes())
  found['conv1a/W'] /= 64  # Pixels are that large, and logits are not to be.
  rng = np.random.default_rng(0)
  mean = rng.uniform(80, 130, (3, 16, 128, 171)).astype(np.float32)
  return found | {'mean': mean}
