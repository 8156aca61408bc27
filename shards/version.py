"""The version of usrgan, for all packages and for the files that they write."""

__version__ = "0.1.0"
