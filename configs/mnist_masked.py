"""Masked ELT on the tokens of MNIST digits: a looped MaskGIT on the CPU.

    make masked        (or, with the tokens in runs/mnist_tokens)
    python -m elt_jax.train --config=configs/mnist_masked.py \\
        --workdir=runs/mnist_masked
    python -m elt_jax.evaluate --workdir=runs/mnist_masked \\
        --loops=1,2,3,4,6 --num=500

Two CPU cores: 7.5 minutes of training, then 4 of evaluation. Expect, at 1, 2,
3 loops, fd_lenet 26, 24, 23 and class accuracy of at least 0.91; real digits
that only go through the tokenizer and back are at fd_lenet 5.8.

Two layers applied up to three times over a class token and 64 codes.
"""

import ml_collections

from configs import mnist_tokenizer
from configs.base import get_base


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The config; there are no variants."""
  if variant:
    raise ValueError(f'configs/mnist_masked.py has no variant {variant!r}.')
  c = get_base()
  t = mnist_tokenizer.get_config()
  c.tokenizer.update(t.tokenizer)
  c.data.update({'source': 'tokens:runs/mnist_tokens', 'image_size': 32})
  c.model.update(
    {
      'family': 'masked',
      'width': 96,
      'num_layers': 2,
      'max_loops': 3,
      'num_heads': 4,
      'unroll_loops': True,
    }
  )
  c.optim.update(
    {
      'learning_rate': 2e-3,
      'warmup_steps': 100,
      'schedule': 'cosine',
      'ema_decay': 0.99,
    }
  )
  c.train.update({'num_steps': 1400, 'batch_size': 32, 'log_every_steps': 50})
  c.checkpoint.every_steps = 700
  c.sample.update({'method': 'confidence', 'num_steps': 12, 'guidance': 1.5})
  return c
