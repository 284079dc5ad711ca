"""This library inside others. Each module needs the library of its name, and is imported only on request."""
