// PNG files; a canvas is not enough for these: it has 8 bits, loses colours below transparency, and writes no gray.

import start, { decode as decode8, decode_rgba16 as decode16 } from "./png/squoosh_png.js";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
// Bands by colour type: gray, RGB, palette, gray with alpha, RGB with alpha.
const BANDS = { 0: 1, 2: 3, 3: 3, 4: 4, 6: 4 };
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  let crc = n;
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

export const isPng = (bytes) => SIGNATURE.every((byte, i) => bytes[i] === byte);

/** Return the `width`, `height`, bits and `bands` of a PNG file, and its `exif` data; throw if it is damaged. */
export function readHeader(bytes) {
  const found = new Map(chunksOf(bytes));
  const header = found.get("IHDR");
  if (!found.has("IDAT")) throw new Error("it has no pixels");
  const bands = BANDS[header.getUint8(9)];
  return {
    width: header.getUint32(0),
    height: header.getUint32(4),
    bits: header.getUint8(8),
    bands: bands === 3 && found.has("tRNS") ? 4 : bands,
    exif: found.get("eXIf"),
  };
}

/** Return red, green, blue and alpha of each pixel in turn. */
export async function decodePng(bytes, { bits }) {
  await start();
  return (bits === 16 ? decode16 : decode8)(bytes).data;
}

/** Yield kind and content of each chunk. */
function* chunksOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let start = SIGNATURE.length, kind = ""; kind !== "IEND"; ) {
    const length = view.getUint32(start), end = start + 8 + length;
    const named = bytes.subarray(start + 4, end);
    kind = String.fromCharCode(...named.subarray(0, 4));
    const isCritical = kind[0] === kind[0].toUpperCase();
    if (view.getUint32(end) !== crc32(named) && isCritical) throw new Error(`the ${kind} chunk is damaged`);
    yield [kind, new DataView(bytes.buffer, bytes.byteOffset + start + 8, length)];
    start = end + 4;
  }
}

/** Encode 8-bit gray pixels. */
export async function encodeGrayPng(pixels, { width, height }) {
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header[8] = 8; // bits
  const rows = new Uint8Array((width + 1) * height); // each begins with its filter, 0 for none
  for (let y = 0; y < height; y += 1) rows.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const packed = new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate")));
  const body = new Uint8Array(await packed.arrayBuffer());
  return new Blob([Uint8Array.from(SIGNATURE), chunk("IHDR", header), chunk("IDAT", body), chunk("IEND", new Uint8Array(0))], { type: "image/png" });
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
  for (let i = 0; i < bytes.length; i += 1) crc = CRC[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}
