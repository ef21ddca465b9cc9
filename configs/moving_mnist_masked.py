"""Masked video ELT on the tokens of moving digits, on the CPU.

    python -m elt_jax.train --config=configs/moving_mnist_masked.py \\
        --workdir=runs/moving_mnist_masked
    python -m elt_jax.evaluate --workdir=runs/moving_mnist_masked --num=500
    python -m elt_jax.sample --workdir=runs/moving_mnist_masked \\
        --loops=1,2,3 --num=10 --out=clips.gif

The tokens are those of configs/moving_mnist_tokenizer.py, 256 a clip. Two CPU
cores: 1.3 seconds a step. Its settings are not tuned yet.
"""

import ml_collections

from configs import moving_mnist_tokenizer
from configs.base import get_base


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The config; there are no variants."""
  if variant:
    raise ValueError(
      f'configs/moving_mnist_masked.py has no variant {variant!r}.'
    )
  c = get_base()
  t = moving_mnist_tokenizer.get_config()
  c.tokenizer.update(t.tokenizer)
  c.data.update(
    {
      'source': 'tokens:runs/moving_mnist_tokens',
      'image_size': t.data.image_size,
      'num_frames': t.data.num_frames,
    }
  )
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
  c.objective.label_dropout = 0.0  # Video is not guided, as in the paper.
  c.optim.update(
    {
      'learning_rate': 2e-3,
      'warmup_steps': 100,
      'schedule': 'cosine',
      'ema_decay': 0.99,
    }
  )
  c.train.update({'num_steps': 1000, 'batch_size': 16, 'log_every_steps': 50})
  c.checkpoint.every_steps = 500
  c.sample.update({'method': 'confidence', 'num_steps': 12, 'guidance': 1.0})
  return c
