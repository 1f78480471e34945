// Image files to pixels, as segx/masks/image_io.py reads them, as far as a browser can.

import { decodePng, isPng, readHeader } from "./png.js";

// Half of that in image_io.py, as a page holds several copies of the pixels, of up to 8 bytes each.
export const MAX_PIXELS = 2 ** 26;

const RIFF = 0x52494646, WEBP_EXIF = 0x45584946;
const EXIF_PREFIX = 0x45786966, LITTLE_ENDIAN = 0x4949, ORIENTATION = 0x0112;

/**
 * Decode an image file.
 *
 * Returns its `width`, `height`, `bands` (1, 3 or 4) and `data`: red, green, blue and alpha of each pixel in turn, 8 or
 * 16 bits each, gray repeated, turned as its EXIF data say. Throws an Error whose message follows the name of the file.
 */
export async function decodeImage(bytes) {
  try {
    if (!isPng(bytes)) return await decodeByBrowser(bytes);
    const { exif, ...header } = readHeader(bytes);
    checkSize(header.width, header.height);
    return turned({ ...header, data: await decodePng(bytes, header) }, orientationIn(exif));
  } catch (error) {
    if (error instanceof TooLarge) throw error;
    throw new Error("not an image that this browser reads, or a damaged one; try PNG or JPEG", { cause: error });
  }
}

class TooLarge extends Error {}

function checkSize(width, height) {
  if (width * height > MAX_PIXELS) {
    throw new TooLarge(`${width}x${height} pixels, more than ${MAX_PIXELS.toLocaleString("en")}; downscale it`);
  }
}

async function decodeByBrowser(bytes) {
  const exif = webpExif(new DataView(bytes.buffer, bytes.byteOffset, bytes.length));
  const bitmap = await createImageBitmap(new Blob([bytes]), {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
    imageOrientation: exif ? "none" : "from-image", // browsers do not agree on WebP
  });
  try {
    const { width, height } = bitmap;
    checkSize(width, height);
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    let opaque = true;
    for (let i = 3; i < data.length && opaque; i += 4) opaque = data[i] === 255;
    if (!opaque) readUnmultiplied(bitmap, data);
    return turned({ width, height, data, bands: opaque ? 3 : 4 }, orientationIn(exif));
  } finally {
    bitmap.close();
  }
}

/** Return the EXIF data of a WebP file; undefined if there are none, or it is another file. */
function webpExif(file) {
  for (let start = 12; start + 8 <= file.byteLength && file.getUint32(0) === RIFF; ) {
    const length = Math.min(file.getUint32(start + 4, true), file.byteLength - start - 8);
    if (file.getUint32(start) === WEBP_EXIF) return new DataView(file.buffer, file.byteOffset + start + 8, length);
    start += 8 + length + (length % 2);
  }
  return undefined;
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
