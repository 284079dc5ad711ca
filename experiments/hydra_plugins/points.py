"""Hydra only finds sweepers in a package named hydra_plugins."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from pds.lab.sweep import PlannedSweep


class PointsSweeper(PlannedSweep, BasicSweeper):
    """The sweeper of `run.py -m`."""
