"""Vision transformers in the shapes of torchvision, timm, Hugging Face, MONAI and others, small enough for tests."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from fl_precode import VariationalBottleneck

SIDE, PATCH, WIDTH = 16, 4, 40
PATCHES = (SIDE // PATCH) ** 2


class Norm(nn.Module):
    """A LayerNorm without a bias."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(width))

    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight)


class Block(nn.Module):
    """Attention and MLP, normalised before or after."""

    def __init__(self, width=WIDTH, *, norm=nn.LayerNorm, after=False, dropout=0.0):
        super().__init__()
        self.norm1, self.norm2, self.after = norm(width), norm(width), after
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        y = x if self.after else self.norm1(x)
        x = x + self.dropout(self.attention(y, y, y, need_weights=False)[0])
        x = self.norm1(x) if self.after else x
        x = x + self.dropout(self.mlp(x if self.after else self.norm2(x)))
        return self.norm2(x) if self.after else x


class Transformer(nn.Module):
    """Tokens of patches and positions, two blocks (behind one alone the class token sees few directions), a head.

    Args:
        layout: How the position embedding is stored.
        special: Class and register tokens; without any, patches are averaged.
        width: Width of a token.
    """

    def __init__(self, layout="timm", *, special=1, width=WIDTH, patches=PATCHES, inside=0.0, outside=0.0, **block):
        super().__init__()
        self.layout, self.special = layout, special
        self.embed = nn.Conv2d(3, width, PATCH, PATCH)
        self.tokens = nn.Parameter(torch.randn(1, special, width)) if special else None
        rows = patches + (special if layout != "registers" else 0)
        shapes = {
            "maps": (1, width, SIDE // PATCH, SIDE // PATCH),
            "sequence-first": (rows, 1, width),
            "flat": (rows * width,),
        }
        self.positions = nn.Parameter(0.1 * torch.randn(shapes.get(layout, (1, rows, width))))
        self.between, self.dropout = nn.Dropout(inside), nn.Dropout(outside)
        self.block = nn.Sequential(Block(width, **block), Block(width, **block))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x):
        x = self.between(self.embed(x))
        if self.layout == "maps":
            x = x + self.positions
        x = x.flatten(2).transpose(1, 2)
        tokens = None if self.tokens is None else self.tokens.expand(len(x), -1, -1)
        if self.layout == "registers":  # timm's no_embed_class: positions for patches alone
            x = torch.cat([tokens, x + self.positions], 1)
        else:
            x = x if tokens is None else torch.cat([tokens, x], 1)
            if self.layout == "scaled":
                x = x * 2.5 + self.positions
            elif self.layout == "sequence-first":
                x = (x.transpose(0, 1) + self.positions).transpose(0, 1)
            elif self.layout == "flat":
                x = x + self.positions.view(1, *x.shape[1:])
            elif self.layout == "timm":
                x = x + self.positions
        x = self.norm(self.block(self.dropout(x)))
        return self.head(x[:, 0] if self.special and self.layout != "maps" else x.mean(1))


class Functional(Transformer):
    """Dropout and stochastic depth as functions, and layer scale, as many training scripts write them.

    Args:
        before: Share that is dropped between patch layer and positions.
    """

    def __init__(self, *, before=0.0):
        super().__init__(special=0)
        self.before, self.scale = before, nn.Parameter(torch.full((WIDTH,), 1e-2))

    def forward(self, x):
        drop = nn.functional.dropout
        x = drop(self.embed(x).flatten(2).transpose(1, 2), self.before, self.training) + self.positions
        x = drop(x, 0.2, self.training)
        for block in self.block:
            branch = self.scale * (block(x) - x)
            kept = torch.rand(len(x), 1, 1).to(x) < 0.6 if self.training else 1.0  # stochastic depth
            x = x + kept * branch
        return self.head(self.norm(x).mean(1))


class Embeddings(nn.Module):
    """Hugging Face's shape: a module with class token and projection, positions in an ``nn.Embedding``."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(WIDTH))
        self.projection = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.position_embedding = nn.Embedding(PATCHES + 1, WIDTH)
        self.register_buffer("position_ids", torch.arange(PATCHES + 1).expand(1, -1), persistent=False)

    def forward(self, pixel_values):
        patches = self.projection(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(patches), 1, -1), patches], 1)
        return x + self.position_embedding(self.position_ids)


class Clip(nn.Module):
    """CLIP's: a norm before the blocks."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.pre_norm = Embeddings(), nn.LayerNorm(WIDTH)
        self.block, self.head = Block(), nn.Linear(WIDTH, 4)

    def forward(self, x):
        return self.head(self.block(self.pre_norm(self.embeddings(x)))[:, 0])


class Perceptron(nn.Module):
    """MONAI's and others' Linear patch layer, on patches cut out channels last; images are normalised by the model.

    Args:
        before: What stands before the Linear layer.
        learned: Whether positions are.
        bottleneck: Whether PRECODE stands before the head.
        masks: Whether the first three patches are dropped in training.
    """

    def __init__(self, *, before=None, learned=True, bottleneck=False, masks=False):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, -0.2, 0.3]).view(3, 1, 1))
        self.before = nn.Identity() if before is None else before
        self.projection = nn.Linear(3 * PATCH * PATCH, WIDTH)
        positions = 0.1 * torch.randn(PATCHES, WIDTH)
        if learned:
            self.positions = nn.Parameter(positions)
        else:
            self.register_buffer("positions", positions)
        self.masks, self.blocks = masks, nn.Sequential(Block(), Block())
        self.middle = VariationalBottleneck(WIDTH, latent=6) if bottleneck else nn.Identity()
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x):
        x = (x - self.mean) / 0.7
        rows = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        rows = rows.permute(0, 2, 3, 4, 5, 1).reshape(len(x), PATCHES, -1)
        x = self.projection(self.before(rows)) + self.positions
        if self.masks and self.training:
            x = x[:, 3:]  # patches that are dropped have no gradient
        return self.head(self.middle(self.blocks(x).mean(1)))


class Volumes(nn.Module):
    """A 3D transformer (MONAI's, UNETR's encoder) on volumes whose slices are the channels of an image."""

    def __init__(self, width=48):
        super().__init__()
        self.embed = nn.Conv3d(1, width, 4, 4)
        self.positions = nn.Parameter(torch.zeros(1, 2 * PATCHES, width))
        self.block, self.head = Block(width), nn.Linear(width, 4)

    def forward(self, x):
        x = self.embed(x.unsqueeze(1)).flatten(2).transpose(1, 2)
        return self.head(self.block(x + self.positions).mean(1))


class Windowed(nn.Module):
    """Swin's beginning: a norm on the patches, and no positions but relative ones."""

    def __init__(self, *, positions=False):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, WIDTH, PATCH, PATCH), nn.LayerNorm(WIDTH)
        self.absolute = nn.Parameter(torch.zeros(1, PATCHES, WIDTH)) if positions else None
        self.block, self.head = Block(), nn.Linear(WIDTH, 4)

    def forward(self, x):
        x = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        x = x if self.absolute is None else x + self.absolute
        windows = x.reshape(len(x) * 4, PATCHES // 4, WIDTH)
        return self.head(self.block(windows).reshape(len(x), PATCHES, WIDTH).mean(1))


class Tied(Transformer):
    """The patch layer's weight is used again, as by a decoder of masked images."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(WIDTH, 3 * PATCH * PATCH, bias=False)
        self.decoder.weight = self.embed.weight


class Axes(Transformer):
    """Positions of rows and of columns, which several patches share."""

    def __init__(self):
        super().__init__("none", special=0)
        self.rows = nn.Parameter(torch.zeros(1, SIDE // PATCH, 1, WIDTH))
        self.columns = nn.Parameter(torch.zeros(1, 1, SIDE // PATCH, WIDTH))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + (self.rows + self.columns).flatten(1, 2)
        return self.head(self.norm(self.block(x)).mean(1))


def torchvision_vit(width=WIDTH, **options):
    model = VisionTransformer(
        image_size=SIDE, patch_size=PATCH, num_layers=2, num_heads=2, hidden_dim=width, mlp_dim=48, num_classes=4,
        **options,
    )  # fmt: skip
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero: no gradient would pass it
    return model
