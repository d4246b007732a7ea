"""A small transformer that predicts the next character."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    """Attention and a ReLU layer four times as wide, each behind a norm and added to its input.

    Args:
      width: of the vectors, (n, length, width).
      heads: of the attention.
      rngs: the random streams.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (n, length, width) to the same shape; positions do not see later ones."""
        mask = nnx.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.relu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """A decoder with learnt positions, norms before its layers and a separate output layer.

    Args:
      vocabulary: the number of tokens.
      length: the longest text, in tokens.
      width: of the vectors.
      heads: of each attention layer.
      layers: the number of blocks.
      rngs: the random streams.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 128,
        length: int = 64,
        width: int = 64,
        heads: int = 4,
        layers: int = 4,
        rngs: nnx.Rngs,
    ):
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits (n, length, vocabulary) of the token that follows each of ``tokens``."""
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))
