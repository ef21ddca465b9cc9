"""FVD: its reference, its protocols, and the command that reports it."""

import json

import numpy as np
import pytest

from configs import mnist_diffusion
from elt_jax import evaluate, files
from elt_jax.evals import adm, frechet, fvd, fvd_reference, i3d
from tests.commands import call, trained

SMALL = {
  'data.image_size': 8,
  'data.num_frames': 16,
  'data.num_classes': 4,
  'model.width': 16,
  'model.num_layers': 1,
  'model.max_loops': 2,
  'model.num_heads': 2,
  'model.patch_size': 4,
  'model.patch_frames': 4,
  'optim.learning_rate': 1e-2,
  'optim.warmup_steps': 1,
  'optim.ema_decay': 0.5,
  'train.num_steps': 3,
  'train.batch_size': 8,
  'train.sample_every_steps': 0,
  'sample.num_steps': 2,
  'sample.batch_size': 8,
}


class Network:
  """In place of I3D: fixed projections of the pixels."""

  fingerprint, weights = 'f', 'TensorFlow Hub'

  def __init__(self, params, kind='TensorFlow 1'):
    self.kind = kind

  def __call__(self, clips):
    assert clips.dtype == np.uint8 and clips.shape[1:] == (16, 8, 8, 3)
    x = clips.reshape(len(clips), -1) / 255
    weights = np.random.default_rng(0).normal(size=(x.shape[1], 400))
    return (x @ weights).astype(np.float32)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A model of clips, and its data: 30 to train on."""
  root = tmp_path_factory.mktemp('fvd')
  rng = np.random.default_rng(0)
  clips = rng.integers(0, 256, (36, 16, 8, 8, 1), np.uint8)
  labels = np.arange(36) % 4
  arrays = {'image': clips[:30], 'label': labels[:30]}
  arrays |= {'test_image': clips[30:], 'test_label': labels[30:]}
  np.savez(root / 'clips.npz', **arrays)
  source = {'data.source': f'npz:{root}/clips.npz'}
  trained(mnist_diffusion, SMALL | source, root / 'run')
  return root / 'run'


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, workdir):
  """The network, small protocols, and a workdir without reports."""
  monkeypatch.setattr(i3d, 'load', lambda path: path)
  monkeypatch.setattr(i3d, 'I3D', Network)
  protocols = {
    'magvit': fvd.Protocol('magvit', 12, repeats=2, ucf_split='1'),
    'stylegan_v': fvd.Protocol('stylegan_v', 20, resizing='half pixels'),
  }
  monkeypatch.setattr(fvd, 'PROTOCOLS', protocols)
  for path in (*workdir.glob('*.npz'), *workdir.glob('metrics.json')):
    path.unlink()


def flags(workdir, *more):
  return [f'--workdir={workdir}', '--metrics=fvd', '--i3d=weights.pt', *more]


def report(workdir):
  return json.loads((workdir / 'metrics.json').read_text())


def test_a_row_per_loop_count_against_the_training_set(workdir, monkeypatch):
  args = flags(workdir, '--protocol=stylegan_v', '--save_samples')
  call(evaluate, *args, '--loops=1,2')
  rows, recipe = report(workdir)['rows'], report(workdir)['recipe']
  assert [row['loops'] for row in rows] == [1, 2]
  assert rows[0]['fvd'] != rows[1]['fvd'] and min(r['fvd'] for r in rows) > 0
  assert recipe['protocol'] == 'stylegan_v' and recipe['num_samples'] == 20
  assert 'half pixels' in recipe['preprocessing']
  # By the formula, of the samples that were kept and twenty clips of the data.
  reference = fvd_reference.read(workdir / 'fvd-stylegan_v.npz')
  samples = adm.Reference(workdir / 'samples-1.npz')
  clips = files.read_npz(samples.path)['arr_0']
  assert clips.shape == (20, 16, 8, 8, 3)
  moments = frechet.moments(Network(None)(clips))
  assert rows[0]['fvd'] == pytest.approx(
    frechet.frechet_distance(*moments, *reference.moments[0]), rel=1e-6
  )
  data = files.read_npz(workdir.parent / 'clips.npz')
  every = Network(None)(np.broadcast_to(data['image'], (30, 16, 8, 8, 3)))
  order = np.random.default_rng([0, 0]).permutation(30)[:20]
  np.testing.assert_allclose(
    reference.moments[0][0], every[order].mean(0), rtol=1e-5, atol=1e-5
  )
  # A sample has the class of a clip of the reference.
  np.testing.assert_array_equal(reference.labels, data['label'][order])

  # Neither the reference nor a row is made again.
  monkeypatch.setattr(fvd_reference, 'measured', None)
  call(evaluate, *args, '--loops=1,2')
  assert report(workdir)['rows'] == rows


def test_repeats_have_other_samples_and_clips(workdir):
  call(evaluate, *flags(workdir, '--protocol=magvit', '--loops=1'))
  (row,) = report(workdir)['rows']
  assert row['fvd_std'] > 0
  reference = fvd_reference.read(workdir / 'fvd-magvit.npz')
  first, second = (mean for mean, _ in reference.moments)
  assert reference.count == 12 and np.abs(first - second).max() > 0
  # 24 of 30 clips: none is seen twice.
  assert len(reference.labels) == 24


def test_a_reference_of_another_run(workdir, tmp_path):
  call(evaluate, *flags(workdir, '--num=20', '--loops=1'))
  (row,) = report(workdir)['rows']
  kept = tmp_path / 'kept.npz'
  (workdir / 'fvd-20.npz').rename(kept)
  (workdir / 'metrics.json').unlink()
  given = (f'--reference={kept}', '--loops=1')
  call(evaluate, *flags(workdir, '--num=20', *given))
  assert report(workdir)['rows'][0]['fvd'] == row['fvd']
  with pytest.raises(ValueError, match='of 16 samples against 20 clips'):
    call(evaluate, *flags(workdir, '--num=16', *given))
  # It was seen with another resize.
  with pytest.raises(ValueError, match='is of preprocessing = uint8; TensorF'):
    call(evaluate, *flags(workdir, '--protocol=stylegan_v', *given))


@pytest.mark.parametrize(
  'args,message',
  [
    (['--metrics=fid'], 'must be some of fvd, each once, of a model of clips'),
    (['--inception=x'], '--inception is of images'),
    (['--protocol=magvit', '--num=8'], 'takes 24 samples: leave --num out'),
    (['--reference=/nowhere.npz'], 'there is no file /nowhere.npz'),
    (['--i3d='], '--i3d is required'),
    (['--refine=rounds=1'], 'efine'),
  ],
)
def test_wrong_arguments_are_refused(workdir, args, message):
  with pytest.raises(ValueError, match=message):
    call(evaluate, *flags(workdir, '--loops=1', *args))
  assert not (workdir / 'metrics.json').exists()


@pytest.mark.parametrize(
  'arrays,message',
  [
    ({'mu': np.zeros(400)}, r"lacks \['sigma'\]"),
    ({'mu': np.zeros(4), 'sigma': np.zeros((4, 4))}, 'mu is float64'),
    (
      {'mu': np.full(400, np.nan), 'sigma': np.eye(400)},
      'expected finite numbers',
    ),
    (
      {
        'mu': np.zeros(400),
        'sigma': np.eye(400),
        'count': 3,
        'labels': np.zeros(2),
      },
      'is damaged',
    ),
  ],
)
def test_damaged_references_are_refused(tmp_path, arrays, message):
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(ValueError, match=message):
    fvd_reference.read(tmp_path / 'x.npz')


def test_clips_of_another_length_have_no_published_protocol(workdir):
  from elt_jax import config as config_lib

  pixels = config_lib.load(workdir)
  pixels.data.num_frames = 12
  network = Network(None)
  with pytest.raises(ValueError, match='of 16 frames, and of at least 9'):
    fvd.Fvd(fvd.PROTOCOLS['magvit'], network, pixels, workdir)
  fvd.Fvd(fvd.Protocol('', 20), network, pixels, workdir)
