"""Tests that need products of 8-bit integers to be exact in onnxruntime's own kernels."""

import pytest

from ssql_det.deploy.cpu import describe_cpu

# On other CPUs an option makes them exact, with which onnxruntime 1.32 cannot run a layer that it leaves in float, nor
# one that is called several times.
NEEDS_VNNI = pytest.mark.skipif(describe_cpu().saturates, reason="sums of 8-bit products saturate on this CPU")
