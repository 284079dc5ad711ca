"""This library inside others; each module needs the library it is named after, and is imported by who asks for it."""
