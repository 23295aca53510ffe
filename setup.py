from setuptools import setup

setup(
    cffi_modules=[f"{package}/_native/build.py:ffi" for package in ("uffdtrack", "kvmglue", "benchmarks/ab")]
)
