"""Measures what images cost outside of the model: make bench.

Reading: JPEGs through the reader of folders against a bare Pillow loop over
the same files, `elt_jax.prepare`, and what it wrote. Networks: the encoders
that caches of tokens and latents come from, and the Inception of FID, with
random weights. Nothing else should run meanwhile.
"""

from collections.abc import Callable
import pathlib
import tempfile
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs import imagenet256_tokenizer
from configs.base import get_base
from elt_jax import cli, prepare
from elt_jax.bench import in_turn, random_params
from elt_jax.data import records, sources
from elt_jax.evals import inception, inception_network
from elt_jax.tokenizers import sd_vae
from elt_jax.tokenizers.vqgan import build_tokenizer

SIZE = 256
# The autoencoder of Stable Diffusion, as its config.json has it.
_VAE = {
  'latent_channels': 4,
  'block_out_channels': (128, 256, 512, 512),
  'layers_per_block': 2,
  'norm_num_groups': 32,
}


def make_folder(root: pathlib.Path, count: int) -> list[pathlib.Path]:
  """JPEGs of 500 x 375, ImageNet's most frequent size, in ten classes."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:375, :500] / 50
  paths = []
  for i in range(count):
    a, b, c = rng.uniform(0.2, 3, 3)
    waves = [np.sin(a * x + b * y), np.cos(b * x), np.sin(c * x * y)]
    # About 110 kB at this quality, the mean of ImageNet's files.
    pixels = 128 + 70 * np.stack(waves, -1) + rng.normal(0, 20, (375, 500, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    split = 'train' if i % 10 else 'val'
    path = root / split / f'class{i // 10 % 10}' / f'{i:04d}.JPEG'
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)
    paths.append(path)
  return paths


def bare_loop(paths: list[pathlib.Path]) -> None:
  """What any reader must do at least: decode, scale the short side, crop."""
  for path in paths:
    image = Image.open(path).convert('RGB')
    scale = SIZE / min(image.size)
    image = image.resize(
      [round(side * scale) for side in image.size], Image.Resampling.BICUBIC
    )
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def report_reading(count: int, rounds: int) -> None:
  """Images a second of one core, each way."""
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    paths = make_folder(root / 'images', count)
    paths = [path for path in paths if 'train' in path.parts]
    kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
    print(f'  {len(paths)} JPEGs of 500 x 375, {kilobytes:.0f} kB each')
    d = get_base().data
    d.update({'source': f'folder:{root}/images', 'image_size': SIZE})
    d.num_channels, d.num_classes = 3, 10
    times = {}
    for workers in (1, 2):
      began = time.monotonic()
      prepare.prepare(d, root / f'records{workers}', 128, workers)
      times[workers] = count / (time.monotonic() - began)
    print(
      f'  prepare, its start included: {times[1]:.0f} images/s with 1 worker, '
      f'{times[2]:.0f} with 2'
    )
    folder = sources.stored_images(d, 'train')
    kept = records.RecordSource(root / 'records1', 'train')
    seconds = in_turn(
      {
        'Pillow': lambda: bare_loop(paths),
        'folder': lambda: [folder[i] for i in range(len(paths))],
        'records': lambda: [kept[i] for i in range(len(paths))],
      },
      rounds,
    )
  for name, values in seconds.items():
    ratio = np.median(seconds['Pillow'] / values)
    print(
      f'  {name}: {len(paths) / np.median(values):.0f} images/s, '
      f'{ratio:.2f} of the bare loop'
    )


def random_like(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Arrays that keep activations finite, by name."""
  rng = np.random.default_rng(0)
  return {
    name: np.abs(rng.normal(0, 0.02, shape)).astype(np.float32) + 1e-3
    for name, shape in shapes.items()
  }


def report_networks(batch: int, rounds: int) -> None:
  """Images a second of the networks that see every image of a data set."""
  pixels = np.random.default_rng(0).random((batch, SIZE, SIZE, 3), np.float32)
  calls = {
    'tokens of the VQGAN of imagenet256_tokenizer': _vqgan(pixels),
    "latents of Stable Diffusion's autoencoder": _vae(pixels),
    "features of FID's Inception": _inception(pixels),
  }
  for name, values in in_turn(calls, rounds).items():
    print(f'  {name}: {batch / np.median(values):.2f} images/s')


def _vqgan(pixels: np.ndarray) -> Callable[[], jax.Array]:
  config = imagenet256_tokenizer.get_config()
  tokenizer = build_tokenizer(config)
  params, tokens = random_params(tokenizer), jax.jit(tokenizer.tokens)
  return lambda: tokens(params, pixels)


def _vae(pixels: np.ndarray) -> Callable[[], jax.Array]:
  params = sd_vae.from_torch(random_like(dict(sd_vae.shapes(_VAE))))
  params = jax.tree.map(jnp.asarray, params)
  encode = jax.jit(lambda params, x: sd_vae.encode(_VAE, params, 2 * x - 1))
  return lambda: encode(params, pixels)


def _inception(pixels: np.ndarray) -> Callable[[], inception.Features]:
  network = inception.Inception(random_like(dict(inception_network.shapes())))
  images = (255 * pixels).astype(np.uint8)
  return lambda: network(images, len(images))


def main(args: flags.FlagValues) -> None:
  del args
  print('Reading images', flush=True)
  report_reading(count=1000, rounds=5)
  print('Networks on images of 256 x 256', flush=True)
  report_networks(batch=4, rounds=3)


if __name__ == '__main__':
  cli.run(main, lambda values: None, __doc__)
