"""Make the Weights & Biases report of a group of runs, vanilla beside PDS.

python experiments/tools/dashboard.py outputs/quickstart

It needs an account (`wandb login`); outputs/<group>/report.html is the same comparison without one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pds.lab.cli import one_sentence, start
from pds.lab.dashboard import dashboard
from pds.lab.terminal import show


def main(arguments: list[str]) -> None:
    """Make the report and print its address."""
    parser = one_sentence(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    parser.add_argument("folder", type=Path, help="the folder of a group: outputs/<group>")
    parser.add_argument("--project", help="W&B project (default: that of the runs)")
    parser.add_argument("--entity", help="W&B user or team (default: that of the runs)")
    options = parser.parse_args(arguments)
    show(f"dashboard  {dashboard(options.folder, options.project, options.entity)}")


if __name__ == "__main__":
    start(main)
