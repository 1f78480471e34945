// Logits to masks, as segx/masks/preprocess.py and segx/predict/output.py make them.

/** Whether a pixel has one of several classes, the one with the largest logit. */
export const isExclusive = (spec) => spec.classes > 1 && !spec.multilabel;

/**
 * Threshold logits, (classes, height, width), or take the argmax of exclusive classes, where the image lies in them.
 *
 * Returns a list of planes of the size of `box`: one of class indices or of 0 and 1; of a multilabel model one of 0 and
 * 1 for each class.
 */
export function masksFromLogits(logits, box, spec, threshold) {
  const planes = Array.from({ length: spec.classes }, (_, k) => planeOf(logits, k, box, spec));
  if (isExclusive(spec)) {
    const largest = planes[0].slice(), classes = new Uint8Array(largest.length);
    planes.forEach((plane, k) => {
      for (let i = 0; i < plane.length; i += 1) {
        if (plane[i] > largest[i]) [largest[i], classes[i]] = [plane[i], k];
      }
    });
    return [classes];
  }
  const least = Math.fround(Math.log(threshold / (1 - threshold)));
  return planes.map((plane) => Uint8Array.from(plane, (logit) => (logit >= least ? 1 : 0)));
}

/** Return the part of a channel of logits that shows the image. */
function planeOf(logits, channel, box, { width, height }) {
  const plane = new Float32Array(box.width * box.height);
  for (let y = 0; y < box.height; y += 1) {
    const start = (channel * height + box.top + y) * width + box.left;
    plane.set(logits.subarray(start, start + box.width), y * box.width);
  }
  return plane;
}

/** Return 1 for each pixel in which two lists of planes differ, else 0. */
export const flipsOf = (masks, others) =>
  masks[0].map((_, i) => masks.some((plane, k) => plane[i] !== others[k][i]));

/** Count pixels that are in a mask, or have another class than 0. */
export const countForeground = (masks) => masks[0].reduce((count, _, i) => count + masks.some((plane) => plane[i]), 0);

/** Resize a plane of the size of `box` to the image by nearest neighbour. */
export function toImage(plane, box, { width, height }) {
  const columns = nearest(box.width, width), rows = nearest(box.height, height);
  const result = new Uint8Array(width * height);
  for (let y = 0; y < height; y += 1) {
    const start = rows[y] * box.width;
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
