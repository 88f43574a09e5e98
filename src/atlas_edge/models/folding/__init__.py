"""Vision transformers rewritten for deployment: the same function at full precision, with less to compute.

Everything that is constant is folded into the products beside it, so that between two of them only what depends on the
tile is left:

- pixel normalisation into the patch embedding, which then reads the pixels themselves: 256 levels, exact in uint8;
- the patch embedding's bias into the position embedding;
- LayerNorm's weight and bias into the query, key, value and first MLP products that read it;
- the attention's scale into the query, and LayerScale into the projection and the second MLP product;
- where only the CLS token is the embedding, the last block computes its query, projection and MLP for that token alone
  (the keys and values still come from all), which saves 7 % of a ViT-S.

`merging` goes further where it is asked to, and computes another function: tokens that are alike become one.

Start at `vit.fold_vit`; `block.FoldedBlock.inputs` says what its products read and what may be moved between them.
"""
