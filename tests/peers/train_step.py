"""One training step of MobileSAM in PyTorch, timed: the peer of `scanside bench train-step`.

usage: train_step.py MOBILE_SAM_DIR [--threads N] [--size 256] [--structures 9] [--rank 8] [--steps 10] [--device cuda]
       train_step.py MOBILE_SAM_DIR --reference tests/fixtures/train_step_gradients.json --size 128 --structures 3 --rank 4

MOBILE_SAM_DIR is the folder `mobile_sam` of MobileSAM's sources (the PyPI source package isat-sam carries it).
Weights are random: the time does not depend on them. Frozen base with batch normalisations folded, LoRA in every
attention block of the encoder, trainable prompt encoder, mask decoder, class tokens and classifier, Adam.
Prints one JSON object: seconds and CPU seconds of each step's median.

With --reference it writes the loss and the gradient of every trainable parameter (its norm and a few values) at weights that
tests/gradients_match_pytorch.rs makes by the same formula.
"""

import argparse
import json
import sys
import time
import warnings
import zlib

import numpy as np
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


def values(name, count):
    """Numbers in -1..1 from a name and an index, the same in any language: an integer hash."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(zlib.crc32(name.encode()))
    x ^= x >> np.uint32(15)
    x *= np.uint32(2246822519)
    x ^= x >> np.uint32(13)
    return torch.from_numpy((x >> np.uint32(8)).astype(np.float32) / np.float32(2**23) - np.float32(1))


def set_by_formula(name, tensor):
    v = values(name, tensor.numel()).view_as(tensor)
    with torch.no_grad():
        if tensor.dim() == 1:
            tensor.copy_(0.1 * v + (1.0 if name.endswith(".weight") else 0.0))
        else:
            tensor.copy_(v * float(np.sqrt(np.float32(3.0 / tensor[0].numel()))))


def our_name(prefix, name):
    name = name.replace(".base.", ".")
    if name.endswith((".qkv.a", ".qkv.b", ".proj.a", ".proj.b")):
        name = name[:-1] + "lora_" + name[-1]
    return prefix + name


def main():
    args = argparse.ArgumentParser()
    args.add_argument("mobile_sam")
    args.add_argument("--threads", type=int, default=0)
    args.add_argument("--size", type=int, default=256)
    args.add_argument("--structures", type=int, default=9)
    args.add_argument("--rank", type=int, default=8)
    args.add_argument("--steps", type=int, default=10)
    args.add_argument("--device", default="cpu")
    args.add_argument("--reference")
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
    # Ours names the output tokens too: each learns from the start which structure it stands for.
    decoder.transformer.register_forward_pre_hook(
        lambda _, a: (a[0], a[1], torch.cat([a[2][:, :5] + tokens, a[2][:, 5:]], 1))
    )
    named = {"class_tokens": tokens}
    named |= {f"classifier.fc{1 + i // 2}.{part}": p for i, l in ((0, head[0]), (2, head[2])) for part, p in l.named_parameters()}
    for prefix, module in (("image_encoder.", encoder), ("prompt_encoder.", prompts), ("mask_decoder.", decoder)):
        named |= {our_name(prefix, n): p for n, p in module.named_parameters()}
    device = torch.device(args.device)
    for module in (encoder, prompts, decoder, head):
        module.to(device)
    tokens.data = tokens.data.to(device)
    adam = torch.optim.Adam([p for p in trainable if p.requires_grad], lr=1e-4)

    image = torch.randn(1, 3, args.size, args.size)
    corner = torch.rand(k, 2) * args.size / 2
    boxes = torch.cat([corner, corner + args.size / 3], 1)
    present = (torch.rand(1, k) > 0.5).float()
    truth = (torch.rand(k, 1, args.size // 4, args.size // 4) > 0.5).float()
    image, boxes, present, truth = (t.to(device) for t in (image, boxes, present, truth))

    if args.reference:
        for name, p in named.items():
            set_by_formula(name, p)
        # The class tokens are a list of vectors, not a matrix: their scale is 1.
        tokens.data.copy_(values("class_tokens", tokens.numel()).view_as(tokens))
        pe = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
        prompts.pe_layer.positional_encoding_gaussian_matrix.copy_(values(pe, 256).view(2, 128))
        encoder.eval()  # spreads the attention biases anew
        image = 2 * values("image", image.numel()).view_as(image)
        corner = (0.5 + 0.5 * values("boxes", 2 * k)).view(k, 2) * 0.6
        boxes = torch.cat([corner, corner + 0.3], 1) * args.size
        present = (values("present", k).view(1, k) > 0).float()
        truth = (values("truth", truth.numel()).view_as(truth) > 0).float()

    def step(update=True):
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
        if update:
            adam.step()
        return loss.item(), f

    if args.reference:
        loss, f = step(update=False)
        gradients = {}
        for name, p in sorted(named.items()):
            if p.grad is not None and p.grad.abs().max() > 0:
                g = p.grad.flatten()
                at = sorted({i * (g.numel() - 1) // 7 for i in range(8)})
                gradients[name] = {"norm": g.double().norm().item(), "at": at, "values": [g[i].item() for i in at]}
        f = f.detach().flatten()
        out = {"torch": torch.__version__, "loss": loss, "embedding": f[:: f.numel() // 16].tolist(), "gradients": gradients}
        with open(args.reference, "w") as file:
            file.write(json.dumps(out, separators=(",", ":")).replace("},", "},\n") + "\n")
        return

    times = []
    for i in range(args.steps + 3):
        wall, cpu = time.perf_counter(), time.process_time()
        step()  # reads the loss, and so waits for a GPU
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
