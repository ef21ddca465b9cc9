"""Clips from pixels to samples: inflate, tokens, masked model, prediction."""

import json
import types

import numpy as np
import pytest

from configs import mnist_tokenizer, moving_mnist_masked, moving_mnist_tokenizer
from elt_jax import edit, evaluate, sample, tokenize, video
from elt_jax.data import token_cache
from elt_jax.evals import elastic, tasks
from elt_jax.samplers.loops import parse
from tests.commands import call, picture_size, trained

SHAPE = {
  'data.image_size': 16,
  'tokenizer.patch_size': 2,
  'tokenizer.local_encoder': False,
  'tokenizer.filters': 8,
  'tokenizer.channel_multipliers': (1, 1),
  'tokenizer.norm_groups': 4,
  'tokenizer.codebook_size': 16,
  'tokenizer.embedding_dim': 4,
  'train.batch_size': 8,
  'train.num_steps': 2,
}
CLIPS = SHAPE | {
  'data.num_frames': 8,
  'tokenizer.patch_frames': 1,
  'tokenizer.temporal_downsample': (True,),
  'train.sample_every_steps': 2,
}
MASKED = CLIPS | {
  'model.width': 16,
  'model.num_heads': 2,
  'model.max_loops': 2,
  'model.unroll_loops': False,
  'sample.num_steps': 3,
}


def arrays(shape):
  rng = np.random.default_rng(0)
  make = lambda n: rng.integers(0, 256, (n, *shape), np.uint8)
  label = lambda n: np.arange(n) % 10
  return {'image': make(24), 'label': label(24)} | {
    'test_image': make(12),
    'test_label': label(12),
  }


# Which of the four tokens along time they draw.
TASKS = [('predict:4', [0, 0, 1, 1]), ('interpolate:2', [0, 1, 1, 0])]


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
  """A tokenizer of images, one of clips, tokens and a masked model."""
  root = tmp_path_factory.mktemp('clips')
  np.savez(root / 'images.npz', **arrays((16, 16, 1)))
  np.savez(root / 'clips.npz', **arrays((8, 16, 16, 1)))
  source = lambda name: {'data.source': name}
  trained(
    mnist_tokenizer, SHAPE | source(f'npz:{root}/images.npz'), root / 'images'
  )
  still = {'optim.learning_rate': 0.0, 'tokenizer.restart_every_steps': 0}
  trained(
    moving_mnist_tokenizer,
    CLIPS
    | still
    | source(f'npz:{root}/clips.npz')
    | {'tokenizer.inflate_from': str(root / 'images')},
    root / 'tokenizer',
  )
  args = [f'--workdir={root}/tokenizer', f'--out={root}/tokens']
  call(tokenize, *args, '--tasks=predict:4,interpolate:2')
  trained(
    moving_mnist_masked,
    MASKED | source(f'tokens:{root}/tokens') | {'objective.commit': True},
    root / 'masked',
  )
  return root


def test_the_tokenizer_of_clips_starts_from_that_of_images(chain):
  images, _ = sample.load_tokenizer(str(chain / 'images'))
  clips, step = sample.load_tokenizer(str(chain / 'tokenizer'))
  assert step == 2 and clips.grid == (4, 4, 4)
  # It was trained at a learning rate of zero.
  kernel = clips.params['encoder']['Conv_0']['kernel']
  want = images.params['encoder']['Conv_0']['kernel']
  np.testing.assert_allclose(kernel[1], want, rtol=1e-5)
  assert not kernel[[0, 2]].any()


def test_tokens_of_clips_are_cached_as_they_are_made(chain):
  source = token_cache.TokenSource(chain / 'tokens', 'train')
  assert len(source) == 24 and source.metadata['grid'] == [4, 4, 4]
  with np.load(chain / 'clips.npz') as stored:
    want = source.tokenizer.encode(stored['image'] / np.float32(255))
  got = np.stack([source[i]['tokens'] for i in range(24)])
  np.testing.assert_array_equal(got, want)


def test_a_cache_is_of_one_choice_of_clips(chain):
  args = [
    f'--workdir={chain}/tokenizer',
    f'--out={chain}/tokens',
    '--tasks=predict:4,interpolate:2',
  ]
  call(tokenize, *args)  # It is there, and stays.
  for flag, message in (
    ('--frame_stride=2', 'frame_stride: 1 there, 2 here'),
    ('--ucf_split=3', 'ucf_split: all there, 3 here'),
    ('--windows=5', 'windows: 2 there, 5 here'),
    ('--skip_unreadable', 'skip_unreadable: False there, True here'),
    ('--windows=0', 'data.windows must be at least 1, got 0'),
    ('--ucf_split=4', "got '4'"),
    (
      '--tasks=predict:4',
      "tasks: ['predict:4', 'interpolate:2'] there, ['predict:4'] here",
    ),
    ('--tasks=predict:4,', "got ''"),
  ):
    with pytest.raises(ValueError) as error:
      call(tokenize, *args, flag)
    assert message in str(error.value)


def test_the_cache_has_what_tasks_give(chain):
  source = token_cache.TokenSource(chain / 'tokens', 'train', True)
  assert (
    'conditions' not in token_cache.TokenSource(chain / 'tokens', 'train')[0]
  )
  with np.load(chain / 'clips.npz') as stored:
    clips = stored['image']
  for n, (task, drawn) in enumerate(TASKS):
    drawn = np.array(drawn, bool)
    want = source.tokenizer.encode(
      edit.fill_frames(clips, drawn.repeat(2)) / np.float32(255)
    )
    for i in (0, 7, 23):
      found = source[i]['conditions'][n]
      np.testing.assert_array_equal(
        found[~drawn], want[i][~drawn], err_msg=task
      )
      assert (found[drawn] == -1).all()


def test_what_is_given_may_be_mended(chain, tmp_path):
  """With --commit given tokens are drawn too; without, they stay."""
  draw, params, _ = sample.load(str(chain / 'masked'), 2)
  file = clip_file(tmp_path / 'clip.mp4')
  known, _ = sample.edit_columns(draw, str(file), None, 'predict:4')
  given = np.stack([known] * 2)
  found = []
  decode = draw.tokenizer.decode
  draw.tokenizer.decode = lambda tokens: found.append(tokens) or decode(tokens)
  draw(params, [1, 2], 2, seed=0, condition=given)
  assert (found[0][:2][given >= 0] != given[given >= 0]).any()
  out = tmp_path / 'next.png'
  args = [f'--workdir={chain}/masked', f'--edit={file}', f'--out={out}']
  args += ['--task=predict:4', '--num=1', '--scale=1', '--loops=1']
  pictures = []
  for mode in (['--commit'], []):
    call(sample, *args, *mode)
    pictures.append(out.read_bytes())
  assert pictures[0] != pictures[1]
  with pytest.raises(ValueError, match='--commit is of --edit'):
    call(sample, f'--workdir={chain}/masked', '--commit')
  draw.config = draw.config.copy_and_resolve_references()
  draw.config.objective.commit = False
  with pytest.raises(ValueError, match='trained without conditions'):
    draw(params, [1, 2], 2, seed=0, condition=given)


@pytest.mark.parametrize('commit', [False, True])
def test_prediction_is_measured_beside_pasted_clips(chain, monkeypatch, commit):
  """Of both kinds, what a task gives is real; the rest is not the same."""
  seen = []

  class Recorded:
    facts, images = {}, np.zeros((2, 8, 16, 16, 1), np.uint8)

    def measure(self, clips, labels=None):
      seen.append((clips, labels))
      return {'fd': float(len(seen))}

  monkeypatch.setattr(elastic, 'load_reference', lambda draw: Recorded())
  draw, params, step = sample.load(str(chain / 'masked'), 6)
  loops = [parse(n, draw.config) for n in (1, 2)]
  report, picture = tasks.evaluate(
    draw, params, step, 'interpolate:2', loops, 6, 0, commit
  )
  with np.load(chain / 'clips.npz') as stored:
    clips, labels = stored['test_image'], stored['test_label']
  of_rows, of_recipe = seen[:4], seen[4:]
  places = np.arange(6) * len(clips) // 6
  real = clips[places] / np.float32(127.5) - 1
  given = np.array([1, 1, 0, 0, 0, 0, 1, 1], bool)
  for samples, wanted in of_rows:
    np.testing.assert_array_equal(wanted, labels[places])
    np.testing.assert_allclose(samples[:, given], real[:, given], atol=1e-6)
    assert (abs(samples - real)[:, ~given] > 0.01).any((1, 2, 3, 4)).all()
  for drawn, pasted in (of_rows[:2], of_rows[2:]):
    assert (drawn[0] != pasted[0])[:, ~given].any()
  assert report['rows'] == [
    {'loops': n + 1, 'drawn': {'fd': 2 * n + 1}, 'pasted': {'fd': 2 * n + 2}}
    for n in range(2)
  ]
  assert len(of_recipe) == 1  # The floor: reconstructions.
  assert report['recipe']['task'] == 'interpolate:2'
  assert report['recipe']['commit'] is commit
  assert picture.shape == (4 * (4 * 18 + 2), 8 * 18 + 2, 3)


@pytest.mark.slow
def test_tasks_on_the_command_line(chain, monkeypatch, tmp_path):
  monkeypatch.setenv('ELT_JAX_CACHE', str(tmp_path))
  args = [f'--workdir={chain}/masked', '--num=4', '--loops=2']
  call(evaluate, *args, '--task=predict:4', '--commit')
  report = json.loads((chain / 'masked' / 'predict-4-commit.json').read_text())
  (row,) = report['rows']
  for kind in ('drawn', 'pasted'):
    assert row[kind]['fd_c3d'] > 0 and 0 <= row[kind]['motion'] <= 1
  assert picture_size(chain / 'masked' / 'predict-4-commit.png')[0] > 8 * 32
  for more, message in (
    (['--task=predict:3'], "--task is 'predict:N'"),
    (['--commit'], '--commit is of --task'),
    (['--task=predict:4', '--refine=rounds=1'], 'do not go together'),
  ):
    with pytest.raises(ValueError, match=message):
      call(evaluate, *args, *more)


def test_only_a_tokenizer_of_images_is_inflated(chain, tmp_path):
  changes = {'tokenizer.inflate_from': str(chain / 'tokenizer')}
  changes |= {'data.source': f'npz:{chain}/clips.npz'}
  with pytest.raises(ValueError, match='is a tokenizer of clips of 8 frames'):
    trained(moving_mnist_tokenizer, CLIPS | changes, tmp_path / 'a')


def test_both_trainings_draw_film_strips(chain):
  wide = 2 * (8 * 18 + 2)
  for run in ('tokenizer', 'masked'):
    size = picture_size(chain / run / 'samples' / '00000002.png')
    assert size == (wide, 2 * 2 * (2 * 18 + 2))


def test_clips_are_evaluated_at_every_loop_count(chain, monkeypatch, tmp_path):
  monkeypatch.setenv('ELT_JAX_CACHE', str(tmp_path))
  call(evaluate, f'--workdir={chain}/masked', '--num=12', '--loops=1,2,4')
  report = json.loads((chain / 'masked' / 'elastic.json').read_text())
  recipe = report['recipe']
  assert [row['loops'] for row in report['rows']] == [1, 2, 4]
  for row in report['rows']:
    assert row['fd_c3d'] > 0 and 0 <= row['motion'] <= 1
    assert 0 <= row['class_accuracy'] <= 1 and 0 <= row['frame_accuracy'] <= 1
  assert recipe['quality'] == 'fd_c3d' and recipe['floor'] > 0
  assert recipe['fd_c3d_of_reconstructions'] > 0
  assert 0 <= recipe['motion_of_reconstructions'] <= 1
  assert picture_size(chain / 'masked' / 'elastic.png')[0] > 800


def clip_file(path, num_frames=8):
  """An .mp4 of grey frames, each brighter than the one before."""
  grey = (20 + 24 * np.arange(num_frames)).astype(np.uint8)
  frames = np.broadcast_to(
    grey.reshape(-1, 1, 1, 1), (num_frames, 16, 16, 3)
  ).copy()
  video.save_clip(path, frames, fps=8)
  return path


@pytest.mark.parametrize('task,drawn', TASKS)
def test_given_frames_keep_their_tokens(chain, tmp_path, task, drawn):
  draw, params, _ = sample.load(str(chain / 'masked'), 2)
  file = clip_file(tmp_path / 'clip.mp4')
  known, shown = sample.edit_columns(draw, str(file), None, task)
  assert shown.shape == (2, 8, 16, 16, 1)
  drawn = np.array(drawn, bool)
  filled = edit.fill_frames(shown[0], drawn.repeat(2))
  (want,) = draw.tokenizer.encode(filled[None] / np.float32(255))
  np.testing.assert_array_equal(known, np.where(drawn[:, None, None], -1, want))
  kept = []
  decode = draw.tokenizer.decode
  draw.tokenizer.decode = lambda tokens: kept.append(tokens) or decode(tokens)
  draw(params, [1, 2], 2, seed=0, known=np.stack([known] * 2))
  for tokens in np.concatenate(kept)[:2]:
    np.testing.assert_array_equal(tokens[~drawn], known[~drawn])
    assert (tokens[drawn] >= 0).all()


def test_nothing_of_what_is_predicted_is_seen(chain, tmp_path):
  """Two files that differ in the frames to be drawn alone give equal tokens."""
  draw, _, _ = sample.load(str(chain / 'masked'), 1)
  grey = np.array([30, 90, 60, 120, 200, 40, 160, 220], np.uint8)
  other = np.where(np.arange(8) < 4, grey, 255 - grey)
  found = []
  for name, levels in (('a.gif', grey), ('b.gif', other)):
    frames = np.broadcast_to(levels.reshape(8, 1, 1, 1), (8, 16, 16, 3)).copy()
    video.save_clip(tmp_path / name, frames, fps=8)
    file = str(tmp_path / name)
    found.append(sample.edit_columns(draw, file, None, 'predict:4'))
  (known, shown), (same, unlike) = found
  assert (shown[0] != unlike[0]).any()
  np.testing.assert_array_equal(known, same)


def test_frames_between_are_blended_and_those_after_repeated():
  clip = np.array([0, 9, 9, 30, 9, 9], np.uint8).reshape(1, 6, 1, 1, 1)
  drawn = np.array([0, 1, 1, 0, 1, 1], bool)
  filled = edit.fill_frames(clip, drawn).reshape(-1)
  assert filled.tolist() == [0, 10, 20, 30, 30, 30]


def test_a_clip_is_continued_on_the_command_line(chain, tmp_path):
  file, out = clip_file(tmp_path / 'clip.mp4'), tmp_path / 'next.png'
  args = [f'--workdir={chain}/masked', f'--edit={file}', f'--out={out}']
  call(sample, *args, '--task=predict:4', '--num=1', '--scale=1')
  # The clip, what of it is given, and the sample, a strip each.
  assert picture_size(out) == (8 * 18 + 2, 3 * (18 + 2))


@pytest.mark.parametrize(
  'task',
  [
    'predict',
    'predict:0',
    'predict:8',
    'predict:3',
    'interpolate:4',
    'guess:2',
  ],
)
def test_wrong_tasks(task):
  data = types.SimpleNamespace(num_frames=8)
  tokenizer = types.SimpleNamespace(
    config=types.SimpleNamespace(data=data), grid=(4, 4, 4)
  )
  with pytest.raises(ValueError, match="--task is 'predict:N' or"):
    edit.drawn_frames(task, tokenizer)


def test_edits_that_do_not_fit(chain, tmp_path):
  short = clip_file(tmp_path / 'short.mp4', num_frames=5)
  workdir = f'--workdir={chain}/masked'
  for args, message in (
    ([f'--edit={short}'], '--edit goes with --mask or --task'),
    (['--task=predict:2'], '--edit goes with --mask or --task'),
    (
      [f'--edit={short}', '--mask=a', '--task=predict:2'],
      '--edit goes with --mask or --task',
    ),
    (
      [f'--edit={short}', '--task=predict:2'],
      'short.mp4 has 5 frames, but data.num_frames = 8',
    ),
    (['--edit=nowhere.mp4', '--task=predict:2'], 'nowhere.mp4'),
  ):
    with pytest.raises((ValueError, OSError)) as error:
      call(sample, workdir, *args)
    assert message in str(error.value)
    assert 'skip_unreadable' not in str(error.value)


def test_a_task_is_of_clips():
  data = types.SimpleNamespace(num_frames=1)
  model = types.SimpleNamespace(family='masked')
  config = types.SimpleNamespace(data=data, model=model)
  draw = types.SimpleNamespace(config=config, tokenizer=object())
  with pytest.raises(ValueError, match='--task is of clips'):
    sample.edit_columns(draw, 'a.png', None, 'predict:2')
