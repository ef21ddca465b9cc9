"""Logical axes, golden specs, and sharded steps against the one-device step."""

import functools
import json
import pathlib

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from elt_jax import mesh as mesh_lib
from elt_jax import sharding
from elt_jax.sharding import batch_sharding
from tests.conftest import tiny_config
from tests.helpers import ONE_DEVICE, Stack, make_batch, masked_config

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
MESHES = {
  'data': {'data': 8, 'fsdp': 1, 'tensor': 1},
  'fsdp': {'data': 1, 'fsdp': 8, 'tensor': 1},
  'tensor': {'data': 4, 'fsdp': 1, 'tensor': 2},
  'all': {'data': 2, 'fsdp': 2, 'tensor': 2},
}


def three_steps(config, shape):
  """(state, metrics) on the host after three steps on one batch."""
  config.model.update({'width': 32, 'num_heads': 4})
  stack = Stack(config, shape)
  state, step = stack.create(), stack.step()
  for _ in range(3):
    batch = jax.device_put(make_batch(config), batch_sharding(stack.mesh))
    state, metrics = step(state, batch)
  return jax.device_get((state, metrics))


@functools.cache
def one_device():
  return three_steps(tiny_config(), ONE_DEVICE)


def test_rules_resolve():
  assert sharding.logical_to_spec(('embed', 'mlp')) == P('fsdp', 'tensor')
  assert sharding.logical_to_spec(('batch', None)) == P(('data', 'fsdp'), None)
  assert sharding.logical_to_spec(('layers', None)) == P(None, None)


def test_unknown_logical_axis_raises():
  with pytest.raises(ValueError, match=r"Unknown logical axes \['embd'\]"):
    sharding.logical_to_spec(('embd', 'mlp'))


@pytest.mark.parametrize('names', [('embed', 'embed'), ('batch', 'embed')])
def test_two_dimensions_on_one_mesh_axis_raise(names):
  with pytest.raises(ValueError, match=r"mesh axes \['fsdp'\]"):
    sharding.logical_to_spec(names)


def test_dimension_that_does_not_divide_is_named(config):
  config.model.num_heads, config.model.width = 2, 16
  with pytest.raises(ValueError, match=r'layers/attention.*2 does not divide'):
    Stack(config, {'data': 2, 'fsdp': 1, 'tensor': 4})


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  'name',
  ['fsdp', *(pytest.param(name, marks=SLOW) for name in ('data', 'tensor'))],
)
def test_sharded_steps_equal_the_step_on_one_device(config, name):
  want, want_metrics = one_device()
  got, got_metrics = three_steps(config, MESHES[name])
  np.testing.assert_allclose(
    want_metrics['loss'], got_metrics['loss'], rtol=1e-5
  )
  compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
  jax.tree.map(compare, want.params, got.params)
  jax.tree.map(compare, want.ema, got.ema)


@pytest.mark.parametrize('name', ['dit', 'bert', 'vqgan'])
def test_specs_are_the_golden_ones(config, name):
  """Refresh by deleting the file and running this test once; read the diff."""
  golden = GOLDENS / f'{name}_specs.json'
  if name == 'bert':
    config = masked_config(config)
  if name == 'vqgan':
    config = masked_config(config)
    config.model.family = 'tokenizer'
    config.tokenizer.adversarial = 0.1
  stack = Stack(config, MESHES['all'])
  found = {}
  flat = jax.tree.leaves(stack.specs, is_leaf=lambda x: isinstance(x, P))
  paths = jax.tree_util.tree_flatten_with_path(stack.abstract)[0]
  for (path, _), spec in zip(paths, flat, strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    found[name] = ' '.join('-' if a is None else str(a) for a in spec)
  if not golden.exists():
    golden.write_text(json.dumps(found, indent=1, sort_keys=True) + '\n')
    pytest.fail(
      f'{golden} was missing and has been written; read and commit it.'
    )
  assert found == json.loads(golden.read_text())


def test_little_is_left_replicated_under_fsdp(config):
  config.model.width = 64
  stack = Stack(config, MESHES['fsdp'])
  share = sharding.replicated_share(stack.abstract, stack.shardings)
  assert 0 < share < 0.05
  replicated = Stack(config, MESHES['data'])
  assert sharding.replicated_share(stack.abstract, replicated.shardings) == 1
  state = stack.create()
  kernel = state.params['layers']['mlp']['in']['kernel']
  assert kernel.addressable_shards[0].data.size == kernel.size // 8
  moment = state.opt_state[1][0].mu['layers']['mlp']['in']['kernel']
  assert moment.sharding == kernel.sharding


@pytest.mark.parametrize(
  'shape,message',
  [
    ({'data': 3, 'fsdp': 1, 'tensor': 1}, 'does not fit 8 devices'),
    ({'data': -1, 'fsdp': 3, 'tensor': 1}, 'does not fit 8 devices'),
    ({'data': -1, 'fsdp': -1, 'tensor': 1}, 'one may be -1'),
    ({'data': 0, 'fsdp': 1, 'tensor': 1}, 'must be positive'),
  ],
)
def test_meshes_that_do_not_fit_are_refused(shape, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.build_mesh(shape)


def test_minus_one_takes_the_rest():
  mesh = mesh_lib.build_mesh({'data': -1, 'fsdp': 2, 'tensor': 2})
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}


def test_batch_that_does_not_divide_over_devices_is_refused(config, mesh):
  config.train.batch_size = 12
  with pytest.raises(ValueError, match='= 12 must be a multiple of .* = 8'):
    mesh_lib.check_config(config, mesh)
  config.train.batch_size, config.train.accumulate_steps = 16, 4
  with pytest.raises(ValueError, match='= 4 must be'):
    mesh_lib.check_config(config, mesh)


def test_a_tokenizer_has_nothing_that_tensor_splits(config):
  config.model.family = 'tokenizer'
  with pytest.raises(ValueError, match='mesh.tensor = 2 splits heads'):
    mesh_lib.check_config(config, mesh_lib.build_mesh(MESHES['tensor']))
