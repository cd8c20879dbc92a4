// What a viewer must draw of a SEG, told from the SEG alone, and whether a picture of it does: points inside a segment have
// the segment's hue, points close around it have none. Slices are matched by the source frame that a frame refers to, and the
// two must lie at one place, so a mask on the wrong slice is found.

// Sampled points per segment and slice.
const POINTS = 60;

/** Frames, segments and colours of a SEG in Orthanc. */
export async function readSegmentation(orthanc, instance) {
  const tags = await (await fetch(`${orthanc}/instances/${instance}/simplified-tags`)).json();
  const file = new Uint8Array(await (await fetch(`${orthanc}/instances/${instance}/file`)).arrayBuffer());
  const numbers = text => text.split('\\').map(Number);
  const shared = tags.SharedFunctionalGroupsSequence[0];
  const [down, across] = numbers(shared.PixelMeasuresSequence[0].PixelSpacing);
  const cosines = numbers(shared.PlaneOrientationSequence[0].ImageOrientationPatient);
  const columns = Number(tags.Columns), rows = Number(tags.Rows), plane = columns * rows;
  // Explicit VR Little Endian, not compressed: Pixel Data is the last element, padded to even length.
  const length = 2 * Math.ceil((plane * Number(tags.NumberOfFrames)) / 16);
  const bits = file.subarray(file.length - length), head = file.subarray(file.length - length - 12);
  if (head[0] !== 0xe0 || head[1] !== 0x7f || head[2] !== 0x10 || head[3] !== 0) throw new Error('no uncompressed BINARY pixel data');
  const slices = new Map();
  tags.PerFrameFunctionalGroupsSequence.forEach((frame, f) => {
    const source = frame.DerivationImageSequence[0].SourceImageSequence[0];
    const key = `${source.ReferencedSOPInstanceUID}/${source.ReferencedFrameNumber ?? 1}`;
    const position = numbers(frame.PlanePositionSequence[0].ImagePositionPatient);
    const slice = slices.get(key) ?? { position, labels: new Uint8Array(plane) };
    const number = Number(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber);
    for (let i = 0; i < plane; i++) {
      const bit = f * plane + i;
      if ((bits[bit >> 3] >> (bit & 7)) & 1) slice.labels[i] = number;
    }
    slices.set(key, slice);
  });
  const colours = new Map(tags.SegmentSequence.map(s =>
    [Number(s.SegmentNumber), srgb(numbers(s.RecommendedDisplayCIELabValue))]));
  const world = (slice, x, y) => slice.position.map((p, i) => p + cosines[i] * across * x + cosines[3 + i] * down * y);
  return { columns, rows, slices, colours, world };
}

/** Throws where a frame does not lie where its source image lies. */
export async function checkPositions(orthanc, seg) {
  const sources = new Map();
  for (const [key, slice] of seg.slices) {
    const [sop, frame] = key.split('/');
    if (!sources.has(sop)) {
      const [found] = await (await fetch(`${orthanc}/tools/lookup`, { method: 'POST', body: sop })).json();
      if (!found) throw new Error(`source image ${sop} is not among the objects`);
      sources.set(sop, await (await fetch(`${orthanc}/instances/${found.ID}/simplified-tags`)).json());
    }
    const tags = sources.get(sop);
    const text = tags.ImagePositionPatient
      ?? tags.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0].ImagePositionPatient;
    const there = text.split('\\').map(Number);
    const off = Math.hypot(...there.map((v, i) => v - slice.position[i]));
    if (!(off < 0.01)) throw new Error(`a mask lies ${off} mm beside its source image ${key}`);
  }
}

/** sRGB of a Recommended Display CIELab Value (D50). */
function srgb([l, a, b]) {
  const fy = ((l * 100) / 65535 + 16) / 116;
  const fx = fy + ((a * 255) / 65535 - 128) / 500, fz = fy - ((b * 255) / 65535 - 128) / 200;
  const f = t => (t ** 3 > 216 / 24389 ? t ** 3 : (116 * t - 16) / (24389 / 27));
  const [x, y, z] = [0.96422 * f(fx), f(fy), 0.82521 * f(fz)];
  return [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.033454], [0.0719453, -0.2289914, 1.4052427]]
    .map(m => m[0] * x + m[1] * y + m[2] * z)
    .map(v => (v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055))
    .map(v => Math.round(255 * Math.min(1, Math.max(0, v))));
}

/** Points of a slice to look at: `{ world, rgb }`, where `rgb` is null for points that must be grey. */
export function pointsOf(seg, slice) {
  const { columns, rows } = seg, inside = new Map(), outside = [];
  const at = (x, y) => (x < 0 || y < 0 || x >= columns || y >= rows ? 0 : slice.labels[y * columns + x]);
  const all = (x, y, r, test) => {
    for (let dy = -r; dy <= r; dy++) for (let dx = -r; dx <= r; dx++) if (!test(at(x + dx, y + dy))) return false;
    return true;
  };
  for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
    const label = at(x, y);
    if (label !== 0 && all(x, y, 2, v => v === label)) {
      if (!inside.has(label)) inside.set(label, []);
      inside.get(label).push([x, y]);
    } else if (label === 0 && all(x, y, 2, v => v === 0) && !all(x, y, 6, v => v === 0)) outside.push([x, y]);
  }
  const some = list => list.filter((_, i) => i % Math.ceil(list.length / POINTS) === 0);
  const points = some(outside).map(([x, y]) => ({ world: seg.world(slice, x, y), rgb: null }));
  for (const [label, list] of inside)
    points.push(...some(list).map(([x, y]) => ({ world: seg.world(slice, x, y), rgb: seg.colours.get(label) })));
  return points;
}

/** Whether a pixel of the picture shows what a point demands: the hue of a colour, or no hue. */
export function agrees(pixel, rgb) {
  const hue = c => { const mean = (c[0] + c[1] + c[2]) / 3; return c.map(v => v - mean); };
  const length = c => Math.hypot(...c);
  const seen = hue(pixel);
  if (rgb === null) return length(seen) < 12;
  const wanted = hue(rgb);
  const dot = seen.reduce((sum, v, i) => sum + v * wanted[i], 0);
  return length(seen) > 12 && dot / (length(seen) * length(wanted)) > 0.95;
}
