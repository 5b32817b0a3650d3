"""The version of neft-plugins, as it is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("neft-plugins")
except PackageNotFoundError:
    __version__ = "0+not.installed"
