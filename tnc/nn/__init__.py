"""The structured layer: one module for every structure, with linear, conv2d and embedding views."""

from tnc.nn.layer import StructuredLayer
from tnc.nn.rebuilt import install_rebuilt_
from tnc.nn.views import Conv2dView, EmbeddingView, LinearView, View, view_from_json

__all__ = [
    "Conv2dView",
    "EmbeddingView",
    "LinearView",
    "StructuredLayer",
    "View",
    "install_rebuilt_",
    "view_from_json",
]
