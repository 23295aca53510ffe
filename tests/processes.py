"""Processes for functions of the tests. They are forked from one that has imported what they need.

A fresh interpreter takes a quarter of a second for that, and the tests start hundreds.
"""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.contract.conftest", "checkpoint.migrate"])
