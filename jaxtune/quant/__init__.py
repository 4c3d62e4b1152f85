"""Weights quantised to 4 or 8 bits: the public names of the package."""

from jaxtune.quant.weights import KINDS as KINDS
from jaxtune.quant.weights import LINEAR as LINEAR
from jaxtune.quant.weights import MADE as MADE
from jaxtune.quant.weights import Quantized as Quantized
from jaxtune.quant.weights import abstract as abstract
from jaxtune.quant.weights import by_path as by_path
from jaxtune.quant.weights import dequantize as dequantize
from jaxtune.quant.weights import dot as dot
from jaxtune.quant.weights import grid as grid
from jaxtune.quant.weights import is_quantized as is_quantized
from jaxtune.quant.weights import kinds as kinds
from jaxtune.quant.weights import nbytes as nbytes
from jaxtune.quant.weights import pack as pack
from jaxtune.quant.weights import plain_scales as plain_scales
from jaxtune.quant.weights import quantize as quantize
from jaxtune.quant.weights import same as same
from jaxtune.quant.weights import specs as specs
