"""The autoencoder of Stable Diffusion against diffusers.

tests/goldens/sd_vae: made by `make goldens`, random weights.
"""

import functools
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from elt_jax import files
from elt_jax.tokenizers import sd_vae
from tests.commands import ROOT

GOLDEN = ROOT / 'tests' / 'goldens' / 'sd_vae'


@pytest.fixture
def outputs():
  return files.read_npz(GOLDEN / 'outputs.npz')


@pytest.fixture
def copy(tmp_path):
  """A copy of the golden directory, to be damaged."""
  return shutil.copytree(GOLDEN, tmp_path / 'vae')


def test_latents_are_those_of_diffusers(outputs):
  mean, std = sd_vae.encode(*sd_vae.load(GOLDEN), outputs['pixels'])
  assert mean.shape == (2, 8, 12, 4)
  np.testing.assert_allclose(mean, outputs['mean'], atol=1e-4)
  np.testing.assert_allclose(std, outputs['std'], rtol=1e-4, atol=1e-6)


def test_pixels_are_those_of_diffusers(outputs):
  decoded = sd_vae.decode(*sd_vae.load(GOLDEN), outputs['mean'])
  np.testing.assert_allclose(decoded, outputs['decoded'], atol=1e-4)


def test_files_of_the_first_releases_are_read(copy, outputs):
  path = copy / sd_vae.WEIGHTS
  old = {
    name.replace('to_q', 'query')
    .replace('to_k', 'key')
    .replace('to_v', 'value')
    .replace('to_out.0', 'proj_attn'): value
    for name, value in safetensors.numpy.load_file(path).items()
  }
  assert sum('proj_attn' in name for name in old) == 4
  safetensors.numpy.save_file(old, path)
  decoded = sd_vae.decode(*sd_vae.load(copy), outputs['mean'])
  np.testing.assert_allclose(decoded, outputs['decoded'], atol=1e-4)


def test_half_precision_is_read_as_float32(copy):
  path = copy / sd_vae.WEIGHTS
  tensors = safetensors.numpy.load_file(path)
  half = {name: x.astype(np.float16) for name, x in tensors.items()}
  safetensors.numpy.save_file(half, path)
  _, params = sd_vae.load(copy)
  bias = params['quant_conv']['bias']
  assert bias.dtype == np.float32
  np.testing.assert_array_equal(bias, half['quant_conv.bias'])


def test_no_device_may_round_what_it_multiplies(outputs):
  config, params = sd_vae.load(GOLDEN)
  for network, x in ((sd_vae.encode, 'pixels'), (sd_vae.decode, 'mean')):
    closed = functools.partial(network, config)
    program = str(jax.make_jaxpr(closed)(params, outputs[x]))
    products = program.count('conv_general_dilated[')
    products += program.count('dot_general[')
    assert products > 10
    assert program.count('Precision.HIGHEST') >= products


def change_config(**values):
  def change(directory):
    path = directory / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | values))

  return change


def change_weights(change):
  def of(directory):
    path = directory / sd_vae.WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)

  return of


@pytest.mark.parametrize(
  'damage,message',
  [
    (lambda d: (d / 'config.json').unlink(), 'There is no .*config.json'),
    (lambda d: (d / 'config.json').write_text('{'), 'is not JSON'),
    (lambda d: (d / 'config.json').write_text('{}'), "lacks \\['latent_chan"),
    (
      lambda d: (d / sd_vae.WEIGHTS).unlink(),
      'has no diffusion_pytorch_model.safetensors',
    ),
    (
      lambda d: (d / sd_vae.WEIGHTS).write_bytes(b'\x80\x04pickle'),
      'is not a .safetensors file',
    ),
    (
      lambda d: (d / sd_vae.WEIGHTS).write_bytes(
        (d / sd_vae.WEIGHTS).read_bytes()[:-9]
      ),
      'is not a .safetensors file',
    ),
    (
      change_weights(lambda t: t.pop('quant_conv.bias')),
      r'quant_conv.bias is missing, its config.json asks for \(8,\)',
    ),
    (
      change_weights(lambda t: t.update(more=np.zeros(3))),
      r'more is \(3,\), its config.json asks for nothing of that name',
    ),
    (
      change_weights(lambda t: t.update(more=np.zeros(3, ml_dtypes.bfloat16))),
      "has tensors of type 'BF16', which numpy does not have",
    ),
    (change_config(latent_channels=8), r'conv_in.weight is \(16, 4, 3, 3\)'),
    (change_config(_class_name='VQModel'), "this code reads 'AutoencoderKL'"),
    (change_config(act_fn='gelu'), "act_fn is 'gelu'; this code reads 'silu'"),
  ],
)
def test_what_cannot_be_read_is_named(copy, damage, message):
  damage(copy)
  with pytest.raises(ValueError, match=message):
    sd_vae.load(copy)
