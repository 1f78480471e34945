// Image files to pixels, as segx/masks/image_io.py reads them, as far as a browser can.

import startPng, { decode as decodePng8, decode_rgba16 as decodePng16 } from "./png/squoosh_png.js";

export const MAX_BYTES = 64 * 2 ** 20;
export const MAX_PIXELS = 2 ** 26;

const PNG = 0x89504e47, RIFF = 0x52494646;
// Kinds of PNG and WebP chunks.
const PNG_EXIF = 0x65584966, PNG_TRANSPARENCY = 0x74524e53, WEBP_EXIF = 0x45584946;
const EXIF_PREFIX = 0x45786966, LITTLE_ENDIAN = 0x4949, ORIENTATION = 0x0112;
// Bands of a PNG by its colour type: gray, RGB, palette, gray with alpha, RGB with alpha.
const PNG_BANDS = { 0: 1, 2: 3, 3: 3, 4: 4, 6: 4 };

/**
 * Decode an image file.
 *
 * Returns its `width`, `height`, `bands` (1, 3 or 4) and `data`: red, green, blue and alpha of each pixel in turn, 8 or
 * 16 bits each, gray repeated, turned as its EXIF data say. Throws an Error whose message is for the user.
 */
export async function decodeImage(bytes) {
  if (bytes.length > MAX_BYTES) {
    throw new Error(`The file has ${(bytes.length / 2 ** 20).toFixed(0)} MiB, more than ${MAX_BYTES / 2 ** 20}: downscale the image.`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const signature = bytes.length < 26 ? 0 : view.getUint32(0);
  const parts = signature === PNG || signature === RIFF ? new Map(chunks(view, signature === PNG)) : new Map();
  const exif = parts.get(signature === PNG ? PNG_EXIF : WEBP_EXIF);
  try {
    if (signature !== PNG) return turned(await decodeByBrowser(bytes, signature === RIFF), orientationIn(exif));
    checkSize(view.getUint32(16), view.getUint32(20));
    await startPng();
    const { width, height, data } = (bytes[24] === 16 ? decodePng16 : decodePng8)(bytes);
    const bands = parts.has(PNG_TRANSPARENCY) ? 4 : PNG_BANDS[bytes[25]];
    return turned({ width, height, data, bands }, orientationIn(exif));
  } catch (error) {
    if (error instanceof TooLarge) throw error;
    throw new Error("This is not an image that the browser can read, or it is damaged: try PNG or JPEG.", { cause: error });
  }
}

class TooLarge extends Error {}

function checkSize(width, height) {
  if (width * height > MAX_PIXELS) {
    throw new TooLarge(`The image has ${width}x${height} pixels, more than ${MAX_PIXELS.toLocaleString("en")}: downscale it.`);
  }
}

/** Decode what the browser knows; PNG is not left to it, as a canvas has 8 bits. */
async function decodeByBrowser(bytes, isWebp) {
  const bitmap = await createImageBitmap(new Blob([bytes]), {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
    imageOrientation: isWebp ? "none" : "from-image", // browsers do not agree on WebP
  });
  const { width, height } = bitmap;
  checkSize(width, height);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  let opaque = true;
  for (let i = 3; i < data.length && opaque; i += 4) opaque = data[i] === 255;
  if (!opaque) readUnmultiplied(bitmap, data);
  bitmap.close();
  return { width, height, data, bands: opaque ? 3 : 4 };
}

/** Overwrite pixels, whose colours a canvas multiplies by alpha, with the original ones, where WebGL is available. */
function readUnmultiplied(bitmap, data) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(bitmap.width, bitmap.height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return;
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  gl.readPixels(0, 0, bitmap.width, bitmap.height, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(data.buffer));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
}

/** Yield kind and content of the chunks of a PNG or WebP file. */
function* chunks(view, isPng) {
  for (let start = isPng ? 8 : 12; start + 8 <= view.byteLength; ) {
    const kind = view.getUint32(isPng ? start + 4 : start);
    const length = view.getUint32(isPng ? start : start + 4, !isPng);
    start += 8;
    yield [kind, new DataView(view.buffer, view.byteOffset + start, Math.min(length, view.byteLength - start))];
    start += length + (isPng ? 4 : length % 2);
  }
}

/** Return the orientation in EXIF data, 1 to 8; 1 if there is none. */
function orientationIn(exif) {
  try {
    const start = exif.getUint32(0) === EXIF_PREFIX ? 6 : 0;
    const little = exif.getUint16(start) === LITTLE_ENDIAN;
    const first = start + exif.getUint32(start + 4, little);
    for (let i = 0; i < exif.getUint16(first, little); i += 1) {
      const entry = first + 2 + 12 * i;
      if (exif.getUint16(entry, little) !== ORIENTATION) continue;
      const value = exif.getUint16(entry + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch {
    // There are no EXIF data, or they are cut off.
  }
  return 1;
}

/** Turn stored pixels as EXIF says that they are shown. */
function turned(image, orientation) {
  if (orientation === 1) return image;
  const transposed = orientation >= 5;
  const [width, height] = transposed ? [image.height, image.width] : [image.width, image.height];
  const mirrored = [2, 3, 6, 7].includes(orientation), upsideDown = [3, 4, 7, 8].includes(orientation);
  const data = new image.data.constructor(image.data.length);
  for (let y = 0, target = 0; y < height; y += 1) {
    const row = upsideDown ? height - 1 - y : y;
    for (let x = 0; x < width; x += 1, target += 4) {
      const column = mirrored ? width - 1 - x : x;
      const source = 4 * (transposed ? column * image.width + row : row * image.width + column);
      for (let band = 0; band < 4; band += 1) data[target + band] = image.data[source + band];
    }
  }
  return { ...image, width, height, data };
}
