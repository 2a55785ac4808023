"""The structured layer: one module for every structure, and the views that apply it."""

from tnc.nn.contraction_layers import TensorContraction, TensorRegression
from tnc.nn.conv_view import ConvView
from tnc.nn.dropout import TensorDropout
from tnc.nn.embedding_view import EmbeddingView
from tnc.nn.layer import StructuredLayer
from tnc.nn.linear_view import LinearView
from tnc.nn.rebuilt import install_rebuilt_
from tnc.nn.spectral import SpectralConv, SpectralView
from tnc.nn.view import View
from tnc.nn.views import StackView, StoredView, view_from_json

__all__ = [
    "ConvView",
    "EmbeddingView",
    "LinearView",
    "SpectralConv",
    "SpectralView",
    "StackView",
    "StoredView",
    "StructuredLayer",
    "TensorContraction",
    "TensorDropout",
    "TensorRegression",
    "View",
    "install_rebuilt_",
    "view_from_json",
]
