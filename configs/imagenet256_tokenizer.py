"""The MaskGIT tokenizer on ImageNet: 256 x 256 pixels to 16 x 16 tokens.

    python -m elt_jax.train --config=configs/imagenet256_tokenizer.py \\
        --workdir=runs/imagenet256_tokenizer \\
        --config.data.source=folder:/data/imagenet \\
        --config.tokenizer.perceptual_weights=/data/vgg16.safetensors

/data/imagenet has train/ and val/ as ImageNet is distributed, with its
development kit; data.source is as well tfds:imagenet2012 or, cropped once by
elt_jax.prepare, records:DIR.

For a TPU slice: a million steps at batch 256. Sizes, weights of the losses and
optimizer as MaskGIT's (arXiv 2202.04200), which reports a reconstruction FID
of 2.28; the critic and the perceptual network (VGG-16 here, a ResNet there)
are not the same. Nobody has trained it with this code yet; the public
weights can be sampled from at once, with --maskgit of elt_jax.sample.
Without perceptual weights, set --config.tokenizer.perceptual=0.

On a v6e:2x4 a chip needs 6.4 of its 31 GiB, by the compiler and without the
perceptual network, and the training would take 12 hours if every peak were
reached, of which a real run takes a multiple (launch/README.md).
"""

import ml_collections

from configs.base import get_base


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The config; there are no variants."""
  if variant:
    raise ValueError(
      f'configs/imagenet256_tokenizer.py has no variant {variant!r}.'
    )
  c = get_base()
  c.model.update({'family': 'tokenizer', 'dtype': 'bfloat16'})
  c.data.update(
    {
      'source': 'folder:data/imagenet',
      'image_size': 256,
      'num_channels': 3,
      'num_classes': 1000,
      'flip': True,
      'num_threads': 32,
    }
  )
  c.tokenizer.update(
    {
      'perceptual': 0.1,
      'perceptual_weights': 'data/vgg16.safetensors',
      'adversarial': 0.1,
      'r1': 20.0,  # MAGVIT's code weighs |grad D|^2 with 10, without a half.
    }
  )
  c.optim.update(
    {
      'learning_rate': 1e-4,
      'b1': 0.0,
      'b2': 0.99,
      'weight_decay': 0.0,
      'clip_norm': 0.0,
      'ema_decay': 0.999,
    }
  )
  c.train.update(
    {
      'num_steps': 1_000_000,
      'batch_size': 256,
      # Eight images a chip at a time, for eight chips of 16 GiB.
      'accumulate_steps': 4,
      'log_every_steps': 100,
      'sample_every_steps': 10_000,
    }
  )
  c.checkpoint.update({'every_steps': 5000, 'keep_every_steps': 100_000})
  return c
