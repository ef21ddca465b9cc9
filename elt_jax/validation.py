"""Which values of a config are allowed, alone and together."""

import re
from typing import Any

import ml_collections

ConfigDict = ml_collections.ConfigDict

CHOICES = {
  'model.family': ('diffusion', 'masked', 'tokenizer'),
  'model.dtype': ('float32', 'bfloat16'),
  'model.remat': ('none', 'layer', 'loop', 'dots'),
  'model.norm': ('post', 'pre'),
  'objective.exits': ('ilsd', 'none', 'all'),
  'objective.schedule': ('cosine', 'linear_beta', 'interpolant'),
  'objective.prediction': ('v', 'x0', 'eps', 'velocity'),
  'objective.weighting': ('sigmoid', 'v', 'x0', 'eps', 'velocity'),
  'objective.reduction': ('sample', 'batch'),
  'data.ucf_split': ('all', '1', '2', '3'),
  'tokenizer.inflate': ('central', 'average'),
  'tokenizer.reconstruction': ('l2', 'l1'),
  'optim.schedule': ('constant', 'cosine', 'linear', 'rsqrt'),
  'sample.method': ('ddim', 'ddpm', 'confidence', 'halton'),
  'sample.guidance_mode': ('cfg', 'cfg_shallow', 'exit', 'cfg+exit'),
  'mesh.gather': ('step', 'use'),
  'sample.watch': ('output', 'state'),
}

# (low, high), both allowed; None is no bound.
RANGES = {
  'model.width': (4, None),
  'model.num_layers': (1, None),
  'model.max_loops': (1, None),
  'model.num_heads': (1, None),
  'model.patch_size': (1, None),
  'model.patch_frames': (1, None),
  'model.mlp_ratio': (0.25, None),
  'model.time_scale': (1.0, None),
  'model.dropout': (0.0, 0.99),
  'objective.min_loops': (1, None),
  'objective.randomize_max_loops': (0, None),
  # A sigmoid of more is 0 or 1 in float32.
  'objective.sigmoid_bias': (-100.0, 100.0),
  'objective.logsnr_min': (-100.0, 100.0),
  'objective.logsnr_max': (-100.0, 100.0),
  'objective.logsnr_shift': (-100.0, 100.0),
  'objective.label_dropout': (0.0, 1.0),
  'objective.label_smoothing': (0.0, 1.0),
  'objective.unmasked_weight': (0.0, None),
  'data.image_size': (1, None),
  'data.num_channels': (1, None),
  'data.num_frames': (1, None),
  'data.windows': (1, None),
  'data.frame_stride': (1, None),
  'data.num_classes': (1, None),
  'data.num_threads': (0, None),
  'tokenizer.patch_size': (1, None),
  'tokenizer.patch_frames': (1, None),
  'tokenizer.filters': (1, None),
  'tokenizer.num_res_blocks': (1, None),
  'tokenizer.norm_groups': (1, None),
  'tokenizer.codebook_size': (2, None),
  'tokenizer.embedding_dim': (1, None),
  'tokenizer.commitment': (0.0, None),
  'tokenizer.entropy': (0.0, None),
  'tokenizer.entropy_temperature': (1e-6, None),
  'tokenizer.restart_every_steps': (0, None),
  'tokenizer.perceptual': (0.0, None),
  'tokenizer.adversarial': (0.0, None),
  'tokenizer.r1': (0.0, None),
  'tokenizer.discriminator_filters': (1, None),
  'tokenizer.discriminator_learning_rate': (0.0, None),
  'optim.learning_rate': (0.0, None),
  'optim.warmup_steps': (0, None),
  'optim.clip_norm': (0.0, None),
  'optim.b1': (0.0, 0.999999),
  'optim.b2': (0.0, 0.999999),
  'optim.eps': (0.0, None),
  'optim.ema_decay': (0.0, 1.0),
  'optim.weight_decay': (0.0, None),
  'train.num_steps': (1, None),
  'train.batch_size': (1, None),
  'train.accumulate_steps': (1, None),
  'train.log_every_steps': (1, None),
  'train.sample_every_steps': (0, None),
  'train.telemetry_every_steps': (0, None),
  'checkpoint.every_steps': (1, None),
  'checkpoint.keep': (1, None),
  'checkpoint.keep_every_steps': (0, None),
  'sample.num_steps': (1, None),
  'sample.batch_size': (1, None),
  'sample.exit_guidance': (0.0, None),
  'sample.guidance': (0.0, None),
  'sample.weak_loops': (1, None),
  'sample.temperature_bias': (1e-3, None),
  'sample.temperature_scale': (0.0, None),
  'sample.choice_temperature': (0.0, None),
}


def is_latents(config: ConfigDict) -> bool:
  """Whether what is diffused are latents, and not pixels."""
  return config.data.source.startswith('latents:')


def lookup(config: ConfigDict, key: str) -> Any:
  """The value at a dotted key."""
  for part in key.split('.'):
    config = config[part]
  return config


def validate(config: ConfigDict) -> ConfigDict:
  """Checks every field that has a range and every pair that must agree.

  Returns:
    The same config, locked.

  Raises:
    ValueError: naming the key, its value, and what was expected.
  """
  for key, allowed in CHOICES.items():
    if (value := lookup(config, key)) not in allowed:
      raise ValueError(f'config.{key} must be one of {allowed}, got {value!r}.')
  for key, (low, high) in RANGES.items():
    value = lookup(config, key)
    # Written so that NaN and infinity fail too.
    if not (low <= value < float('inf') and (high is None or value <= high)):
      bound = f'at least {low}' if high is None else f'in [{low}, {high}]'
      raise ValueError(f'config.{key} must be {bound}, got {value}.')

  _validate_training(config)
  if is_latents(config) and config.model.family != 'diffusion':
    raise ValueError(
      f'data.source = {config.data.source!r} is of diffusion models, got '
      f'model.family {config.model.family!r}.'
    )
  if config.model.family != 'tokenizer':
    _validate_loops(config)
    _validate_guidance(config)
  if config.model.family == 'diffusion':
    _validate_diffusion(config)
  else:
    _validate_tokenizer(config)
  if config.model.family == 'masked':
    _validate_masked(config)
  elif config.objective.commit:
    raise ValueError(
      'objective.commit = True is of masked models, got model.family '
      f'{config.model.family!r}.'
    )
  return config.lock()


def _validate_training(config: ConfigDict) -> None:
  t, channels = config.train, config.data.num_channels
  if t.batch_size % t.accumulate_steps:
    raise ValueError(
      f'train.batch_size = {t.batch_size} must be a multiple of '
      f'train.accumulate_steps = {t.accumulate_steps}.'
    )
  pictures = channels in (1, 3) or is_latents(config)
  if t.sample_every_steps and not pictures:
    raise ValueError(
      f'train.sample_every_steps = {t.sample_every_steps} draws pictures, '
      f'which need 1 or 3 channels, not {channels}.'
    )
  traced = tuple(config.profile.steps)
  if traced and not (
    len(traced) == 2 and 1 <= traced[0] <= traced[1] <= t.num_steps
  ):
    raise ValueError(
      'profile.steps must be the first and the last step of a trace, in 1..'
      f'{t.num_steps}, as in 10,20; got {traced}.'
    )


def _validate_loops(config: ConfigDict) -> None:
  m, o = config.model, config.objective
  if m.width % m.num_heads:
    raise ValueError(
      f'model.width = {m.width} must be a multiple of model.num_heads = '
      f'{m.num_heads}.'
    )
  if o.exits != 'none' and not 1 <= o.min_loops < m.max_loops:
    raise ValueError(
      f'objective.exits = {o.exits!r} needs 1 <= objective.min_loops < '
      f'model.max_loops, got {o.min_loops} and {m.max_loops}; a model of '
      "one loop trains with objective.exits = 'none'."
    )
  low = o.randomize_max_loops
  least = o.min_loops + 1 if o.exits == 'ilsd' else 1
  if low and (o.exits == 'all' or not least <= low <= m.max_loops):
    raise ValueError(
      f'objective.randomize_max_loops = {low} must be in {least}..'
      f'{m.max_loops}, above objective.min_loops and up to model.max_loops, '
      "with objective.exits 'ilsd' or 'none'; 0 turns it off."
    )


def _validate_guidance(config: ConfigDict) -> None:
  m, o, s = config.model, config.objective, config.sample
  methods = {
    'diffusion': ('ddim', 'ddpm'),
    'masked': ('confidence', 'halton'),
  }[m.family]
  if s.method not in methods:
    raise ValueError(
      f'sample.method of a {m.family} model must be one of {methods}, got '
      f'{s.method!r}.'
    )
  if o.label_dropout == 0 and s.guidance != 1 and s.guidance_mode != 'exit':
    raise ValueError(
      f'sample.guidance = {s.guidance} needs objective.label_dropout > 0: '
      'without it the unconditional class is never trained. Set '
      "sample.guidance=1, or sample.guidance_mode='exit'."
    )
  if (
    m.family == 'masked'
    and o.label_dropout
    and ('null' not in m.vocabulary.split('|'))
  ):
    raise ValueError(
      f'objective.label_dropout = {o.label_dropout} needs a null class in '
      f'model.vocabulary, got {m.vocabulary!r}.'
    )
  key = 'sample.guidance_schedule'
  _check_curve(config, key, ('constant', 'linear'), 'powcos')
  if not 0 <= s.guidance_low <= s.guidance_high <= 1:
    raise ValueError(
      'sample.guidance_low and sample.guidance_high must satisfy 0 <= low '
      f'<= high <= 1, got {s.guidance_low} and {s.guidance_high}.'
    )


def _validate_diffusion(config: ConfigDict) -> None:
  m, o, d = config.model, config.objective, config.data
  if m.width % 4:
    raise ValueError(f'model.width must be a multiple of 4, got {m.width}.')
  if d.image_size % m.patch_size:
    raise ValueError(
      f'data.image_size = {d.image_size} must be a multiple of '
      f'model.patch_size = {m.patch_size}.'
    )
  if d.num_frames % m.patch_frames:
    raise ValueError(
      f'data.num_frames = {d.num_frames} must be a multiple of '
      f'model.patch_frames = {m.patch_frames}.'
    )
  if is_latents(config) and d.flip:
    raise ValueError(
      'data.flip = True is of pixels: the mirror image of latents is not that '
      'of an image.'
    )
  if is_latents(config) and config.sample.clip:
    raise ValueError(
      'sample.clip = True is of pixels, which end at -1 and 1; latents do not.'
    )
  if o.logsnr_min >= o.logsnr_max:
    raise ValueError(
      'objective.logsnr_min must be below objective.logsnr_max, got '
      f'{o.logsnr_min} and {o.logsnr_max}.'
    )
  if o.schedule == 'linear_beta' and o.logsnr_shift:
    raise ValueError(
      f'objective.logsnr_shift = {o.logsnr_shift} is of other schedules than '
      "objective.schedule = 'linear_beta', whose log-SNR its betas give."
    )


def _validate_masked(config: ConfigDict) -> None:
  for key in ('objective.mask_schedule', 'sample.mask_schedule'):
    _check_curve(config, key, ('cosine', 'arccos', 'linear'), 'pow')
  if config.data.flip:
    raise ValueError(
      'data.flip mirrors images, and a masked model trains on tokens: set '
      'data.flip=False.'
    )


def _check_curve(
  config: ConfigDict, key: str, names: tuple[str, ...], power: str
) -> None:
  """A curve has a name, or is a power with a positive exponent."""
  value = lookup(config, key)
  number = re.fullmatch(rf'{power}(\d+\.?\d*)', value)
  if value not in names and not (number and float(number[1]) > 0):
    raise ValueError(
      f"config.{key} must be one of {names} or '{power}P' with a positive "
      f"number P, as in '{power}2.5'; got {value!r}."
    )


def _validate_tokenizer(config: ConfigDict) -> None:
  """The tokenizer's shape, of tokenizers and of masked models."""
  t, d = config.tokenizer, config.data
  remat = config.model.remat
  if config.model.family == 'tokenizer' and remat not in ('none', 'layer'):
    raise ValueError(
      f"model.remat = {remat!r} is of looped models; of a tokenizer 'layer' "
      "recomputes its residual blocks, 'none' nothing."
    )
  halvings = len(t.channel_multipliers) - 1
  if halvings < 0 or min(t.channel_multipliers) < 1:
    raise ValueError(
      'tokenizer.channel_multipliers must be positive integers, one per '
      f'level, got {t.channel_multipliers}.'
    )
  for multiplier in t.channel_multipliers:
    if t.filters * multiplier % t.norm_groups:
      raise ValueError(
        f'A width of the tokenizer, tokenizer.filters x {multiplier} = '
        f'{t.filters * multiplier}, must be a multiple of '
        f'tokenizer.norm_groups = {t.norm_groups}.'
      )
  if d.image_size % (multiple := t.patch_size * 2**halvings):
    raise ValueError(
      f'data.image_size = {d.image_size} must be a multiple of {multiple}: '
      f'tokenizer.patch_size = {t.patch_size}, and '
      f'tokenizer.channel_multipliers has {halvings} halvings.'
    )
  if t.perceptual and (d.num_channels not in (1, 3) or d.image_size < 16):
    raise ValueError(
      f'tokenizer.perceptual = {t.perceptual} compares images of 1 or 3 '
      f'channels and at least 16 pixels, not {d.num_channels} and '
      f'{d.image_size}.'
    )
  if t.perceptual and not t.perceptual_weights:
    raise ValueError(
      f'tokenizer.perceptual = {t.perceptual} needs '
      'tokenizer.perceptual_weights, a file of torchvision VGG-16 weights; '
      '0 turns it off.'
    )
  if d.num_frames == 1:
    if t.inflate_from:
      raise ValueError(
        f'tokenizer.inflate_from = {t.inflate_from!r} is for clips, and '
        'data.num_frames is 1.'
      )
    return
  halved = t.temporal_downsample
  multiple = t.patch_frames * 2 ** sum(halved)
  if len(halved) != halvings or d.num_frames % multiple:
    raise ValueError(
      f'tokenizer.temporal_downsample = {halved} must say of each of the '
      f'{halvings} halvings whether it halves frames, and data.num_frames = '
      f'{d.num_frames} must be a multiple of {multiple}, with '
      f'tokenizer.patch_frames = {t.patch_frames}.'
    )
