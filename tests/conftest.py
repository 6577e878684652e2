"""Shared by all tests: FedML without what it imports in vain, and one thread, as in a rank of a job."""

import torch
from hypothesis import settings

from benchmarks.runtime.launch import defer_packages

defer_packages()
torch.set_num_threads(1)  # with a busy neighbour, a second one makes small models many times slower
settings.register_profile("no deadline", deadline=None)  # a busy machine is no error
settings.load_profile("no deadline")
