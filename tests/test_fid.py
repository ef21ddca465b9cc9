"""The command that reports FID, sFID, IS, precision and recall; its files."""

import json

import numpy as np
import pytest

from configs import mnist_diffusion
from elt_jax import evaluate, files, sample
from elt_jax.data import sources
from elt_jax.evals import (
  adm,
  fid,
  fid_reference,
  frechet,
  image_metrics,
  inception,
  metrics,
)
from tests.commands import call, trained
from tests.helpers import inception_weights

SMALL = {
  'model.width': 16,
  'model.num_layers': 1,
  'model.max_loops': 2,
  'model.num_heads': 2,
  'train.num_steps': 2,
  'train.batch_size': 8,
  'train.sample_every_steps': 0,
  'sample.num_steps': 2,
  'sample.batch_size': 8,
}


# ---- Files -------------------------------------------------------------------


def all_images(path):
  return np.concatenate(list(adm.Reference(path).images(size=3)))


def test_samples_are_written_part_by_part(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), np.uint8)
  path = tmp_path / 'samples.npz'
  with adm.writing(path, 7) as file:
    file.add(images[:4])
    file.add(images[4:])
  found = files.read_npz(path)
  assert list(found) == ['arr_0']
  np.testing.assert_array_equal(found['arr_0'], images)
  np.testing.assert_array_equal(all_images(path), images)
  # In the order of rows, whatever that of the memory.
  with adm.writing(path, 7) as file:
    file.add(np.asfortranarray(images))
  np.testing.assert_array_equal(all_images(path), images)
  with (
    pytest.raises(ValueError, match='4 of 8 images'),
    adm.writing(tmp_path / 'half.npz', 8) as file,
  ):
    file.add(images[:4])
  assert not (tmp_path / 'half.npz').exists()


@pytest.mark.parametrize(
  'arrays,message',
  [
    ({'x': np.zeros(3)}, r"has the arrays \['x'\]; expected mu and sigma"),
    ({'mu': np.zeros(2048)}, r"lacks \['sigma'\]"),
    (
      {'mu': np.zeros(64), 'sigma': np.zeros((64, 64))},
      r'mu is float64 \(64,\); expected finite numbers of shape \(2048,\)',
    ),
    ({'arr_0': np.zeros((3, 8, 8, 3))}, 'arr_0 is float64 .*expected images'),
    ({'arr_0': np.array([None, 1])}, r'arr_0 is object \(2,\)'),
    ({'arr_0': np.zeros((3, 8, 8, 4), np.uint8)}, 'h, w, 1 or 3'),
    ({'arr_0': np.uint8(3)}, r'arr_0 is uint8 \(\)'),
    (
      {'arr_0': np.zeros((2, 3, 4, 3), np.uint8, order='F')},
      'is stored by columns',
    ),
  ],
)
def test_references_of_another_kind_are_refused(tmp_path, arrays, message):
  path = tmp_path / 'x.npz'
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match=message):
    fid.Reference(adm.Reference(path), network, ['fid'])


def test_files_that_are_no_references_are_refused(tmp_path):
  with pytest.raises(ValueError, match='there is no file'):
    adm.Reference(tmp_path / 'x.npz')
  (tmp_path / 'x.npz').write_bytes(b'\x80\x04')
  with pytest.raises(ValueError, match='is not a readable .npz file'):
    adm.Reference(tmp_path / 'x.npz')


# ---- The command -------------------------------------------------------------


def network(images: np.ndarray) -> inception.Features:
  """In place of Inception: fixed projections of the pixels."""
  rng = np.random.default_rng(0)
  x = images.reshape(len(images), -1) / 255
  widths = {'pool': 16, 'spatial': 12, 'probabilities': 10}
  found = {
    name: (x @ rng.normal(size=(x.shape[1], width))).astype(np.float32)
    for name, width in widths.items()
  }
  odds = np.exp(found['probabilities'])
  found['probabilities'] = odds / odds.sum(1, keepdims=True)
  return inception.Features(**found)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  trained(mnist_diffusion, SMALL, path)
  return path


def use_stand_in(monkeypatch):
  """`network` for Inception, whose file is not read."""
  features = type(
    'Network', (), {'__call__': lambda _, x: network(x), 'fingerprint': 'f'}
  )
  monkeypatch.setattr(inception, 'load', lambda path: path)
  monkeypatch.setattr(inception, 'Inception', lambda path: features())


@pytest.fixture
def files_of_user(tmp_path, monkeypatch):
  """Flags of a reference of 20 images, and of no real Inception."""
  images = np.random.default_rng(2).integers(0, 256, (20, 28, 28, 3), np.uint8)
  np.savez(tmp_path / 'reference.npz', arr_0=images)
  use_stand_in(monkeypatch)
  return [f'--reference={tmp_path}/reference.npz', '--inception=weights.pth']


def rows(workdir):
  return json.loads((workdir / 'metrics.json').read_text())['rows']


def test_a_row_per_loop_count_from_samples_drawn_in_parts(
  workdir, files_of_user, monkeypatch
):
  args = [f'--workdir={workdir}', '--num=20', '--metrics=fid,sfid,is,pr']
  args += files_of_user
  call(evaluate, *args, '--loops=1,2', '--save_samples')
  first = rows(workdir)
  assert [row['loops'] for row in first] == [1, 2]
  # The samples that were kept give the same numbers.
  samples = all_images(workdir / 'samples-2.npz')
  assert samples.shape == (20, 28, 28, 3)
  assert len(np.unique(samples.reshape(20, -1), axis=0)) == 20
  seen = fid.Seen(network, ['fid', 'sfid', 'is', 'pr'], 20, 10)
  seen.add(samples)
  reference = fid.Reference(
    adm.Reference(files_of_user[0].partition('=')[2]), network, ['fid', 'pr']
  )
  again = reference.measure(seen, ['fid', 'is', 'pr'])
  assert again['fid_spread'] > 0
  assert again == pytest.approx({k: first[1][k] for k in again}, rel=1e-5)

  # In parts of 8 as in one; what is there is not measured again.
  (workdir / 'metrics.json').rename(workdir / 'whole.json')
  monkeypatch.setattr(metrics, '_SAMPLES', 8)
  call(evaluate, *args, '--loops=2')
  assert rows(workdir)[0]['fid'] == pytest.approx(first[1]['fid'], rel=1e-6)
  monkeypatch.setattr(metrics, '_draw_into', None)
  call(evaluate, *args, '--loops=2')
  for changes, message in (
    (['--seed=1'], 'is of seed = 0, not 1'),
    (['--watch=state'], 'is of watch = output, not state'),
  ):
    with pytest.raises(ValueError, match=message):
      call(evaluate, *args, '--loops=2', *changes)
  (workdir / 'samples-2.npz').unlink()
  with pytest.raises(ValueError, match='has the row of 2, and .*samples-2.npz'):
    call(evaluate, *args, '--loops=2', '--save_samples')
  # Another reference under the same name.
  path = files_of_user[0].partition('=')[2]
  np.savez(path, arr_0=samples)
  with pytest.raises(ValueError, match='is of reference = '):
    call(evaluate, *args, '--loops=2')
  (workdir / 'metrics.json').unlink()


def test_rows_of_another_schedule_are_measured_anew(workdir, files_of_user):
  args = [f'--workdir={workdir}', '--num=20', '--metrics=is', files_of_user[1]]
  call(evaluate, *args, '--loops=explicit:1x1+1x2')
  report = json.loads((workdir / 'metrics.json').read_text())
  (row,) = report['rows']
  assert row['schedule'] == 'explicit:1x1+1x2'
  # As a calibration that was made again would leave it.
  report['rows'] = [row | {'schedule': 'explicit:2x1', 'is': 0.0}]
  (workdir / 'metrics.json').write_text(json.dumps(report))
  call(evaluate, *args, '--loops=explicit:1x1+1x2')
  (again,) = rows(workdir)
  assert again['is'] == row['is'] and again['schedule'] == row['schedule']
  (workdir / 'metrics.json').unlink()


def test_the_inception_score_takes_no_reference(workdir, files_of_user):
  args = [f'--workdir={workdir}', '--num=20', '--metrics=is', '--loops=1']
  call(evaluate, *args, files_of_user[1])
  (row,) = rows(workdir)
  assert row['is'] >= 1 and 'fid' not in row
  (workdir / 'metrics.json').unlink()


def test_a_reference_is_made_of_the_training_set(
  workdir, files_of_user, monkeypatch
):
  """Moments of all of it, some images; in parts, and once."""
  monkeypatch.setattr(fid_reference, '_KEPT', 100)
  sizes = {'pool': ('mu', 'sigma', 16), 'spatial': ('mu_s', 'sigma_s', 12)}
  monkeypatch.setattr(adm, '_MOMENTS', sizes)  # Of the stand-in's features.
  args = [f'--workdir={workdir}', '--num=20', '--metrics=fid,sfid,pr']
  call(evaluate, *args, '--loops=1', files_of_user[1], '--save_samples')
  made = workdir / 'fid-train.npz'
  images = np.broadcast_to(sources.mnist('train').images, (4500, 28, 28, 3))
  there = network(images)
  for names, features in (('mu sigma', 'pool'), ('mu_s sigma_s', 'spatial')):
    kept = files.read_npz(made, names.split()).values()
    for found, wanted in zip(
      kept, frechet.moments(getattr(there, features)), strict=True
    ):
      np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  some = all_images(made)
  assert some.shape == (100, 28, 28, 3)
  of_set = {image.tobytes() for image in images}
  assert len({image.tobytes() for image in some} & of_set) == 100
  # In the order of the set they would not be of all classes alike.
  assert (some != images[:100]).any()

  (row,) = rows(workdir)
  samples = all_images(workdir / 'samples-1.npz')
  drawn = network(samples)
  distance = frechet.frechet_distance(
    *frechet.moments(drawn.pool), *frechet.moments(there.pool)
  )
  assert row['fid'] == pytest.approx(distance, rel=1e-5)
  assert (row['precision'], row['recall']) == image_metrics.precision_recall(
    network(some).pool, drawn.pool
  )
  recipe = json.loads((workdir / 'metrics.json').read_text())['recipe']
  assert recipe['reference'] == adm.Reference(made).recipe()
  assert recipe['reference']['source'] == 'mnist'

  # It is not made again, serves by its name, and is of one network and size.
  monkeypatch.setattr(fid_reference, 'make', None)
  call(evaluate, *args, '--loops=2', files_of_user[1])
  (workdir / 'metrics.json').unlink()
  call(evaluate, *args, '--loops=1', files_of_user[1], f'--reference={made}')
  assert rows(workdir)[0]['fid'] == pytest.approx(row['fid'])
  (workdir / 'metrics.json').unlink()
  recipe = fid_reference.make_recipe(mnist_diffusion.get_config(), 'g')
  with pytest.raises(ValueError, match='is of inception = f, not g. Move it'):
    fid_reference.found(made, recipe)
  other = mnist_diffusion.get_config()
  other.data.update({'image_size': 32, 'source': ''})
  of_run = inception.Inception(''), 20, other, workdir
  with pytest.raises(ValueError, match='is of image_size = 28, not 32'):
    fid.Images(['fid'], *of_run, adm.Reference(made))
  made.unlink()


def test_public_weights_have_no_training_set_here():
  config = mnist_diffusion.get_config()
  config.data.source = ''
  with pytest.raises(ValueError, match='are not here to measure against'):
    fid_reference.make_recipe(config, 'f')


def test_a_draw_in_parts_is_that_of_the_whole(workdir):
  draw, params, _ = sample.load(str(workdir), 8)
  labels = np.arange(24) % 10
  whole = draw(params, labels, 2, seed=3)
  parts = [draw(params, labels[i : i + 8], 2, 3, first=i) for i in (0, 8, 16)]
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  with pytest.raises(ValueError, match='drawn all at once'):
    draw(params, labels, 'rebatch', 3, first=8)


def test_each_column_is_of_its_own_features(tmp_path):
  rng = np.random.default_rng(3)
  there = rng.integers(0, 256, (40, 4, 4, 3), np.uint8)
  drawn = (100 + there[:30] // 4).astype(np.uint8)  # In the middle of them.
  np.savez(tmp_path / 'x.npz', arr_0=there)
  names = ['fid', 'sfid', 'pr']
  reference = fid.Reference(adm.Reference(tmp_path / 'x.npz'), network, names)
  seen = fid.Seen(network, names, 30, 1)
  seen.add(drawn)
  row = reference.measure(seen, names)
  a, b = network(there), network(drawn)
  for name, features in (('fid', 'pool'), ('sfid', 'spatial')):
    of_both = (frechet.moments(getattr(x, features)) for x in (b, a))
    distance = frechet.frechet_distance(*(m for pair in of_both for m in pair))
    assert row[name] == pytest.approx(distance, rel=1e-6)
  found = image_metrics.precision_recall(a.pool, b.pool)
  assert (row['precision'], row['recall']) == found
  assert row['precision'] > row['recall'] and row['fid'] != row['sfid']


@pytest.mark.parametrize(
  'args,message',
  [
    (
      ['--metrics=fid,kid'],
      'of a model of images must be some of fid,sfid,is,pr',
    ),
    (['--metrics=fvd'], 'each once; got fvd'),
    (['--metrics=fid', '--i3d=x.pt'], '--i3d is of clips'),
    (['--metrics=fid,fid'], 'each once; got fid,fid'),
    (['--metrics=fid', '--num=10'], 'Set --num=20, or give --unequal'),
    (['--metrics=fid', '--commit'], 'no --refine, --task or --commit'),
    ([], '--reference is of --metrics'),
  ],
)
def test_wrong_arguments_are_refused(workdir, files_of_user, args, message):
  with pytest.raises(ValueError, match=message):
    call(evaluate, f'--workdir={workdir}', '--num=20', *files_of_user, *args)
  assert not (workdir / 'metrics.json').exists()


def test_moments_of_a_file_are_taken_as_they_are(tmp_path):
  rng = np.random.default_rng(0)
  mean, root = rng.normal(size=2048), rng.normal(size=(2048, 8))
  path = tmp_path / 'stats.npz'
  np.savez(path, mu=mean, sigma=root @ root.T)
  reference = fid.Reference(adm.Reference(path), None, ['fid', 'is'])
  np.testing.assert_array_equal(reference.moments['fid'][0], mean)
  # Nobody knows of how many they are.
  fid.check_count(adm.Reference(path), ['fid', 'is'], 50_000)
  with pytest.raises(
    ValueError, match=r'no arr_0, the images that --metrics=pr'
  ):
    fid.Reference(adm.Reference(path), None, ['fid', 'pr'])


@pytest.mark.slow
def test_the_command_with_a_real_network(workdir, tmp_path):
  images = np.random.default_rng(2).integers(0, 256, (20, 28, 28, 3), np.uint8)
  np.savez(tmp_path / 'reference.npz', arr_0=images)
  np.savez(tmp_path / 'weights.npz', **inception_weights())
  args = [f'--reference={tmp_path}/reference.npz', '--metrics=fid,sfid,is,pr']
  args += [f'--inception={tmp_path}/weights.npz', '--num=20', '--loops=1']
  call(evaluate, f'--workdir={workdir}', *args)
  (row,) = rows(workdir)
  assert row['fid'] > 0 and row['is'] >= 1
