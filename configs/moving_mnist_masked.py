"""Masked video ELT on the tokens of moving digits, on the CPU.

    make video         (or, with the tokens in runs/moving_mnist_tokens)
    python -m elt_jax.train --config=configs/moving_mnist_masked.py \\
        --workdir=runs/moving_mnist_masked
    python -m elt_jax.evaluate --workdir=runs/moving_mnist_masked \\
        --loops=1,2,3,4,6 --num=500
    python -m elt_jax.sample --workdir=runs/moving_mnist_masked \\
        --loops=1,2,3 --num=10 --out=clips.gif

Two layers applied up to three times over a class token and the 64 tokens of
configs/moving_mnist_tokenizer.py. Two CPU cores: 10 minutes of training, then
5 of evaluation. Expect, at 1, 2, 3 loops, fd_c3d 391, 282, 272 and class
accuracy 0.82, 0.89, 0.91 (0.93 of real clips through the tokenizer), and a
motion of 0.68, 0.76, 0.75 (0.91 of real clips).
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
  c.objective.label_smoothing = 1e-4  # As MAGVIT: most tokens are certain.
  c.optim.update(
    {
      'learning_rate': 2e-3,
      'warmup_steps': 100,
      'schedule': 'cosine',
      'ema_decay': 0.99,
    }
  )
  c.train.update({'num_steps': 3300, 'batch_size': 16, 'log_every_steps': 50})
  c.checkpoint.every_steps = 1100
  # Chosen by confidence, black tokens come first: fd_c3d is 341 then, and
  # 272 so, at equal accuracy.
  c.sample.update({'method': 'halton', 'num_steps': 12, 'guidance': 2.5})
  return c
