"""From images to samples: train a tokenizer, make tokens, train on them."""

import json
import time

import numpy as np
from PIL import Image
import pytest

from configs import mnist_masked, mnist_tokenizer
from elt_jax import edit, evaluate, sample, tokenize
from elt_jax.data import token_cache
from elt_jax.evals import reconstruction
from elt_jax.objectives.tokenizer import usage
from tests.commands import call, metrics, picture_size, start, trained
from tests.test_maskgit import FILES, seeded, write

SHAPE = {
  'data.image_size': 16,
  'tokenizer.filters': 8,
  'tokenizer.channel_multipliers': (1, 1, 2),
  'tokenizer.norm_groups': 4,
  'tokenizer.codebook_size': 16,
  'tokenizer.embedding_dim': 4,
  'train.batch_size': 16,
  'train.num_steps': 4,
  'train.log_every_steps': 2,
  'train.sample_every_steps': 4,
}
MASKED = SHAPE | {
  'model.width': 16,
  'model.num_heads': 2,
  'model.max_loops': 2,
  'model.unroll_loops': False,
  'sample.num_steps': 3,
  'sample.batch_size': 20,
}


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
  """A directory with a trained tokenizer, its tokens and a masked model."""
  root = tmp_path_factory.mktemp('chain')
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (60, 16, 16, 1), np.uint8)
  labels = np.arange(60) % 10
  np.savez(
    root / 'images.npz',
    image=images[:40],
    label=labels[:40],
    test_image=images[40:],
    test_label=labels[40:],
  )
  trained(
    mnist_tokenizer,
    SHAPE
    | {
      'tokenizer.restart_every_steps': 2,
      'data.source': f'npz:{root}/images.npz',
    },
    root / 'tokenizer',
  )
  call(tokenize, f'--workdir={root}/tokenizer', f'--out={root}/tokens')
  trained(
    mnist_masked,
    MASKED | {'data.source': f'tokens:{root}/tokens'},
    root / 'masked',
  )
  return root


def test_both_trainings_log_and_draw(chain):
  last = metrics(chain / 'tokenizer')[-1]
  for name in ('reconstruction', 'psnr', 'codes_used', 'perplexity'):
    assert np.isfinite(last[f'train/{name}'])
  # Ten held-out images over their reconstructions; a row per loop count.
  for run, columns in (('tokenizer', 10), ('masked', 10)):
    size = picture_size(chain / run / 'samples' / '00000004.png')
    assert size == (2 * (columns * 18 + 2), 2 * (2 * 18 + 2))
  for name in ('gt_final', 'gt_exit', 'distill'):
    assert np.isfinite(metrics(chain / 'masked')[-1][f'train/{name}'])


def test_both_are_measured(chain, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('ELT_JAX_CACHE', str(tmp_path))
  call(evaluate, f'--workdir={chain}/tokenizer')
  report = json.loads((chain / 'tokenizer' / 'reconstruction.json').read_text())
  assert 'psnr' in capsys.readouterr().out and 0 < report['codes_used'] <= 1
  assert 1 <= report['perplexity'] <= 16 and report['num_images'] == 20
  assert picture_size(chain / 'tokenizer' / 'reconstruction.png')[0] > 100
  call(evaluate, f'--workdir={chain}/masked', '--loops=1,4', '--num=20')
  report = json.loads((chain / 'masked' / 'elastic.json').read_text())
  assert [row['loops'] for row in report['rows']] == [1, 4]
  assert report['recipe']['fd_lenet_of_reconstructions'] > 0


@pytest.mark.slow
def test_a_killed_cache_is_refused_and_completed(chain, tmp_path):
  """SIGKILL at a moment that differs from run to run."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (1500, 16, 16, 1), np.uint8)
  arrays = {'image': images[:1200], 'label': np.arange(1200) % 10}
  arrays |= {'test_image': images[1200:], 'test_label': np.arange(300) % 10}
  np.savez(tmp_path / 'many.npz', **arrays)
  out = tmp_path / 'tokens'
  args = [f'--workdir={chain}/tokenizer', f'--out={out}', '--batch_size=8']
  args += [f'--source=npz:{tmp_path}/many.npz', '--examples_per_shard=8']
  process = start('tokenize', *args)
  while len(list(out.glob('train-*.array_record'))) < 3:
    assert process.poll() is None, process.communicate()[1][-3000:]
    time.sleep(0.01)
  process.kill()
  process.communicate()
  with pytest.raises(ValueError, match='is unfinished'):
    token_cache.TokenSource(out, 'train')
  # As a write that the kill cut short would leave it.
  (out / '.train-00099.array_record.x.array_record').write_bytes(b'half')
  call(tokenize, *args)
  assert not list(out.glob('.*'))
  source = token_cache.TokenSource(out, 'train')
  want = source.tokenizer.encode(images[:1200] / np.float32(255))
  assert len(source) == 1200
  got = np.stack([source[i]['tokens'] for i in range(1200)])
  np.testing.assert_array_equal(got, want)


def test_a_workdir_needs_nothing_else(chain, tmp_path):
  """The cache may go: the run holds its tokenizer."""
  moved = (chain / 'tokens').rename(chain / 'elsewhere')
  out = tmp_path / 'grid.png'
  call(
    sample,
    f'--workdir={chain}/masked',
    f'--out={out}',
    '--num=3',
    '--loops=1,2',
    '--steps=2',
    '--method=halton',
    '--scale=1',
  )
  moved.rename(chain / 'tokens')
  assert picture_size(out) == (3 * 18 + 2, 2 * 18 + 2)


def test_known_tokens_are_those_the_mask_does_not_touch():
  class Stub:
    grid = (2, 3)

    def encode(self, pixels, batch_size):
      assert pixels.shape == (1, 8, 12, 1) and pixels.max() <= 1
      return np.arange(6).reshape(1, 2, 3)

  image, mask = np.full((8, 12, 1), 200, np.uint8), np.zeros((8, 12), bool)
  mask[3, 4] = True  # One pixel of the upper middle cell.
  mask[4:, 8:] = True
  known = edit.known_tokens(Stub(), image[None], mask)
  np.testing.assert_array_equal(known, [[[0, -1, 2], [3, 4, -1]]])


def test_draws_keep_known_tokens_and_refuse_others(chain):
  draw, params, _ = sample.load(str(chain / 'masked'), 3)
  known = np.full((3, 4, 4), -1)
  known[:, 2:] = [[3, 1, 2, 0], [7, 7, 7, 7]]
  kept = []
  draw.tokenizer.decode = lambda tokens: kept.append(tokens) or tokens
  draw(params, [1, 2, 3], 1, seed=0, known=known)
  np.testing.assert_array_equal(np.concatenate(kept)[:3, 2:], known[:, 2:])
  for wrong, message in (
    (known[:2], 'known must be'),
    (known.reshape(3, 16), 'known must be'),
    (known + 16, 'with 15..23'),
    (known - 1, 'with -2..6'),
  ):
    with pytest.raises(ValueError, match=message):
      draw(params, [1, 2, 3], 1, seed=0, known=wrong)


def test_reconstruction_metrics_by_hand():
  x = np.zeros((2, 4, 4, 1), np.float32)
  y = x + np.array([0.1, 0.01]).reshape(2, 1, 1, 1)
  np.testing.assert_allclose(reconstruction.psnr(x, y), (20 + 40) / 2, 1e-4)
  got = usage(np.array([[0, 0], [3, 3]]), 8)
  assert got['codes_used'] == 0.25
  np.testing.assert_allclose(got['perplexity'], 2)


def save(path, array):
  Image.fromarray(array).save(path)
  return path


def test_editing_keeps_what_the_mask_leaves(chain, tmp_path):
  image = save(tmp_path / 'image.png', np.full((16, 16), 200, np.uint8))
  mask = np.zeros((16, 16), np.uint8)
  mask[:8] = 255
  mask = save(tmp_path / 'mask.png', mask)
  out = tmp_path / 'edited.png'
  args = (f'--workdir={chain}/masked', f'--out={out}', '--scale=1')
  edit = (f'--edit={image}', f'--mask={mask}', '--labels=3')
  call(sample, *args, *edit, '--num=2', '--loops=1,2')
  # In each row: the image, the image under its mask, two samples.
  assert picture_size(out) == (4 * 18 + 2, 2 * 18 + 2)
  with Image.open(out) as picture:
    pixels = np.asarray(picture.convert('RGB'))
  np.testing.assert_array_equal(pixels[2:18, 2:18], 200)
  np.testing.assert_array_equal(pixels[2:10, 20:36], 128)
  np.testing.assert_array_equal(pixels[10:18, 20:36], 200)


def refused(command, *args):
  """The message of a command that must fail, run in this process."""
  with pytest.raises(ValueError) as error:
    call(command, *args)
  return str(error.value)


def test_wrong_uses_are_refused(chain, tmp_path):
  image = save(tmp_path / 'image.png', np.zeros((8, 8), np.uint8))
  (tmp_path / 'text.png').write_text('no picture')
  masked = f'--workdir={chain}/masked'
  made = f'--workdir={chain}/tokenizer'
  for command, args, message in (
    (sample, [made], 'is a tokenizer, which draws nothing'),
    (sample, [masked, f'--edit={image}'], '--edit goes with --mask or --task'),
    (
      sample,
      [masked, f'--edit={image}', f'--mask={image}'],
      'is 8 x 8 pixels, the model draws 16 x 16',
    ),
    (
      sample,
      [masked, f'--edit={tmp_path}/text.png', f'--mask={image}'],
      'text.png cannot be decoded',
    ),
    (sample, [masked, '--method=ddim'], "one of ('confidence', 'halton')"),
    (sample, [masked, '--steps=0'], 'sample.num_steps must be at least 1'),
    (tokenize, [masked, f'--out={tmp_path}/t'], 'holds a masked model'),
    (tokenize, [made], '--out is required'),
    (sample, [f'--maskgit={tmp_path}'], 'must hold one maskgit_'),
    (sample, [made, '--maskgit=x'], 'give one of them'),
    (tokenize, [made, '--maskgit=x', '--out=x'], 'give one of them'),
    (evaluate, [made, '--loops=2'], '--loops is of samples'),
  ):
    assert message in refused(command, *args)


@pytest.mark.parametrize('value,found', [(0, 'no'), (255, 'every')])
def test_masks_of_nothing_and_everything(chain, tmp_path, value, found):
  image = save(tmp_path / 'image.png', np.full((16, 16), 200, np.uint8))
  mask = save(tmp_path / 'mask.png', np.full((16, 16), value, np.uint8))
  message = refused(
    sample, f'--workdir={chain}/masked', f'--edit={image}', f'--mask={mask}'
  )
  assert f'covers {found} token' in message


def test_public_checkpoints_are_sampled(tmp_path):
  for name in FILES:
    write(tmp_path, name, seeded(name))
  out = tmp_path / 'grid.png'
  call(
    sample,
    f'--maskgit={tmp_path}',
    f'--out={out}',
    '--num=2',
    '--loops=1,2',
    '--labels=3,9',
    '--scale=1',
  )
  assert picture_size(out) == (2 * 18 + 2, 2 * 18 + 2)


def test_public_tokenizers_make_caches(tmp_path):
  for name in FILES:
    write(tmp_path, name, seeded(name))
  images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
  arrays = {'image': images[:8], 'label': np.arange(8)}
  arrays |= {'test_image': images[8:], 'test_label': np.arange(4)}
  np.savez(tmp_path / 'images.npz', **arrays)
  out = tmp_path / 'tokens'
  args = (f'--maskgit={tmp_path}', f'--source=npz:{tmp_path}/images.npz')
  call(tokenize, *args, f'--out={out}', '--batch_size=5')
  source = token_cache.TokenSource(out, 'train')
  want = source.tokenizer.encode(images[:8] / np.float32(255))
  assert len(source) == 8
  for i in range(8):
    np.testing.assert_array_equal(source[i]['tokens'], want[i])
    assert source[i]['label'] == i
