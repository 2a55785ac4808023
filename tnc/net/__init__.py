"""The language: equations with named indices, networks with sizes, sums of networks.

Standard library only. Everything else about a structured weight is derived from what is here.
"""

from tnc.net.codec import digest, from_json, to_json
from tnc.net.equation import Axis, Core, Equation
from tnc.net.network import Network, Signature, Structure
from tnc.net.text import parse_equation, parse_network, print_equation, print_network

__all__ = [
    "Axis",
    "Core",
    "Equation",
    "Network",
    "Signature",
    "Structure",
    "digest",
    "from_json",
    "parse_equation",
    "parse_network",
    "print_equation",
    "print_network",
    "to_json",
]
