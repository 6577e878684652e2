"""Data sets, their partition over federated clients, and the HDF5 store that every process reads them from."""

from data_partitions.build import check as check_partition
from data_partitions.build import find_built, prepare
from data_partitions.datasets import Choices
from data_partitions.errors import DataError
from data_partitions.show import heat_map
from data_partitions.store import Store, open_store

__all__ = ["Choices", "DataError", "Store", "check_partition", "find_built", "heat_map", "open_store", "prepare"]
