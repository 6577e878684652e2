"""FedPara and pFedPara for any PyTorch model."""

__version__ = "0.2.0"
