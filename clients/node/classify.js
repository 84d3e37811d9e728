'use strict';
// One ModelInfer call.
//
//     node classify.js MODEL FILE [ADDRESS]
//
// FILE ends in .json: nested arrays of numbers; anything else: raw little-endian 32-bit floats.

const fs = require('node:fs');
const { Client } = require('./client');
const { encode, decode } = require('./tensors');

// The contents of FILE as an FP32 tensor, in the model's shape where the file does not tell one.
function readTensor(file, input) {
  const { shape, raw } = file.endsWith('.json')
    ? encode(JSON.parse(fs.readFileSync(file, 'utf8')))
    : { shape: [], raw: fs.readFileSync(file) };
  return { raw, shape: shape.length > 1 ? shape : fillShape(input, raw.length / 4) };
}

// The model's shape, its one open size being as large as the contents make it.
function fillShape({ name, shape }, count) {
  if (shape.filter((size) => size < 0).length > 1) {
    throw new Error(`input '${name}' has several open sizes [${shape}]: give nested JSON, which tells them`);
  }
  const known = shape.filter((size) => size >= 0).reduce((product, size) => product * size, 1);
  return shape.map((size) => (size < 0 ? Math.floor(count / known) : size));
}

async function main([model, file, address = 'localhost:8001']) {
  if (!model || !file) {
    throw new Error('usage: node classify.js MODEL FILE.json|FILE [ADDRESS]');
  }
  const client = new Client(address, model);
  try {
    const input = await client.describeInput();
    const response = await client.call('ModelInfer', client.request(input.name, readTensor(file, input)));
    console.log(JSON.stringify(decode(response)));
  } catch (error) {
    throw new Error(client.explain(error));
  } finally {
    client.close();
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`classify: ${error.message}`);
  process.exitCode = 1;
});
