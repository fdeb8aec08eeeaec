"""One thread a process: small models run fastest so, and the same bits come out everywhere."""

import torch

torch.set_num_threads(1)
