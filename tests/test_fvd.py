"""FVD and its protocols, and the command that reports them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from configs import mnist_diffusion, moving_mnist_tokenizer
from elt_jax import evaluate, files, sample
from elt_jax.data import sources
from elt_jax.evals import (
  c3d,
  frechet,
  fvd,
  fvd_reference,
  i3d,
  image_metrics,
  metrics,
)
from tests.commands import call, trained
from tests.helpers import i3d_weights

FRAMES, SIDE, CLIPS = 16, 8, 24
SMALL = {
  'model.width': 16,
  'model.num_layers': 1,
  'model.max_loops': 2,
  'model.num_heads': 2,
  'model.patch_size': 4,
  'model.patch_frames': 8,
  'data.num_frames': FRAMES,
  'data.image_size': SIDE,
  'train.num_steps': 2,
  'train.batch_size': 8,
  'train.sample_every_steps': 0,
  'sample.num_steps': 2,
  'sample.batch_size': 8,
}


class Network:
  """In place of I3D: fixed projections of the pixels."""

  fingerprint, weights = 'f', 'others'

  def __init__(self, params=None, kind=''):
    self.kind = kind

  def __call__(self, clips):
    assert clips.dtype == np.uint8 and clips.shape[-1] == 3
    x = clips[..., 0].reshape(len(clips), -1) / 255
    rng = np.random.default_rng(0)
    return (x @ rng.normal(size=(x.shape[1], 400))).astype(np.float32)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  rng = np.random.default_rng(0)
  shape = (CLIPS, FRAMES, SIDE, SIDE, 1)
  image, label = rng.integers(0, 256, shape, np.uint8), np.arange(CLIPS) // 3
  both = {'image': image, 'label': label}
  both |= {f'test_{name}': value for name, value in both.items()}
  np.savez(path / 'clips.npz', **both)
  changes = SMALL | {'data.source': f'npz:{path}/clips.npz'}
  trained(mnist_diffusion, changes, path / 'run')
  return path / 'run'


@pytest.fixture
def run(workdir, tmp_path, monkeypatch):
  """A copy of the run, and no real I3D."""
  monkeypatch.setattr(i3d, 'load', lambda path: path)
  monkeypatch.setattr(i3d, 'I3D', Network)
  return shutil.copytree(workdir, tmp_path / 'run')


def report(run):
  return json.loads((run / 'metrics.json').read_text())


def measure(run, *args):
  call(evaluate, f'--workdir={run}', '--metrics=fvd', '--i3d=weights.pt', *args)


def moments(clips):
  return frechet.moments(Network()(clips))


# ---- The command -------------------------------------------------------------


def test_a_row_per_loop_count_against_the_training_set(run, monkeypatch):
  measure(run, f'--num={CLIPS}', '--loops=1,2', '--save_samples')
  rows = report(run)['rows']
  assert [row['loops'] for row in rows] == [1, 2]
  real = files.read_npz(run.parent / 'run' / f'fvd-{CLIPS}.npz')
  draw, params, _ = sample.load(str(run), CLIPS)
  stored = sources.load_source(draw.config, 'train')
  # As many as there are: each once, in any order; samples have their classes.
  clips = np.repeat(stored.images, 3, -1)
  for found, wanted in zip((real['mu'][0], real['sigma'][0]), moments(clips)):
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(np.sort(real['labels']), stored.labels)
  assert (np.diff(real['labels']) < 0).any()
  for row in rows:
    with np.load(run / f'samples-{row["loops"]}.npz') as kept:
      samples = kept['arr_0']
    assert samples.shape == (CLIPS, FRAMES, SIDE, SIDE, 3)
    distance = frechet.frechet_distance(*moments(samples), *moments(clips))
    assert row['fvd'] == pytest.approx(distance, rel=1e-6)
  drawn = draw(params, real['labels'], 2, seed=0)
  again = np.rint((np.clip(drawn, -1, 1) + 1) * 127.5)
  assert np.abs(again - samples[..., :1]).max() <= 1

  # In parts of 8 as in one; what is there is not made or measured again.
  (run / 'metrics.json').rename(run / 'whole.json')
  monkeypatch.setattr(fvd_reference, 'measured', None)
  monkeypatch.setattr(metrics, '_SAMPLES', 8)
  measure(run, f'--num={CLIPS}', '--loops=2')
  assert report(run)['rows'][0]['fvd'] == pytest.approx(rows[1]['fvd'])
  monkeypatch.setattr(metrics, '_draw_into', None)
  measure(run, f'--num={CLIPS}', '--loops=2')


def test_repeats_have_their_own_samples_and_clips(run, monkeypatch):
  short = dataclasses.replace(fvd.PROTOCOLS['magvit'], num=10)
  monkeypatch.setitem(fvd.PROTOCOLS, 'magvit', short)
  monkeypatch.setattr(metrics, '_SAMPLES', 8)
  measure(run, '--protocol=magvit', '--loops=2', '--save_samples')
  with np.load(run / 'samples-2.npz') as kept:
    samples = kept['arr_0']
  real = files.read_npz(run / 'fvd-magvit.npz')
  assert samples.shape[0] == 40 and real['mu'].shape == (4, 400)
  distances = [
    frechet.frechet_distance(*moments(part), mean, covariance)
    for part, mean, covariance in zip(
      np.split(samples, 4), real['mu'], real['sigma'], strict=True
    )
  ]
  (row,) = report(run)['rows']
  assert row['fvd'] == pytest.approx(np.mean(distances), rel=1e-6)
  assert row['fvd_std'] == pytest.approx(np.std(distances), rel=1e-4)
  assert len(set(distances)) == 4 and len(np.unique(real['mu'][:, 0])) == 4
  recipe = report(run)['recipe']
  assert recipe['protocol'] == 'magvit' and recipe['repeats'] == 4
  assert recipe['num_samples'] == 40 and recipe['samples_of_each'] == 10
  assert recipe['labels'] == 'of the clips of the reference'


def test_the_score_stands_beside_the_distance(run, monkeypatch):
  """And alone has classes that take turns."""

  class Classifier:
    fingerprint = 'c'

    def __init__(self, params):
      assert params == ('c3d.npz', 'mean2.npz')

    def __call__(self, clips):
      odds = np.exp(Network()(clips)[:, :101] / 10)
      return odds / odds.sum(1, keepdims=True)

  monkeypatch.setattr(c3d, 'load', lambda *paths: paths)
  monkeypatch.setattr(c3d, 'C3D', Classifier)
  args = ['--c3d=c3d.npz', '--c3d_mean=mean2.npz', f'--num={CLIPS}']
  args += ['--loops=1', '--save_samples']
  measure(run, *args, '--metrics=is,fvd')
  (row,) = report(run)['rows']
  assert list(row)[:5] == ['loops', 'schedule', 'fvd', 'is', 'is_std']
  samples = np.load(run / 'samples-1.npz')['arr_0']
  p = Classifier(('c3d.npz', 'mean2.npz'))(samples)
  # Ten parts: of 2 samples each, every fifth of 3.
  parts = [p[i * CLIPS // 10 : (i + 1) * CLIPS // 10] for i in range(10)]
  scores = [image_metrics.inception_score(part) for part in parts]
  assert row['is'] == pytest.approx(np.mean(scores), rel=1e-5)
  assert row['is_std'] == pytest.approx(np.std(scores), rel=1e-4)
  recipe = report(run)['recipe']
  assert recipe['metrics'] == ['fvd', 'is'] and recipe['c3d'] == 'c'
  assert recipe['labels'] == 'of the clips of the reference'
  (run / 'metrics.json').unlink()
  measure(run, *args, '--metrics=is')
  columns = list(report(run)['rows'][0])
  assert columns[:4] == ['loops', 'schedule', 'is', 'is_std']
  assert report(run)['recipe']['labels'] == 'balanced'


def test_protocols_are_as_published():
  magvit, stylegan_v = fvd.PROTOCOLS['magvit'], fvd.PROTOCOLS['stylegan_v']
  assert (magvit.num, magvit.repeats) == (10_000, 4)
  assert magvit.resizing == 'TensorFlow 1'
  assert (stylegan_v.num, stylegan_v.repeats) == (2048, 1)
  assert stylegan_v.resizing == 'half pixels'


@pytest.mark.parametrize('name', list(fvd.PROTOCOLS))
def test_the_network_resizes_as_the_protocol_does(run, monkeypatch, name):
  protocol = dataclasses.replace(fvd.PROTOCOLS[name], num=4, repeats=1)
  monkeypatch.setitem(fvd.PROTOCOLS, name, protocol)
  asked = []
  made = lambda params, kind: asked.append(kind) or Network(params, kind)
  monkeypatch.setattr(i3d, 'I3D', made)
  measure(run, f'--protocol={name}', '--loops=1')
  assert asked == [protocol.resizing]
  assert protocol.resizing in report(run)['recipe']['preprocessing']


def test_a_reference_serves_other_runs(run, tmp_path):
  measure(run, f'--num={CLIPS}', '--loops=2')
  kept = (run / f'fvd-{CLIPS}.npz').rename(tmp_path / 'reference.npz')
  before, row = kept.read_bytes(), report(run)['rows'][0]
  (run / 'metrics.json').unlink()
  given = f'--reference={kept}'
  measure(run, given, f'--num={CLIPS}', '--loops=2')
  assert report(run)['rows'][0]['fvd'] == row['fvd']
  assert report(run)['recipe']['reference_file'] == 'reference.npz'
  (run / 'metrics.json').unlink()
  with pytest.raises(ValueError, match='12 samples against 24 clips'):
    measure(run, given, '--num=12', '--loops=2')
  measure(run, given, '--num=12', '--loops=2', '--unequal')
  assert kept.read_bytes() == before and not (run / 'fvd-12.npz').exists()


def test_moments_alone_are_a_reference(run, tmp_path):
  path = tmp_path / 'stats.npz'
  np.savez(path, mu=np.zeros(400), sigma=np.eye(400))
  measure(run, f'--reference={path}', '--num=10', '--loops=1', '--save_samples')
  samples = np.load(run / 'samples-1.npz')['arr_0']
  wanted = frechet.frechet_distance(
    *moments(samples), np.zeros(400), np.eye(400)
  )
  assert report(run)['rows'][0]['fvd'] == pytest.approx(wanted, rel=1e-6)
  assert report(run)['recipe']['labels'] == 'balanced'


@pytest.mark.parametrize(
  'args,message',
  [
    (['--metrics=fid'], 'of a model of clips must be some of fvd,is'),
    (['--metrics=is'], '--c3d is required'),
    (['--metrics=is', '--c3d=x.npz'], '--c3d_mean is required'),
    (['--inception=x.pth'], '--inception is of images'),
    (['--i3d='], '--i3d is required'),
    (['--protocol=magvit', '--num=9'], 'takes 40000 samples: leave --num out'),
    (['--reference=nowhere.npz'], '--reference: there is no file nowhere.npz'),
  ],
)
def test_wrong_arguments_are_refused(run, args, message):
  with pytest.raises(ValueError, match=message):
    measure(run, *args)
  assert not (run / 'metrics.json').exists()


@pytest.mark.slow
def test_the_command_with_a_real_network(workdir, tmp_path):
  run = shutil.copytree(workdir, tmp_path / 'run')
  np.savez(tmp_path / 'i3d.npz', **i3d_weights())
  args = ['--metrics=fvd', f'--i3d={tmp_path}/i3d.npz', '--num=8', '--loops=1']
  call(evaluate, f'--workdir={run}', *args)
  (row,) = report(run)['rows']
  assert row['fvd'] > 0


# ---- The reference -----------------------------------------------------------


def clips_config(**changes):
  config = moving_mnist_tokenizer.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(
      {f'data.{name}': value for name, value in changes.items()}
    )
  return config


def test_windows_are_drawn_anew_and_the_same_in_any_parts(monkeypatch):
  found = []
  config = clips_config(num_frames=9)
  recipe = fvd_reference.make_recipe(config, 70, 2, 'as it is', 'f')
  for size in (64, 9):
    monkeypatch.setattr(fvd_reference, '_PART', size)
    found.append(fvd_reference.measured(config, recipe, Network()))
  one, other = found
  for a, b in zip(one.moments, other.moments):
    np.testing.assert_allclose(a[0], b[0], rtol=1e-12)
  np.testing.assert_array_equal(one.labels, other.labels)
  assert one.labels.shape == (140,)
  assert np.abs(one.moments[0][0] - one.moments[1][0]).max() > 0
  # More than there are: every epoch has other windows.
  few = sources.load_source(config, 'train')
  seen = []

  def network(clips):
    seen.extend(clip.tobytes() for clip in clips)
    return np.zeros((len(clips), 400))

  recipe['count'], recipe['repeats'] = len(few) + 50, 1
  fvd_reference.measured(config, recipe, network)
  assert len(seen) == len(set(seen)) == len(few) + 50


def test_magvit_is_of_the_first_split_of_ucf101():
  config = clips_config(source='ucf101:/data', ucf_split='all', windows=4)
  of = lambda name: fvd_reference.training_clips(
    config, fvd.PROTOCOLS[name].ucf_split
  )
  assert of('magvit').data.ucf_split == '1' and of('magvit').data.windows == 1
  assert of('stylegan_v').data.ucf_split == 'all'
  assert config.data.ucf_split == 'all'
  recipe = fvd_reference.make_recipe(of('magvit'), 8, 1, 'x', 'f')
  assert recipe['ucf_split'] == '1' and recipe['source'] == 'ucf101:/data'


MU, SIGMA = np.zeros(400), np.eye(400)


@pytest.mark.parametrize(
  'arrays,message',
  [
    ({'arr_0': np.zeros(3)}, r"has the arrays \['arr_0'\], and lacks"),
    ({'mu': MU, 'sigma': np.eye(2048)}, r'sigma is float64 \(2048, 2048\)'),
    ({'mu': MU[:64], 'sigma': SIGMA}, r'mu is float64 \(64,\)'),
    ({'mu': 0.0, 'sigma': SIGMA}, r'mu is float64 \(\)'),
    ({'mu': MU + np.nan, 'sigma': SIGMA}, 'expected finite numbers'),
    ({'mu': np.array([None] * 400), 'sigma': SIGMA}, 'not a readable .npz'),
    ({'mu': MU, 'sigma': SIGMA, 'recipe': 'x'}, 'is damaged'),
    ({'mu': MU, 'sigma': SIGMA, 'recipe': '[]'}, 'is damaged'),
    ({'mu': MU, 'sigma': SIGMA, 'count': 3, 'labels': MU}, 'is damaged'),
  ],
)
def test_references_of_another_kind_are_refused(tmp_path, arrays, message):
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(ValueError, match=message):
    fvd_reference.read(tmp_path / 'x.npz')


def test_references_cut_short_are_refused(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(path, mu=MU, sigma=SIGMA)
  path.write_bytes(path.read_bytes()[:-2000])
  with pytest.raises(ValueError, match='x.npz is not a readable .npz'):
    fvd_reference.read(path)


def make(path, file=None, fingerprint='f', protocol=None, **changes):
  network = Network()
  network.fingerprint = fingerprint
  protocol = protocol or fvd.Protocol('', 6)
  return fvd.Fvd(protocol, network, clips_config(**changes), path, file)


def test_references_seen_otherwise_are_refused(tmp_path):
  make(tmp_path, num_frames=9).prepare()
  kept = tmp_path / 'fvd-6.npz'
  for changes, message in (
    ({'fingerprint': 'g'}, 'is of i3d = f, not g'),
    ({'num_frames': 10}, 'is of num_frames = 9, not 10'),
    ({'image_size': 64}, 'is of image_size = 32, not 64'),
    ({'protocol': fvd.Protocol('', 6, 1, 'corners')}, 'is of preprocessing'),
  ):
    changes = {'num_frames': 9} | changes
    for file in (None, kept):
      with pytest.raises(ValueError, match=message):
        make(tmp_path, file, **changes)
  # Of another training set they are taken where they are asked for.
  other = {'num_frames': 9, 'source': 'moving_mnist:2'}
  with pytest.raises(ValueError, match='is of source = moving_mnist, not'):
    make(tmp_path, **other)
  assert make(tmp_path, kept, **other).recipe['reference']['source'] == (
    'moving_mnist'
  )
  # Its classes are those of another set then, and not asked for.
  assert 'labels' not in make(tmp_path, kept, **other).recipe
  assert 'labels' in make(tmp_path, kept, num_frames=9).recipe
  with pytest.raises(ValueError, match='has 2 repeats, and 1 are compared'):
    two = {'mu': np.stack([MU] * 2), 'sigma': np.stack([SIGMA] * 2)}
    np.savez(tmp_path / 'two.npz', **two)
    make(tmp_path, tmp_path / 'two.npz', num_frames=9)


@pytest.mark.parametrize(
  'frames,protocol', [(8, ''), (12, 'magvit'), (32, 'stylegan_v')]
)
def test_clips_of_other_lengths_are_refused(tmp_path, frames, protocol):
  found = fvd.PROTOCOLS.get(protocol, fvd.Protocol('', 6))
  with pytest.raises(ValueError, match=f'16 frames.*the model draws {frames}'):
    make(tmp_path, num_frames=frames, protocol=found)


def test_protocols_are_of_frames_in_a_row(tmp_path):
  with pytest.raises(ValueError, match='the model draws every 4th'):
    make(tmp_path, frame_stride=4, protocol=fvd.PROTOCOLS['magvit'])
