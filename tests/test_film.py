"""The exits of every step, against runs that end there; the film strip."""

import types

import jax
import numpy as np
from PIL import Image
import pytest

from elt_jax import checkpoint, film, video, viz
from elt_jax import config as config_lib
from elt_jax.mesh import build_mesh
from elt_jax.samplers.draw import Draw
from tests.commands import call
from tests.conftest import tiny_config
from tests.helpers import (
  ONE_DEVICE,
  Stack,
  init,
  init_masked,
  masked_config,
  noisy,
)


def drawing(family, batch_size=2):
  """(draw, parameters); a masked one draws the likeliest tokens."""
  config, tokenizer = tiny_config(), None
  if family == 'masked':
    config = masked_config(config)
    config.sample.temperature_bias, config.sample.temperature_scale = 1e-3, 0.0
    model, params = init_masked(config)
    tokenizer = types.SimpleNamespace(
      grid=(4, 4), config=config, decode=lambda tokens: tokens
    )
  else:
    model, params, _ = init(config)
    params = noisy(params, 0.3)
  mesh = build_mesh(ONE_DEVICE, jax.devices()[:1])
  return Draw(config, model, mesh, batch_size, tokenizer), params


@pytest.mark.parametrize('family', ['diffusion', 'masked'])
def test_an_exit_of_the_first_step_is_a_run_of_one_step(family):
  """Of so many loops; samples in more batches than one."""
  draw, params = drawing(family)
  labels = [0, 3, 1]
  exits = draw.exits(params, labels, 5, seed=4)
  assert exits.shape[:3] == (3, 4, 5)
  once = draw.with_steps(1)
  for loops in range(1, 6):
    want = once(params, labels, loops, seed=4)
    np.testing.assert_allclose(exits[:, 0, loops - 1], want, atol=2e-5)
  assert (exits[:, 0, 0] != exits[:, 0, 4]).any()


def test_the_last_exit_at_l_max_is_the_sample():
  draw, params = drawing('diffusion')
  changes = {'guidance': 2.0, 'guidance_mode': 'cfg_shallow'}
  exits = draw.exits(params, [2, 0], 4, 1, **changes)
  want = draw(params, [2, 0], 3, 1, **changes)
  np.testing.assert_allclose(exits[:, -1, 2], want, atol=2e-5)
  assert np.abs(exits[:, -1, 0] - want).max() > 1e-3


def test_what_is_decided_is_the_same_at_every_exit():
  draw, params = drawing('masked')
  exits = draw.exits(params, [1], 4, seed=0)[0]
  # The last step of four decides two tokens of sixteen or fewer.
  apart = (exits[-1] != exits[-1, 2]).reshape(4, -1).sum(-1)
  assert apart.max() <= 16 * np.cos(np.pi / 2 * 0.75)


def test_the_strip_has_the_steps_asked_for():
  draw, params = drawing('diffusion')
  picture = film.film(draw, params, 2, 1, num_loops=4, num_rows=2, scale=3)
  exits = viz.to_uint8(draw.exits(params, [2], 4, 1)[0])
  want = video.side_by_side(
    exits[[0, 3]],
    ['step 1 of 4', 'step 4 of 4'],
    ['L = 1', 'L = 2', 'L = 3 (L_max)', 'L = 4'],
    scale=3,
  )
  np.testing.assert_array_equal(picture, want)
  more = film.film(draw, params, 2, 1, num_loops=4, num_rows=9, scale=1)
  assert more.shape[0] > picture.shape[0] / 3 * 1.5


@pytest.fixture(scope='module', params=[1, 4])
def trained(request, tmp_path_factory):
  """(workdir, frames) of a model of images, and one of clips."""
  config = tiny_config()
  config.data.num_frames = request.param
  config.model.patch_frames = 2 if request.param > 1 else 1
  config.sample.num_steps = 2
  workdir = tmp_path_factory.mktemp('trained')
  config_lib.claim_workdir(config, workdir)
  with checkpoint.Checkpoints(workdir) as checkpoints:
    checkpoints.save(Stack(config).create())
  return workdir, request.param


def test_the_command_writes_a_picture_or_plays(trained, tmp_path, capsys):
  workdir, frames = trained
  right, wrong = ('.png', '.gif') if frames == 1 else ('.gif', '.png')
  out = tmp_path / f'film{right}'
  call(film, f'--workdir={workdir}', f'--out={out}', '--scale=1', '--rows=2')
  assert 'loops beyond 3 were never trained' in capsys.readouterr().out
  with Image.open(out) as picture:
    assert picture.width > 6 * 8 and picture.height > 2 * 8
    assert getattr(picture, 'n_frames', 1) <= frames
  for args, message in (
    ([f'--out={tmp_path}/film{wrong}'], f'must end in {right}'),
    ([f'--out={out}', '--loops=2'], 'at least L_max = 3'),
    ([f'--out={out}', '--rows=0'], '--rows must be at least 1'),
    ([f'--out={out}', '--label=9'], 'Labels must be in 0..3'),
    ([], '--out is required'),
  ):
    with pytest.raises(ValueError, match=message):
      call(film, f'--workdir={workdir}', *args)
