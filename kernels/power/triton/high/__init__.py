"""Kernels for p >= 3, where a state is wide: a block of outer monomials is an operand of products, as it stands.

What a tile of a state is multiplied with at p <= 2 is a tile of x, scaled by one outer monomial a token: from p = 3 on
that is a product of several factors for each few columns, of narrow heads. Here outer monomials are the operand
themselves, `M(x) [tokens, OUTERS]`, and one product takes them all with INNER channels and all values,

    product[t, (i, v)] = sum_r M_r(x_t) S[r, i, v]      of OUTERS rows by INNER V columns,

so that a few operations remain for each of its numbers: outputs are `sum_i x_i product_i`, gradients `product_i . y`.
A state's inner blocks are of so few channels that these columns are one product's, and an outer monomial's columns lie
side by side: `[prefix, INNER V]` for each inner block. Of rows that its outer monomials do not have nothing is read.

| kernel | operands of a product | what it adds up |
|---|---|---|
| `sums` | outer monomials by tokens, tokens by channels times values | a block of the state, over tokens |
| `outputs` | tokens by outer monomials, those by an inner block | outputs, over both |
| `gradients` | the same, with all channels | gradients of x, and outputs: the state is symmetric |

Rounded are outer monomials and what they meet, and neither what comes of it nor the last channel.
"""
