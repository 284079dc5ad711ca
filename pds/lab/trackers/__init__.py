"""One tracker a file, each behind the interface of `pds.lab.tracking`; what it needs is imported when a run is opened."""
