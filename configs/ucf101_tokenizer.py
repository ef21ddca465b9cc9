"""MAGVIT's tokenizer on UCF-101: 16 x 128 x 128 pixels to 4 x 16 x 16 tokens.

    python -m elt_jax.train --config=configs/ucf101_tokenizer.py:L \\
        --workdir=runs/ucf101_tokenizer \\
        --config.data.source=ucf101:/data/ucf101 \\
        --config.tokenizer.perceptual_weights=/data/vgg16.safetensors \\
        [--config.tokenizer.inflate_from=runs/imagenet128_tokenizer]
    python -m elt_jax.tokenize --workdir=runs/ucf101_tokenizer \\
        --ucf_split=all --out=data/ucf101_tokens

/data/ucf101 holds UCF-101/ and ucfTrainTestlist/, as unpacked. Variants: B, 64
filters and batch 128 over 500 epochs; L, 128 filters and batch 256 over 2,000.
Strides, sizes, weights of the losses and lengths as in MAGVIT (arXiv
2212.05199); the perceptual network (VGG-16 here, a ResNet-50 there) and the
critic differ. MAGVIT starts from an ImageNet tokenizer of 128 x 128 pixels,
inflated: train configs/imagenet256_tokenizer.py at that size, with the levels
of this file, for inflate_from. Nobody has trained it with this code yet.
Without perceptual weights, set --config.tokenizer.perceptual=0.

On a v6e:2x4 a chip needs 10 of its 31 GiB for L, by the compiler and without
the perceptual network, and the training would take 10 hours (B 0.8) if every
peak were reached, of which a real run takes a multiple (launch/README.md).
"""

import ml_collections

from configs.base import get_base

# Variant: (filters, batch, epochs).
MODELS = {'B': (64, 128, 500), 'L': (128, 256, 2000)}
VARIANTS = tuple(MODELS)

_CLIPS = 9537


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The config of one of `VARIANTS`; '' is L."""
  variant = variant or 'L'
  if variant not in MODELS:
    raise ValueError(
      f'configs/ucf101_tokenizer.py has no variant {variant!r}; it has '
      f'{VARIANTS}.'
    )
  filters, batch_size, epochs = MODELS[variant]
  c = get_base()
  c.model.update({'family': 'tokenizer', 'dtype': 'bfloat16', 'remat': 'layer'})
  c.data.update(
    {
      'source': 'ucf101:data/ucf101',
      'ucf_split': '1',
      'image_size': 128,
      'num_frames': 16,
      'num_channels': 3,
      'num_classes': 101,
      'num_threads': 32,
    }
  )
  c.tokenizer.update(
    {
      'filters': filters,
      'channel_multipliers': (1, 2, 2, 4),
      'temporal_downsample': (True, True, False),
      'perceptual': 0.1,
      'perceptual_weights': 'data/vgg16.safetensors',
      'adversarial': 0.1,
      'r1': 20.0,  # MAGVIT's code weighs |grad D|^2 with 10, without a half.
      'discriminator_multipliers': (2, 4, 4, 4),
    }
  )
  c.optim.update(
    {
      'learning_rate': 1e-4,
      'schedule': 'cosine',
      'b1': 0.0,
      'b2': 0.99,
      'weight_decay': 0.0,
      'clip_norm': 0.0,
      'ema_decay': 0.999,
    }
  )
  c.train.update(
    {
      'num_steps': epochs * _CLIPS // batch_size,
      'batch_size': batch_size,
      # Two clips a chip at a time, for eight chips of 16 GiB.
      'accumulate_steps': batch_size // 16,
      'log_every_steps': 100,
      'sample_every_steps': 5000,
    }
  )
  c.checkpoint.update({'every_steps': 2500, 'keep_every_steps': 25_000})
  return c
