"""What every test needs: sums in one order, so that runs agree to the last bit, and no threads that wait for each other; no
property fails because the machine is busy.

``GRADLEAK_TEST_THREADS`` sets another number of threads, for the scheduled runs that look for tests which hang on it.
"""

from __future__ import annotations

import os

import torch
from hypothesis import settings

torch.set_num_threads(int(os.environ.get("GRADLEAK_TEST_THREADS", "1")))
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
