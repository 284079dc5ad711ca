"""The effect of a filter on a sampler with the exact score: the Fréchet distance on a Gaussian with the data's spectrum.

python experiments/tools/gaussian.py model=ddpmpp_small sampler/predictor=ancestral
python experiments/tools/gaussian.py filter=parametric vary=filter.lam over=[0.8,0.9,0.95,1.1] iterations=[50]
"""

from __future__ import annotations

from pds.lab.cli import configured, start
from pds.lab.diagnosis import show_gaussian

if __name__ == "__main__":
    start(configured("gaussian", show_gaussian))
