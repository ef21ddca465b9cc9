"""From images to latents to samples, with the autoencoder of the goldens."""

import json
import shutil
import struct

import jax
import numpy as np
import pytest

from configs import imagenet256_diffusion
from elt_jax import evaluate, files, sample, tokenize
from elt_jax.data import latent_cache, shards, sources
from elt_jax.models import build_model
from elt_jax.objectives import build_objective
from elt_jax.tokenizers import autoencoder, sd_vae
from elt_jax.validation import validate
from tests.commands import ROOT, call, picture_size, trained

GOLDEN = ROOT / 'tests' / 'goldens' / 'sd_vae'
SMALL = {
  'model.width': 16,
  'model.num_layers': 1,
  'model.max_loops': 2,
  'model.num_heads': 2,
  'model.dtype': 'float32',
  'data.image_size': 8,
  'data.num_classes': 4,
  'train.num_steps': 2,
  'train.batch_size': 8,
  'train.sample_every_steps': 2,
  'sample.num_steps': 2,
  'sample.method': 'ddim',
}


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """Latents of 24 + 8 images of 16 x 16, beside the images."""
  root = tmp_path_factory.mktemp('latents')
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (32, 16, 16, 3), np.uint8)
  labels = np.arange(32) % 4
  arrays = {'image': images[:24], 'label': labels[:24]}
  arrays |= {'test_image': images[24:], 'test_label': labels[24:]}
  np.savez(root / 'images.npz', **arrays)
  args = [f'--sd_vae={GOLDEN}', f'--source=npz:{root}/images.npz']
  args += ['--image_size=16', '--num_classes=4', '--examples_per_shard=10']
  call(tokenize, *args, f'--out={root}/cache')
  return root / 'cache'


@pytest.fixture(scope='module')
def workdir(cache, tmp_path_factory):
  """A model trained on them."""
  path = tmp_path_factory.mktemp('run')
  trained(
    imagenet256_diffusion, SMALL | {'data.source': f'latents:{cache}'}, path
  )
  return path


def config_of(cache, **changes):
  config = imagenet256_diffusion.get_config()
  config.update_from_flattened_dict(
    SMALL | {'data.source': f'latents:{cache}'} | changes
  )
  return config


def test_the_cache_holds_what_the_encoder_gives(cache):
  images = files.read_npz(cache.parent / 'images.npz')
  for split, prefix in (('train', ''), ('test', 'test_')):
    source = sources.load_source(config_of(cache), split)
    pixels = images[f'{prefix}image'] / np.float32(127.5) - 1
    moments = sd_vae.encode(*sd_vae.load(GOLDEN), pixels)
    assert len(source) == len(pixels)
    for i, (mean, std) in enumerate(zip(*moments)):
      got = source[i]
      assert got['label'] == images[f'{prefix}label'][i]
      assert got['image'].dtype == np.float16
      np.testing.assert_allclose(
        got['image'], 0.18215 * mean, rtol=1e-3, atol=1e-4
      )
      np.testing.assert_allclose(
        got['image_std'], 0.18215 * std, rtol=1e-3, atol=1e-6
      )
  assert len(list(cache.glob('train-*'))) == 3


def test_the_layout_of_a_record_is_that_of_its_format(tmp_path):
  """Another one would misread the caches there are."""
  values = np.array([[[[0.5, -2]]], [[[1, 3]]]], np.float16)
  path = tmp_path / 'train-00000.array_record'
  latent_cache.write_shard(path, np.array([7]), values[:1], values[1:])
  record = shards.Records([path], 1)[0]
  assert latent_cache.FORMAT == 1
  assert record == b'\x07\0\0\0' + struct.pack('<4e', 0.5, -2, 1, 3)


def test_each_step_sees_another_sample_of_the_gaussian(cache):
  """At the end of the schedule that leaves data as they are."""
  flat = {'objective.logsnr_min': 29.0, 'objective.logsnr_max': 30.0}
  config = config_of(cache, **flat)
  objective = build_objective(config, build_model(config))
  n = 512
  index = np.arange(n, dtype=np.int32)
  batch = {'label': index % 4, 'index': index}
  batch['image'] = np.full((n, 8, 8, 4), 0.5, np.float16)
  batch['image_std'] = np.full((n, 8, 8, 4), 0.25, np.float16)
  of_step = jax.jit(
    lambda step: objective.problem(batch, jax.random.key(0), step).inputs
  )
  (first, t, labels), (second, *_) = jax.device_get(
    [of_step(step) for step in (0, 1)]
  )
  np.testing.assert_allclose(first.mean(), 0.5, atol=0.003)
  np.testing.assert_allclose(first.std(), 0.25, atol=0.003)
  # Independent over steps, examples and places.
  centred = (first - 0.5) / 0.25
  assert abs((centred * (second - 0.5) / 0.25).mean()) < 0.02
  assert abs((centred[1:] * centred[:-1]).mean()) < 0.02
  assert abs((centred[:, 1:] * centred[:, :-1]).mean()) < 0.02
  # And of the time and the dropped labels, each value by itself.
  values = centred.reshape(n, -1)
  for other in (t, labels == 4):
    other = (other - other.mean()) / other.std()
    assert np.abs(other @ values / n).max() < 0.25


def test_samples_are_decoded_by_what_the_run_keeps(workdir, tmp_path):
  draw, params, step = sample.load(str(workdir), 3)
  assert step == 2
  images = draw(params, [0, 1, 2], 1, seed=0)
  assert images.shape == (3, 16, 16, 3)
  draw.tokenizer = None
  latents = draw(params, [0, 1, 2], 1, seed=0)
  want = sd_vae.decode(*sd_vae.load(GOLDEN), latents / 0.18215)
  np.testing.assert_allclose(images, np.clip(want, -1, 1), atol=1e-4)
  # Ten samples of each loop count, decoded.
  size = picture_size(workdir / 'samples' / '00000002.png')
  assert size == (2 * (10 * 18 + 2), 2 * (2 * 18 + 2))
  out = tmp_path / 'grid.png'
  args = [f'--workdir={workdir}', f'--out={out}', '--num=4', '--scale=1']
  call(sample, *args, '--loops=1,2')
  assert picture_size(out) == (4 * 18 + 2, 2 * 18 + 2)


def test_they_are_measured_against_the_images(workdir, tmp_path, monkeypatch):
  monkeypatch.setenv('ELT_JAX_CACHE', str(tmp_path))
  call(evaluate, f'--workdir={workdir}', '--num=8', '--loops=1')
  recipe = json.loads((workdir / 'elastic.json').read_text())['recipe']
  assert recipe['reference'].startswith('npz:')
  assert recipe['fd_lenet_of_reconstructions'] > 0
  assert (
    recipe['tokenizer'] == autoencoder.load(workdir / 'tokenizer').fingerprint
  )


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'data.image_size': 16}, r'has shape \[8, 8, 4\], but the config asks'),
    ({'data.num_classes': 5}, 'has num_classes 4, but the config asks for 5'),
  ],
)
def test_a_config_of_other_latents_is_refused(cache, changes, message):
  with pytest.raises(ValueError, match=message):
    sources.load_source(config_of(cache, **changes), 'train')


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'data.flip': True}, 'data.flip = True is of pixels'),
    ({'sample.clip': True}, 'sample.clip = True is of pixels'),
    (
      {'model.family': 'tokenizer'},
      "is of diffusion models, got .*'tokenizer'",
    ),
  ],
)
def test_what_is_of_pixels_alone_is_refused(cache, changes, message):
  with pytest.raises(ValueError, match=message):
    validate(config_of(cache, **changes))


def test_the_autoencoder_of_a_cache_is_its_own(cache, tmp_path):
  other = shutil.copytree(cache, tmp_path / 'cache')
  weights = other / 'tokenizer' / 'vae' / sd_vae.WEIGHTS
  data = bytearray(weights.read_bytes())
  data[-1] ^= 1
  weights.write_bytes(data)
  with pytest.raises(ValueError, match='was made by autoencoder'):
    latent_cache.LatentSource(other, 'train')


@pytest.mark.parametrize(
  'args,message',
  [
    ([], '--source is required'),
    (
      ['--image_size=15', '--source=synthetic'],
      'multiples of 2; got .* image_size = 15',
    ),
    (['--tasks=predict:4'], 'no --workdir, --maskgit or --tasks beside it'),
    (['--sd_vae=', '--num_classes=4'], '--num_classes goes with --sd_vae'),
  ],
)
def test_wrong_arguments_are_refused(tmp_path, args, message):
  with pytest.raises(ValueError, match=message):
    call(tokenize, f'--sd_vae={GOLDEN}', f'--out={tmp_path}/x', *args)
