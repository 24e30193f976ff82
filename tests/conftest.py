"""What every test needs: sums in one order, so that runs agree to the last bit, and no threads that wait for each other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
