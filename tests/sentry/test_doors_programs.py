"""Programs of a Debian image that do real work, as in a virtual machine, behind the sentry."""

# ruff: noqa: F401 - imported to be collected here, with the fixtures of this directory
from __future__ import annotations

from tests.vm.test_programs import (
    box,
    test_a_web_server_through_a_published_port,
    test_bash,
    test_gcc_make_and_threads,
    test_git_over_a_volume,
    test_python_venv_and_unittest,
    test_sqlite,
    test_tar_and_gzip_of_a_tree,
    work,
)
