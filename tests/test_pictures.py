"""Pictures of every kind: decoded to 8 bits, cropped as the field does."""

import io

import numpy as np
from PIL import Image
import pytest

from elt_jax.data import pictures


def adm_crop(image, size):
  """center_crop_arr of github.com/openai/guided-diffusion."""
  while min(*image.size) >= 2 * size:
    image = image.resize(
      tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX
    )
  scale = size / min(*image.size)
  image = image.resize(
    tuple(round(x * scale) for x in image.size),
    resample=Image.Resampling.BICUBIC,
  )
  array = np.array(image)
  y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
  return array[y : y + size, x : x + size]


def scene(width, height):
  """Smooth colours with edges, uint8 [h, w, 3]."""
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 11)]
  image = 120 + 100 * np.stack(waves, -1)
  image[height // 3 : height // 2, width // 4 :] = (250, 10, 90)
  return image.astype(np.uint8)


def stored(image, kind, **options):
  """The picture in a file of this kind."""
  file = io.BytesIO()
  image.save(file, kind, **options)
  file.seek(0)
  return file


@pytest.mark.parametrize(
  'width,height',
  [(32, 32), (500, 375), (375, 500), (131, 64), (63, 200), (20, 31), (65, 127)],
)
def test_the_crop_is_that_of_adm(width, height):
  image = Image.fromarray(scene(width, height))
  for kind in ('PNG', 'JPEG'):
    decoded = Image.open(stored(image, kind)).convert('RGB')
    read = pictures.read(stored(image, kind), 'RGB', 32)
    assert read.shape == (32, 32, 3) and read.dtype == np.uint8
    np.testing.assert_array_equal(read, adm_crop(decoded, 32))


def test_the_crop_is_central_and_scales_the_short_side():
  x = np.zeros((40, 80, 3), np.uint8)
  x[:, 20:60] = 200
  image = pictures.center_crop(Image.fromarray(x), 10)
  assert image.shape == (10, 10, 3)
  # The middle half of the long side, but for what the filter mixes in.
  assert (image[:, 1:-1] > 190).all()
  enlarged = pictures.center_crop(Image.fromarray(x), 60)
  assert enlarged.shape == (60, 60, 3)


@pytest.mark.parametrize(
  'mode,kind,near',
  [
    ('RGB', 'PNG', 0),
    ('RGB', 'JPEG', 5),
    ('RGBA', 'PNG', 0),
    ('CMYK', 'JPEG', 6),
    ('YCbCr', 'JPEG', 5),
    ('RGBA', 'WEBP', 8),
    ('P', 'PNG', 16),
    ('P', 'BMP', 16),
  ],
)
def test_colours_of_every_kind_of_file(mode, kind, near):
  image = Image.fromarray(scene(64, 64))
  if mode == 'P':
    image = image.quantize(256)
  elif mode == 'RGBA':  # Half transparent: what is behind is not known.
    image.putalpha(128)
  file = stored(image.convert(mode), kind)
  error = pictures.read(file, 'RGB', 64).astype(int) - scene(64, 64)
  assert np.abs(error).mean() <= near and np.abs(error.mean()) < 2


def test_transparent_colours_of_a_palette_are_colours():
  """Pillow warns where they are transparent in parts."""
  image = Image.fromarray(scene(16, 16)).quantize(16)
  file = stored(image, 'PNG', transparency=bytes(range(0, 160, 10)))
  expected = np.asarray(image.convert('RGB'))
  np.testing.assert_array_equal(pictures.read(file, 'RGB', 16), expected)


@pytest.mark.parametrize('mode', ['L', 'LA', '1'])
def test_gray_becomes_three_equal_channels(mode):
  image = Image.fromarray(scene(64, 64)).convert(mode)
  expected = np.asarray(image.convert('L'))
  read = pictures.read(stored(image, 'PNG'), 'RGB', 64)
  np.testing.assert_array_equal(read, expected[..., None].repeat(3, -1))
  read = pictures.read(stored(image, 'PNG'), 'L', 64)
  np.testing.assert_array_equal(read, expected[..., None])


def test_sixteen_bits_become_eight():
  gray = np.linspace(0, 65_535, 4096).reshape(64, 64)
  for kind, values in (
    ('PNG', gray.astype(np.uint16)),
    ('TIFF', gray.astype(np.uint16)),
    ('TIFF', gray.astype(np.int32)),
  ):
    read = pictures.read(stored(Image.fromarray(values), kind), 'L', 64)
    assert np.abs(read[..., 0] - gray / 257).max() < 0.51


@pytest.mark.parametrize(
  'image,kind,message',
  [
    (np.zeros((8, 8), np.float32), 'TIFF', 'a cat is of mode F; expected 8 or'),
    (np.full((8, 8), 70_000, np.int32), 'TIFF', 'a cat is of mode I;'),
    (
      np.zeros((1, 40_000), np.uint8),
      'PNG',
      'a cat has 40000 x 1 pixels: too thin',
    ),
  ],
)
def test_what_is_no_picture_is_named(image, kind, message):
  file = stored(Image.fromarray(image), kind)
  with pytest.raises(ValueError, match=message):
    pictures.read(file, 'RGB', 64, 'a cat')


def test_no_other_program_is_started():
  """Pillow gives PostScript, whatever its name, to Ghostscript."""
  eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n'
  with pytest.raises(ValueError, match='a cat cannot be .*cannot identify'):
    pictures.read(io.BytesIO(eps), 'RGB', 24, 'a cat')


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP'])
def test_damage_is_a_value_error(kind):
  data = stored(Image.fromarray(scene(24, 24)), kind).getvalue()
  rng = np.random.default_rng(0)
  failed = 0
  for _ in range(150):
    damaged = bytearray(data[: rng.integers(len(data) // 2, len(data) + 1)])
    for place in rng.integers(0, 60, 3):
      damaged[place] = rng.integers(256)
    try:
      pictures.read(io.BytesIO(damaged), 'RGB', 24, 'a cat')
    except ValueError as e:
      failed += 1
      assert str(e).startswith('a cat ')
    except Image.DecompressionBombWarning:
      pass
  assert failed > 20
