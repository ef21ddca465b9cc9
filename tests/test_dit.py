"""The public format of DiT and SiT, against outputs of diffusers' network.

tests/goldens/dit/ holds a state dict by their names, of a tiny size, and what
diffusers makes of it (`make goldens`); tests/parity compares larger ones.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax import config as config_lib
from elt_jax import evaluate, sample, train
from elt_jax.interop import dit, dit_format
from elt_jax.mesh import build_mesh
from elt_jax.models import build_model, layers
from elt_jax.samplers.diffusion import (
  DiffusionSampler,
  SamplerState,
  build_sampler,
)
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.plan import build_plan
from elt_jax.tokenizers import autoencoder
from elt_jax.torch_files import read_state_dict
from tests.commands import ROOT, call, picture_size
from tests.helpers import ONE_DEVICE

GOLDENS = ROOT / 'tests' / 'goldens'
WEIGHTS = GOLDENS / 'dit' / 'weights.pt'
VAE = GOLDENS / 'sd_vae'


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDENS / 'dit' / 'outputs.npz') as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def tensors():
  return read_state_dict(WEIGHTS)


def converted(tensors, kind):
  return dit_format.convert('a.pt', tensors, kind, num_heads=2)


@pytest.mark.parametrize('kind', ['dit', 'sit'])
def test_the_network_is_theirs(golden, tensors, kind):
  config, params = converted(tensors, kind)
  model = build_model(config)
  time, want, scale, sign = {
    'dit': ('steps', 'eps', 1000, 1),
    # There time runs from noise to data, and the velocity with it.
    'sit': ('times', 'velocity', 1, -1),
  }[kind]
  t = golden[time].astype(np.float32) / scale
  got, _ = jax.jit(lambda *x: model.apply(*x, num_loops=1))(
    params, golden['z'], t, golden['labels']
  )
  np.testing.assert_allclose(got, sign * golden[want], atol=1e-4)


class Given(DiffusionSampler):
  """Starts from given noise."""

  def start(self, keys, noise):
    return SamplerState(noise, noise)


@pytest.mark.parametrize('kind,want', [('dit', 'ddim'), ('sit', 'euler')])
def test_samples_are_those_of_their_samplers(golden, tensors, kind, want):
  """Guided, in ten steps, from the same noise."""
  config, params = converted(tensors, kind)
  s = config.sample
  s.method, s.num_steps, s.guidance = 'ddim', 10, 1.5
  sampler = Given(**vars(build_sampler(config, build_model(config))))
  noise, labels = golden['z'], jnp.asarray(golden['labels'] % 4, jnp.int32)
  got, _ = jax.jit(sampler.__call__)(
    params, jax.random.key(0), labels, build_plan(config, 1), noise=noise
  )
  size = np.abs(golden[want]).max()
  np.testing.assert_allclose(got, golden[want], atol=5e-5 * size)


@pytest.mark.parametrize(
  'width,heads,patch', [(384, 6, 8), (768, 12, 4), (1024, 16, 2), (1152, 16, 2)]
)
def test_sizes_come_from_the_shapes(tensors, width, heads, patch):
  """Of one layer, of the width and patch of S/8, B/4, L/2 and XL/2."""
  grid, zeros = 32 // patch, lambda *shape: np.zeros(shape, np.float32)
  resized = {'pos_embed': layers.position_table((1, grid, grid), width)[None]}
  for name, value in tensors.items():
    if name == 'pos_embed' or name.startswith('blocks.1.'):
      continue
    # Its width is 16, its waves are 256, its patch is 2.
    shape = [n if n == 256 or n < 16 else n // 16 * width for n in value.shape]
    if name.startswith('final_layer.linear'):
      shape[0] = 8 * patch**2
    if value.ndim == 4:
      shape[2:] = patch, patch
    resized[name] = zeros(*shape)
  config, _ = dit_format.convert('a.pt', resized, 'dit')
  m, d = config.model, config.data
  assert (m.width, m.num_heads, m.patch_size) == (width, heads, patch)
  assert (m.num_layers, m.max_loops, m.mlp_ratio) == (1, 1, 4.0)
  assert (d.image_size, d.num_channels, d.num_classes) == (32, 4, 4)


def test_a_head_without_variances_is_read_too(tensors):
  half = dict(tensors)
  for name in ('final_layer.linear.weight', 'final_layer.linear.bias'):
    x = half[name].reshape(4, 8, *half[name].shape[1:])[:, :4]
    half[name] = x.reshape(16, *x.shape[2:])
  _, params = converted(half, 'dit')
  jax.tree.map(
    np.testing.assert_array_equal, params, converted(tensors, 'dit')[1]
  )


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """As the command makes it."""
  path = tmp_path_factory.mktemp('dit')
  weights = shutil.copy(WEIGHTS, path / 'SiT-XL-2-256.pt')
  args = [f'--weights={weights}', f'--sd_vae={VAE}', '--num_heads=2']
  call(dit, *args, f'--workdir={path}/run')
  return path / 'run'


def test_sample_takes_the_workdir(workdir, tensors, tmp_path):
  assert config_lib.load(workdir).objective.schedule == 'interpolant'
  kept = autoencoder.load(workdir / 'tokenizer')
  assert kept.shape == (8, 8, 4) and kept.config.data.num_classes == 4
  draw, params, step = sample.load(str(workdir), 2, num_steps=3)
  assert step == 0
  got = draw(params, [0, 3], 1, seed=0)
  assert got.shape == (2, 16, 16, 3) and np.isfinite(got).all()
  # As without the files between.
  config, params = converted(tensors, 'sit')
  config.sample.num_steps = 3
  mesh = build_mesh(ONE_DEVICE, jax.devices()[:1])
  alone = Draw(config, build_model(config), mesh, 2, draw.tokenizer)
  np.testing.assert_allclose(alone(params, [0, 3], 1, seed=0), got, atol=1e-4)
  out = tmp_path / 'grid.png'
  args = [f'--workdir={workdir}', '--num=4', '--steps=2', '--scale=1']
  call(sample, *args, f'--out={out}')
  assert picture_size(out) == (2 * 18 + 2, 2 * 18 + 2)


def test_what_needs_more_than_weights_is_refused(workdir):
  before = sorted(workdir.rglob('*'))
  with pytest.raises(ValueError, match='not here to .* give --metrics=fid'):
    call(evaluate, f'--workdir={workdir}', '--num=2', '--loops=1', '--steps=1')
  config = config_lib.load(workdir)
  with pytest.raises(ValueError, match='latent cache'):
    train.train(config, str(workdir))
  config.data.source = 'latents:data/x'
  with pytest.raises(ValueError, match='belongs to another config'):
    config_lib.check_workdir(config, workdir)
  assert sorted(workdir.rglob('*')) == before


def change(tensors, **changes):
  """Arrays with some replaced, by name with / for a dot; None drops one."""
  found = dict(tensors)
  for name, value in changes.items():
    name = name.replace('/', '.')
    if value is None:
      found.pop(name)
    else:
      found[name] = value
  return found


@pytest.mark.parametrize(
  'changes,message',
  [
    (
      {'blocks/1/attn/qkv/bias': None},
      r'a.pt: blocks.1.attn.qkv.bias is missing, a dit of its size has \(48,',
    ),
    (
      {'blocks/1/mlp/fc1/weight': np.ones((64, 15), np.float32)},
      r'fc1.weight is \(64, 15\), a dit of its size has \(64, 16\)',
    ),
    (
      {'blocks/0/attn/q_norm/weight': np.ones(8, np.float32)},
      r'q_norm.weight is \(8,\), .* nothing of that name',
    ),
    (
      {'blocks/7/attn/qkv/bias': np.ones(48, np.float32)},
      r'blocks.2.adaLN_modulation.1.bias is missing',
    ),
    ({'x_embedder/proj/weight': None}, 'no state dict of DiT or SiT: x_emb'),
    ({'x_embedder/proj/weight': np.ones((16, 4))}, r'is \(16, 4\), and should'),
    ({'pos_embed': np.ones((1, 16, 16), np.float32)}, 'not the sines and cos'),
    (
      {'final_layer/linear/bias': np.ones(48, np.float32)},
      r'linear.bias is \(48,\), a dit of its size has \(16,\)',
    ),
    (
      {'blocks/0/attn/proj/bias': np.ones(16, np.int32)},
      'proj.bias is no array of floats',
    ),
  ],
)
def test_arrays_that_do_not_fit_are_named(tensors, changes, message):
  with pytest.raises(ValueError, match=message):
    converted(change(tensors, **changes), 'dit')


def test_an_autoencoder_of_other_latents_is_refused(tensors):
  config, _ = converted(tensors, 'dit')
  config.data.num_channels = 3
  with pytest.raises(ValueError, match='of 4 channels, the model takes 3'):
    dit.load_autoencoder(VAE, config)


def test_heads_of_unpublished_widths_must_be_given(tensors):
  with pytest.raises(ValueError, match='width 16, .* give --num_heads'):
    dit_format.convert('a.pt', tensors, 'dit')
  with pytest.raises(ValueError, match='16 must be a multiple of .* = 3'):
    dit_format.convert('a.pt', tensors, 'dit', num_heads=3)


def test_files_and_arguments_that_will_not_do_are_refused(tmp_path, workdir):
  weights, out = tmp_path / 'DiT.pt', tmp_path / 'run'
  given = {'weights': weights, 'sd_vae': VAE, 'workdir': out, 'num_heads': 2}

  def refused(message, **changes):
    args = [f'--{k}={v}' for k, v in (given | changes).items() if v != '']
    with pytest.raises(ValueError, match=message):
      call(dit, *args)
    assert not out.exists()

  refused('There is no file')
  weights.write_bytes(WEIGHTS.read_bytes()[:-1000])
  refused('DiT.pt is not a readable PyTorch file')
  shutil.copy(GOLDENS / 'torch' / 'zip.pth', weights)
  refused('DiT.pt is no state dict of DiT or SiT')
  shutil.copy(VAE / 'diffusion_pytorch_model.safetensors', weights)
  refused('DiT.pt is not a readable PyTorch file')
  shutil.copy(WEIGHTS, weights)
  refused('There is no .*config.json', sd_vae=GOLDENS / 'dit')
  refused('may be of DiT or of SiT', weights=WEIGHTS)
  refused('is not empty', workdir=workdir)
  refused('--sd_vae is required', sd_vae='')
