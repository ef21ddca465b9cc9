"""Images to continuous latents and back, and the files that a run keeps.

A directory of config.json, whose data section describes the images, and vae/,
the autoencoder as diffusers writes it.
"""

import functools
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs.base import get_base
from elt_jax import config as config_lib
from elt_jax import files
from elt_jax.tokenizers import pretrained, sd_vae
from elt_jax.tokenizers.pretrained import Tokenizer, digest_of, in_batches
from elt_jax.validation import validate

# What decides the meaning of latents, besides the weights.
_DECIDES = ('norm_num_groups', 'scaling_factor')


class Autoencoder:
  """The autoencoder of Stable Diffusion, and the images it is used for.

  Latents here are scaled: of about unit variance, as diffusion models see them.

  Attributes:
    config: experiment config whose data section describes the images.
    shape: (h, w, c) of an example's latents.
    fingerprint: of the weights and of `_DECIDES`, 16 hexadecimal digits.
  """

  def __init__(self, vae: epath.PathLike, config: ml_collections.ConfigDict):
    """Reads the diffusers directory `vae`.

    Raises:
      ValueError: as `sd_vae.load`, or if the images are clips, are not of
        three channels, or their sides do not divide.
    """
    self._directory = epath.Path(vae)
    self.config = config
    self._vae, params = sd_vae.load(vae)
    levels = len(self._vae['block_out_channels'])
    d, factor = config.data, 2 ** (levels - 1)
    if d.num_channels != 3 or d.num_frames != 1 or d.image_size % factor:
      raise ValueError(
        f'The autoencoder {vae} takes images of 3 channels whose sides are '
        f'multiples of {factor}; got data.num_channels = {d.num_channels}, '
        f'num_frames = {d.num_frames}, image_size = {d.image_size}.'
      )
    side = d.image_size // factor
    self.shape = (side, side, self._vae['latent_channels'])
    decides = {key: self._vae[key] for key in _DECIDES}
    self.fingerprint = digest_of(decides, params)
    scale = self._vae['scaling_factor']

    def encode(params: Any, pixels: jax.Array) -> jax.Array:
      moments = sd_vae.encode(self._vae, params, 2 * pixels - 1)
      return jnp.stack([scale * x for x in moments], 1)

    def decode(params: Any, latents: jax.Array) -> jax.Array:
      return jnp.clip(sd_vae.decode(self._vae, params, latents / scale), -1, 1)

    self._params = params
    self._encoder, self._decoder = jax.jit(encode), jax.jit(decode)

  @functools.cached_property
  def _on_device(self) -> Any:
    """Not before it is used: training has no use for it."""
    return jax.tree.map(jnp.asarray, self._params)

  def encode(
    self, pixels: np.ndarray, batch_size: int = 32
  ) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n, h, w, 3] in [0, 1] -> mean and standard deviation.

    Each is float32 [n, *shape].
    """
    encode = functools.partial(self._encoder, self._on_device)
    moments = in_batches(encode, pixels, batch_size)
    return moments[:, 0], moments[:, 1]

  def decode(self, latents: Any) -> jax.Array:
    """float32 [b, *shape] -> float32 [b, h, w, 3] in [-1, 1]."""
    return self._decoder(self._on_device, latents)

  def reconstruct(
    self, moments: tuple[np.ndarray, np.ndarray], batch_size: int = 32
  ) -> np.ndarray:
    """What `encode` gives -> float32 [n, h, w, 3] in [0, 1], of the means."""
    means, _ = moments
    return (in_batches(self.decode, means, batch_size) + 1) / 2

  def save(self, directory: epath.PathLike) -> None:
    """Writes vae/ and config.json, the weights first."""
    directory = epath.Path(directory)
    for name in (sd_vae.WEIGHTS, 'config.json'):
      with files.replacing(directory / 'vae' / name) as temporary:
        temporary.write_bytes((self._directory / name).read_bytes())
    files.write_text(directory / 'config.json', config_lib.to_json(self.config))


def load(directory: epath.PathLike) -> Autoencoder:
  """What `Autoencoder.save` wrote.

  Raises:
    ValueError: if a file is missing, unreadable, or does not fit the others.
  """
  directory = epath.Path(directory)
  if not (directory / 'config.json').is_file():
    raise ValueError(
      f'{directory} has vae/ and no config.json: it is half of one.'
    )
  return Autoencoder(directory / 'vae', config_lib.load(directory))


def load_kept(directory: epath.PathLike) -> Tokenizer | Autoencoder:
  """What a workdir or a cache keeps of either kind.

  Raises:
    ValueError: as `load` and `pretrained.load`.
  """
  kept = load if (epath.Path(directory) / 'vae').exists() else pretrained.load
  return kept(directory)


def of_images(vae: str, image_size: int, num_classes: int) -> Autoencoder:
  """The autoencoder in `vae` for images of a data set, not yet named."""
  config = get_base()
  config.data.update(
    {'image_size': image_size, 'num_channels': 3, 'num_classes': num_classes}
  )
  config.model.patch_size = 1  # Of no meaning here, and a divisor of any side.
  return Autoencoder(vae, validate(config))
