'use strict';
// A client for one model of an Open Inference Protocol v2 server, generated from the public protos when it is loaded.
// A service keeps one for the life of the process: it multiplexes calls, and reconnects by itself.

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTOS = path.join(__dirname, '..', '..', 'protos');
const DEADLINE_MS = 10_000;
// A server that vanished without a word is noticed by pings. Servers with gRPC's default settings refuse more than one
// in five minutes.
const CHANNEL = { 'grpc.keepalive_time_ms': 300_000 };

const { inference } = grpc.loadPackageDefinition(
  protoLoader.loadSync('inference.proto', {
    includeDirs: [PROTOS],
    keepCase: true,
    longs: String,
    enums: String,
    defaults: true,
  }),
);

class Client {
  constructor(address, model) {
    this.address = address;
    this.model = model;
    this.stub = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure(), CHANNEL);
  }

  // The model's one FP32 input, as the server describes it.
  async describeInput() {
    const { inputs } = await this.call('ModelMetadata', { name: this.model });
    if (inputs.length !== 1 || inputs[0].datatype !== 'FP32') {
      throw new Error(`model '${this.model}' takes other things than one FP32 input; this program sends just that`);
    }
    return { name: inputs[0].name, shape: inputs[0].shape.map(Number) };
  }

  // A request for one FP32 tensor. `id` comes back with the response.
  request(name, { shape, raw }, id = '') {
    return {
      model_name: this.model,
      id,
      inputs: [{ name, datatype: 'FP32', shape }],
      raw_input_contents: [raw],
    };
  }

  // One call of a unary method.
  call(method, request) {
    return new Promise((resolve, reject) => {
      this.stub[method](request, { deadline: Date.now() + DEADLINE_MS }, (error, reply) =>
        error ? reject(error) : resolve(reply),
      );
    });
  }

  // A ModelStreamInfer call: a Duplex of requests and responses. It lives as long as its input, so has no deadline.
  stream() {
    return this.stub.ModelStreamInfer();
  }

  close() {
    this.stub.close();
  }

  // The one line for whoever started the program.
  explain(error) {
    if (error.code !== grpc.status.UNAVAILABLE) return error.details ?? error.message;
    return `cannot reach the server at ${this.address}: ${error.details}`;
  }
}

module.exports = { Client };
