"""Scales and crops the images of a data set once, for all later runs.

    python -m elt_jax.prepare --source=folder:/data/imagenet --image_size=256 \\
        --out=data/imagenet256

--source is class folders or, as tfds:NAME, what TensorFlow Datasets prepared.
Runs then take data.source=records:data/imagenet256, and see the same pixels.
--workers processes share the work, which one does alike. Killed and started
again, the command goes on.
"""

from collections.abc import Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
import logging
import multiprocessing
import os
import pathlib
import signal
import threading
from typing import Any

from absl import flags
import ml_collections
from tqdm import tqdm

from configs.base import get_base
from elt_jax import cli
from elt_jax.data import records, shards, sources

# Flags in place of keys of config.data.
DATA = ('source', 'image_size', 'num_channels', 'skip_unreadable')

log = logging.getLogger(__name__)

# What a worker process reads: its own sources, as files are not shared.
_worker: dict[str, Any] = {}


def prepare(
  d: ml_collections.ConfigDict, out: pathlib.Path, per_shard: int, workers: int
) -> shards.Metadata:
  """Writes the images of a data set; returns their metadata.

  Args:
    d: config.data.
    out: directory to write.
    per_shard: examples of a file.
    workers: processes.

  Raises:
    ValueError: if `out` holds something else, or an image cannot be read.
    OSError: if a worker is killed.
  """
  data = _open(d)
  counts = {split: len(source) for split, source in data.items()}
  metadata = records.describe(d, data['train'].class_names, counts, per_shard)
  total = sum(counts.values())
  with (
    shards.writing(out, metadata) as jobs,
    tqdm(
      total=total, initial=total - shards.count(jobs), unit='example'
    ) as progress,
  ):
    if workers == 1:
      made = (_make(data, *job)[0] for job in jobs)
    else:
      made = _in_processes(d, jobs, workers)
    for count in made:
      progress.update(count)
  return metadata


def _open(d: Any) -> dict[str, Any]:
  return {split: sources.stored_images(d, split) for split in sources.SPLITS}


def _make(
  data: dict[str, Any], split: str, path: pathlib.Path, indices: range
) -> tuple[int, list[str]]:
  """Writes a shard: (its examples, why what was unreadable so far is so)."""
  source = data[split]
  records.write_shard(path, map(source.__getitem__, indices))
  return len(indices), list(source.unreadable.values())


def _in_processes(
  d: ml_collections.ConfigDict, jobs: list[shards.Job], workers: int
) -> Iterator[int]:
  """The number of examples of each shard, as they are written."""
  pool = futures.ProcessPoolExecutor(
    workers, multiprocessing.get_context('spawn'), _begin, (d.to_dict(),)
  )
  try:
    waiting = [pool.submit(_work, *job) for job in jobs]
    named = set()
    for done in futures.as_completed(waiting):
      count, reasons = done.result()
      for reason in set(reasons) - named:
        log.warning('%s Passed over.', reason)
      named.update(reasons)
      yield count
  except BrokenProcessPool as e:
    raise OSError(
      'A worker process was killed. Start the same command again; if memory '
      'was short, with fewer --workers.'
    ) from e
  finally:
    pool.shutdown(cancel_futures=True)


def _begin(d: dict[str, Any]) -> None:
  """Readies a worker process."""
  # Ctrl-C reaches all: a worker ends and says nothing.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  threading.Thread(target=_end_with_parent, daemon=True).start()
  # What several workers find is to be named once.
  logging.getLogger('elt_jax.data').setLevel(logging.ERROR)
  _worker.update(_open(ml_collections.ConfigDict(d)))


def _end_with_parent() -> None:
  """A worker whose parent was killed would wait for work for ever."""
  multiprocessing.parent_process().join()
  os._exit(1)


def _work(*job: Any) -> tuple[int, list[str]]:
  return _make(_worker, *job)


def main(args: flags.FlagValues) -> None:
  out = cli.out_directory(args)
  cli.required(args, 'source')
  d = get_base().data
  d.update({key: args[key].value for key in DATA})
  metadata = prepare(d, out, args.examples_per_shard, args.workers)
  print(
    f'{out}: {metadata["examples"]} images of {d.image_size} x {d.image_size} '
    f'in {metadata["num_classes"]} classes'
  )


def _define(values: flags.FlagValues) -> None:
  string, integer = flags.DEFINE_string, flags.DEFINE_integer
  string('source', None, 'folder:DIR or tfds:NAME.', flag_values=values)
  string('out', None, 'Directory to write.', flag_values=values)
  for name, default, text in (
    ('image_size', 256, 'Pixels of a side.'),
    ('num_channels', 3, '1 or 3.'),
    ('workers', os.cpu_count() or 1, 'Processes.'),
    ('examples_per_shard', 2048, 'Examples of a file.'),
  ):
    integer(name, default, text, lower_bound=1, flag_values=values)
  flags.DEFINE_boolean(
    'skip_unreadable', False, 'As data.skip_unreadable.', flag_values=values
  )


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
