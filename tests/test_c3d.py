"""The C3D of clips' IS against Chainer's layers, and that IS.

tests/goldens/c3d.npz: made by tests/parity/make_c3d_golden.py, random weights.
"""

import types

import jax
import numpy as np
import pytest

from elt_jax import files
from elt_jax.evals import c3d, clip_score, fvd
from tests.commands import ROOT
from tests.helpers import c3d_weights

CONV1A = np.zeros((64, 3, 3, 3, 3), np.float32)


def test_probabilities_are_those_of_chainer():
  golden = files.read_npz(ROOT / 'tests' / 'goldens' / 'c3d.npz')
  params = c3d.arranged(c3d_weights())
  run = lambda p, clips: c3d.apply(p, c3d.scaled(clips, p['mean']))
  found = jax.jit(run)(params, golden['clips'])
  np.testing.assert_allclose(found, golden['probabilities'], rtol=1e-3)


def test_clips_are_taken_in_batches(monkeypatch):
  params = {'mean': c3d_mean(7.0)} | {'conv1a/W': CONV1A}
  monkeypatch.setattr(c3d, 'apply', lambda p, x: x[:, :, 0, 0].mean(1))
  rng = np.random.default_rng(0)
  clips = rng.integers(0, 256, (11, 16, 9, 9, 3), np.uint8)
  found = c3d.C3D(params)(clips, batch_size=8)
  corners = clips[:, :, 0, 0, ::-1].mean(1) * (256 / 255) - 7
  np.testing.assert_allclose(found, corners, rtol=1e-4)
  for wrong in (clips[:, :15], clips[..., :1], clips.astype(np.float32)):
    with pytest.raises(ValueError, match='C3D takes uint8'):
      c3d.C3D(params)(wrong)


def c3d_mean(value):
  return np.full((3, 16, 128, 171), value, np.float32)


def test_files_are_read_and_others_refused(tmp_path, monkeypatch):
  layers = [('conv1a/W', CONV1A.shape)]
  monkeypatch.setattr(c3d, 'shapes', lambda: layers)
  weights, mean = tmp_path / 'weights.npz', tmp_path / 'mean2.npz'
  np.savez(weights, **{'conv1a/W': CONV1A, 'another': np.zeros(3)})
  np.savez(mean, mean=c3d_mean(1))
  found = c3d.load(weights, mean)
  assert set(found) == {'conv1a/W', 'mean'}
  for changed, message in (
    ({'mean2': c3d_mean(1)}, 'mean is missing'),
    ({'mean': c3d_mean(1)[:, :1]}, r'mean is \(3, 1, 128, 171\)'),
    ({'mean': c3d_mean(np.nan)}, 'mean2.npz is damaged'),
  ):
    np.savez(mean, **changed)
    with pytest.raises(ValueError, match=message):
      c3d.load(weights, mean)
  mean.write_bytes(b'PK')
  with pytest.raises(ValueError, match='mean2.npz is not a readable'):
    c3d.load(weights, mean)
  with pytest.raises(ValueError, match='--c3d_mean: there is no file'):
    c3d.load(weights, tmp_path / 'nowhere.npz')
  with pytest.raises(ValueError, match='--c3d: there is no file'):
    c3d.load(tmp_path / 'nowhere.npz', mean)
  np.savez(weights, another=np.zeros(3))
  with pytest.raises(ValueError, match='is not the C3D of IS: conv1a/W is mis'):
    c3d.load(weights, mean)


def test_shapes_are_those_of_the_release():
  """78,409,573 numbers, of C3D with 101 classes."""
  found = dict(c3d.shapes())
  assert found['conv5b/W'] == (512, 512, 3, 3, 3) and len(found) == 22
  assert found['fc6/W'] == (4096, 8192) and found['fc8/b'] == (101,)
  assert sum(np.prod(shape) for shape in found.values()) == 78_409_573


# ---- The score ---------------------------------------------------------------


def score_of(protocol, probabilities, frames=16):
  """Of samples that come in parts, their probabilities in place of pixels."""
  pixels = types.SimpleNamespace(data=types.SimpleNamespace(num_frames=frames))
  network = lambda clips: clips
  network.fingerprint = 'f'
  measure = clip_score.ClipScore(protocol, network, pixels)
  seen = measure.start()
  for part in np.split(probabilities, [5, 17]):
    seen.add(part)
  return measure.row(seen)


def test_the_score_in_closed_form():
  """Classes are certain: exp of the entropy of how often each is."""
  certain = np.eye(101)
  ten, one = certain[np.arange(20) % 10], certain[np.zeros(20, int)]
  row = score_of(fvd.Protocol('', 20, is_splits=2), ten)
  assert row == pytest.approx({'is': 10, 'is_std': 0})
  # Repeats apart from each other, and parts of each.
  both = np.concatenate([ten, one])
  row = score_of(fvd.Protocol('', 20, 2, is_splits=1), both)
  assert row == pytest.approx({'is': (10 + 1) / 2, 'is_std': 4.5})
  row = score_of(fvd.Protocol('', 20, 2, is_splits=4), both)
  assert row == pytest.approx({'is': (5 + 1) / 2, 'is_std': 2})
  # 25 samples in ten parts: of 2 and 3 by turns, as 2,048 are of 204 and 205.
  row = score_of(fvd.Protocol('', 25), certain[np.arange(25)])
  assert row == pytest.approx({'is': 2.5, 'is_std': 0.5})


def test_protocols_score_as_published():
  splits = {name: p.is_splits for name, p in fvd.PROTOCOLS.items()}
  assert splits == {'magvit': 1, 'stylegan_v': 10}


@pytest.mark.parametrize(
  'num,frames,message',
  [(9, 16, '10 parts of the samples.* 9'), (10, 12, 'the model draws 12')],
)
def test_what_cannot_be_scored_is_refused(num, frames, message):
  with pytest.raises(ValueError, match=message):
    score_of(fvd.Protocol('', num), np.zeros((num, 101)), frames)
