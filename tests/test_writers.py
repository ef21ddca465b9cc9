"""Metric records, and what a resumed run makes of those of a killed one."""

import json

from etils import epath
import numpy as np
import pytest

from elt_jax import files, train, writers
from elt_jax.writers import MetricWriter


def records(tmp_path):
  text = (tmp_path / 'logs' / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_scalars_are_lines_and_events(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write_scalars(1, {'a': 0.5})
    writer.write_scalars(2, {'a': 0.25, 'b': 3.0})
    writer.write_images(2, {'grid': np.zeros((4, 4, 3), np.uint8)})
  assert records(tmp_path) == [
    {'step': 1, 'a': 0.5},
    {'step': 2, 'a': 0.25, 'b': 3.0},
  ]
  (events,) = (tmp_path / 'logs').glob('events.*')
  assert events.stat().st_size > 100


def test_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
  with MetricWriter(tmp_path) as writer:
    for step in (10, 20, 30):
      writer.write_scalars(step, {'a': float(step)})
  path = tmp_path / 'logs' / 'metrics.jsonl'
  path.write_text(path.read_text() + '{"step": 40, "a"')  # Killed here.
  with MetricWriter(tmp_path, start_step=20) as writer:
    writer.write_scalars(30, {'a': 31.0})
  assert records(tmp_path) == [
    {'step': 10, 'a': 10.0},
    {'step': 20, 'a': 20.0},
    {'step': 30, 'a': 31.0},
  ]


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / 'x.txt'
  files.write_text(path, 'old')
  (tmp_path / 'plain').touch()
  assert path.stat().st_mode == (tmp_path / 'plain').stat().st_mode
  (tmp_path / 'plain').unlink()
  with pytest.raises(RuntimeError), files.replacing(path) as temporary:
    temporary.write_text('half of the new')
    raise RuntimeError
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_cannot_be_written_ends_no_run(tmp_path, caplog):
  picture = np.zeros((4, 4, 3), np.uint8)
  train.save_preview(str(tmp_path), 7, picture)
  assert (tmp_path / 'samples' / '00000007.png').exists()
  train.save_preview(str(tmp_path / 'samples' / '00000007.png'), 8, picture)
  assert 'No picture of step 8: ' in caplog.text


def test_a_file_that_cannot_be_copied_keeps_no_other_back(tmp_path, caplog):
  mirror = writers._Mirror(epath.Path(tmp_path / 'bucket'))
  for name in ('a', 'b', 'c'):
    (mirror.local / name).write_text(name)
  (tmp_path / 'bucket' / 'b' / 'in_the_way').mkdir(parents=True)
  assert not mirror.copy()
  assert 'b cannot be copied' in caplog.text
  assert (tmp_path / 'bucket' / 'a').read_text() == 'a'
  assert (tmp_path / 'bucket' / 'c').read_text() == 'c'
  mirror.close()
  assert (mirror.local / 'b').exists()  # What is not copied is not deleted.
