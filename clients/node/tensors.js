'use strict';
// Tensors as JSON, and as they travel: raw, little-endian, row-major.

// How many bytes an element takes, and how to read one.
const READERS = {
  BOOL: [1, (view, at) => view.getUint8(at) !== 0],
  UINT8: [1, (view, at) => view.getUint8(at)],
  UINT16: [2, (view, at) => view.getUint16(at, true)],
  UINT32: [4, (view, at) => view.getUint32(at, true)],
  UINT64: [8, (view, at) => String(view.getBigUint64(at, true))],
  INT8: [1, (view, at) => view.getInt8(at)],
  INT16: [2, (view, at) => view.getInt16(at, true)],
  INT32: [4, (view, at) => view.getInt32(at, true)],
  INT64: [8, (view, at) => String(view.getBigInt64(at, true))],
  FP32: [4, (view, at) => float(view.getFloat32(at, true))],
  FP64: [8, (view, at) => float(view.getFloat64(at, true))],
};

// JSON has no NaN and no infinities.
function float(number) {
  return Number.isFinite(number) ? number : String(number);
}

// An FP32 tensor from nested arrays of numbers.
function encode(nested) {
  const shape = [];
  for (let level = nested; Array.isArray(level); level = level[0]) shape.push(level.length);
  if (!isRegular(nested, shape)) throw new Error('not numbers in nested arrays of equal lengths');
  const numbers = [nested].flat(Infinity);
  const raw = Buffer.alloc(numbers.length * 4);
  numbers.forEach((number, index) => raw.writeFloatLE(number, index * 4));
  return { shape, raw };
}

function isRegular(value, [size, ...inner]) {
  if (size === undefined) return typeof value === 'number';
  return Array.isArray(value) && value.length === size && value.every((element) => isRegular(element, inner));
}

// The outputs of a response as JSON holds them, by name. What is no number in JavaScript (BYTES, FP16, BF16) stays as
// it travelled, in base64.
function decode(response) {
  if (response.raw_output_contents.length !== response.outputs.length) {
    throw new Error('the server sent typed contents; this program reads raw ones');
  }
  const outputs = response.outputs.map(({ name, datatype, shape }, index) => {
    const contents = elements(datatype, response.raw_output_contents[index]);
    return [name, { datatype, shape: shape.map(Number), ...contents }];
  });
  return { model: response.model_name, version: response.model_version, outputs: Object.fromEntries(outputs) };
}

function elements(datatype, raw) {
  if (!(datatype in READERS)) return { base64: raw.toString('base64') };
  const [size, read] = READERS[datatype];
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  return { data: Array.from({ length: raw.length / size }, (_, index) => read(view, index * size)) };
}

module.exports = { encode, decode };
