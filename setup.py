"""Name every package, so that a new subpackage is never forgotten (see pyproject.toml)."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["tnc", "tnc.*"])
    + ["tnc." + name for name in find_packages(include=["passes", "passes.*", "specs", "specs.*"])]
)
