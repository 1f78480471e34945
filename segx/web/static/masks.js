// Logits to masks, as segx/masks/preprocess.py and segx/predict/output.py make them.

/** Whether a pixel has one of several classes, the one with the largest logit. */
export const isExclusive = (spec) => spec.classes > 1 && !spec.multilabel;

/**
 * Threshold logits, (classes, height, width), or take the argmax of exclusive classes.
 *
 * Returns a list of planes: one of class indices or of 0 and 1; of a multilabel model one of 0 and 1 for each class.
 */
export function masksFromLogits(logits, spec, threshold) {
  const size = spec.height * spec.width;
  const planes = Array.from({ length: spec.classes }, (_, k) => logits.subarray(k * size, (k + 1) * size));
  if (isExclusive(spec)) {
    const largest = planes[0].slice(), classes = new Uint8Array(size);
    planes.forEach((plane, k) => {
      for (let i = 0; i < size; i += 1) {
        if (plane[i] > largest[i]) [largest[i], classes[i]] = [plane[i], k];
      }
    });
    return [classes];
  }
  const least = Math.fround(Math.log(threshold / (1 - threshold)));
  return planes.map((plane) => Uint8Array.from(plane, (logit) => (logit >= least ? 1 : 0)));
}

/** Count pixels in which two lists of planes differ. */
export function countFlips(masks, others) {
  return masks[0].reduce((count, _, i) => count + masks.some((plane, k) => plane[i] !== others[k][i]), 0);
}

/** Count pixels that are in a mask, or have another class than 0. */
export const countForeground = (masks) => masks[0].reduce((count, _, i) => count + masks.some((plane) => plane[i]), 0);

/** Return the part of a plane of the model's size that shows the image, resized to the image by nearest neighbour. */
export function toImage(plane, box, { width, height }, spec) {
  const columns = nearest(box.width, width), rows = nearest(box.height, height);
  const result = new Uint8Array(width * height);
  for (let y = 0; y < height; y += 1) {
    const start = (box.top + rows[y]) * spec.width + box.left;
    for (let x = 0; x < width; x += 1) result[y * width + x] = plane[start + columns[x]];
  }
  return result;
}

/** Return the old pixel of each new one; summed up, not multiplied, so that ties are OpenCV's. */
function nearest(from, to) {
  let centre = from / to / 2;
  return Array.from({ length: to }, () => {
    const pixel = Math.min(from - 1, Math.floor(centre));
    centre += from / to;
    return pixel;
  });
}

/** Encode 8-bit gray pixels as PNG; a canvas writes colours only. */
export async function encodeGrayPng(pixels, { width, height }) {
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header[8] = 8; // bits
  const rows = new Uint8Array((width + 1) * height); // each begins with its filter, 0 for none
  for (let y = 0; y < height; y += 1) rows.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const packed = new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate")));
  const body = new Uint8Array(await packed.arrayBuffer());
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  return new Blob([signature, chunk("IHDR", header), chunk("IDAT", body), chunk("IEND", new Uint8Array(0))], { type: "image/png" });
}

function chunk(kind, content) {
  const result = new Uint8Array(content.length + 12), view = new DataView(result.buffer);
  view.setUint32(0, content.length);
  result.set(new TextEncoder().encode(kind), 4);
  result.set(content, 8);
  view.setUint32(content.length + 8, crc32(result.subarray(4, content.length + 8)));
  return result;
}

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
