"""An app whose model is a LightningModule around a network."""
