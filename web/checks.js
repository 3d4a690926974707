// What the server would refuse, said before it is sent, in the server's own words. The server
// decides all the same: what is not known here is left to it.

// formatOf is the format that a file's first bytes show, or "".
export async function formatOf(file) {
  const head = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...head);
  if (text.startsWith("\xff\xd8\xff")) return "jpg";
  if (text.startsWith("\x89PNG\r\n\x1a\n")) return "png";
  if (text.startsWith("RIFF") && text.slice(8) === "WEBP") return "webp";
  if (text.slice(4, 8) === "ftyp" && ["avif", "avis", "mif1", "msf1"].includes(text.slice(8))) return "avif";
  return "";
}

// limit is a number of bytes as the server names its limit.
export const limit = (bytes) => bytes % (1 << 20) === 0 ? `${bytes / (1 << 20)}MB` : `${bytes} bytes`;

// largest is how many bytes a file may have: one that is too large for the API goes to the storage server.
export const largest = (settings) => Math.max(settings.max_upload_bytes, settings.max_direct_upload_bytes);

// ofFile is what is wrong with a file, or "". picture has format, width and height, as far as
// they are known.
export function ofFile(file, picture, settings) {
  const { accepted_types: types, max_image_side: side, max_image_pixels: pixels } = settings;
  const most = largest(settings);
  const type = file.type || "application/octet-stream"; // as the browser would send it
  if (!types.includes(type)) return `Unsupported file type: ${type}. Accepted: [${types.join(", ")}]`;
  if (file.size > most) return `File exceeds ${limit(most)} limit`;
  if (file.size === 0) return "the file is empty";
  if (!picture.format) return "the file is not a JPEG, PNG, WebP or AVIF picture";
  const { width, height } = picture;
  if (Math.max(width, height) > side) return `the picture is ${width} x ${height} pixels; the limit is ${side} a side`;
  if (width * height > pixels) return `the picture is ${width} x ${height} = ${width * height} pixels; the limit is ${pixels}`;
  return "";
}

// ofOperation is why an operation cannot be had of a picture of that format, or "".
export function ofOperation(operation, format) {
  return operation.converts && operation.format === format
    ? `Cannot convert ${format} to ${operation.name} — source and target formats are the same` : "";
}

export const noOperation = "At least one operation is required";

// ofParameter is what is wrong with a number, as it was typed, or "".
export function ofParameter(operation, parameter, typed) {
  const value = Number(typed);
  return Number.isInteger(value) && value >= parameter.min && value <= parameter.max
    ? "" : `Invalid operation_params: ${operation.name}.${parameter.name} must be a whole number from ${parameter.min} to ${parameter.max}`;
}
