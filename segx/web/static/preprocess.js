// Pixels to model input, as segx/masks/preprocess.py does it.

// Of red, green and blue in gray, in units of 2 ** -15, as OpenCV rounds them.
const LUMA = [9798, 19235, 3735];

/** Convert an image, see `decodeImage`, to model input: (channels, height, width) float32. */
export function preprocess(image, spec) {
  const { in_channels: channels, width, height } = spec;
  const box = imageBox(image, spec);
  const result = new Float32Array(channels * height * width);
  for (let channel = 0; channel < channels; channel += 1) {
    const resized = resize(planeOf(image, channel, spec), image, box, spec.resize === "linear");
    const place = (spec.channel_order === "bgr" ? channels - 1 - channel : channel) * height * width;
    for (let y = 0; y < box.height; y += 1) {
      const row = resized.subarray(y * box.width, (y + 1) * box.width);
      result.set(row, place + (box.top + y) * width + box.left);
    }
  }
  const scale = spec.input_range === "0-255" ? 255 : 1;
  for (let channel = 0; channel < channels; channel += 1) {
    const mean = spec.mean[channel] ?? 0, std = spec.std[channel] ?? 1;
    const end = (channel + 1) * height * width;
    for (let i = channel * height * width; i < end; i += 1) result[i] = (result[i] * scale - mean) / std;
  }
  return result;
}

/** Return why a model does not take an image; empty if it does. */
export function misfit(image, spec) {
  const { in_channels: channels } = spec;
  if (channels === 1 || channels === 3 || channels === image.bands) return "";
  return `${image.bands} band${image.bands > 1 ? "s" : ""}, and the model takes ${channels} channels`;
}

/** Return where an image lies in the model input: left, top, width and height in pixels. */
export function imageBox(image, spec) {
  if (spec.resize !== "letterbox") return { left: 0, top: 0, width: spec.width, height: spec.height };
  const scale = Math.min(spec.height / image.height, spec.width / image.width);
  const [width, height] = [image.width, image.height].map((side) => Math.max(1, roundHalfToEven(side * scale)));
  return { left: (spec.width - width) >> 1, top: (spec.height - height) >> 1, width, height };
}

/** Round as Python does. */
function roundHalfToEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/** Return one channel of an image as float32 in [0, 1]. */
function planeOf({ data, width, height }, channel, spec) {
  const plane = new Float32Array(width * height);
  const white = spec.white_level ?? (data instanceof Uint16Array ? 65535 : 255);
  const [red, green, blue] = LUMA;
  for (let i = 0, pixel = 0; i < plane.length; i += 1, pixel += 4) {
    const value = spec.in_channels === 1
      ? Math.floor((data[pixel] * red + data[pixel + 1] * green + data[pixel + 2] * blue + 16384) / 32768)
      : data[pixel + channel];
    plane[i] = spec.white_level ? Math.min(1, value / white) : value / white;
  }
  return plane;
}

/** Resize a plane bilinearly, with antialiasing as Pillow or without as OpenCV. */
function resize(plane, from, to, isPlain) {
  const weigh = isPlain ? twoNearest : triangle;
  let wide = plane;
  if (from.width !== to.width) {
    wide = new Float32Array(to.width * from.height);
    const columns = weigh(from.width, to.width);
    for (let y = 0; y < from.height; y += 1) {
      for (let x = 0; x < to.width; x += 1) {
        const { first, weights } = columns[x];
        const start = y * from.width + first;
        let sum = 0;
        for (let i = 0; i < weights.length; i += 1) sum += plane[start + i] * weights[i];
        wide[y * to.width + x] = sum;
      }
    }
  }
  if (from.height === to.height) return wide;
  const result = new Float32Array(to.width * to.height);
  const rows = weigh(from.height, to.height);
  const sums = new Float64Array(to.width);
  for (let y = 0; y < to.height; y += 1) {
    const { first, weights } = rows[y];
    sums.fill(0);
    for (let i = 0; i < weights.length; i += 1) {
      const start = (first + i) * to.width;
      for (let x = 0; x < to.width; x += 1) sums[x] += wide[start + x] * weights[i];
    }
    result.set(sums, y * to.width);
  }
  return result;
}

/** Return for each new pixel the first old one that it is made of, and the weights from there on. */
function triangle(from, to) {
  const step = from / to, reach = Math.max(step, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * step;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const weights = Array.from({ length: end - first }, (_, k) =>
      Math.max(0, 1 - Math.abs((k + first - centre + 0.5) / reach)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}

/** As `triangle`, of the two old pixels beside the centre of the new one. */
function twoNearest(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const centre = Math.min(from - 1, Math.max(0, (i + 0.5) * (from / to) - 0.5));
    const first = Math.min(Math.floor(centre), Math.max(0, from - 2)), share = centre - first;
    return { first, weights: from > 1 ? [1 - share, share] : [1] };
  });
}
