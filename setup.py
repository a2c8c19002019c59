"""Builds the wheel of the Python module, which has the C library inside. pyproject.toml has the rest."""

import pathlib
import re
import shutil
import subprocess

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

CARGO = "cargo rustc --release --lib --features capi,testing --crate-type cdylib --target-dir target".split()
LIBRARIES = ["libgenesys_attributes.so", "libgenesys_attributes.dylib", "genesys_attributes.dll"]


class Build(build_py):
    def run(self):
        subprocess.check_call(CARGO)
        package = pathlib.Path(self.build_lib, "genesys_attributes")
        package.mkdir(parents=True, exist_ok=True)
        shutil.copy("examples/python/genesys_attributes.py", package / "__init__.py")
        (package / "py.typed").touch()
        for library in filter(pathlib.Path.exists, [pathlib.Path("target/release", name) for name in LIBRARIES]):
            shutil.copy(library, package)


class Wheel(bdist_wheel):
    def get_tag(self):
        # The module finds the library by ctypes, so that one wheel serves every Python 3.
        return "py3", "none", super().get_tag()[2]


class Platform(Distribution):
    def has_ext_modules(self):
        return True


setup(
    version=re.search(r'^version = "(.+)"', pathlib.Path("Cargo.toml").read_text(), re.M).group(1),
    packages=["genesys_attributes"],
    package_dir={"genesys_attributes": "examples/python"},
    cmdclass={"build_py": Build, "bdist_wheel": Wheel},
    distclass=Platform,
)
