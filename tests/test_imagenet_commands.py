"""A thousand JPEGs as ImageNet lies on disk, through every command."""

import json

import numpy as np
from PIL import Image
import pytest

from configs import imagenet256_diffusion
from elt_jax import evaluate, prepare, sample, tokenize
from elt_jax.data import sources
from elt_jax.tokenizers import autoencoder
from tests import commands
from tests.commands import call
from tests.conftest import tiny_config
from tests.test_fid import use_stand_in
from tests.test_latents import GOLDEN, SMALL
from tests.test_pictures import scene

WNIDS = [f'n0144{n:04d}' for n in range(10)]
MODES = {3: 'L', 6: 'CMYK'}
CHANGES = SMALL | {
  'data.num_classes': 10,
  # Enough for the samples of one loop to differ from those of two.
  'optim.learning_rate': 1e-2,
  'optim.warmup_steps': 1,
  'optim.ema_decay': 0.5,
  'train.num_steps': 4,
  'train.batch_size': 16,
  'train.log_every_steps': 2,
  'train.sample_every_steps': 0,
  'sample.batch_size': 16,
}


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
  """train/WNID/WNID_i.JPEG and a flat val, as the archives unpack.

  One in ten is gray, one CMYK; three are damaged, each in its own way.
  """
  root = tmp_path_factory.mktemp('imagenet')
  (root / 'val').mkdir()
  rng = np.random.default_rng(0)
  for i in range(1000):
    width, height = rng.integers(20, 60, 2)
    pixels = np.roll(scene(width, height), i % 10 * 20, -1) // (1 + i % 10)
    if i < 900:
      path = root / 'train' / WNIDS[i % 10] / f'{WNIDS[i % 10]}_{i}.JPEG'
    else:
      path = root / 'val' / f'ILSVRC2012_val_{i - 899:08d}.JPEG'
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = MODES.get(i // 10 % 10, 'RGB')
    Image.fromarray(pixels).convert(mode).save(path, quality=90)
  paths = sorted((root / 'train').rglob('*.JPEG'))
  paths[10].write_bytes(b'')
  paths[200].write_bytes(b'not a picture')
  paths[300].write_bytes(paths[300].read_bytes()[:300])
  truth = [
    f'ILSVRC2012_val_{i + 1:08d}.JPEG {WNIDS[i % 10]}' for i in range(100)
  ]
  (root / 'val.txt').write_text('\n'.join(truth))
  return root


@pytest.fixture(scope='module')
def records(imagenet):
  """What `prepare` makes of it, by two processes."""
  out = imagenet / 'records'
  args = [f'--source=folder:{imagenet}', f'--out={out}', '--image_size=16']
  call(prepare, *args, '--workers=2', '--skip_unreadable')
  return out


@pytest.fixture(scope='module')
def workdir(imagenet, records):
  """A model of the latents of those."""
  cache, path = imagenet / 'latents', imagenet / 'run'
  args = [f'--source=records:{records}', '--image_size=16', '--num_classes=10']
  call(tokenize, f'--sd_vae={GOLDEN}', f'--out={cache}', *args)
  changes = CHANGES | {'data.source': f'latents:{cache}'}
  commands.trained(imagenet256_diffusion, changes, path)
  return path


def images_of(name, split):
  config = tiny_config()
  config.data.update({'num_channels': 3, 'image_size': 16, 'num_classes': 10})
  config.data.update({'source': name, 'skip_unreadable': True})
  source = sources.load_source(config, split)
  return source, [source[i] for i in range(len(source))]


def test_every_image_becomes_a_record_of_its_class(imagenet, records):
  for split, count in (('train', 900), ('test', 100)):
    source, examples = images_of(f'records:{records}', split)
    assert source.class_names == WNIDS and len(examples) == count
    kept = images_of(f'folder:{imagenet}', split)[1]
    for given, example in zip(kept, examples, strict=True):
      np.testing.assert_array_equal(example['image'], given['image'])
      assert example['label'] == given['label']
  # The list says the classes of val, whose names say nothing.
  assert [e['label'] for e in examples] == [i % 10 for i in range(100)]
  gray = images_of(f'records:{records}', 'test')[1][30]['image']
  assert (gray == gray[..., :1]).all()


def test_a_model_of_their_latents_is_trained_and_sampled(workdir, tmp_path):
  losses = [line['train/loss'] for line in commands.metrics(workdir)]
  assert len(losses) == 2 and np.isfinite(losses).all()
  out = tmp_path / 'grid.png'
  args = [f'--workdir={workdir}', '--loops=1,2', '--num=10', '--scale=1']
  call(sample, *args, f'--out={out}')
  assert commands.picture_size(out) == (10 * 18 + 2, 2 * 18 + 2)


def test_its_samples_are_measured(workdir, records, monkeypatch):
  """Against the data's own images; the features are a stand-in's."""
  images = [e['image'] for e in images_of(f'records:{records}', 'train')[1]]
  np.savez(workdir / 'reference.npz', arr_0=np.stack(images[:64]))
  use_stand_in(monkeypatch)
  args = [f'--reference={workdir}/reference.npz', '--inception=weights.pth']
  args += ['--metrics=fid,is,pr', '--num=64', '--loops=1,2']
  call(evaluate, f'--workdir={workdir}', *args)
  report = json.loads((workdir / 'metrics.json').read_text())
  assert [row['loops'] for row in report['rows']] == [1, 2]
  kept = autoencoder.load(workdir / 'tokenizer')
  assert report['recipe']['tokenizer'] == kept.fingerprint
  first, second = (row['fid'] for row in report['rows'])
  assert first != second and min(first, second) > 1
