"""Turns a data set into tokens, with a trained tokenizer.

    python -m elt_jax.tokenize --workdir=runs/tokenizer --out=data/mnist_tokens
    python -m elt_jax.tokenize --maskgit=DIR --source=folder:/data/imagenet \\
        --out=data/imagenet256_tokens

--workdir is a run of a tokenizer config; its newest moving average encodes
every split of the data it was trained on, or of --source; of videos, with
--ucf_split, --windows and --frame_stride where they are not as in training.
--tasks=predict:8,interpolate:4 adds what such tasks give, for objective.commit.
--maskgit, in its place, is a directory of public MaskGIT checkpoints. The cache
holds a copy of the tokenizer. Killed and started again, the command goes on
where it was.
"""

from collections.abc import Sequence
from concurrent import futures
import functools
import pathlib
from typing import Any

from absl import flags
import numpy as np
from tqdm import tqdm

from elt_jax import cli, edit, files, sample
from elt_jax.data import sources, token_cache
from elt_jax.data.transforms import to_zero_one
from elt_jax.interop import maskgit
from elt_jax.tokenizers.pretrained import Tokenizer
from elt_jax.validation import validate

# Flags in place of keys of config.data.
DATA = ('source', 'ucf_split', 'windows', 'frame_stride', 'skip_unreadable')


def tokenize(
  tokenizer: Tokenizer,
  out: pathlib.Path,
  batch_size: int,
  per_shard: int,
  tasks: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes the cache of `tokenizer.config`'s data set; returns its metadata.

  Raises:
    ValueError: if `out` holds another cache, or on a task that is not
      one of `edit.drawn_frames`.
  """
  for task in tasks:
    edit.drawn_frames(task, tokenizer)
  data = {
    split: sources.load_source(tokenizer.config, split)
    for split in sources.SPLITS
  }
  counts = {split: len(source) for split, source in data.items()}
  numbers = map(str, range(tokenizer.config.data.num_classes))
  names = getattr(data['train'], 'class_names', list(numbers))
  metadata = token_cache.describe(tokenizer, names, counts, per_shard, tasks)
  if not token_cache.begin(out, metadata):
    return metadata
  tokenizer.save(out / 'tokenizer')
  with (
    tqdm(total=sum(counts.values()), unit='example') as progress,
    futures.ThreadPoolExecutor() as readers,
  ):
    for split, source in data.items():
      read = functools.partial(readers.map, source.__getitem__)
      for n, path in enumerate(token_cache.shards(out, metadata, split)):
        index = range(len(source))[n * per_shard : (n + 1) * per_shard]
        if path.exists():
          progress.update(len(index))
          continue
        parts = []
        for first in range(0, len(index), batch_size):
          examples = list(read(index[first : first + batch_size]))
          parts.append(_encode(tokenizer, examples, batch_size, tasks))
          progress.update(len(examples))
        whole = map(np.concatenate, zip(*parts, strict=True))
        token_cache.write_shard(path, *whole)
  token_cache.finish(out, metadata)
  return metadata


def _encode(
  tokenizer: Tokenizer,
  examples: list[dict[str, Any]],
  batch_size: int,
  tasks: Sequence[str],
) -> list[np.ndarray]:
  """[labels, tokens, conditions of each task] of examples with images."""
  images = np.stack([e['image'] for e in examples])
  labels = np.array([e['label'] for e in examples])
  tokens = tokenizer.encode(to_zero_one(images), batch_size)
  conditions = [
    edit.tokens_of_task(tokenizer, images, task, batch_size) for task in tasks
  ]
  return [labels, tokens, *conditions]


def main(args: flags.FlagValues) -> None:
  out = pathlib.Path(cli.required(args, 'out'))
  if files.is_address(args.out):  # ArrayRecord is of files of this machine.
    raise ValueError(f'--out must be a directory, got the address {args.out}.')
  for name in ('batch_size', 'examples_per_shard'):
    if args[name].value < 1:
      raise ValueError(f'--{name} must be at least 1, got {args[name].value}.')
  if path := cli.maskgit(args):
    _, _, tokenizer = maskgit.load(path)
  else:
    tokenizer, _ = sample.load_tokenizer(cli.workdir(args))
  data = {key: args[key].value for key in DATA if args[key].value is not None}
  tokenizer.config.data.update(data)
  validate(tokenizer.config)
  metadata = tokenize(
    tokenizer, out, args.batch_size, args.examples_per_shard, args.tasks
  )
  print(
    f'{out}: {metadata["examples"]} examples, grid {metadata["grid"]}, '
    f'tokenizer {metadata["tokenizer"]}'
  )


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'workdir', None, 'A trained tokenizer.', flag_values=values
  )
  cli.add_maskgit(values)
  string, integer = flags.DEFINE_string, flags.DEFINE_integer
  string(
    'source',
    None,
    "Data to encode, as in data.source; default: the tokenizer's own.",
    flag_values=values,
  )
  string('ucf_split', None, 'As data.ucf_split.', flag_values=values)
  integer('windows', None, 'As data.windows.', flag_values=values)
  integer('frame_stride', None, 'As data.frame_stride.', flag_values=values)
  flags.DEFINE_boolean(
    'skip_unreadable', None, 'As data.skip_unreadable.', flag_values=values
  )
  flags.DEFINE_list(
    'tasks',
    [],
    'Of clips: tasks whose conditions are kept too; see elt_jax.sample --task.',
    flag_values=values,
  )
  flags.DEFINE_string('out', None, 'Directory to write.', flag_values=values)
  flags.DEFINE_integer(
    'batch_size', 96, 'Examples encoded at a time.', flag_values=values
  )
  flags.DEFINE_integer(
    'examples_per_shard', 10_000, 'Examples of a file.', flag_values=values
  )


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
