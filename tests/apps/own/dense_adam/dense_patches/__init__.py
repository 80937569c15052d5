"""A DenseNet with batch normalisation, trained by Adam, as MONAI's example."""
