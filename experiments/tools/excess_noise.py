"""Whether a network sees excess noise, the noise that a sampler leaves otherwise, and the filter that removes it.

PDS_DATA=/data python experiments/tools/excess_noise.py model=ncsnpp_small iterations=[25,50,100] filter.alpha=2.5
"""

from __future__ import annotations

from pds.lab.cli import configured, start
from pds.lab.diagnosis import show_excess_noise

if __name__ == "__main__":
    start(configured("excess_noise", show_excess_noise))
