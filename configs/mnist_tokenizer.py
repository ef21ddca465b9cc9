"""A tokenizer of MNIST digits: 32 x 32 pixels to 8 x 8 tokens of 128 codes.

    python -m elt_jax.train --config=configs/mnist_tokenizer.py \\
        --workdir=runs/mnist_tokenizer
    python -m elt_jax.evaluate --workdir=runs/mnist_tokenizer
    python -m elt_jax.tokenize --workdir=runs/mnist_tokenizer \\
        --out=runs/mnist_tokens

Two CPU cores: 2.5 minutes. Expect, on the 500 held-out digits, a PSNR of 23.8
dB, all 128 codes in use, and a LeNet that reads the reconstructions right in
0.96 of the cases (0.97 of the originals). The digits, 28 pixels wide, are
padded to 32.
"""

import ml_collections

from configs.base import get_base


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The config; there are no variants."""
  if variant:
    raise ValueError(f'configs/mnist_tokenizer.py has no variant {variant!r}.')
  c = get_base()
  c.model.family = 'tokenizer'
  c.data.image_size = 32  # 28, padded
  c.tokenizer.update(
    {
      'filters': 16,
      'channel_multipliers': (1, 2, 4),
      'num_res_blocks': 1,
      'norm_groups': 8,
      'codebook_size': 128,
      'embedding_dim': 16,
      # The background is most of a digit: an even use of the codes would
      # spread it over many, for nothing.
      'entropy': 0.0,
      'restart_every_steps': 50,
    }
  )
  c.optim.update(
    {
      'learning_rate': 4e-3,
      'warmup_steps': 50,
      'schedule': 'cosine',
      'weight_decay': 0.0,
      'ema_decay': 0.98,
    }
  )
  c.train.update({'num_steps': 480, 'batch_size': 16, 'log_every_steps': 20})
  c.checkpoint.every_steps = 240
  return c
