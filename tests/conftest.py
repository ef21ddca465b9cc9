"""Eight fake devices and cheap compilation, set before JAX starts."""

import atexit
from importlib import metadata
import os
import shutil
import tempfile

# Compiling is most of the time of these tests: no optimisation of programs
# that run once, and none compiled twice, here, in other workers of pytest or
# in the processes that tests start.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _CACHE = tempfile.mkdtemp(prefix='elt_jax_tests_')
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
_FLAGS = [
  os.environ.get('XLA_FLAGS', ''),
  '--xla_backend_optimization_level=0',
  # The workers of pytest keep the cores busy already.
  '--xla_cpu_parallel_codegen_split_count=1',
]
# The emitters of this release take most of the time of a compilation; later
# ones know no such flag, and end at once on a flag they do not know.
if metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join(_FLAGS)

import jax
import ml_collections
import pytest

from configs.base import get_base
from elt_jax.mesh import build_mesh

pytest_plugins = ['fake_gcloud']

jax.config.update('jax_num_cpu_devices', 8)


def tiny_config() -> ml_collections.ConfigDict:
  """A model that compiles in seconds, on synthetic 8 x 8 images."""
  c = get_base()
  m, d = c.model, c.data
  m.width, m.num_layers, m.max_loops, m.num_heads = 16, 1, 3, 2
  m.patch_size = 4
  d.source, d.image_size, d.num_classes = 'synthetic', 8, 4
  c.objective.logsnr_min, c.objective.logsnr_max = -8.0, 8.0
  c.optim.learning_rate = 1e-3
  c.train.num_steps, c.train.batch_size = 20, 16
  c.train.log_every_steps = 5
  c.checkpoint.every_steps = 5
  c.sample.num_steps, c.sample.batch_size = 4, 8
  return c


@pytest.fixture
def config() -> ml_collections.ConfigDict:
  return tiny_config()


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
  """All eight devices on the `data` axis."""
  return build_mesh({'data': 8, 'fsdp': 1, 'tensor': 1})
