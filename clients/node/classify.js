'use strict';
// Calls one model of an Open Inference Protocol v2 server, through a client generated from the public protos.
//
//     node classify.js MODEL FILE [ADDRESS]
//
// FILE ends in .json: nested arrays of numbers; anything else: raw little-endian 32-bit floats.

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTOS = path.join(__dirname, '..', '..', 'protos');
const DEADLINE_MS = 10_000;

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

function connect(address) {
  const options = { includeDirs: [PROTOS], keepCase: true, longs: String, enums: String, defaults: true };
  const { inference } = grpc.loadPackageDefinition(protoLoader.loadSync('inference.proto', options));
  return new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());
}

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: Date.now() + DEADLINE_MS }, (error, reply) =>
      error ? reject(error) : resolve(reply),
    );
  });
}

// The contents of FILE as raw FP32, and their shape if the file tells it.
function readInput(file) {
  if (!file.endsWith('.json')) return { raw: fs.readFileSync(file), shape: null };
  const nested = JSON.parse(fs.readFileSync(file, 'utf8'));
  const shape = [];
  for (let level = nested; Array.isArray(level); level = level[0]) shape.push(level.length);
  const numbers = [nested].flat(Infinity);
  const raw = Buffer.alloc(numbers.length * 4);
  numbers.forEach((number, index) => raw.writeFloatLE(number, index * 4));
  return { raw, shape: shape.length > 1 ? shape : null };
}

// The model's shape, its one open size being as large as the contents make it.
function fillShape(input, count) {
  const sizes = input.shape.map(Number);
  if (sizes.filter((size) => size < 0).length > 1) {
    throw new Error(`input '${input.name}' has several open sizes [${sizes}]: give nested JSON, which tells them`);
  }
  const known = sizes.filter((size) => size >= 0).reduce((product, size) => product * size, 1);
  return sizes.map((size) => (size < 0 ? Math.floor(count / known) : size));
}

function decode(output, raw) {
  const reader = READERS[output.datatype];
  if (!reader) return { datatype: output.datatype, shape: output.shape.map(Number), base64: raw.toString('base64') };
  const [size, read] = reader;
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  const data = Array.from({ length: raw.length / size }, (_, index) => read(view, index * size));
  return { datatype: output.datatype, shape: output.shape.map(Number), data };
}

// JSON has no NaN and no infinities.
function float(number) {
  return Number.isFinite(number) ? number : String(number);
}

async function classify(client, model, file) {
  const metadata = await call(client, 'ModelMetadata', { name: model });
  const [input] = metadata.inputs;
  if (metadata.inputs.length !== 1 || input.datatype !== 'FP32') {
    throw new Error(`model '${model}' takes other things than one FP32 input; this example sends just that`);
  }
  const { raw, shape } = readInput(file);
  const reply = await call(client, 'ModelInfer', {
    model_name: model,
    inputs: [{ name: input.name, datatype: 'FP32', shape: shape ?? fillShape(input, raw.length / 4) }],
    raw_input_contents: [raw],
  });
  const outputs = reply.outputs.map((output, index) => [output.name, decode(output, reply.raw_output_contents[index])]);
  return { model: reply.model_name, version: reply.model_version, outputs: Object.fromEntries(outputs) };
}

async function main([model, file, address = 'localhost:8001']) {
  if (!model || !file) {
    throw new Error('usage: node classify.js MODEL FILE.json|FILE [ADDRESS]');
  }
  const client = connect(address);
  try {
    console.log(JSON.stringify(await classify(client, model, file)));
  } catch (error) {
    if (error.code !== grpc.status.UNAVAILABLE) throw error;
    throw new Error(`cannot reach the server at ${address}: ${error.details}`);
  } finally {
    client.close();
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`classify: ${error.details ?? error.message}`);
  process.exitCode = 1;
});
