"""Self-attention as `torch.nn.MultiheadAttention` computes it, from two Linear parts and matrix products."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from attacker.gradients.ghost.layer_kinds import CompositeKind, Forward, LinearPart, register_layer


@register_layer(nn.MultiheadAttention)
class AttentionKind(CompositeKind[nn.MultiheadAttention]):
    """One projection to queries, keys and values, attention by head, and one projection of what it gives.

    Its forward pass takes one tensor as query, key and value, without masks; a model that calls it in another way fails
    in the comparison that a selection makes, and is attacked in a slower way.
    """

    def why_not(self, layer: nn.MultiheadAttention) -> str | None:
        """Settings under which attention is more than that."""
        if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
            return "has keys or values of another size, or some of its own"
        return "drops attention weights at random" if layer.training and layer.dropout else None

    def parts(self, layer: nn.MultiheadAttention) -> Mapping[str, LinearPart]:
        """Both projections."""
        return {
            "in_proj": LinearPart(layer, weight="in_proj_weight", bias="in_proj_bias"),
            "out_proj": LinearPart(layer, weight="out_proj.weight", bias="out_proj.bias"),
        }

    def inputs(self, layer: nn.MultiheadAttention, received: Tensor) -> Tensor:
        """Tokens (images, tokens, features)."""
        return received if layer.batch_first else received.transpose(0, 1)

    def forward(self, layer: nn.MultiheadAttention, parts: Mapping[str, LinearPart]) -> Forward:
        """Attention from its parts; see `CompositeKind.forward`."""

        def attend(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            key_padding_mask: Tensor | None = None,
            need_weights: bool = True,
            attn_mask: Tensor | None = None,
            average_attn_weights: bool = True,
            is_causal: bool = False,
        ) -> tuple[Tensor, Tensor | None]:
            masked = key_padding_mask is not None or attn_mask is not None or is_causal
            if query is not key or key is not value or masked or query.dim() != 3:
                raise NotImplementedError("expected self-attention of a batch without masks")
            rows = parts["in_proj"](self.inputs(layer, query))
            split = rows.unflatten(-1, (3, layer.num_heads, layer.head_dim))  # (images, tokens, 3, heads, features)
            queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind()
            weights = (queries * layer.head_dim**-0.5 @ keys.mT).softmax(-1)
            output: Tensor = parts["out_proj"]((weights @ values).transpose(1, 2).flatten(2))
            shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
            return (output if layer.batch_first else output.transpose(0, 1)), shown

        return attend
