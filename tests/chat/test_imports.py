"""The package comes without its heavy parts: the command's help must not wait for them."""

from __future__ import annotations

import subprocess
import sys


def test_nothing_heavy_is_imported_early() -> None:
    code = (
        "import sys, afnext.chat\n"
        "heavy = {'torch', 'jinja2', 'tokenizers', 'numpy', 'transformers'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
