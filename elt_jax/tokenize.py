"""Turns a data set into tokens or latents, with a trained tokenizer.

    python -m elt_jax.tokenize --workdir=runs/tokenizer --out=data/mnist_tokens
    python -m elt_jax.tokenize --maskgit=DIR --source=folder:/data/imagenet \\
        --out=data/imagenet256_tokens
    python -m elt_jax.tokenize --sd_vae=DIR --source=folder:/data/imagenet \\
        --out=data/imagenet256_latents

--workdir is a run of a tokenizer config; its newest moving average encodes
every split of the data it was trained on, or of --source; of videos, with
--ucf_split, --windows and --frame_stride where they are not as in training.
--tasks=predict:8,interpolate:4 adds what such tasks give, for objective.commit.
--maskgit, in its place, is a directory of public MaskGIT checkpoints; --sd_vae
one of the autoencoder of Stable Diffusion, as diffusers saves it, for images of
--image_size and --num_classes: latents, for diffusion models. The cache holds a
copy of what made it. Killed and started again, the command goes on.
"""

from collections.abc import Sequence
from concurrent import futures
import functools
import pathlib
from typing import Any

from absl import flags
import numpy as np
from tqdm import tqdm

from elt_jax import cli, edit, sample
from elt_jax.data import latent_cache, shards, sources, token_cache
from elt_jax.data.transforms import to_zero_one
from elt_jax.interop import maskgit
from elt_jax.tokenizers import autoencoder
from elt_jax.tokenizers.autoencoder import Autoencoder
from elt_jax.tokenizers.pretrained import Tokenizer
from elt_jax.validation import validate

VAE = ('image_size', 'num_classes')
# Flags in place of keys of config.data.
DATA = ('source', 'ucf_split', 'windows', 'frame_stride', 'skip_unreadable')


def tokenize(
  tokenizer: Tokenizer | Autoencoder,
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
  described = (tokenizer, names, counts, per_shard)
  if isinstance(tokenizer, Autoencoder):
    metadata = latent_cache.describe(*described)
    write_shard = latent_cache.write_shard
  else:
    metadata = token_cache.describe(*described, tasks)
    write_shard = token_cache.write_shard
  total = sum(counts.values())
  with (
    shards.writing(out, metadata) as jobs,
    tqdm(
      total=total, initial=total - shards.count(jobs), unit='example'
    ) as progress,
    futures.ThreadPoolExecutor() as readers,
  ):
    if jobs:
      tokenizer.save(out / 'tokenizer')
    for split, path, index in jobs:
      read = functools.partial(readers.map, data[split].__getitem__)
      parts = []
      for first in range(0, len(index), batch_size):
        examples = list(read(index[first : first + batch_size]))
        parts.append(_encode(tokenizer, examples, batch_size, tasks))
        progress.update(len(examples))
      whole = map(np.concatenate, zip(*parts, strict=True))
      write_shard(path, *whole)
  return metadata


def _encode(
  tokenizer: Tokenizer | Autoencoder,
  examples: list[dict[str, Any]],
  batch_size: int,
  tasks: Sequence[str],
) -> list[np.ndarray]:
  """Of examples with images, labels and what is stored beside them.

  Tokens and the conditions of each task, or means and standard deviations.
  """
  images = np.stack([e['image'] for e in examples])
  labels = np.array([e['label'] for e in examples])
  tokens = tokenizer.encode(to_zero_one(images), batch_size)
  if isinstance(tokenizer, Autoencoder):
    return [labels, *tokens]
  conditions = [
    edit.tokens_of_task(tokenizer, images, task, batch_size) for task in tasks
  ]
  return [labels, tokens, *conditions]


def main(args: flags.FlagValues) -> None:
  out = cli.out_directory(args)
  for name in ('batch_size', 'examples_per_shard'):
    if args[name].value < 1:
      raise ValueError(f'--{name} must be at least 1, got {args[name].value}.')
  tokenizer = _load(args)
  data = {key: args[key].value for key in DATA if args[key].value is not None}
  tokenizer.config.data.update(data)
  validate(tokenizer.config)
  metadata = tokenize(
    tokenizer, out, args.batch_size, args.examples_per_shard, args.tasks
  )
  print(
    f'{out}: {metadata["examples"]} examples of '
    f'{metadata.get("grid") or metadata["shape"]}, made by '
    f'{tokenizer.fingerprint}'
  )


def _load(args: flags.FlagValues) -> Tokenizer | Autoencoder:
  """Of --workdir, --maskgit or --sd_vae."""
  of_vae = [name for name in VAE if args[name].value is not None]
  if not args.sd_vae:
    if of_vae:
      raise ValueError(f'--{of_vae[0]} goes with --sd_vae.')
    if path := cli.maskgit(args):
      return maskgit.load(path)[2]
    return sample.load_tokenizer(cli.workdir(args))[0]
  if args.workdir or args.maskgit or args.tasks:
    raise ValueError('--sd_vae: no --workdir, --maskgit or --tasks beside it.')
  cli.required(args, 'source')
  return autoencoder.of_images(
    args.sd_vae, args.image_size or 256, args.num_classes or 1000
  )


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'workdir', None, 'A trained tokenizer.', flag_values=values
  )
  cli.add_maskgit(values)
  string, integer = flags.DEFINE_string, flags.DEFINE_integer
  string(
    'sd_vae',
    None,
    'Directory of an autoencoder, in place of --workdir.',
    flag_values=values,
  )
  integer('image_size', None, 'With --sd_vae: 256.', flag_values=values)
  integer('num_classes', None, 'With --sd_vae: 1000.', flag_values=values)
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
