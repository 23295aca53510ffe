from setuptools import setup

setup(cffi_modules=["uffdtrack/_native/build.py:ffi", "kvmglue/_native/build.py:ffi"])
