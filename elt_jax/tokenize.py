"""Turns a data set into tokens, with a trained tokenizer.

    python -m elt_jax.tokenize --workdir=runs/tokenizer --out=data/mnist_tokens

--workdir is a run of a tokenizer config; its newest moving average encodes
every split of the data it was trained on. The cache holds a copy of the
tokenizer. Killed and started again, the command goes on where it was.
"""

import pathlib
from typing import Any

from absl import flags
import numpy as np
from tqdm import tqdm

from elt_jax import cli, sample
from elt_jax.data import sources, token_cache
from elt_jax.data.transforms import to_zero_one
from elt_jax.tokenizers.pretrained import Tokenizer


def tokenize(
  tokenizer: Tokenizer, out: pathlib.Path, batch_size: int, per_shard: int
) -> dict[str, Any]:
  """Writes the cache of the tokenizer's own data set; returns its metadata.

  Raises:
    ValueError: if `out` holds another cache.
  """
  data = {
    split: sources.load_source(tokenizer.config, split)
    for split in sources.SPLITS
  }
  counts = {split: len(source) for split, source in data.items()}
  numbers = map(str, range(tokenizer.config.data.num_classes))
  names = getattr(data['train'], 'class_names', list(numbers))
  metadata = token_cache.describe(tokenizer, names, counts, per_shard)
  if not token_cache.begin(out, metadata):
    return metadata
  tokenizer.save(out / 'tokenizer')
  with tqdm(total=sum(counts.values()), unit='example') as progress:
    for split, source in data.items():

      def read(
        start: int, stop: int, source: Any = source
      ) -> tuple[np.ndarray, np.ndarray]:
        examples = [source[i] for i in range(start, stop)]
        images = to_zero_one(np.stack([e['image'] for e in examples]))
        labels = np.array([e['label'] for e in examples])
        return tokenizer.encode(images, batch_size), labels

      token_cache.write_split(out, metadata, split, read, progress.update)
  token_cache.finish(out, metadata)
  return metadata


def main(args: flags.FlagValues) -> None:
  out = pathlib.Path(cli.required(args, 'out'))
  for name in ('batch_size', 'examples_per_shard'):
    if args[name].value < 1:
      raise ValueError(f'--{name} must be at least 1, got {args[name].value}.')
  tokenizer, _ = sample.load_tokenizer(cli.workdir(args))
  metadata = tokenize(tokenizer, out, args.batch_size, args.examples_per_shard)
  print(
    f'{out}: {metadata["examples"]} examples, grid {metadata["grid"]}, '
    f'tokenizer {metadata["tokenizer"]}'
  )


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'workdir', None, 'A trained tokenizer.', flag_values=values
  )
  flags.DEFINE_string('out', None, 'Directory to write.', flag_values=values)
  flags.DEFINE_integer(
    'batch_size', 100, 'Examples encoded at a time.', flag_values=values
  )
  flags.DEFINE_integer(
    'examples_per_shard', 10_000, 'Examples of a file.', flag_values=values
  )


if __name__ == '__main__':
  cli.run(main, _define, __doc__)
