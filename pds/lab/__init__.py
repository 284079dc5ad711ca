"""The experiment framework on top of the library: configurations, runs, sweeps, trackers and reports."""

import os
import sys

try:
    os.getcwd()
except FileNotFoundError:  # in which torch's MKL ends the process, with words about its own library
    sys.exit("error: the current folder is gone: change to one that is there, as by cd")
