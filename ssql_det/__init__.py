"""ssql_det: pretrain a ResNet that survives quantization, transfer it to a detector, measure it at every bit-width."""

__version__ = "0.1.0"
