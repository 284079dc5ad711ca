"""Measure the noise moments that Analytic-DDIM needs, and keep them beside the weights: then no run needs the data set.

python experiments/tools/moments.py model=ncsnpp_small sampler=analytic_ddim

Keys are those of experiments/run.py; model, dataset, sampler.training_images, device, threads and batch_size are used.
experiments/run.py --help shows them.
"""

from __future__ import annotations

from pds.lab.cli import configured, documented, start
from pds.lab.moments import make_moments

if __name__ == "__main__":
    start(documented(configured("run", make_moments), __doc__))
