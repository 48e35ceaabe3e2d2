"""Modules that are read as the calls that they stand for: attention and transformer layers, written out.

What is written here is traced in place of their ``forward``, which chooses among fused kernels by what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .torch_trace import Refused


def attention(
    layer: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """softmax(Q K' / sqrt(d) + mask) V in every head, between projections; also the softmax.

    Args:
        layer: its weights and options.
        query, key, value: ``(batch, tokens, features)``.
        key_padding_mask: not supported.
        need_weights: without effect; weights that nobody uses are left out.
        attn_mask: a buffer ``(tokens, tokens)``: numbers that are added before the softmax, or true where nothing is
            attended to.
        average_attn_weights: whether the weights are averaged over heads.
        is_causal: only a hint beside ``attn_mask``, as in torch.
    """
    own = layer._qkv_same_embed_dim
    for problem, refused in {
        "batch_first=False puts the batch second; make it with batch_first=True": not layer.batch_first,
        "key_padding_mask is not supported; use sequences of one length": key_padding_mask is not None,
        "bias_k and bias_v are not supported; leave add_bias_kv out": layer.bias_k is not None,
        "add_zero_attn is not supported; leave it out": layer.add_zero_attn,
        "kdim and vdim with a bias are not supported; make it with bias=False": not own
        and layer.in_proj_bias is not None,
    }.items():
        if refused:
            raise Refused(problem)
    if query is key and key is value and own:
        projected: Any = functional.linear(query, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    elif own:  # each source through all three projections, of which it needs one
        projected = [
            functional.linear(source, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)[i]
            for i, source in enumerate((query, key, value))
        ]
    else:
        weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        projected = [functional.linear(x, w) for x, w in zip((query, key, value), weights, strict=True)]
    heads, size = layer.num_heads, layer.head_dim
    q, k, v = (projected[i].unflatten(-1, (heads, size)).transpose(1, 2) for i in range(3))
    scores = (q @ k.transpose(2, 3)) / math.sqrt(size)
    if isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1)
    dropped = functional.dropout(weights, layer.dropout, layer.training)
    result = layer.out_proj((dropped @ v).transpose(1, 2).flatten(2))
    return result, weights.mean(1) if average_attn_weights else weights


def encoder_layer(
    layer: nn.TransformerEncoderLayer,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: None = None,
    is_causal: bool = False,
) -> Tensor:
    """Self-attention and two linear layers, each with a skip connection and a normalization after it, or before it."""

    def attend(x: Tensor) -> Tensor:
        attended = layer.self_attn(x, x, x, key_padding_mask=src_key_padding_mask, attn_mask=src_mask)
        return layer.dropout1(attended[0])

    def feed(x: Tensor) -> Tensor:
        return layer.dropout2(layer.linear2(layer.dropout(layer.activation(layer.linear1(x)))))

    if layer.norm_first:
        src = src + attend(layer.norm1(src))
        return src + feed(layer.norm2(src))
    src = layer.norm1(src + attend(src))
    return layer.norm2(src + feed(src))


def encoder(
    layer: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: None = None,
    is_causal: bool | None = None,
) -> Tensor:
    """Its layers, one after the other."""
    for inner in layer.layers:
        src = inner(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    return src if layer.norm is None else layer.norm(src)


WRITTEN_OUT: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: attention,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
}


def written_out(module: nn.Module) -> Callable[..., Any] | None:
    """What stands for a module's ``forward``, if it is one of these and computes the same."""
    kinds = [k for k in WRITTEN_OUT if isinstance(module, k) and type(module).forward is k.forward]
    return WRITTEN_OUT[kinds[0]] if kinds and "forward" not in vars(module) else None
