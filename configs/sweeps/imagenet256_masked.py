"""Unique layers against loops at equal depth: Table 1 of the paper.

    python launch/sweep.py --sweep=configs/sweeps/imagenet256_masked.py \\
        --workdir=gs://BUCKET/table1 --tpu=5 -- --type=v6e-64 --spot \\
        --data=gs://BUCKET/data

Five variants of configs/imagenet256_masked.py: depth 24 at scale L, looped not
at all, twice and three times, and depth 28 at scale XL, not at all and four
times. gs://BUCKET/data holds imagenet256_tokens. It trains only: ImageNet is
too large for the metrics of `evaluate`, and nobody has run it yet.
"""

CONFIG = 'configs/imagenet256_masked.py'
LOOPS = ''
VARIANTS = ('L_24N', 'L_12Nx2L', 'L_8Nx3L', 'XL_28N', 'XL_7Nx4L')


def get_sweep() -> list[dict]:
  """A run for each variant."""
  return [{'config': f'{CONFIG}:{variant}'} for variant in VARIANTS]
