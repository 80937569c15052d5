"""Image sets, partitions and the schedule of batches. Libraries that hold images are imported when one is loaded."""

from fl_precode.data.dataset import DataUnavailableError, ImageData, ImageDataset
from fl_precode.data.partition_file import ClientData, read_partition, write_partition
from fl_precode.data.registry import DATASETS, OWN_FILES, DatasetEntry, check_dataset, load_data

__all__ = [
    "DATASETS",
    "OWN_FILES",
    "ClientData",
    "DataUnavailableError",
    "DatasetEntry",
    "ImageData",
    "ImageDataset",
    "check_dataset",
    "load_data",
    "read_partition",
    "write_partition",
]
