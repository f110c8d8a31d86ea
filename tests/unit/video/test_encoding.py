"""The same pixels give the same fragment, to the byte."""

import os
import subprocess
import sys

import pytest

ENCODED_TWICE = """
import hashlib, sys, torch
from longlive.video.fragments import Encoding
from longlive.video.pixels import to_bytes
pixels = torch.nn.functional.interpolate(torch.rand(12, 3, {rows} // 8, {columns} // 8,
    generator=torch.Generator().manual_seed(0)), scale_factor=8, mode="bicubic").clamp(0, 1) * 2 - 1
print(hashlib.sha256(Encoding().encode(to_bytes(pixels), 9).media).hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone fills memory with a pattern")
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (96, 96)])
def test_the_same_pixels_give_the_same_bytes_whatever_lies_in_memory(rows, columns):
    """x264's macroblock tree read memory that it never wrote; these sizes differed."""
    code = ENCODED_TWICE.format(rows=rows, columns=columns)
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"MALLOC_PERTURB_": pattern},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for pattern in ("1", "85", "170")
    }
    assert len(found) == 1
