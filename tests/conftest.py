"""One thread a process: small models run fastest so, and the same bits come out everywhere."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("no wall times", deadline=None)  # machines are noisy
settings.load_profile("no wall times")
