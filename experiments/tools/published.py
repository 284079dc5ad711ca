"""Every published network at its full size: made, loaded from a file as its authors write them, stepped once with PDS.

python experiments/tools/published.py                              all of them, one after the other
python experiments/tools/published.py ncsnpp_cifar10 ncsnv2_church  only these

The weights are random. The files (1 to 2 GB, in the temporary folder) are deleted. The script shows that the real files would
load.
"""

from __future__ import annotations

from pds.lab.cli import documented, start
from pds.lab.published import load_published

if __name__ == "__main__":
    start(documented(load_published, __doc__))
